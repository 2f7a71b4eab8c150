//! What the agent takes from the host's OCI spec, and what it refuses to do for it.
//!
//! Taken: the process (as overrides of the image's), capabilities, rlimits, resource limits, seccomp, a read-only root, mounts
//! ([`super::mounts`]), kernel parameters, the wish for devices of the guest, which namespaces are the pod's. Made by the agent itself,
//! whatever the spec says: all other namespaces, the default mounts and devices, the cgroup. Ignored: hooks (they are the host's),
//! annotations, labels of security modules. Refused: what the guest cannot or must not do, with one line.

use super::{devices::Access, mounts::Mounts, pod::Shares};
use crate::sysctl;
use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespace, LinuxNamespaceType, LinuxResources,
    LinuxSeccomp, Process, Spec,
};
use std::{collections::BTreeSet, path::Path};
use thiserror::Error;

/// Most arguments, variables, mounts, groups or rlimits of one process; far above what anyone uses, and small against a frame.
pub const MAX_ENTRIES: usize = 16 << 10;
/// Longest path (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// Why a host's spec was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Not an OCI spec.
    #[error("OCI spec from the host: {0}")]
    Json(String),
    /// A field that breaks a rule.
    #[error("OCI spec from the host: {field}: {rule}")]
    Field {
        /// Its path in the spec.
        field: &'static str,
        /// What was expected.
        rule: String,
    },
    /// A directory or file of the host.
    #[error(
        "mount {source_path} at {destination}: a guest has no access to files of the host; remove the mount, or put the files into the image"
    )]
    HostMount {
        /// On the host.
        source_path: String,
        /// In the container.
        destination: String,
    },
    /// A mount type that the agent does not make.
    #[error("mount of type {typ:?} at {destination}: a guest mounts tmpfs and views of its own kernel only; remove the mount")]
    MountType {
        /// Its type.
        typ: String,
        /// In the container.
        destination: String,
    },
    /// A device of the host.
    #[error("device {0}: a guest has no devices of the host, and only character devices of its own to give; remove it")]
    Device(String),
    /// A disk.
    #[error("disk for {0}: the guest has none; PrepareVolumes announces a container's disks before CreateContainer")]
    Disk(String),
    /// A kernel parameter.
    #[error("sysctl {0}: only the kernel parameters of IPC and of the network (net.*) can be set; remove it")]
    Sysctl(String),
}

/// The part of the host's spec that counts.
#[derive(Debug, Clone, Default)]
pub struct HostSpec {
    /// The process that the host wants.
    pub process: Process,
    /// Whether the root file system is to be read-only.
    pub readonly_root: bool,
    /// Mounts.
    pub mounts: Mounts,
    /// Limits.
    pub resources: LinuxResources,
    /// System call filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// Paths to hide; `None` if the spec does not say.
    pub masked_paths: Option<Vec<String>>,
    /// Paths to make read-only; `None` if the spec does not say.
    pub readonly_paths: Option<Vec<String>>,
    /// Which namespaces are to be the pod's.
    pub shares: Shares,
    /// Kernel parameters of IPC and network.
    pub sysctl: Vec<(String, String)>,
    /// Which devices of the guest it wants.
    pub devices: Access,
    /// Where it wants disks; each has to be announced as a volume.
    pub disks: Vec<String>,
}

impl HostSpec {
    /// Reads a spec; every list has a bound and no string can end early.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Spec = serde_json::from_slice(json).map_err(|e| SpecError::Json(e.to_string()))?;
        let mut host = Self::default();
        let process = spec.process().as_ref().ok_or_else(|| field("process", "must be there"))?;
        check_process(process)?;
        host.process = process.clone();
        host.readonly_root = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        host.mounts = Mounts::parse(spec.mounts().as_deref().unwrap_or_default())?;
        if let Some(linux) = spec.linux() {
            host.resources = limits_only(linux.resources().as_ref());
            host.shares = shares(linux.namespaces().as_deref().unwrap_or_default());
            host.seccomp = linux.seccomp().clone();
            check_seccomp(host.seccomp.as_ref())?;
            if let Some(seccomp) = &mut host.seccomp {
                // For a listener, and there is none.
                seccomp.set_listener_metadata(None);
            }
            host.masked_paths = checked_paths("linux.maskedPaths", linux.masked_paths().as_deref())?;
            host.readonly_paths = checked_paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?;
            (host.devices, host.disks) = devices(linux, &mut host.mounts)?;
            let mut sysctl: Vec<(String, String)> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
            sysctl.sort();
            if let Some((name, _)) = sysctl.iter().find(|(name, value)| !is_sysctl(name) || !is_value(value)) {
                return Err(SpecError::Sysctl(printable(name)));
            }
            host.sysctl = sysctl;
        }
        Ok(host)
    }

    /// Parameters of the network, which belongs to the whole pod, and so to its owner.
    pub fn network_sysctls(&self) -> Vec<(String, String)> {
        self.sysctl.iter().filter(|(name, _)| name.starts_with("net.")).cloned().collect()
    }
}

