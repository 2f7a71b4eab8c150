//! The OCI bundle that the agent makes for libcontainer: everything in it is the agent's own choice.

use crate::{
    containers::{
        cgroup::Cgroup,
        derive::{Derived, capability_sets},
        device_nodes::Node,
        devices::Access,
        host_spec::HostSpec,
        mounts::{Binds, Wanted, is_size, named_options},
        pod::Shared,
        volumes::Bind,
    },
    secrets::Opened,
};
use oci_spec::{
    OciSpecError,
    runtime::{
        Capabilities, Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Mount,
        MountBuilder, Process, ProcessBuilder, Root, RootBuilder, Spec, User, UserBuilder,
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
];
/// Options of a view of the kernel elsewhere; of these only devpts knows settings.
const VIEW: &[&str] = &["nosuid", "noexec", "nodev", "ro"];
const TERMINALS: &[&str] = &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];

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
    /// What the host's bind mounts become.
    pub binds: &'a Binds,
    /// Devices of the guest beyond the usual ones.
    pub devices: &'a [Node],
    /// Whether the host may choose what no policy speaks of: only where nothing is protected from it anyway.
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
        spec.set_process(Some(process(self.process, &self.host.process, self.secrets, self.open)?));
        spec.set_mounts(Some(self.mounts()?));
        spec.set_linux(Some(self.linux()?));
        spec.set_hooks(None);
        spec.set_annotations(None);
        Ok(spec)
    }

    fn mounts(&self) -> Result<Vec<Mount>, OciSpecError> {
        let owned = |options: &[&str]| options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>();
        let mut mounts = Vec::new();
        for (destination, typ, source, options) in MOUNTS {
            if let (&"/dev/shm", Some(shm)) = (destination, self.shared.ipc.as_deref().and_then(Path::to_str)) {
                mounts.push(mount(destination, "bind", shm, owned(&["rbind", "nosuid", "noexec", "nodev"]))?);
                continue;
            }
            let mut options = owned(options);
            match *destination {
                // Settings that come later are the ones that count.
                "/dev/shm" => options.extend(self.host.mounts.shm.iter().filter(|option| self.open || is_limit(option)).cloned()),
                "/sys" | "/sys/fs/cgroup" if self.privileged() => options.retain(|option| option != "ro"),
                _ => {}
            }
            mounts.push(mount(destination, typ, source, options)?);
        }
        let mut list: Vec<&Wanted> = self.host.mounts.list.iter().collect();
        if !self.open {
            // What the policy asks for at a path must not be hidden by what it lets be mounted above it.
            list.sort_by_key(|wanted| wanted.destination().split('/').count());
        }
        for wanted in list {
            match wanted {
                Wanted::Tmpfs { destination, options } => {
                    // Nobody asks the policy about `/run`: it is as every runtime has it.
                    let named = if destination == "/run" { owned(&["mode=755"]) } else { named_options(options) };
                    let chosen = match self.open {
                        true => options.clone(),
                        false => [named, options.iter().filter(|option| is_limit(option)).cloned().collect()].concat(),
                    };
                    // Never a way to devices, whatever the host's options leave out.
                    let options = [chosen, owned(&["nosuid", "nodev"])].concat();
                    mounts.push(mount(destination, "tmpfs", "tmpfs", options)?);
                }
                Wanted::Kernel { typ, destination } => {
                    let options = if typ == "devpts" { TERMINALS } else { VIEW };
                    mounts.push(mount(destination, typ, typ, owned(options))?);
                }
                Wanted::Bind { destination, .. } => {
                    if let Some((Bind::Path(source), readonly)) = self.binds.get(destination) {
                        let options = owned(&["rbind", "nosuid", "nodev", if *readonly { "ro" } else { "rw" }]);
                        mounts.push(MountBuilder::default().destination(destination).typ("bind").source(source).options(options).build()?);
                    }
                }
            }
        }
        Ok(mounts)
    }

    fn linux(&self) -> Result<Linux, OciSpecError> {
        let mut linux = Linux::default();
        linux.set_namespaces(Some(self.namespaces()?));
        linux.set_cgroups_path(Some(Cgroup::spec_path(self.name)));
        // The agent writes them itself, as it does when they change.
        linux.set_resources(None);
        linux.set_seccomp(self.seccomp());
        linux.set_devices(Some(self.devices.iter().map(Node::to_oci).collect::<Result<_, _>>()?));
        linux.set_uid_mappings(None);
        linux.set_gid_mappings(None);
        linux.set_rootfs_propagation(None);
        linux.set_mount_label(None);
        // Those of the network are the guest's, and written by the agent.
        let sysctl = self.host.sysctl.iter().filter(|(name, _)| !name.starts_with("net.")).cloned().collect();
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

    fn privileged(&self) -> bool {
        self.host.devices == Access::All
    }

    /// What is hidden is the host's choice where the door is open, or where the policy makes the container the guest. Behind a closed one it
    /// could hide the file in which a program's own rules stand.
    fn paths(&self, default: &[&str], wanted: Option<&Vec<String>>) -> Vec<String> {
        match wanted {
            None if self.privileged() => Vec::new(),
            Some(wanted) if self.open || self.privileged() => wanted.clone(),
            _ => default.iter().map(|p| (*p).to_owned()).collect(),
        }
    }
}

