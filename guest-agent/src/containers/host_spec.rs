//! What the agent takes from the host's OCI spec, and what it refuses to do for it.
//!
//! Taken: the process (as overrides of the image's), capabilities, rlimits, resource limits, seccomp, a read-only root, tmpfs mounts,
//! the hostname. Made by the agent itself, whatever the spec says: namespaces, the default mounts, devices, the cgroup. Ignored: hooks
//! (they are the host's), annotations, labels of security modules. Refused: what the guest cannot or must not do, with one line.

use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxDeviceType, LinuxResources, LinuxSeccomp, Mount, Process, Spec};
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
    #[error("mount of type {typ:?} at {destination}: only tmpfs can be added; remove the mount")]
    MountType {
        /// Its type.
        typ: String,
        /// In the container.
        destination: String,
    },
    /// A device of the host.
    #[error("device {0}: a guest has no devices of the host; remove it (and --privileged, which adds them all)")]
    Device(String),
    /// A kernel parameter.
    #[error("sysctl {0}: only the kernel parameters of the container's own IPC namespace can be set; remove it")]
    Sysctl(String),
}

/// The part of the host's spec that counts.
#[derive(Debug, Clone, Default)]
pub struct HostSpec {
    /// The process that the host wants.
    pub process: Process,
    /// Whether the root file system is to be read-only.
    pub readonly_root: bool,
    /// Additional tmpfs mounts: destination and options.
    pub tmpfs: Vec<(String, Vec<String>)>,
    /// Limits.
    pub resources: LinuxResources,
    /// System call filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// Paths to hide; `None` if the spec does not say.
    pub masked_paths: Option<Vec<String>>,
    /// Paths to make read-only; `None` if the spec does not say.
    pub readonly_paths: Option<Vec<String>>,
    /// Kernel parameters of the IPC namespace.
    pub sysctl: Vec<(String, String)>,
}

/// Destinations that runtimes always mount and that the agent provides itself.
const OWN_MOUNTS: &[&str] = &["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/run"];
/// Files that nerdctl and CRI bind from the host and that the agent writes itself.
const OWN_FILES: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"];
/// Devices that every container has anyway.
const OWN_DEVICES: &[&str] =
    &["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/urandom", "/dev/random", "/dev/console", "/dev/ptmx"];
/// Options of a tmpfs that may come from the host, beside `size=`, `mode=` and `nr_inodes=`.
const TMPFS_OPTIONS: &[&str] = &["nosuid", "nodev", "noexec", "ro", "rw", "relatime", "noatime", "strictatime"];
/// IPC parameters that belong to the namespace (ipc_namespaces(7)).
const IPC_SYSCTLS: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

impl HostSpec {
    /// Reads a spec; every list has a bound and no string can end early.
    pub fn parse(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Spec = serde_json::from_slice(json).map_err(|e| SpecError::Json(e.to_string()))?;
        let mut host = Self::default();
        let process = spec.process().as_ref().ok_or_else(|| field("process", "must be there"))?;
        check_process(process)?;
        host.process = process.clone();
        host.readonly_root = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        bounded("mounts", mounts.len())?;
        for mount in mounts {
            host.take_mount(mount)?;
        }
        if let Some(linux) = spec.linux() {
            host.resources = limits_only(linux.resources().as_ref());
            host.seccomp = linux.seccomp().clone();
            check_seccomp(host.seccomp.as_ref())?;
            host.masked_paths = checked_paths("linux.maskedPaths", linux.masked_paths().as_deref())?;
            host.readonly_paths = checked_paths("linux.readonlyPaths", linux.readonly_paths().as_deref())?;
            for device in linux.devices().iter().flatten() {
                let path = device.path().display().to_string();
                if device.typ() == LinuxDeviceType::B || !OWN_DEVICES.contains(&path.as_str()) {
                    return Err(SpecError::Device(printable(&path)));
                }
            }
            let mut sysctl: Vec<(String, String)> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
            sysctl.sort();
            if let Some((name, _)) = sysctl.iter().find(|(name, value)| !is_ipc_sysctl(name) || value.len() > MAX_PATH) {
                return Err(SpecError::Sysctl(printable(name)));
            }
            host.sysctl = sysctl;
        }
        Ok(host)
    }

    fn take_mount(&mut self, mount: &Mount) -> Result<(), SpecError> {
        let destination = path_text("mounts.destination", mount.destination())?;
        let typ = mount.typ().clone().unwrap_or_default();
        let options = mount.options().clone().unwrap_or_default();
        if OWN_MOUNTS.contains(&destination.as_str()) || OWN_FILES.contains(&destination.as_str()) {
            return Ok(());
        }
        if typ == "bind" || options.iter().any(|o| o == "bind" || o == "rbind") {
            let source = mount.source().as_deref().unwrap_or(Path::new("?")).display().to_string();
            return Err(SpecError::HostMount { source_path: printable(&source), destination: printable(&destination) });
        }
        if typ != "tmpfs" {
            return Err(SpecError::MountType { typ: printable(&typ), destination: printable(&destination) });
        }
        bounded("mounts.options", options.len())?;
        if let Some(bad) = options.iter().find(|o| !is_tmpfs_option(o)) {
            return Err(field("mounts.options", format!("{:?} is not an option of tmpfs that can be set", printable(bad))));
        }
        self.tmpfs.push((destination, options));
        Ok(())
    }

