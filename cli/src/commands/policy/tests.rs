//! From a manifest to a policy, and back to the question whether the manifest runs under it.

use super::{draft::ImageFacts, *};

const EXAMPLE: &str = include_str!("example.yaml");

fn draft_of(text: &str, bind: bool) -> Result<Draft> {
    kubernetes::draft(&yaml::documents(text)?, None, bind)
}

fn offline(draft: &mut Draft) -> Result<Vec<ContainerRule>> {
    input::block_on(draft.containers(&Images(None)))
}

fn generated(text: &str, bind: bool) -> String {
    let mut draft = draft_of(text, bind).unwrap();
    let rules = offline(&mut draft).unwrap();
    write::policy(&draft, &rules).unwrap()
}

/// What a pod meets under a policy.
fn refusals(policy: &str, pod: &str) -> Vec<String> {
    let mut draft = draft_of(pod, false).unwrap();
    let rules = offline(&mut draft).unwrap();
    trial::refusals(&Policy::parse(policy).unwrap(), &draft, &rules).unwrap()
}

#[test]
fn a_deployment_becomes_a_policy_that_a_lawyer_can_read() {
    let (app, tls) = (volumes::digest(b"x = 1\n"), volumes::digest(b"certificate"));
    let wanted = format!(
        r#"# Deployment api
[pod]
order = true

[[container]]
name = "migrate"
image.digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111" # ghcr.io/acme/migrate@sha256:1111111111111111111111111111111111111111111111111111111111111111
args = ["/bin/migrate"]
init = true
restart = true
user = "1000::2000"

[[container]]
name = "api"
image.digest = "sha256:2222222222222222222222222222222222222222222222222222222222222222" # ghcr.io/acme/api@sha256:2222222222222222222222222222222222222222222222222222222222222222
add_capabilities = ["CAP_NET_BIND_SERVICE"]
args = ["/bin/api", "--listen", "0.0.0.0:80"]
cwd = "/srv"
drop_capabilities = ["ALL"]
env = ["ADDRESS=0.0.0.0", "MODE=batch", "PASSWORD", "POD_IP"]
files = ["/etc/app/app.toml={app}", "/etc/tls.crt={tls}"]
mounts = ["/cache", "/etc/app"]
no_new_privileges = true
read_only = true
restart = true
user = "1000::2000"

[allow]
env = ["KUBERNETES_*"]
exec = [["/bin/health"]]
"#
    );
    assert_eq!(generated(EXAMPLE, true), wanted);
    assert_eq!(generated(EXAMPLE, true), wanted, "its digest is attested: no variation");
}

/// genpolicy of Kata Containers copies its rules.rego into each policy (src/tools/genpolicy/genpolicy-auto-generated-policy-details.md): so
/// many characters at commit 000851120e51fe5ad4f583ef68e4433080b26d6f, and 40,864 at 0a4b755cd9e22b31cfdbfcb9919b4122b51c26cc, before the
/// first one about the pod.
#[test]
fn it_is_an_order_of_magnitude_shorter_than_the_rules_in_every_policy_of_genpolicy() {
    const RULES_OF_GENPOLICY: usize = 35_251;
    let length = generated(EXAMPLE, true).len();
    assert!(length * 10 < RULES_OF_GENPOLICY, "{length} characters");
}

