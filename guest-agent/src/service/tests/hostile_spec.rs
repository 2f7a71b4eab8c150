//! Each field of the host's spec hostile or missing, at an open door: it is refused in one line, or what runs is in the agent's own root, cgroup
//! and namespaces all the same.

use super::{
    super::Failure,
    mutations::{decide, image},
};
use policy::{Policy, Stdio};
use serde_json::Value;
use ttrpc::Code;

#[path = "../../../../protocol/testdata/hostile.rs"]
mod hostile;

fn is_contained(spec: &Value) -> Result<(), String> {
    let absent = |at: &str| spec.pointer(at).is_none_or(Value::is_null);
    for at in ["/hooks", "/annotations", "/linux/uidMappings", "/linux/gidMappings", "/linux/rootfsPropagation", "/linux/intelRdt"] {
        if !absent(at) {
            return Err(format!("{at} is the host's"));
        }
    }
    if spec["root"]["path"] != "/rootfs" || spec["linux"]["cgroupsPath"] != "/cloister/c1" {
        return Err("root or cgroup is the host's".to_owned());
    }
    let list = |at: &str| spec.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    if list("/linux/namespaces").iter().any(|namespace| !namespace["path"].is_null() || namespace["type"] == "network") {
        return Err("a namespace is the host's".to_owned());
    }
    if !list("/linux/devices").is_empty() || list("/mounts").iter().any(|mount| mount["type"] == "bind") {
        return Err("a device or a file is the host's".to_owned());
    }
    let cwd = spec["process"]["cwd"].as_str().unwrap_or_default();
    if !cwd.starts_with('/') || cwd.split('/').any(|part| part == "..") || list("/process/args").is_empty() {
        return Err(format!("the process is none: {}", spec["process"]));
    }
    let text = spec.to_string();
    if text.contains("\\u0000") { Err("a NUL".to_owned()) } else { Ok(()) }
}

#[test]
fn each_field_hostile_or_missing_is_refused_or_contained() {
    let open = Policy::from_initdata(None).unwrap();
    let decided = |spec: &Value| decide(&open, spec, &image(), Stdio::default());
    let right: Value = serde_json::from_str(&decided(&hostile::right()).unwrap()).unwrap();
    is_contained(&right).unwrap();
    let (mut taken, mut refused, mut wrong) = (0, 0, Vec::new());
    for (what, spec) in hostile::wrong() {
        match decided(&spec) {
            Ok(text) => {
                taken += 1;
                let made: Value = serde_json::from_str(&text).unwrap();
                wrong.extend(is_contained(&made).err().map(|why| format!("{what}: {why}")));
            }
            Err(error) => {
                refused += 1;
                let status = Failure::new(Code::INVALID_ARGUMENT, error).into_status();
                let line = status.message();
                assert!(!line.is_empty() && line.len() <= 4096 && !line.chars().any(char::is_control), "{what}: {line:?}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(taken > 500 && refused > 500, "{taken} taken, {refused} refused");
}
