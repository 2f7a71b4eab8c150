//! The differential test: a valid pod, and every change of a single field of its requests. Each must be refused, or change nothing of what
//! runs: the runtime spec that the agent makes is then the same, byte for byte.

use crate::{
    containers::{
        bundle::Bundle,
        derive::{self, Accounts, Derived, ImageProcess},
        host_spec::HostSpec,
        pod::Shared,
    },
    secrets::Opened,
};
use policy::{Image, Ledger, Policy, Stdio};
use serde_json::{Value, json};

const DIGEST: &str = "sha256:9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c";

pub(super) const POLICY: &str = r#"
[[container]]
name = "api"
image = { digest = "sha256:9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c9f2c", repository = "ghcr.io/acme/api" }
args = ["/bin/api", "--listen", ":80"]
env = ["MODE=batch"]
user = "1000:1000"
cwd = "/srv"
drop_capabilities = ["CAP_CHOWN", "CAP_SETUID"]
add_capabilities = ["CAP_NET_ADMIN"]
mounts = ["/cache", "/run/locked:mode=0700,ro"]
sysctls = ["kernel.shmmax=1000000"]
read_only = true
no_new_privileges = true
"#;

/// What of the result a host may choose, and is left out of the comparison: limits, as it can starve the whole machine; which container
/// goes first when memory ends; the size of a window; and the container's own hostname as a variable.
pub(super) fn without_limits(mut spec: Value) -> Value {
    let remove = |value: Option<&mut Value>, key: &str| drop(value.and_then(Value::as_object_mut).map(|object| object.remove(key)));
    remove(spec.pointer_mut("/linux"), "resources");
    for key in ["rlimits", "oomScoreAdj", "consoleSize"] {
        remove(spec.pointer_mut("/process"), key);
    }
    if let Some(env) = spec.pointer_mut("/process/env").and_then(Value::as_array_mut) {
        env.retain(|variable| *variable != "HOSTNAME=pod");
    }
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let options = mount["options"].as_array_mut();
        options.into_iter().for_each(|list| list.retain(|option| !option.as_str().is_some_and(|o| o.starts_with("size="))));
    }
    for set in ["bounding", "effective", "permitted"] {
        // A set has no order.
        if let Some(list) = spec.pointer_mut(&format!("/process/capabilities/{set}")).and_then(Value::as_array_mut) {
            list.sort_by_key(ToString::to_string);
        }
    }
    spec
}

pub(super) fn valid() -> Value {
    let without = ["CAP_CHOWN", "CAP_SETUID"];
    let mut capabilities: Vec<&str> = policy::DEFAULT_CAPABILITIES.into_iter().filter(|name| !without.contains(name)).collect();
    capabilities.push("CAP_NET_ADMIN");
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 1000, "gid": 1000, "umask": 18, "additionalGids": []},
            "args": ["/bin/api", "--listen", ":80"],
            "env": ["PATH=/bin", "HOSTNAME=pod", "MODE=batch"],
            "cwd": "/srv",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
            "oomScoreAdj": 100,
            "apparmorProfile": "cri-containerd.apparmor.d"
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "mode=1777", "size=65536k"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/hosts", "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/cache", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m"]},
            {"destination": "/run/locked", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=0700"]}
        ],
        "hooks": {"prestart": [{"path": "/bin/hook"}]},
        "annotations": {"io.kubernetes.cri.container-name": "api"},
        "linux": {
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 100_000_000},
                "cpu": {"shares": 1024, "quota": 100_000, "period": 100_000},
                "pids": {"limit": 100}
            },
            "cgroupsPath": "/kubepods/pod1/c1",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "sysctl": {"kernel.shmmax": "1000000"}
        }
    })
}

pub(super) fn accounts() -> Accounts {
    Accounts { passwd: "app:x:1000:1000::/:\n".into(), group: String::new() }
}