/// A namespace with a path is one that exists: on the host it is that of the pod's first process. The path itself is the host's and means
/// nothing here.
fn shares(namespaces: &[LinuxNamespace]) -> Shares {
    let shared = |typ| namespaces.iter().any(|namespace| namespace.typ() == typ && namespace.path().is_some());
    Shares { ipc: shared(LinuxNamespaceType::Ipc), uts: shared(LinuxNamespaceType::Uts), pid: shared(LinuxNamespaceType::Pid) }
}

/// The names of all capabilities in any of the sets.
pub fn all_capabilities(sets: &LinuxCapabilities) -> BTreeSet<String> {
    [sets.bounding(), sets.effective(), sets.permitted(), sets.inheritable(), sets.ambient()]
        .into_iter()
        .flatten()
        .flatten()
        .map(capability_name)
        .collect()
}

/// `CAP_…`
pub fn capability_name(capability: &Capability) -> String {
    // strum writes the name without its prefix.
    format!("CAP_{capability}")
}

/// Reads the process of an exec.
pub fn parse_process(json: &[u8]) -> Result<Process, SpecError> {
    let process: Process = serde_json::from_slice(json).map_err(|e| SpecError::Json(e.to_string()))?;
    check_process(&process)?;
    Ok(process)
}

/// Reads new limits.
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, SpecError> {
    let resources: LinuxResources = serde_json::from_slice(json).map_err(|e| SpecError::Json(e.to_string()))?;
    Ok(limits_only(Some(&resources)))
}

/// Bounds of a process: lists, and strings that become C strings.
fn check_process(process: &Process) -> Result<(), SpecError> {
    for (name, list) in [("process.args", process.args()), ("process.env", process.env())] {
        let list = list.as_deref().unwrap_or_default();
        bounded(name, list.len())?;
        if list.iter().any(|s| s.contains('\0')) {
            return Err(field(name, "must not hold a NUL"));
        }
    }
    let env = process.env().as_deref().unwrap_or_default();
    if env.iter().any(|e| e.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        return Err(field("process.env", "must be NAME=value"));
    }
    // An empty directory is the image's.
    if !process.cwd().as_os_str().is_empty() {
        path_text("process.cwd", process.cwd())?;
    }
    bounded("process.rlimits", process.rlimits().as_ref().map_or(0, Vec::len))?;
    bounded("process.user.additionalGids", process.user().additional_gids().as_ref().map_or(0, Vec::len))
}