#[test]
fn what_is_generated_lets_its_own_pod_run_and_no_other() {
    let policy = generated(EXAMPLE, true);
    assert_eq!(refusals(&policy, EXAMPLE), Vec::<String>::new());
    for (from, to, wanted) in [
        ("value: 0.0.0.0", "value: 1.1.1.1", "command line"),
        ("value: 0.0.0.0", "value: 1.1.1.1", "environment variable ADDRESS"),
        ("MODE: batch", "MODE: other", "MODE"),
        ("x = 1\n", "x = 2\n", "file /etc/app/app.toml with content"),
        ("stringData:\n  tls.crt: certificate", "stringData:\n  tls.crt: other", "file /etc/tls.crt with content"),
        ("items: [{key: app.toml, path: app.toml}]", "items: []", "file /etc/app/MODE"),
        ("path: app.toml}", "path: other.toml}", "without file /etc/app/app.toml"),
        ("mountPath: /etc/app}", "mountPath: /etc}", "files at /etc"),
        ("mountPath: /etc/tls.crt, subPath", "mountPath: /bin/sh, subPath", "files at /bin/sh"),
        ("runAsUser: 1000", "runAsUser: 0", "user"),
        ("fsGroup: 2000", "fsGroup: 0", "user"),
        ("drop: [ALL]", "drop: [CHOWN]", "capability"),
        ("add: [NET_BIND_SERVICE]", "add: [SYS_ADMIN]", "capability CAP_SYS_ADMIN"),
        ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "read-only"),
        ("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "no_new_privileges"),
        ("[/bin/health]", "[/bin/sh]", "exec of"),
        ("workingDir: /srv", "workingDir: /", "working directory"),
        ("/cache}", "/other}", "/other"),
        ("api@sha256:2222", "api@sha256:3222", "no [[container]] has this digest"),
        ("- name: api\n", "- name: api\n        tty: true\n", "terminal"),
        ("- name: api\n", "- name: api\n        stdin: true\n", "standard input"),
        ("command: [/bin/migrate]", "command: [/bin/migrate, --all]", "container \"migrate\""),
        ("runtimeClassName: cloister", "shareProcessNamespace: true", "process namespace"),
        ("workingDir: /srv", "workingDir: /srv\n        lifecycle: {stopSignal: SIGUSR1}", "its end: denied by policy: signal 10"),
    ] {
        assert!(EXAMPLE.contains(from), "{from}");
        let refusals = refusals(&policy, &EXAMPLE.replace(from, to)).join("\n");
        assert!(refusals.contains(wanted), "{to}: {refusals}");
    }
    let without = EXAMPLE.replace("      initContainers:\n", "      others:\n");
    assert_ne!(refusals(&policy, &without), Vec::<String>::new(), "the init container is missing");
}

#[test]
fn without_bound_files_any_content_is_taken_and_that_is_said() {
    let policy = generated(EXAMPLE, false);
    assert!(policy.contains("files = [\"/etc/app\", \"/etc/tls.crt\"]"), "{policy}");
    assert_eq!(refusals(&policy, &EXAMPLE.replace("x = 1\n", "x = 2\n")), Vec::<String>::new());
    let notes = draft_of(EXAMPLE, false).unwrap().notes.join("\n");
    assert!(notes.contains("PASSWORD comes from a Secret") && notes.contains("any content at /etc/app"), "{notes}");
    // What is bound and not in the manifest is taken to be right; what is there is compared.
    let bound = generated(EXAMPLE, true);
    let without = EXAMPLE
        .replace("  name: settings\ndata", "  name: elsewhere\ndata")
        .replace("name: settings, key: MODE", "name: elsewhere, key: MODE");
    assert_eq!(refusals(&bound, &without), Vec::<String>::new());
}

#[test]
fn every_kind_that_makes_pods_is_read() {
    let pod = format!("containers: [{{name: a, image: 'r/a@sha256:{}', command: [/a]}}]", "1".repeat(64));
    for kind in ["Deployment", "ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job"] {
        let text = format!("kind: {kind}\nmetadata: {{name: x}}\nspec: {{template: {{spec: {{{pod}}}}}}}\n");
        let policy = generated(&text, false);
        assert!(policy.starts_with(&format!("# {kind} x\n")) && policy.contains("args = [\"/a\"]"), "{policy}");
        assert_eq!(refusals(&policy, &text), Vec::<String>::new(), "{kind}");
    }
    let cron = format!("kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {{spec: {{restartPolicy: Never, {pod}}}}}}}}}}}\n");
    assert!(!generated(&cron, false).contains("restart"));
    let once = format!("kind: Pod\nspec: {{{pod}}}\n");
    assert!(generated(&once, false).contains("restart = true"));
    let list = format!("kind: List\nitems:\n- {{kind: Service}}\n- {{kind: Pod, spec: {{{pod}}}}}\n");
    assert!(generated(&list, false).contains("args = [\"/a\"]"));
    let json = serde_json::to_string(&yaml::documents(&once).unwrap()[0]).unwrap();
    assert_eq!(generated(&json, false), generated(&once, false));
}

#[test]
fn sidecars_stay_and_init_containers_end() {
    let image = format!("r/a@sha256:{}", "1".repeat(64));
    let pod = format!(
        "kind: Pod\nspec:\n  restartPolicy: Never\n  shareProcessNamespace: true\n  initContainers:\n  - {{name: side, image: '{image}', restartPolicy: Always}}\n  \
         - {{name: first, image: '{image}', command: [/first]}}\n  containers:\n  - {{name: main, image: '{image}', command: [/main]}}\n"
    );
    let text = generated(&pod, false);
    let policy = Policy::parse(&text).unwrap();
    let flags: Vec<_> = policy.containers().iter().map(|rule| (rule.name.as_str(), rule.init, rule.restart)).collect();
    assert_eq!(flags, [("side", false, true), ("first", true, false), ("main", false, false)]);
    assert!(text.contains("share_processes = true"), "{text}");
    assert_eq!(refusals(&text, &pod), Vec::<String>::new());
}

