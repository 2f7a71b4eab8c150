//! What the containers of a pod share. The machine is the pod: its network, IPC and UTS namespaces are theirs, as they are. Shared memory
//! is one file system for all of them. Where they are to see each other's processes too, a process that does nothing holds a process
//! namespace, and reaps what nobody else does.

use super::{
    ContainerError, Containers, RUN, STATE,
    bundle::Bundle,
    cgroup::Cgroup,
    derive::Derived,
    host_spec::HostSpec,
    launch::{LaunchError, Wanted, launch},
    mounts::Binds,
    notify_start,
};
use crate::{
    child::{CreateJob, Job},
    reaper::Watched,
    secrets::Opened,
};
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio::sync::OnceCell;

/// The pod's shared memory, of the size that Kubernetes gives it.
const SHM: &str = "/run/cloister/shm";
const SHM_OPTIONS: &str = "mode=1777,size=64m";
/// Internal name of the process that holds the pod's process namespace; containers are called `c` and a number.
const HOLDER: &str = "pod";

/// Which namespaces the host wants to be the pod's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shares {
    /// Message queues, semaphores and shared memory.
    pub ipc: bool,
    /// The hostname.
    pub uts: bool,
    /// Processes.
    pub pid: bool,
}

/// What a container shares with its pod, ready to be used in its bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared {
    /// The machine's IPC namespace, and the directory of its shared memory.
    pub ipc: Option<PathBuf>,
    /// The machine's UTS namespace.
    pub uts: bool,
    /// The pod's process namespace.
    pub pid: Option<PathBuf>,
}

/// What has been made for the pod so far.
#[derive(Default)]
pub struct Pod {
    shm: OnceCell<()>,
    holder: OnceCell<Watched>,
}

impl Containers {
    /// Makes what a container wants to share, where it is not there yet.
    pub(super) async fn share(&self, wanted: Shares, hostname: &str) -> Result<Shared, ContainerError> {
        let ipc = if wanted.ipc { Some(self.pod.shared_memory().await?) } else { None };
        let pid = if wanted.pid { Some(self.process_namespace(hostname).await?) } else { None };
        Ok(Shared { ipc, uts: wanted.uts, pid })
    }

    async fn process_namespace(&self, hostname: &str) -> Result<PathBuf, ContainerError> {
        let holder = self.pod.holder.get_or_try_init(|| self.hold(hostname)).await?;
        // Nothing in the namespace can end its first process; the kernel of a machine without memory can, and its number is free then.
        if holder.exit.borrow().is_some() {
            return Err(ContainerError::State("the pod's process namespace has ended; start the pod anew".into()));
        }
        Ok(PathBuf::from(format!("/proc/{}/ns/pid", holder.pid)))
    }

    async fn hold(&self, hostname: &str) -> Result<Watched, ContainerError> {
        let directory = Path::new(RUN).join(HOLDER);
        let rootfs = directory.join("rootfs");
        for dir in [Path::new(STATE), &rootfs] {
            fs::create_dir_all(dir).map_err(ContainerError::io(dir.display().to_string()))?;
        }
        Cgroup::of(HOLDER).create().map_err(ContainerError::io("cgroup"))?;
        let process = Derived { args: vec![HOLDER.into()], cwd: "/".into(), ..Derived::default() };
        let host = HostSpec { readonly_root: true, ..HostSpec::default() };
        let (binds, shared) = (Binds::new(), Shared::default());
        let bundle = Bundle {
            name: HOLDER,
            host: &host,
            process: &process,
            secrets: &Opened::default(),
            hostname,
            binds: &binds,
            devices: &[],
            open: false,
            shared: &shared,
        };
        let failed = |e: oci_spec::OciSpecError| LaunchError::Failed(e.to_string());
        let mut spec = bundle.spec(&rootfs).map_err(failed)?;
        // Containers see it: it can do nothing, and an empty directory is all that can be reached through it.
        if let Some(process) = spec.process_mut() {
            process.set_capabilities(Some(no_capabilities()));
        }
        spec.save(directory.join("config.json")).map_err(failed)?;
        let job = Job::Create(CreateJob { name: HOLDER.into(), bundle: directory.clone(), state: STATE.into(), console: None, hold: true });
        let launched = launch(&self.reaper, &directory, &job, Wanted::default()).await?;
        notify_start(&Path::new(STATE).join(HOLDER)).map_err(ContainerError::io("start the pod's process namespace"))?;
        Ok(launched.process)
    }
}

impl Pod {
    async fn shared_memory(&self) -> Result<PathBuf, ContainerError> {
        let make = || async {
            fs::create_dir_all(SHM).map_err(ContainerError::io(SHM))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), SHM, Some("tmpfs"), flags, Some(SHM_OPTIONS)).map_err(|e| ContainerError::io(SHM)(e.into()))
        };
        self.shm.get_or_try_init(make).await?;
        Ok(SHM.into())
    }
}

/// Five empty sets: one that is left out is one that is left as it is.
fn no_capabilities() -> LinuxCapabilities {
    let none = || Some(Capabilities::default());
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(none()).set_effective(none()).set_permitted(none()).set_inheritable(none()).set_ambient(none());
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_has_no_capability() {
        let none = no_capabilities();
        let sets = [none.bounding(), none.effective(), none.permitted(), none.inheritable(), none.ambient()];
        assert!(sets.into_iter().all(|set| set.as_ref().is_some_and(|set| set.is_empty())));
    }

    #[tokio::test]
    async fn who_shares_nothing_has_nothing_made() {
        let containers = Containers::new(std::sync::Arc::default(), std::sync::Arc::default(), std::sync::Arc::default());
        assert_eq!(containers.share(Shares::default(), "pod").await.unwrap(), Shared::default());
        let uts = containers.share(Shares { uts: true, ..Shares::default() }, "pod").await.unwrap();
        assert_eq!(uts, Shared { uts: true, ..Shared::default() });
    }
}