/// A container that may use every device, as `privileged` has it, means every device of the guest. Else what is named beyond the usual
/// ones is looked for in the guest: numbers are the guest's own, whatever the host says. Disks apart; one whose place is not below /dev is
/// mounted there.
fn devices(linux: &Linux, mounts: &mut Mounts) -> Result<(Access, Vec<String>), SpecError> {
    let all = |rule: &LinuxDeviceCgroup| {
        let any = |number: Option<i64>| number.is_none_or(|n| n < 0);
        rule.typ().is_none_or(|typ| typ == LinuxDeviceType::A) && any(rule.major()) && any(rule.minor())
    };
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    // The last rule that speaks of all of them.
    if rules.iter().rfind(|rule| all(rule)).is_some_and(LinuxDeviceCgroup::allow) {
        return Ok((Access::All, Vec::new()));
    }
    let list = linux.devices().as_deref().unwrap_or_default();
    bounded("linux.devices", list.len())?;
    let (mut paths, mut disks) = (Vec::new(), Vec::new());
    for device in list {
        let path = path_text("linux.devices.path", device.path())?;
        if device.typ() == LinuxDeviceType::B && mounts.mount_disk(&path) {
            continue;
        }
        if !path.starts_with("/dev/") || (device.typ() == LinuxDeviceType::B && super::devices::is_usual(&path)) {
            return Err(SpecError::Device(printable(&path)));
        }
        if device.typ() == LinuxDeviceType::B {
            disks.push(path);
        } else if !super::devices::is_usual(&path) && !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok((Access::Some(paths), disks))
}

/// Memory, processor and process limits; the rest of what a cgroup can do is about devices that the guest does not have.
fn limits_only(resources: Option<&LinuxResources>) -> LinuxResources {
    let mut limits = LinuxResources::default();
    if let Some(resources) = resources {
        limits.set_memory(*resources.memory());
        limits.set_cpu(resources.cpu().clone());
        limits.set_pids(*resources.pids());
        limits.set_unified(resources.unified().clone());
    }
    limits.set_devices(None);
    limits
}

fn check_seccomp(seccomp: Option<&LinuxSeccomp>) -> Result<(), SpecError> {
    let Some(seccomp) = seccomp else { return Ok(()) };
    if seccomp.listener_path().is_some() {
        return Err(field("linux.seccomp.listenerPath", "a guest cannot hand system calls to the host; remove it"));
    }
    let rules = seccomp.syscalls().as_deref().unwrap_or_default();
    bounded("linux.seccomp.syscalls", rules.len())?;
    for rule in rules {
        bounded("linux.seccomp.syscalls.names", rule.names().len())?;
        if rule.names().iter().any(|name| name.contains('\0')) {
            return Err(field("linux.seccomp.syscalls.names", "must not hold a NUL"));
        }
    }
    Ok(())
}

fn checked_paths(name: &'static str, paths: Option<&[String]>) -> Result<Option<Vec<String>>, SpecError> {
    let Some(paths) = paths else { return Ok(None) };
    bounded(name, paths.len())?;
    paths.iter().map(|p| path_text(name, Path::new(p))).collect::<Result<_, _>>().map(Some)
}

/// An absolute path in its shortest spelling, without `..`.
pub(super) fn path_text(name: &'static str, path: &Path) -> Result<String, SpecError> {
    let text = path.to_str().ok_or_else(|| field(name, "must be UTF-8"))?;
    let ok = text.len() <= MAX_PATH && text.starts_with('/') && !text.contains('\0') && !text.split('/').any(|part| part == "..");
    if !ok {
        return Err(field(name, format!("must be an absolute path without '..', at most {MAX_PATH} bytes")));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(format!("/{}", parts.join("/")))
}

/// A name is a path below /proc/sys, with dots for slashes.
fn is_sysctl(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let of_namespace = name.starts_with("fs.mqueue.") || name.starts_with("net.");
    sysctl::IPC.contains(&name) || (of_namespace && name.len() <= 256 && !name.contains("..") && name.bytes().all(plain))
}

fn is_value(value: &str) -> bool {
    value.len() <= MAX_PATH && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ' || b == b'\t')
}

pub(super) fn bounded(name: &'static str, length: usize) -> Result<(), SpecError> {
    if length <= MAX_ENTRIES { Ok(()) } else { Err(field(name, format!("at most {MAX_ENTRIES} entries, got {length}"))) }
}

pub(super) fn field(field: &'static str, rule: impl Into<String>) -> SpecError {
    SpecError::Field { field, rule: rule.into() }
}

/// A hostile string for an error text: on one line and not endless.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(change: impl FnOnce(&mut Value)) -> Result<HostSpec, SpecError> {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/x"], "env": ["A=b"], "cwd": "/"},
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf", "options": ["rbind"]},
                {"destination": "/scratch/", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=1m"]}
            ],
            "hooks": {"prestart": [{"path": "/bin/evil"}], "createContainer": [{"path": "/bin/evil"}]},
            "linux": {"resources": {"memory": {"limit": 1000000}, "devices": [{"allow": false, "access": "rwm"}]}}
        });
        change(&mut spec);
        HostSpec::parse(spec.to_string().as_bytes())
    }

    #[test]
    fn an_ordinary_spec_is_taken() {
        let host = parse(|_| ()).unwrap();
        assert!(host.readonly_root);
        assert_eq!(host.mounts.overrides(), ["/scratch"]);
        assert_eq!(host.resources.memory().unwrap().limit(), Some(1_000_000));
        assert_eq!(*host.resources.devices(), None, "rules about devices are the agent's");
    }

    #[test]
    fn devices_are_the_guests_or_none() {
        for (path, typ) in [("/dev/null", "b"), ("/proc", "b"), ("/dev", "b"), ("/etc/passwd", "c"), ("/dev/../etc/x", "c")] {
            let devices = json!([{"path": path, "type": typ, "major": 8, "minor": 0}]);
            assert!(parse(|spec| spec["linux"]["devices"] = devices).is_err(), "{path}");
        }
        let devices = json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}, {"path": "/dev/tpm0", "type": "c", "major": 1},
            {"path": "/dev/xvda", "type": "b", "major": 8}, {"path": "/data", "type": "b", "major": 8}]);
        let host = parse(|spec| spec["linux"]["devices"] = devices).unwrap();
        assert_eq!((host.devices, host.disks), (Access::Some(vec!["/dev/tpm0".to_owned()]), vec!["/dev/xvda".to_owned()]));
        // Not below /dev it is mounted, where a volume is announced for it.
        let error = host.mounts.binds(None).unwrap_err().to_string();
        assert!(error.contains("at /data"), "{error}");
    }

    #[test]
    fn only_the_last_word_on_all_devices_is_privilege() {
        let (deny, allow) = (json!({"allow": false, "access": "rwm"}), json!({"allow": true, "type": "a", "major": -1, "access": "rwm"}));
        let one = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
        for (rules, all) in
            [(json!([deny, one]), false), (json!([deny, allow, one]), true), (json!([allow, deny]), false), (json!([]), false)]
        {
            let host = parse(|spec| spec["linux"]["resources"]["devices"] = rules.clone()).unwrap();
            assert_eq!(host.devices == Access::All, all, "{rules}");
        }
        // The devices that come with it are the host's.
        let host = parse(|spec| {
            spec["linux"]["resources"]["devices"] = json!([allow]);
            spec["linux"]["devices"] = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
        });
        assert_eq!(host.unwrap().devices, Access::All);
    }

    #[test]
    fn hostile_processes_are_refused() {
        let cases = [
            ("args", json!(["a\u{0}b"])),
            ("env", json!(["=x"])),
            ("env", json!(["novalue"])),
            ("cwd", json!("relative")),
            ("cwd", json!("/a/../b")),
            ("args", json!(vec!["x"; MAX_ENTRIES + 1])),
        ];
        for (key, value) in cases {
            assert!(parse(|spec| spec["process"][key] = value.clone()).is_err(), "{key}");
        }
        assert!(HostSpec::parse(b"[").is_err());
        assert!(HostSpec::parse(b"[]").is_err());
    }

    #[test]
    fn only_the_containers_own_kernel_parameters() {
        for (name, ok) in [
            ("kernel.shmmax", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.core_pattern", false),
            ("net.ipv4.ip_forward", true),
            ("net.ipv4.conf.eth0.forwarding", true),
            ("net.../kernel/core_pattern", false),
            ("net..core", false),
            ("fs.mqueue./../x", false),
        ] {
            assert_eq!(parse(|spec| spec["linux"]["sysctl"] = json!({name: "1"})).is_ok(), ok, "{name}");
        }
        assert!(parse(|spec| spec["linux"]["sysctl"] = json!({"kernel.sem": "1\n2"})).is_err());
        let host = parse(|spec| spec["linux"]["sysctl"] = json!({"kernel.shmmax": "1", "net.core.somaxconn": "2"})).unwrap();
        assert_eq!(host.network_sysctls(), [("net.core.somaxconn".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn namespaces_that_exist_are_the_pods() {
        let namespaces = json!([{"type": "ipc", "path": "/proc/7/ns/ipc"}, {"type": "uts", "path": "/proc/7/ns/uts"}, {"type": "pid"}]);
        let host = parse(|spec| spec["linux"]["namespaces"] = namespaces).unwrap();
        assert_eq!(host.shares, Shares { ipc: true, uts: true, pid: false });
        assert_eq!(parse(|_| ()).unwrap().shares, Shares::default());
    }

    #[test]
    fn system_calls_are_not_handed_to_the_host() {
        let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x.sock"});
        assert!(parse(|spec| spec["linux"]["seccomp"] = seccomp).is_err());
    }

    #[test]
    fn capabilities_have_their_prefix() {
        let host = parse(|spec| spec["process"]["capabilities"] = json!({"bounding": ["CAP_SYS_ADMIN"], "ambient": ["CAP_KILL"]})).unwrap();
        let sets = host.process.capabilities().clone().unwrap();
        assert_eq!(all_capabilities(&sets).into_iter().collect::<Vec<_>>(), ["CAP_KILL", "CAP_SYS_ADMIN"]);
    }
}
