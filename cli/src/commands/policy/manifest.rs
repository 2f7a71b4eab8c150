//! Kubernetes manifests as far as they decide on what runs: Pod, and what makes pods: Deployment, ReplicaSet, ReplicationController,
//! StatefulSet, DaemonSet, Job, CronJob. (kubernetes staging/src/k8s.io/api/core/v1/types.go)

use super::yaml::without_nulls;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Members of a pod's spec that decide on nothing in a guest, or are looked at elsewhere.
const OF_NO_ACCOUNT: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "dnsConfig",
    "dnsPolicy",
    "hostAliases",
    "hostname",
    "imagePullPolicy",
    "imagePullSecrets",
    "lifecycle",
    "nodeName",
    "nodeSelector",
    "os",
    "overhead",
    "ports",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resizePolicy",
    "resources",
    "runAsNonRoot",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "seccompProfile",
    "appArmorProfile",
    "seLinuxOptions",
    "fsGroupChangePolicy",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "subdomain",
    "sysctls",
    "terminationGracePeriodSeconds",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tolerations",
    "topologySpreadConstraints",
];

type Rest = BTreeMap<String, Value>;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSpec {
    pub(super) containers: Vec<Value>,
    pub(super) init_containers: Vec<Value>,
    pub(super) volumes: Vec<Volume>,
    pub(super) restart_policy: String,
    pub(super) automount_service_account_token: Option<bool>,
    pub(super) enable_service_links: Option<bool>,
    pub(super) share_process_namespace: bool,
    pub(super) host_network: bool,
    #[serde(rename = "hostPID")]
    pub(super) host_pid: bool,
    #[serde(rename = "hostIPC")]
    pub(super) host_ipc: bool,
    pub(super) security_context: PodSecurity,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSecurity {
    pub(super) run_as_user: Option<u32>,
    pub(super) run_as_group: Option<u32>,
    pub(super) fs_group: Option<u32>,
    pub(super) supplemental_groups: Vec<u32>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) args: Vec<String>,
    pub(super) working_dir: Option<String>,
    pub(super) env: Vec<EnvVar>,
    pub(super) env_from: Vec<EnvFrom>,
    pub(super) volume_mounts: Vec<VolumeMount>,
    pub(super) volume_devices: Vec<Value>,
    pub(super) security_context: Security,
    pub(super) liveness_probe: Probe,
    pub(super) readiness_probe: Probe,
    pub(super) startup_probe: Probe,
    pub(super) lifecycle: Lifecycle,
    pub(super) restart_policy: String,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Security {
    pub(super) privileged: bool,
    pub(super) run_as_user: Option<u32>,
    pub(super) run_as_group: Option<u32>,
    pub(super) read_only_root_filesystem: bool,
    pub(super) allow_privilege_escalation: Option<bool>,
    pub(super) capabilities: Capabilities,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    pub(super) add: Vec<String>,
    pub(super) drop: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Probe {
    exec: Option<Exec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Lifecycle {
    post_start: Probe,
    pre_stop: Probe,
    pub(super) stop_signal: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Exec {
    command: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EnvVar {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) value_from: Option<ValueFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ValueFrom {
    pub(super) config_map_key_ref: Option<KeyRef>,
    pub(super) secret_key_ref: Option<KeyRef>,
}

#[derive(Debug, Deserialize)]
pub(super) struct KeyRef {
    pub(super) name: String,
    pub(super) key: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EnvFrom {
    pub(super) prefix: String,
    pub(super) config_map_ref: Option<Named>,
    pub(super) secret_ref: Option<Named>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeMount {
    pub(super) name: String,
    pub(super) mount_path: String,
    pub(super) read_only: bool,
    pub(super) sub_path: String,
    pub(super) sub_path_expr: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) empty_dir: Option<Value>,
    pub(super) config_map: Option<Keys>,
    pub(super) secret: Option<Keys>,
    pub(super) projected: Option<Projected>,
    #[serde(rename = "downwardAPI")]
    pub(super) downward_api: Option<Keys>,
    #[serde(flatten)]
    pub(super) rest: Rest,
}

/// Keys of a ConfigMap, a Secret or the downward API, and the files that they become.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Keys {
    pub(super) name: String,
    pub(super) secret_name: String,
    pub(super) items: Vec<Item>,
    pub(super) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Item {
    pub(super) key: String,
    pub(super) path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Projected {
    pub(super) sources: Vec<Source>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Source {
    pub(super) config_map: Option<Keys>,
    pub(super) secret: Option<Keys>,
    #[serde(rename = "downwardAPI")]
    pub(super) downward_api: Option<Keys>,
    pub(super) service_account_token: Option<Item>,
    #[serde(flatten)]
    pub(super) rest: Rest,
}

/// A pod and what it is called.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) title: String,
    pub(super) pod: PodSpec,
    /// Names of volumes that a StatefulSet claims.
    pub(super) claims: Vec<String>,
}

impl Workload {
    /// The one pod of a file, or the one that is called `name`.
    pub(super) fn find(documents: &[Value], name: Option<&str>) -> Result<Self> {
        let all = documents.iter().filter_map(|document| Some((document, pod_spec(document)?)));
        let mut wanted = all.filter(|(document, _)| name.is_none_or(|name| text(document, "/metadata/name") == name));
        let Some((document, pod)) = wanted.next() else {
            let name = name.map(|name| format!(" called {name:?}")).unwrap_or_default();
            bail!("no Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job or CronJob{name} in it");
        };
        let title = |document: &Value| format!("{} {}", text(document, "/kind"), text(document, "/metadata/name"));
        let (title, more) = (title(document), wanted.next().map(|(document, _)| title(document)));
        if let Some(other) = more {
            bail!("{title} and {other} are in it, and a policy is for one pod; choose with --name");
        }
        let pod: PodSpec = serde_json::from_value(without_nulls(pod.clone())).with_context(|| title.clone())?;
        if pod.containers.is_empty() {
            bail!("{title}: no containers");
        }
        let claims = document.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array).into_iter().flatten();
        let claims = claims.map(|claim| text(claim, "/metadata/name").to_owned()).collect();
        Ok(Self { title, pod, claims })
    }
}

impl PodSpec {
    /// What of it nobody here knows.
    pub(super) fn unknown(&self) -> Vec<String> {
        unknown("", &self.rest).chain(unknown("securityContext.", &self.security_context.rest)).collect()
    }
}

impl Container {
    pub(super) fn read(value: &Value) -> Result<Self> {
        let container: Self = serde_json::from_value(value.clone())?;
        match (container.name.is_empty(), container.image.is_empty()) {
            (false, false) => Ok(container),
            (true, _) => bail!("it has no name"),
            _ => bail!("it has no image"),
        }
    }

    /// Commands that kubelet runs in it.
    pub(super) fn commands(&self) -> impl Iterator<Item = &Vec<String>> {
        let probes = [&self.liveness_probe, &self.readiness_probe, &self.startup_probe];
        let hooks = [&self.lifecycle.post_start, &self.lifecycle.pre_stop];
        probes.into_iter().chain(hooks).filter_map(|probe| Some(&probe.exec.as_ref()?.command))
    }

    pub(super) fn unknown(&self) -> Vec<String> {
        unknown("", &self.rest).chain(unknown("securityContext.", &self.security_context.rest)).collect()
    }
}

fn unknown(prefix: &str, rest: &Rest) -> impl Iterator<Item = String> {
    rest.keys().filter(|key| !OF_NO_ACCOUNT.contains(&key.as_str())).map(move |key| format!("{prefix}{key}"))
}

/// Where the pod's spec stands in each kind.
fn pod_spec(document: &Value) -> Option<&Value> {
    document.pointer(match text(document, "/kind") {
        "Pod" => "/spec",
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" | "Job" => "/spec/template/spec",
        "CronJob" => "/spec/jobTemplate/spec/template/spec",
        _ => return None,
    })
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_is_one_pod() {
        let pod = |name: &str| json!({"kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{}]}});
        let error = |documents: &[Value], name| format!("{:#}", Workload::find(documents, name).unwrap_err());
        assert!(error(&[pod("a"), pod("b")], None).contains("--name"));
        assert_eq!(Workload::find(&[pod("a"), pod("b")], Some("b")).unwrap().title, "Pod b");
        assert!(error(&[pod("a")], Some("x")).contains("called \"x\""));
        assert!(error(&[json!({"kind": "Service"})], None).contains("no Pod"));
        assert!(error(&[json!({"kind": "Pod", "spec": {"containers": []}})], None).contains("no containers"));
        assert!(error(&[json!({"kind": "Pod", "spec": {"containers": 1}})], None).contains("Pod"));
        assert!(error(&[json!({"kind": "Pod"}), json!(7)], None).contains("no Pod"));
        let container = |value: Value| format!("{:#}", Container::read(&value).unwrap_err());
        assert!(container(json!({"name": "a"})).contains("image"));
        assert!(container(json!({"name": "a", "image": "i", "env": [{"name": "N", "value": 80}]})).contains("80"));
        assert!(container(json!("x")).contains("invalid type"));
    }
}
