//! From a manifest to a policy, and back to the question whether the manifest runs under it.

use super::*;
use wish::ImageFacts;

const DEPLOYMENT: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {MODE: batch, app.toml: "x = 1\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  template:
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      initContainers:
      - name: migrate
        image: ghcr.io/acme/migrate@sha256:1111111111111111111111111111111111111111111111111111111111111111
        command: [/bin/migrate]
      containers:
      - name: api
        image: ghcr.io/acme/api@sha256:2222222222222222222222222222222222222222222222222222222222222222
        command: [/bin/api, --listen, "$(ADDRESS):80"]
        workingDir: /srv
        env:
        - {name: ADDRESS, value: 0.0.0.0}
        - {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: MODE}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}
        securityContext:
          readOnlyRootFilesystem: true
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
        livenessProbe: {exec: {command: [/bin/health]}}
        volumeMounts:
        - {name: cache, mountPath: /cache}
        - {name: settings, mountPath: /etc/app}
      volumes:
      - {name: cache, emptyDir: {}}
      - {name: settings, configMap: {name: settings, items: [{key: app.toml, path: app.toml}]}}
"#;

fn draft_of(text: &str, bind: bool) -> Result<Draft> {
    kubernetes::draft(&yaml::documents(text)?, bind)
}

fn offline(draft: &Draft) -> Result<Vec<ContainerRule>> {
    input::block_on(draft.containers(&Images::new(&[], true)?))
}

fn generated(text: &str, bind: bool) -> String {
    let draft = draft_of(text, bind).unwrap();
    write::policy(&draft, &offline(&draft).unwrap()).unwrap()
}

#[test]
fn a_deployment_becomes_a_policy_that_a_lawyer_can_read() {
    let text = generated(DEPLOYMENT, true);
    let wanted = r#"# Deployment api
[pod]
order = true

[[container]]
name = "migrate"
image.digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111" # ghcr.io/acme/migrate@sha256:1111111111111111111111111111111111111111111111111111111111111111
args = ["/bin/migrate"]
init = true
restart = true
user = "1000:0:2000"

[[container]]
name = "api"
image.digest = "sha256:2222222222222222222222222222222222222222222222222222222222222222" # ghcr.io/acme/api@sha256:2222222222222222222222222222222222222222222222222222222222222222
add_capabilities = ["CAP_NET_BIND_SERVICE"]
args = ["/bin/api", "--listen", "0.0.0.0:80"]
cwd = "/srv"
drop_capabilities = ["ALL"]
env = ["ADDRESS=0.0.0.0", "MODE=batch", "POD_IP", "PASSWORD"]
files = ["/etc/app/app.toml=sha256:5a7d48b6ba1a2c9e2b4a5d6a5e4b6f4b00000000000000000000000000000000"]
mounts = ["/cache"]
no_new_privileges = true
read_only = true
restart = true
user = "1000:0:2000"

[allow]
env = ["KUBERNETES_*"]
exec = [["/bin/health"]]
"#;
    // The digest of "x = 1\n" is what it is.
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest("x = 1\n"));
    let wanted = wanted.replace("5a7d48b6ba1a2c9e2b4a5d6a5e4b6f4b00000000000000000000000000000000", &digest);
    assert_eq!(text, wanted);
    // genpolicy writes its 1,809 lines of rules into every policy, before the first line about the pod.
    assert!(text.lines().count() < 180, "an order of magnitude shorter");
}

#[test]
fn what_is_generated_lets_its_own_pod_run_and_no_other() {
    let draft = draft_of(DEPLOYMENT, true).unwrap();
    let rules = offline(&draft).unwrap();
    let policy = Policy::parse(&generated(DEPLOYMENT, true)).unwrap();
    assert_eq!(trial::denials(&policy, &draft, &rules), Vec::<String>::new());
    for (from, to, wanted) in [
        ("value: 0.0.0.0", "value: 1.1.1.1", "command line"),
        ("MODE: batch", "MODE: other", "MODE"),
        ("runAsUser: 1000", "runAsUser: 0", "user"),
        ("drop: [ALL]", "drop: [CHOWN]", "capability"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "read-only"),
        ("[/bin/health]", "[/bin/sh]", "exec of"),
        ("workingDir: /srv", "workingDir: /", "working directory"),
        ("/cache}", "/other}", "/other"),
        ("api@sha256:2222", "api@sha256:3222", "no [[container]] has this digest"),
        ("- name: api\n", "- name: api\n        tty: true\n", "terminal"),
    ] {
        assert!(DEPLOYMENT.contains(from), "{from}");
        let other = draft_of(&DEPLOYMENT.replace(from, to), false).unwrap();
        let denials = trial::denials(&policy, &other, &offline(&other).unwrap()).join("\n");
        assert!(denials.contains(wanted), "{to}: {denials}");
    }
}

#[test]
fn every_kind_that_makes_pods_is_read() {
    let pod =
        "containers: [{name: a, image: 'r/a@sha256:1111111111111111111111111111111111111111111111111111111111111111', command: [/a]}]";
    for kind in ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job"] {
        let text = format!("kind: {kind}\nspec: {{template: {{spec: {{{pod}}}}}}}\n");
        assert!(generated(&text, false).contains("args = [\"/a\"]"), "{kind}");
    }
    let cron = format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, {pod}}}}}}}}}}}\n");
    assert!(!generated(&cron, false).contains("restart"));
    assert!(generated(&format!("kind: Pod\nspec: {{{pod}}}\n"), false).contains("restart = true"));
    assert!(draft_of("kind: Service\n", false).unwrap_err().to_string().contains("no Pod"));
}

#[test]
fn what_a_policy_cannot_promise_is_said() {
    for (from, to, wanted) in [
        ("emptyDir: {}", "hostPath: {path: /x}", "hostPath"),
        ("readOnlyRootFilesystem: true", "privileged: true", "privileged"),
        ("api@sha256:2222222222222222222222222222222222222222222222222222222222222222", "api:1", "--offline"),
        ("command: [/bin/api, --listen, \"$(ADDRESS):80\"]", "args: [x]", "--offline"),
        ("configMap: {name: settings", "configMap: {name: other", "cannot be bound"),
    ] {
        let result = draft_of(&DEPLOYMENT.replace(from, to), true).and_then(|draft| offline(&draft));
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains(wanted), "{to}: {error}");
    }
    let notes = draft_of(DEPLOYMENT, false).unwrap().notes.join("\n");
    assert!(notes.contains("PASSWORD comes from a Secret") && notes.contains("--bind-files"), "{notes}");
}

#[test]
fn an_images_own_entrypoint_is_used() {
    let draft = nerdctl::draft(&["r/x:1", "--flag"].map(Into::into)).unwrap();
    let facts = ImageFacts { digest: format!("sha256:{}", "1".repeat(64)), entrypoint: vec!["/entry".into()], ..ImageFacts::default() };
    let rule = draft.wishes[0].clone().finish(&facts, None).unwrap();
    let text = write::policy(&draft, &[rule]).unwrap();
    assert!(text.contains("args = [\"/entry\", \"--flag\"]"), "{text}");
    assert!(Policy::parse(&text).is_ok());
}