#[test]
fn empty_directories_that_containers_share_are_shared_by_name() {
    let image = format!("r/a@sha256:{}", "1".repeat(64));
    let container =
        |name: &str, mounts: &str| format!("  - {{name: {name}, image: '{image}', command: [/{name}], volumeMounts: [{mounts}]}}\n");
    let pod = |second: &str| {
        let (one, two) = (container("one", "{name: x, mountPath: /up}, {name: y, mountPath: /own}"), container("two", second));
        format!(
            "kind: Pod\nspec:\n  containers:\n{one}{two}  volumes: [{{name: x, emptyDir: {{}}}}, {{name: y, emptyDir: {{}}}}, {{name: z}}]\n"
        )
    };
    let shared = pod("{name: x, mountPath: /in, readOnly: true}");
    let policy = generated(&shared, false);
    assert!(policy.contains("shared = [\"/up=x\"]") && policy.contains("shared = [\"/in=x\"]"), "{policy}");
    assert!(policy.contains("mounts = [\"/in:ro\"]") && !policy.contains("=y"), "{policy}");
    assert_eq!(refusals(&policy, &shared), Vec::<String>::new());
    for other in ["y", "z"] {
        let refusals = refusals(&policy, &pod(&format!("{{name: {other}, mountPath: /in, readOnly: true}}"))).join("\n");
        assert!(refusals.contains("the directory at /in of container \"two\""), "{other}: {refusals}");
    }
}

#[test]
fn what_a_policy_cannot_promise_is_refused() {
    for (from, to, wanted) in [
        ("emptyDir: {}", "hostPath: {path: /x}", "hostPath"),
        ("readOnlyRootFilesystem: true", "privileged: true", "privileged"),
        ("api@sha256:2222222222222222222222222222222222222222222222222222222222222222", "api:1", "--offline"),
        ("command: [/bin/api, --listen, \"$(ADDRESS):80\"]", "args: [x]", "--offline"),
        ("runAsUser: 1000\n", "runAsNonRoot: true\n", "--offline"),
        ("\"$(ADDRESS):80\"", "\"$(POD_IP):80\"", "$(POD_IP) is known to the node only"),
        ("configMap: {name: settings", "configMap: {name: other", "cannot be bound"),
        ("runtimeClassName: cloister", "hostNetwork: true", "hostNetwork"),
        ("value: 0.0.0.0", "value: 80", "container \"api\": invalid type: integer `80`"),
        ("runAsUser: 1000", "runAsUser: -1", "-1"),
        ("runAsUser: 1000", "runAsUser: app", "app"),
        ("add: [NET_BIND_SERVICE]", "add: [ALL]", "one by one"),
        ("ghcr.io/acme/api@", "../api@", "image"),
        ("workingDir: /srv", "lifecycle: {stopSignal: SIGNOT}", "SIGNOT"),
    ] {
        assert!(EXAMPLE.contains(from), "{from}");
        let result = draft_of(&EXAMPLE.replace(from, to), true).and_then(|mut draft| {
            let rules = offline(&mut draft)?;
            write::policy(&draft, &rules)
        });
        let error = format!("{:#}", result.expect_err(to));
        assert!(error.contains(wanted) && !error.contains('\n'), "{to}: {error}");
    }
    let notes = draft_of(&EXAMPLE.replace("workingDir: /srv", "newMember: /srv"), true).unwrap().notes.join("\n");
    assert!(notes.contains("api: newMember is not known here"), "{notes}");
}

/// A manifest can be somebody else's chart: whatever is in it, what is written is one policy, and nothing else than it says.
#[test]
fn hostile_names_stay_in_their_strings() {
    let evil = "x\\\"\\n[allow]\\nexec = true\\n#";
    for (from, to) in [
        ("- name: api\n", format!("- name: \"{evil}\"\n")),
        ("  name: api\nspec", format!("  name: \"{evil}\"\nspec")),
        ("value: 0.0.0.0", format!("value: \"{evil}\"")),
        ("workingDir: /srv", format!("workingDir: \"{evil}\"")),
        ("[/bin/health]", format!("[\"{evil}\"]")),
        ("mountPath: /cache", format!("mountPath: \"/{evil}\"")),
    ] {
        assert!(EXAMPLE.contains(from), "{from}");
        let text = generated(&EXAMPLE.replace(from, &to), true);
        let policy = Policy::parse(&text).unwrap();
        assert_eq!(policy.containers().len(), 2, "{text}");
        assert!(policy.exec(&["anything".to_owned()]).is_err(), "{text}");
    }
}

