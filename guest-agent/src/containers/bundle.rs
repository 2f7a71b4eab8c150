//! The OCI bundle that the agent makes for libcontainer: everything in it is the agent's own choice.

use crate::containers::{
    cgroup::Cgroup,
    derive::{Derived, default_capabilities},
    host_spec::HostSpec,
    pod::Shared,
};
use oci_spec::{
    OciSpecError,
    runtime::{
        Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Process, ProcessBuilder, Root, RootBuilder,
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
    /// The hostname inside.
    pub hostname: &'a str,
    /// Whether the host may weaken what is hidden: only where nothing is protected from it anyway.
    pub open: bool,
    /// What is its pod's.
    pub shared: &'a Shared,
}

impl Bundle<'_> {
    /// The runtime spec for a root file system at `rootfs`.
    pub fn spec(&self, rootfs: &Path) -> Result<Spec, OciSpecError> {
        let mut spec = Spec::default();
        spec.set_version("1.0.2".to_owned());
        let root: Root = RootBuilder::default().path(rootfs).readonly(self.host.readonly_root).build()?;
        spec.set_root(Some(root));
        // In the machine's own namespace it is set already, and libcontainer refuses to set it there.
        spec.set_hostname((!self.shared.uts).then(|| self.hostname.to_owned()));
        spec.set_process(Some(process(self.process, &self.host.process)?));
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
            if let (&"/dev/shm", Some(shm)) = (destination, self.shared.ipc.as_deref().and_then(Path::to_str)) {
                let options = ["rbind", "nosuid", "noexec", "nodev"].map(str::to_owned);
                mounts.push(mount(destination, "bind", shm, options.into())?);
                continue;
            }
            mounts.push(mount(destination, typ, source, options)?);
        }
        for (destination, options) in &self.host.tmpfs {
            // Never a way to devices, whatever the host's options leave out.
            let options = [options.clone(), vec!["nosuid".into(), "nodev".into()]].concat();
            mounts.push(mount(destination, "tmpfs", "tmpfs", options)?);
        }
        Ok(mounts)
    }

    fn linux(&self) -> Result<Linux, OciSpecError> {
        let mut linux = Linux::default();
        linux.set_namespaces(Some(self.namespaces()?));
        linux.set_cgroups_path(Some(Cgroup::spec_path(self.name)));
        linux.set_resources(Some(self.host.resources.clone()));
        linux.set_seccomp(self.host.seccomp.clone());
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

    /// The network is the machine's, which is the pod; so is whatever else is shared, but for processes, among which the agent's would be.
    fn namespaces(&self) -> Result<Vec<LinuxNamespace>, OciSpecError> {
        let new = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
        let mut namespaces = vec![new(LinuxNamespaceType::Mount)?, new(LinuxNamespaceType::Cgroup)?];
        if self.shared.ipc.is_none() {
            namespaces.push(new(LinuxNamespaceType::Ipc)?);
        }
        if !self.shared.uts {
            namespaces.push(new(LinuxNamespaceType::Uts)?);
        }
        let pid = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid);
        namespaces.push(match &self.shared.pid {
            Some(path) => pid.path(path).build()?,
            None => pid.build()?,
        });
        Ok(namespaces)
    }

    /// The host may add to what is hidden; it may take away only where the door is open.
    fn paths(&self, default: &[&str], wanted: Option<&Vec<String>>) -> Vec<String> {
        if let (true, Some(wanted)) = (self.open, wanted) {
            return wanted.clone();
        }
        let mut paths: Vec<String> = default.iter().map(|p| (*p).to_owned()).collect();
        paths.extend(wanted.into_iter().flatten().filter(|p| !default.contains(&p.as_str())).cloned());
        paths
    }
}

fn mount(destination: &str, typ: &str, source: &str, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default().destination(destination).typ(typ).source(source).options(options).build()
}

/// The OCI process of a derived one. `host` says what is not a matter of the image: capabilities, rlimits, the terminal.
pub fn process(derived: &Derived, host: &Process) -> Result<Process, OciSpecError> {
    let mut user: User =
        UserBuilder::default().uid(derived.ids.uid).gid(derived.ids.gid).additional_gids(derived.ids.groups.clone()).build()?;
    user.set_umask(host.user().umask().filter(|mask| *mask <= 0o777));
    let mut env = derived.env.clone();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", derived.home));
    }
    let mut process = ProcessBuilder::default()
        .terminal(host.terminal().unwrap_or(false))
        .user(user)
        .args(derived.args.clone())
        .env(env)
        .cwd(&derived.cwd)
        .capabilities(host.capabilities().clone().unwrap_or_else(default_capabilities))
        .rlimits(host.rlimits().clone().unwrap_or_default())
        .oom_score_adj(host.oom_score_adj().unwrap_or(0).clamp(MIN_OOM_SCORE, 1000))
        .build()?;
    process.set_console_size(host.console_size());
    // An unset and a false flag differ for libcontainer: they decide when the system call filter is installed.
    process.set_no_new_privileges(host.no_new_privileges().filter(|set| *set));
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(host: &HostSpec, open: bool) -> Spec {
        let process = Derived { args: vec!["/bin/x".into()], cwd: "/".into(), ..Derived::default() };
        Bundle { name: "c1", host, process: &process, hostname: "pod", open, shared: &Shared::default() }
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
    fn what_is_shared_is_the_machines_and_the_pods() {
        let shared = Shared { ipc: Some("/pods/shm".into()), uts: true, pid: Some("/proc/7/ns/pid".into()) };
        let process = Derived { args: vec!["/bin/x".into()], cwd: "/".into(), ..Derived::default() };
        let host = host(json!({}));
        let bundle = Bundle { name: "c1", host: &host, process: &process, hostname: "pod", open: true, shared: &shared };
        let spec = bundle.spec(Path::new("/rootfs")).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let types: Vec<_> = namespaces.iter().map(|n| (n.typ(), n.path().clone())).collect();
        assert_eq!(
            types,
            [
                (LinuxNamespaceType::Mount, None),
                (LinuxNamespaceType::Cgroup, None),
                (LinuxNamespaceType::Pid, Some("/proc/7/ns/pid".into()))
            ]
        );
        assert_eq!(*spec.hostname(), None, "the machine has it already");
        let shm = spec.mounts().as_ref().unwrap().iter().find(|m| m.destination() == Path::new("/dev/shm")).cloned().unwrap();
        assert_eq!((shm.typ().as_deref(), shm.source().as_deref()), (Some("bind"), Some(Path::new("/pods/shm"))));
        assert!(shm.options().as_ref().unwrap().contains(&"nosuid".to_owned()));
    }

    #[test]
    fn only_an_open_door_uncovers_what_is_hidden() {
        let host = host(json!({"maskedPaths": ["/proc/mine"], "readonlyPaths": []}));
        let masked = |open| spec(&host, open).linux().as_ref().unwrap().masked_paths().clone().unwrap();
        assert_eq!(masked(true), ["/proc/mine"]);
        assert!(masked(false).contains(&"/proc/kcore".to_owned()) && masked(false).contains(&"/proc/mine".to_owned()));
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
    fn a_spec_without_capabilities_gets_the_default_ones() {
        let mut host = host(json!({}));
        host.process.set_capabilities(None);
        let spec = spec(&host, true);
        let capabilities = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        assert_eq!(capabilities, default_capabilities());
    }
}