/// The container's process, as the agent derives it for this spec.
pub(super) fn derived(spec: &Value) -> Result<(HostSpec, Derived), String> {
    let process = ImageProcess {
        args: vec!["/bin/api".into()],
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: "app".into(),
        volumes: Vec::new(),
    };
    let host = HostSpec::parse(spec.to_string().as_bytes()).map_err(|e| e.to_string())?;
    let derived = derive::derive(&process, &host, &accounts(), "pod").map_err(|e| e.to_string())?;
    Ok((host, derived))
}

/// What the agent would run for this spec, as the text of its own runtime spec; or the refusal.
pub(super) fn decide(policy: &Policy, spec: &Value, image: &Image, stdio: Stdio) -> Result<String, String> {
    policy.image(image).map_err(|e| e.to_string())?;
    let (host, derived) = derived(spec)?;
    let wanted = derived.wanted(image.clone(), stdio, &accounts());
    Ledger::new(policy.clone()).admit(&wanted).map_err(|e| e.to_string())?;
    let (binds, shared) = (host.mounts.binds(None).map_err(|e| e.to_string())?, Shared::default());
    let bundle = Bundle {
        name: "c1",
        host: &host,
        process: &derived,
        secrets: &Opened::default(),
        hostname: "pod",
        binds: &binds,
        devices: &[],
        open: policy.is_open(),
        shared: &shared,
    };
    let spec = bundle.spec(std::path::Path::new("/rootfs")).map_err(|e| e.to_string())?;
    serde_json::to_value(&spec).map(|value| without_limits(value).to_string()).map_err(|e| e.to_string())
}

pub(super) fn image() -> Image {
    Image { reference: "ghcr.io/acme/api:1".into(), digests: vec![DIGEST.into()] }
}

/// Every change of one place: another value, none, one more.
pub(super) fn mutations(value: &Value, path: &str, out: &mut Vec<(String, Value)>) {
    let mut changed = |label: &str, new: Value| out.push((format!("{path}{label}"), new));
    match value {
        Value::Bool(b) => changed("", json!(!b)),
        Value::Number(n) => {
            for other in [json!(0), json!(n.as_i64().unwrap_or(0) + 1), json!(-1)] {
                if other != *value {
                    changed("", other);
                }
            }
        }
        Value::String(text) => {
            for other in [format!("{text}x"), format!("x{text}"), String::new(), "/evil".into(), "CAP_SYS_ADMIN".into(), "CAP_CHOWN".into()]
            {
                if other != *text {
                    changed("", json!(other));
                }
            }
        }
        Value::Array(items) => {
            changed("[]", json!([]));
            for index in 0..items.len() {
                let mut without = items.clone();
                without.remove(index);
                changed(&format!("/-{index}"), json!(without));
                let mut twice = items.clone();
                twice.push(items[index].clone());
                changed(&format!("/2x{index}"), json!(twice));
            }
            let more = [
                json!("X=evil"),
                json!("/evil"),
                json!("CAP_SYS_ADMIN"),
                json!("CAP_SETUID"),
                json!({"destination": "/evil", "type": "tmpfs", "source": "tmpfs"}),
                json!({"destination": "/evil", "type": "bind", "source": "/", "options": ["rbind"]}),
                json!({"names": ["setuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}),
            ];
            for item in more {
                let mut longer = items.clone();
                longer.push(item);
                changed("/+", json!(longer));
            }
            for (index, item) in items.iter().enumerate() {
                let mut inner = Vec::new();
                mutations(item, &format!("{path}/{index}"), &mut inner);
                out.extend(inner.into_iter().map(|(label, new)| {
                    let mut all = items.clone();
                    all[index] = new;
                    (label, json!(all))
                }));
            }
        }
        Value::Object(members) => {
            for (key, item) in members {
                let mut without = members.clone();
                without.remove(key);
                out.push((format!("{path}/-{key}"), json!(without)));
                let mut inner = Vec::new();
                mutations(item, &format!("{path}/{key}"), &mut inner);
                out.extend(inner.into_iter().map(|(label, new)| {
                    let mut all = members.clone();
                    all.insert(key.clone(), new);
                    (label, json!(all))
                }));
            }
        }
        Value::Null => {}
    }
}

/// Fields that a valid spec leaves out and a host could add, where it has what they belong to.
pub(super) fn additions_to(valid: &Value) -> Vec<(String, Value)> {
    let add = |path: &str, value: Value| {
        let mut spec = valid.clone();
        let (parent, key) = path.rsplit_once('/').unwrap();
        spec.pointer_mut(parent)?[key] = value;
        Some((format!("{path} added"), spec))
    };
    let all = [
        add("/process/capabilities/ambient", json!(["CAP_NET_ADMIN"])),
        add("/process/capabilities/inheritable", json!(["CAP_KILL"])),
        add("/process/capabilities/ambient", json!(["CAP_SYS_ADMIN"])),
        add("/process/user/additionalGids", json!([0, 4])),
        add("/process/selinuxLabel", json!("system_u:system_r:x")),
        add("/linux/devices", json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}])),
        add("/linux/devices", json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}])),
        add("/linux/sysctl/kernel.sem", json!("1 1 1 1")),
        add("/linux/rootfsPropagation", json!("shared")),
        add("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}])),
        add("/linux/intelRdt", json!({"closID": "x"})),
        add("/linux/resources/unified", json!({"memory.max": "1"})),
        add("/hooks/createRuntime", json!([{"path": "/bin/evil"}])),
        add("/hooks/startContainer", json!([{"path": "/bin/evil"}])),
        add("/hooks/poststop", json!([{"path": "/bin/evil"}])),
        add("/annotations/run.oci.hooks.stdout", json!("/x")),
    ];
    all.into_iter().flatten().collect()
}

