//! The OCI bundle that the agent makes for libcontainer: everything in it is the agent's own choice.

use crate::{
    containers::{
        cgroup::Cgroup,
        derive::{Derived, capability_sets},
        host_spec::{HostSpec, named_options},
    },
    secrets::Opened,
};
use oci_spec::{
    OciSpecError,
    runtime::{
        Linux, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Mount, MountBuilder, Process, ProcessBuilder, Root, RootBuilder,
        Spec, User, UserBuilder,
    },
};
use std::path::Path;

/// Hidden from every container, unless the open door's host says otherwise: those of containerd.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Destination, type, source, options.
const MOUNTS: &[(&str, &str, &str, &[&str])] = &[
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ("/run", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
];

/// Lowest `oom_score_adj` of a container: the agent itself has -1000, and must be the last to go.
const MIN_OOM_SCORE: i32 = -999;

/// What a bundle is made of.
pub struct Bundle<'a> {
    /// The container's internal name.
    pub name: &'a str,
    /// The host's spec, as far as it counts.
    pub host: &'a HostSpec,
    /// The process.
    pub process: &'a Derived,
    /// What was sealed in its environment.
    pub secrets: &'a Opened,
    /// The hostname inside.
    pub hostname: &'a str,
    /// Whether the host may choose what no policy speaks of: only where nothing is protected from it anyway.
    pub open: bool,
}

impl Bundle<'_> {
    /// The runtime spec for a root file system at `rootfs`.
    pub fn spec(&self, rootfs: &Path) -> Result<Spec, OciSpecError> {
        let mut spec = Spec::default();
        spec.set_version("1.0.2".to_owned());
        let root: Root = RootBuilder::default().path(rootfs).readonly(self.host.readonly_root).build()?;
        spec.set_root(Some(root));
        spec.set_hostname(Some(self.hostname.to_owned()));
        spec.set_process(Some(process(self.process, &self.host.process, self.secrets, self.open)?));
        spec.set_mounts(Some(self.mounts()?));
        spec.set_linux(Some(self.linux()?));
        spec.set_hooks(None);
        spec.set_annotations(None);
        Ok(spec)
    }

    fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let mut mounts = Vec::new();
        for (destination, typ, source, options) in MOUNTS {
            let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
            mounts.push(mount(destination, typ, source, options)?);
        }
        for (destination, options) in &self.host.tmpfs {
            let mut chosen = if self.open { options.clone() } else { named_options(options) };
            chosen.extend(options.iter().filter(|o| !self.open && o.starts_with("size=")).cloned());
            // Never a way to devices, whatever the host's options leave out.
            let options = [chosen, vec!["nosuid".into(), "nodev".into()]].concat();
            mounts.push(mount(destination, "tmpfs", "tmpfs", options)?);
        }
        Ok(mounts)
    }

    fn linux(&self) -> Result<Linux, OciSpecError> {
        let mut linux = Linux::default();
        // The network is the guest's own: the pod is the machine.
        let new = [
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Ipc,
            LinuxNamespaceType::Uts,
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Cgroup,
        ];
        let namespaces = new.into_iter().map(|typ| LinuxNamespaceBuilder::default().typ(typ).build()).collect::<Result<_, _>>()?;
        linux.set_namespaces(Some(namespaces));
        linux.set_cgroups_path(Some(Cgroup::spec_path(self.name)));
        linux.set_resources(Some(self.host.resources.clone()));
        linux.set_seccomp(self.seccomp());
        linux.set_devices(None);
        linux.set_uid_mappings(None);
        linux.set_gid_mappings(None);
        linux.set_rootfs_propagation(None);
        linux.set_mount_label(None);
        let sysctl = self.host.sysctl.iter().cloned().collect();
        linux.set_sysctl(Some(sysctl));
        linux.set_masked_paths(Some(self.paths(MASKED, self.host.masked_paths.as_ref())));
        linux.set_readonly_paths(Some(self.paths(READONLY, self.host.readonly_paths.as_ref())));
        Ok(linux)
    }

    /// The host's filter of system calls, where the door is open. Behind a closed one it would be a weapon: a filter that answers
    /// "done" to setuid(2), or makes it fail, changes what a program is, and no policy could list it.
    pub fn seccomp(&self) -> Option<LinuxSeccomp> {
        self.host.seccomp.clone().filter(|_| self.open)
    }

    /// What is hidden is the host's choice where the door is open. Behind a closed one it could hide the file in which a program's own
    /// rules stand.
    fn paths(&self, default: &[&str], wanted: Option<&Vec<String>>) -> Vec<String> {
        match wanted {
            Some(wanted) if self.open => wanted.clone(),
            _ => default.iter().map(|p| (*p).to_owned()).collect(),
        }
    }
}