#[test]
fn an_images_own_entrypoint_is_used() {
    let draft = nerdctl::draft(&["r/x:1", "--flag"].map(Into::into), false).unwrap();
    let facts = ImageFacts { digest: format!("sha256:{}", "1".repeat(64)), entrypoint: vec!["/entry".into()], ..ImageFacts::default() };
    let rule = draft.wishes[0].clone().finish(&facts).unwrap();
    let text = write::policy(&draft, &[rule]).unwrap();
    assert!(text.contains("args = [\"/entry\", \"--flag\"]"), "{text}");
    assert!(Policy::parse(&text).is_ok());
}

/// The commands as a user has them.
#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn cloister(words: &[&str]) -> Result<ExitCode> {
    use clap::Parser;
    run(&Cli::try_parse_from([&["policy"][..], words].concat())?.command)
}

#[test]
fn the_commands_do_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (pod, policy, other) = (file("pod.yaml"), file("policy.toml"), file("other.toml"));
    fs::write(&pod, EXAMPLE).unwrap();
    let ok = |words: &[&str]| format!("{:?}", cloister(words).unwrap()) == format!("{:?}", ExitCode::SUCCESS);
    assert!(ok(&["generate", &pod, "--offline", "--bind-files", "--complete-within", "60", "--out", &policy]));
    assert!(fs::read_to_string(&policy).unwrap().contains("complete_within_s = 60"));
    assert!(ok(&["check", &policy]) && ok(&["check", &policy, "--pod", &pod, "--offline", "--json"]) && ok(&["explain", &policy]));
    assert!(ok(&["diff", &policy, &policy]));
    let job = format!("r/job@sha256:{}", "1".repeat(64));
    assert!(ok(&["generate", "--offline", "--out", &other, "--", "nerdctl", "run", "-e", "A=b", &job]));
    assert!(ok(&["check", &other, "--offline", "--", "nerdctl", "run", "-e", "A=b", &job]));
    assert!(!ok(&["check", &other, "--offline", "--", "nerdctl", "run", "-e", "A=c", &job]));
    assert!(!ok(&["check", &other, "--pod", &pod, "--offline"]) && !ok(&["diff", &policy, &other, "--json"]));
    // Secrets for whatever image the host brings: refused, unless the initdata around the policy demands signatures.
    fs::write(&other, "[allow]\nsecrets = [\"token\"]\n").unwrap();
    assert!(!ok(&["check", &other]) && !ok(&["check", &other, "--json"]) && ok(&["explain", &other]));
    assert!(annotation(Path::new(&other), "https://keys.example", None, Tool::Ctr).is_err());
    let initdata = |cdh: &str| {
        let policy = "\"policy.toml\" = '''\n[allow]\nsecrets = [\"token\"]\n'''\n";
        let text = format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n{policy}\"cdh.toml\" = '''\n{cdh}'''\n");
        fs::write(&other, text).unwrap();
    };
    initdata("");
    assert!(format!("{:#}", cloister(&["check", &other]).unwrap_err()).contains("any image could read them"));
    initdata("[image]\nimage_security_policy_uri = \"kbs:///acme/policy/images\"\n");
    assert!(ok(&["check", &other]));
    assert!(cloister(&["generate"]).is_err() && cloister(&["generate", &file("none")]).is_err() && cloister(&["check", &pod]).is_err());
}

#[test]
fn the_annotation_is_what_a_guest_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    fs::write(&path, generated(EXAMPLE, true)).unwrap();
    let of = |tool| annotation(&path, "https://keys.example", None, tool).unwrap();
    let documents = yaml::documents(&of(Tool::Kubectl)).unwrap();
    let value = documents[0].pointer("/metadata/annotations/dev.cloister.initdata").unwrap().as_str().unwrap();
    let (initdata, digest) = policy::Initdata::parse_annotation(value).unwrap();
    assert_eq!(Policy::from_initdata(Some(&initdata)).unwrap().containers().len(), 2);
    assert_eq!(initdata.broker().unwrap().unwrap().url, "https://keys.example");
    assert!(of(Tool::Kubectl).contains(&digest.to_string()));
    assert_eq!(of(Tool::Nerdctl), format!("--annotation dev.cloister.initdata={value}\n"));
    assert_eq!(of(Tool::Ctr), of(Tool::Nerdctl));
}