#[test]
fn every_change_of_a_valid_container_is_refused_or_without_effect() {
    let policy = Policy::parse(POLICY).unwrap();
    let wanted = decide(&policy, &valid(), &image(), Stdio::default()).expect("the pod is valid");
    let mut all = Vec::new();
    mutations(&valid(), "", &mut all);
    all.extend(additions_to(&valid()));
    let (mut refused, mut same, mut wrong) = (0, 0, Vec::new());
    for (label, spec) in &all {
        match decide(&policy, spec, &image(), Stdio::default()) {
            Err(_) => refused += 1,
            Ok(other) if other == wanted => same += 1,
            Ok(other) => wrong.push(format!("{label}: {other}")),
        }
    }
    assert!(wrong.is_empty(), "these run something else than {wanted}:\n{}", wrong.join("\n"));
    assert!(refused > 150 && same > 100, "{refused} refused, {same} without effect");
}

/// The test above can fail: without initdata the same changes change what runs.
#[test]
fn an_open_door_lets_most_of_them_through() {
    let open = Policy::from_initdata(None).unwrap();
    let wanted = decide(&open, &valid(), &image(), Stdio::default()).unwrap();
    let mut all = Vec::new();
    mutations(&valid(), "", &mut all);
    let differs = |spec: &Value| decide(&open, spec, &image(), Stdio::default()).is_ok_and(|other| other != wanted);
    assert!(all.iter().filter(|(_, spec)| differs(spec)).count() > 100);
}

#[test]
fn every_other_field_of_the_request_counts_too() {
    let policy = Policy::parse(POLICY).unwrap();
    let other = |image: Image, stdio: Stdio| decide(&policy, &valid(), &image, stdio).unwrap_err();
    assert!(other(Image { digests: vec![DIGEST.replace('9', "8")], ..image() }, Stdio::default()).contains("image"));
    assert!(other(Image { reference: "ghcr.io/evil/api:1".into(), ..image() }, Stdio::default()).contains("repository"));
    assert!(other(image(), Stdio { stdin: true, ..Stdio::default() }).contains("standard input"));
    assert!(other(image(), Stdio { terminal: true, ..Stdio::default() }).contains("terminal"));
}