fn mount(destination: &str, typ: &str, source: &str, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default().destination(destination).typ(typ).source(source).options(options).build()
}

/// The OCI process of a derived one. `host` says what is not a matter of the image: rlimits, the terminal, and, where the door is `open`,
/// the capability sets as they stand and the umask.
pub fn process(derived: &Derived, host: &Process, secrets: &Opened, open: bool) -> Result<Process, OciSpecError> {
    let mut user: User =
        UserBuilder::default().uid(derived.ids.uid).gid(derived.ids.gid).additional_gids(derived.ids.groups.clone()).build()?;
    user.set_umask(host.user().umask().filter(|mask| open && *mask <= 0o777));
    let mut env = secrets.apply(&derived.env);
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", derived.home));
    }
    let mut process = ProcessBuilder::default()
        .terminal(host.terminal().unwrap_or(false))
        .user(user)
        .args(derived.args.clone())
        .env(env)
        .cwd(&derived.cwd)
        .capabilities(host.capabilities().clone().filter(|_| open).unwrap_or_else(|| capability_sets(&derived.capabilities)))
        .rlimits(host.rlimits().clone().unwrap_or_default())
        .oom_score_adj(host.oom_score_adj().unwrap_or(0).clamp(MIN_OOM_SCORE, 1000))
        .build()?;
    process.set_console_size(host.console_size());
    // An unset and a false flag differ for libcontainer: they decide when the system call filter is installed.
    process.set_no_new_privileges(Some(derived.no_new_privileges).filter(|set| *set));
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(host: &HostSpec, open: bool) -> Spec {
        let capabilities = ["CAP_CHOWN".to_owned()].into();
        let process = Derived { args: vec!["/bin/x".into()], cwd: "/".into(), capabilities, ..Derived::default() };
        Bundle { name: "c1", host, process: &process, secrets: &Opened::default(), hostname: "pod", open }
            .spec(Path::new("/rootfs"))
            .unwrap()
    }

    fn host(linux: serde_json::Value) -> HostSpec {
        let spec = json!({"ociVersion": "1.0.2", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"}, "linux": linux});
        HostSpec::parse(spec.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn namespaces_are_new_whatever_the_host_says() {
        let host = host(json!({"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "user"}]}));
        let spec = spec(&host, true);
        let namespaces = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
        assert_eq!(namespaces.len(), 5);
        assert!(namespaces.iter().all(|n| n.path().is_none()));
        assert!(spec.hooks().is_none());
    }

    #[test]
    fn only_an_open_door_uncovers_what_is_hidden() {
        let host = host(json!({"maskedPaths": ["/proc/mine"], "readonlyPaths": []}));
        let masked = |open| spec(&host, open).linux().as_ref().unwrap().masked_paths().clone().unwrap();
        assert_eq!(masked(true), ["/proc/mine"]);
        assert!(masked(false).contains(&"/proc/kcore".to_owned()) && !masked(false).contains(&"/proc/mine".to_owned()));
        let readonly = spec(&host, false).linux().as_ref().unwrap().readonly_paths().clone().unwrap();
        assert!(readonly.contains(&"/proc/sysrq-trigger".to_owned()));
    }

    #[test]
    fn the_agent_outlives_every_container() {
        let mut host = host(json!({}));
        host.process.set_oom_score_adj(Some(-1000));
        let spec = spec(&host, true);
        assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(-999));
    }

    #[test]
    fn a_closed_door_makes_the_capability_sets_itself() {
        let mut host = host(json!({}));
        host.process.set_capabilities(None);
        let derived = capability_sets(&["CAP_CHOWN".to_owned()].into());
        let sets = |spec: Spec| spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(sets(spec(&host, true)), derived);
        let mut ambient = derived.clone();
        ambient.set_ambient(Some([oci_spec::runtime::Capability::Chown].into()));
        host.process.set_capabilities(Some(ambient.clone()));
        assert_eq!(sets(spec(&host, true)), ambient);
        assert_eq!(sets(spec(&host, false)), derived);
    }
}