/// A setting of a tmpfs that a host may choose behind a closed door too.
fn is_limit(option: &str) -> bool {
    option.split_once('=').is_some_and(|(key, _)| is_size(key))
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
        .capabilities(host.capabilities().as_ref().filter(|_| open).map_or_else(|| capability_sets(&derived.capabilities), five_sets))
        .rlimits(host.rlimits().clone().unwrap_or_default())
        .oom_score_adj(host.oom_score_adj().unwrap_or(0).clamp(MIN_OOM_SCORE, 1000))
        .build()?;
    process.set_console_size(host.console_size());
    // An unset and a false flag differ for libcontainer: they decide when the system call filter is installed.
    process.set_no_new_privileges(Some(derived.no_new_privileges).filter(|set| *set));
    Ok(process)
}

/// All five sets: libcontainer leaves a set alone that is absent, and for OCI it is empty. Ambient ones that the process could not have
/// are left out, as runc does.
fn five_sets(host: &LinuxCapabilities) -> LinuxCapabilities {
    let of = |set: &Option<Capabilities>| set.clone().unwrap_or_default();
    let mut sets = LinuxCapabilities::default();
    let (permitted, inheritable) = (of(host.permitted()), of(host.inheritable()));
    let ambient = of(host.ambient()).into_iter().filter(|c| permitted.contains(c) && inheritable.contains(c)).collect();
    sets.set_bounding(Some(of(host.bounding())));
    sets.set_effective(Some(of(host.effective()).intersection(&permitted).copied().collect()));
    sets.set_permitted(Some(permitted));
    sets.set_inheritable(Some(inheritable));
    sets.set_ambient(Some(ambient));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(host: &HostSpec, open: bool) -> Spec {
        let capabilities = ["CAP_CHOWN".to_owned()].into();
        let process = Derived { args: vec!["/bin/x".into()], cwd: "/".into(), capabilities, ..Derived::default() };
        Bundle {
            name: "c1",
            host,
            process: &process,
            secrets: &Opened::default(),
            hostname: "pod",
            binds: &Binds::new(),
            devices: &[],
            open,
            shared: &Shared::default(),
        }
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
        let binds = Binds::new();
        let bundle = Bundle {
            name: "c1",
            host: &host,
            process: &process,
            secrets: &Opened::default(),
            hostname: "pod",
            binds: &binds,
            devices: &[],
            open: true,
            shared: &shared,
        };
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
        assert!(masked(false).contains(&"/proc/kcore".to_owned()) && !masked(false).contains(&"/proc/mine".to_owned()));
        let readonly = spec(&host, false).linux().as_ref().unwrap().readonly_paths().clone().unwrap();
        assert!(readonly.contains(&"/proc/sysrq-trigger".to_owned()));
    }

    #[test]
    fn run_is_the_images_unless_the_host_mounts_it() {
        let at = |spec: &Spec, path: &str| spec.mounts().as_ref().unwrap().iter().find(|m| m.destination() == Path::new(path)).cloned();
        assert!(at(&spec(&host(json!({})), true), "/run").is_none());
        let json = json!({"ociVersion": "1.0.2", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"}, "mounts": [
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=128m", "dev"]}]});
        assert!(HostSpec::parse(json.to_string().as_bytes()).is_err(), "a tmpfs with devices");
        let json = json.to_string().replace(",\"dev\"", "");
        let spec = spec(&HostSpec::parse(json.as_bytes()).unwrap(), true);
        assert_eq!(at(&spec, "/run").unwrap().options().as_ref().unwrap(), &["size=1m", "nosuid", "nodev"]);
        assert_eq!(at(&spec, "/dev/shm").unwrap().options().as_ref().unwrap().last().unwrap(), "size=128m");
    }

    /// No policy is asked about them, so the host's limits are all that counts of its options.
    #[test]
    fn behind_a_closed_door_the_usual_mounts_are_as_every_runtime_has_them() {
        let json = json!({"ociVersion": "1.0.2", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"}, "mounts": [
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=0777", "noexec", "uid=7"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=128m", "mode=0777", "uid=7"]}]});
        let host = HostSpec::parse(json.to_string().as_bytes()).unwrap();
        let options = |open, path: &str| {
            let spec = spec(&host, open);
            let mount = spec.mounts().as_ref().unwrap().iter().find(|mount| mount.destination() == Path::new(path)).cloned();
            mount.unwrap().options().clone().unwrap()
        };
        assert_eq!(options(false, "/run"), ["mode=755", "size=1m", "nosuid", "nodev"]);
        let shm = options(false, "/dev/shm");
        assert!(shm.contains(&"size=128m".to_owned()) && !shm.contains(&"mode=0777".to_owned()) && !shm.contains(&"uid=7".to_owned()));
        // The pair: an open door's host gets what it asks for.
        assert!(options(true, "/run").contains(&"mode=0777".to_owned()) && options(true, "/dev/shm").contains(&"uid=7".to_owned()));
    }

    #[test]
    fn a_privileged_container_sees_all_of_the_guest() {
        let host = host(json!({"resources": {"devices": [{"allow": true, "access": "rwm"}]}}));
        let spec = spec(&host, false);
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().is_empty() && linux.readonly_paths().as_ref().unwrap().is_empty());
        let sys = spec.mounts().as_ref().unwrap().iter().find(|m| m.destination() == Path::new("/sys")).unwrap();
        assert!(!sys.options().as_ref().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn an_absent_set_of_capabilities_is_empty() {
        let mut host = host(json!({}));
        let sets = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"],
            "ambient": ["CAP_KILL"]});
        host.process.set_capabilities(serde_json::from_value(sets).unwrap());
        let spec = spec(&host, true);
        let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        let count = |set: &Option<Capabilities>| set.as_ref().unwrap().len();
        assert_eq!([count(sets.bounding()), count(sets.permitted()), count(sets.effective())], [2, 1, 1]);
        assert_eq!([count(sets.inheritable()), count(sets.ambient())], [0, 0]);
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
        let chown = Some([oci_spec::runtime::Capability::Chown].into());
        ambient.set_inheritable(chown.clone()).set_ambient(chown);
        host.process.set_capabilities(Some(ambient.clone()));
        assert_eq!(sets(spec(&host, true)), ambient);
        assert_eq!(sets(spec(&host, false)), derived);
    }
}