    /// The additional mounts as a policy spells them: the destination, and after a colon the options that change more than a size.
    pub fn mount_names(&self) -> Vec<String> {
        let name = |(destination, options): &(String, Vec<String>)| {
            let mut named = named_options(options);
            named.sort_unstable();
            if named.is_empty() { destination.clone() } else { format!("{destination}:{}", named.join(",")) }
        };
        self.tmpfs.iter().map(name).collect()
    }
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

/// Memory, processor and process limits; the rest of what a cgroup can do is about devices that the guest does not have.
fn limits_only(resources: Option<&LinuxResources>) -> LinuxResources {
    let mut limits = LinuxResources::default();
    if let Some(resources) = resources {
        limits.set_memory(*resources.memory());
        limits.set_cpu(resources.cpu().clone());
        limits.set_pids(*resources.pids());
    }
    limits.set_devices(None);
    limits
}

fn check_seccomp(seccomp: Option<&LinuxSeccomp>) -> Result<(), SpecError> {
    let Some(seccomp) = seccomp else { return Ok(()) };
    if seccomp.listener_path().is_some() {
        return Err(field("linux.seccomp.listenerPath", "a guest cannot hand system calls to the host; remove it"));
    }
    bounded("linux.seccomp.syscalls", seccomp.syscalls().as_ref().map_or(0, Vec::len))
}

fn checked_paths(name: &'static str, paths: Option<&[String]>) -> Result<Option<Vec<String>>, SpecError> {
    let Some(paths) = paths else { return Ok(None) };
    bounded(name, paths.len())?;
    paths.iter().map(|p| path_text(name, Path::new(p))).collect::<Result<_, _>>().map(Some)
}

/// An absolute path in its shortest spelling, without `..`.
fn path_text(name: &'static str, path: &Path) -> Result<String, SpecError> {
    let text = path.to_str().ok_or_else(|| field(name, "must be UTF-8"))?;
    let ok = text.len() <= MAX_PATH && text.starts_with('/') && !text.contains('\0') && !text.split('/').any(|part| part == "..");
    if !ok {
        return Err(field(name, format!("must be an absolute path without '..', at most {MAX_PATH} bytes")));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok(format!("/{}", parts.join("/")))
}

/// The options of a tmpfs that a policy names. Its size is a limit like that of memory; the others that a host may set are the agent's
/// choice behind a closed door.
pub fn named_options(options: &[String]) -> Vec<String> {
    let named =
        |option: &&String| option.starts_with("mode=") || option.starts_with("nr_inodes=") || ["ro", "noexec"].contains(&option.as_str());
    options.iter().filter(named).cloned().collect()
}

fn is_tmpfs_option(option: &str) -> bool {
    let value_ok = |value: &str| !value.is_empty() && value.len() <= 20 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'%');
    match option.split_once('=') {
        Some((key, value)) => matches!(key, "size" | "mode" | "nr_inodes") && value_ok(value),
        None => TMPFS_OPTIONS.contains(&option),
    }
}

fn is_ipc_sysctl(name: &str) -> bool {
    IPC_SYSCTLS.contains(&name) || (name.starts_with("fs.mqueue.") && name.bytes().all(|b| b.is_ascii_lowercase() || b"._".contains(&b)))
}

fn bounded(name: &'static str, length: usize) -> Result<(), SpecError> {
    if length <= MAX_ENTRIES { Ok(()) } else { Err(field(name, format!("at most {MAX_ENTRIES} entries, got {length}"))) }
}

fn field(field: &'static str, rule: impl Into<String>) -> SpecError {
    SpecError::Field { field, rule: rule.into() }
}

/// A hostile string for an error text: on one line and not endless.
fn printable(text: &str) -> String {
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
            "linux": {"resources": {"memory": {"limit": 1000000}, "devices": [{"allow": true, "access": "rwm"}]}}
        });
        change(&mut spec);
        HostSpec::parse(spec.to_string().as_bytes())
    }

    #[test]
    fn an_ordinary_spec_is_taken() {
        let host = parse(|_| ()).unwrap();
        assert!(host.readonly_root);
        assert_eq!(host.tmpfs, [("/scratch".to_owned(), vec!["nosuid".to_owned(), "size=1m".to_owned()])]);
        assert_eq!(host.resources.memory().unwrap().limit(), Some(1_000_000));
        assert_eq!(*host.resources.devices(), None, "rules about devices are the agent's");
    }

    #[test]
    fn files_of_the_host_are_refused_by_name() {
        let mount = json!([{"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]}]);
        let error = parse(|spec| spec["mounts"] = mount).unwrap_err().to_string();
        assert!(error.contains("/srv/data") && error.contains("/data") && !error.contains('\n'), "{error}");
        let error = parse(|spec| spec["mounts"] = json!([{"destination": "/x", "type": "nfs", "source": "h:/x"}])).unwrap_err();
        assert!(matches!(error, SpecError::MountType { .. }));
    }

    #[test]
    fn mount_options_carry_nothing_else() {
        for option in ["size=1m,suid", "context=x", "mode=0\u{0}", "lowerdir=/", "bind", "size=", "dev"] {
            let mount = json!([{"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": [option]}]);
            assert!(parse(|spec| spec["mounts"] = mount).is_err(), "{option:?}");
        }
    }

    #[test]
    fn devices_of_the_host_are_refused() {
        for (path, typ) in [("/dev/sda", "b"), ("/dev/kvm", "c"), ("/dev/null", "b")] {
            let devices = json!([{"path": path, "type": typ, "major": 8, "minor": 0}]);
            assert!(matches!(parse(|spec| spec["linux"]["devices"] = devices), Err(SpecError::Device(_))), "{path}");
        }
        let null = json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3}]);
        assert!(parse(|spec| spec["linux"]["devices"] = null).is_ok());
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
            ("net.ipv4.ip_forward", false),
            ("fs.mqueue./../x", false),
        ] {
            assert_eq!(parse(|spec| spec["linux"]["sysctl"] = json!({name: "1"})).is_ok(), ok, "{name}");
        }
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
