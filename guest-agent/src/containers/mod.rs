//! The containers of this machine.

pub mod bundle;
pub mod cgroup;
mod create;
pub mod derive;
mod device_nodes;
pub mod devices;
mod disks;
pub mod error;
mod exec;
pub mod host_spec;
mod in_root;
pub mod launch;
mod memory;
mod mounted;
pub mod mounts;
mod overlay;
pub mod pod;
pub mod process;
pub mod served;
pub mod streams;
pub mod terminal;
pub mod users;
pub mod volumes;

pub use create::{CreateRequest, asked};
pub use error::ContainerError;

use crate::{reaper::Reaper, sandbox::Place, secrets::Opened};
use cgroup::Cgroup;
use derive::{Accounts, Derived};
use launch::Pipes;
use libcontainer::notify_socket::NOTIFY_FILE;
use log::{info, warn};
use memory::Kills;
use mounted::{Disks, Mounted};
use oci_spec::runtime::LinuxSeccomp;
use overlay::Overlay;
use process::Process;
use std::{
    collections::HashMap,
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use streams::Streams;
use tokio::sync::Semaphore;
use volumes::Volumes;

/// Most containers at a time.
const MAX_CONTAINERS: usize = 1024;
/// Most processes of a container that were prepared and not deleted.
const MAX_EXECS: usize = 4096;
/// Most execs that are launched side by side; further ones wait.
const MAX_LAUNCHING: usize = 8;
/// Bundles, one directory each. Short, for the sockets in them (unix(7): 107 bytes).
const RUN: &str = "/run/cloister";
/// libcontainer's state directories.
const STATE: &str = "/run/cloister/state";

/// A container that has been made.
pub struct Container {
    /// As the host calls it.
    pub id: String,
    /// As the agent calls it in paths: short, and never the host's choice.
    name: String,
    /// Its bundle.
    directory: PathBuf,
    /// What it writes, on scratch.
    writable: PathBuf,
    derived: Derived,
    accounts: Accounts,
    seccomp: Option<LinuxSeccomp>,
    /// What was sealed in its environment.
    secrets: Opened,
    /// Its place among the containers of the policy.
    place: Place,
    cgroup: Cgroup,
    oom_kills: Kills,
    init: Process,
    init_pipes: Mutex<Option<Pipes>>,
    execs: Mutex<HashMap<String, Arc<exec::Exec>>>,
    /// Names the directory of the next exec.
    next_exec: AtomicU64,
    /// Whether it is paused.
    frozen: AtomicBool,
    /// Held alone by whoever starts, pauses, limits or deletes the container, and together by those who run processes in it.
    turn: tokio::sync::RwLock<()>,
    root: Mutex<Option<Overlay>>,
    /// Disks that are mounted in it.
    disks: Mutex<Vec<Mounted>>,
}

/// A container's place in the table: taken while it is being made, so that its id cannot be used twice.
enum Entry {
    Creating,
    Made(Arc<Container>),
}

/// The table of containers.
pub struct Containers {
    reaper: Arc<Reaper>,
    streams: Arc<Streams>,
    pod: pod::Pod,
    volumes: Arc<Volumes>,
    disks: Arc<Disks>,
    table: Mutex<HashMap<String, Entry>>,
    next: AtomicU64,
    /// Execs that are being launched: each is a process of ours until it is the container's.
    launching: Semaphore,
}

impl Containers {
    /// An empty table.
    pub fn new(reaper: Arc<Reaper>, streams: Arc<Streams>, volumes: Arc<Volumes>) -> Self {
        let (pod, disks, table, next) = (pod::Pod::default(), Arc::default(), Mutex::default(), AtomicU64::new(1));
        Self { reaper, streams, pod, volumes, disks, table, next, launching: Semaphore::new(MAX_LAUNCHING) }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volumes of all containers.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// The container with this id.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        match self.table().get(id) {
            Some(Entry::Made(container)) => Ok(container.clone()),
            Some(Entry::Creating) => Err(ContainerError::State(format!("container {id} is still being created"))),
            None => Err(ContainerError::NoContainer(id.to_owned())),
        }
    }

    /// All that are there.
    pub fn all(&self) -> Vec<Arc<Container>> {
        let made = |entry: &Entry| match entry {
            Entry::Made(container) => Some(container.clone()),
            Entry::Creating => None,
        };
        self.table().values().filter_map(made).collect()
    }

    /// Takes an id and gives the container's internal name.
    fn reserve(&self, id: &str) -> Result<Reservation<'_>, ContainerError> {
        let mut table = self.table();
        if table.contains_key(id) {
            return Err(ContainerError::Exists(format!("container {id}")));
        }
        if table.len() >= MAX_CONTAINERS {
            return Err(ContainerError::Full(MAX_CONTAINERS, "containers"));
        }
        table.insert(id.to_owned(), Entry::Creating);
        let name = format!("c{}", self.next.fetch_add(1, Ordering::Relaxed));
        Ok(Reservation { containers: self, id: id.to_owned(), name })
    }

    /// Runs what CreateContainer or ExecProcess prepared; gives its process id.
    pub async fn start(&self, id: &str, exec_id: &str) -> Result<u32, ContainerError> {
        let container = self.get(id)?;
        if !exec_id.is_empty() {
            return container.start_exec(self, exec_id).await;
        }
        let _turn = container.turn.write().await;
        let running = container.init.running().ok_or_else(|| ContainerError::NoContainer(id.to_owned()))?;
        if !container.init.claim_start() {
            return Err(ContainerError::State(format!("container {id} has been started already")));
        }
        let streams = match self.streams.take(id, "", &container.init.stdio).await {
            Ok(streams) => streams,
            Err(e) => {
                container.init.unclaim_start();
                return Err(e.into());
            }
        };
        let pipes = container.init_pipes.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        container.init.connect(&running, pipes, streams);
        notify_start(&Path::new(STATE).join(&container.name)).map_err(ContainerError::io(format!("start container {id}")))?;
        info!(container = id, pid = running.watched.pid; "container started");
        Ok(running.watched.pid)
    }

    /// Forgets an ended process; a container's first one takes its container along.
    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<(), ContainerError> {
        let container = match self.get(id) {
            // Announced, and never made.
            Err(ContainerError::NoContainer(_)) if exec_id.is_empty() && self.volumes.of(id).is_some() => {
                self.volumes.forget(id);
                return Ok(());
            }
            found => found?,
        };
        let _turn = container.turn.write().await;
        if !exec_id.is_empty() {
            container.delete_exec(exec_id)?;
            self.streams.withdraw(id, exec_id);
            return Ok(());
        }
        if container.init.is_alive() {
            if container.init.is_started() {
                return Err(ContainerError::State(format!("container {id} is running; kill it first")));
            }
            let _ = container.init.signal(libc::SIGKILL);
            container.init.wait().await;
        }
        for (exec_id, exec) in container.execs.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            exec.process.gone();
            self.streams.withdraw(id, &exec_id);
        }
        container.init.gone();
        self.streams.withdraw(id, "");
        let gone = container.clone();
        let removed = tokio::task::spawn_blocking(move || gone.remove_files()).await;
        removed.map_err(|e| ContainerError::State(format!("delete container {id}: {e}")))?;
        container.place.deleted();
        self.table().remove(id);
        self.volumes.forget(id);
        info!(container = id; "container deleted");
        Ok(())
    }

    /// Disks that are mounted in any of them.
    pub fn disks(&self) -> Arc<Disks> {
        self.disks.clone()
    }

    /// Kills every process of every container, for the end of the machine.
    pub fn kill_all(&self) {
        for entry in self.table().values() {
            if let Entry::Made(container) = entry {
                let _ = container.cgroup.kill();
            }
        }
    }
}

impl Container {
    /// Waits for the end of a process: its exit, and for the container's first one how often the kernel killed for want of memory.
    pub async fn wait(&self, exec_id: &str) -> Result<(crate::reaper::Exit, u64), ContainerError> {
        let ended = if exec_id.is_empty() { self.init.wait().await } else { self.exec(exec_id)?.process.wait().await };
        let exit = ended.ok_or_else(|| ContainerError::State("the process was deleted before it ran".into()))?;
        if !exec_id.is_empty() {
            return Ok((exit, 0));
        }
        // Before the host knows of it and asks for the next container.
        self.place.ended(exit.status);
        Ok((exit, self.cgroup.oom_kills()))
    }

    /// Waits until the kernel has killed more than `seen` of its processes for want of memory: how many.
    pub async fn oom_kills_beyond(&self, seen: u64) -> Result<u64, ContainerError> {
        self.oom_kills.beyond(seen).await
    }

    /// Sends a signal to a process, or to all of the container.
    pub fn signal(&self, exec_id: &str, signal: i32, all: bool) -> Result<(), ContainerError> {
        if all && exec_id.is_empty() {
            if signal == libc::SIGKILL {
                return Ok(self.cgroup.kill()?);
            }
            for pid in self.cgroup.pids()? {
                // SAFETY: kill(2) takes two integers.
                unsafe { libc::kill(pid.cast_signed(), signal) };
            }
            return Ok(());
        }
        let what = || ContainerError::NoProcess { container: self.id.clone(), exec: exec_id.to_owned() };
        let sent = if exec_id.is_empty() { self.init.signal(signal) } else { self.exec(exec_id)?.process.signal(signal) };
        sent.map_err(|e| if e.raw_os_error() == Some(libc::ESRCH) { what() } else { ContainerError::io(format!("signal {signal}"))(e) })
    }

    /// Sets the size of a process's terminal.
    pub fn resize(&self, exec_id: &str, width: u16, height: u16) -> Result<(), ContainerError> {
        let running = if exec_id.is_empty() { self.init.running() } else { self.exec(exec_id)?.process.running() };
        match running.as_ref().and_then(|running| running.terminal.as_ref()) {
            Some(terminal) => terminal.resize(width, height).map_err(ContainerError::io("resize terminal")),
            None => Err(ContainerError::State("the process has no terminal".into())),
        }
    }

    /// All processes: id, and the exec that it is, if it is one.
    pub fn processes(&self) -> Result<Vec<(u32, String)>, ContainerError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let of_exec = |pid: u32| {
            let is = |exec: &&Arc<exec::Exec>| exec.process.running().is_some_and(|r| r.watched.pid == pid);
            execs.values().find(is).map(|exec| exec.id.clone()).unwrap_or_default()
        };
        Ok(self.cgroup.pids()?.into_iter().map(|pid| (pid, of_exec(pid))).collect())
    }

    /// Its place among the containers of the policy.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Waits for the container's turn: what changes it is done one after the other.
    pub async fn turn(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.turn.write().await
    }

    /// Stops all its processes, or lets them go on. The caller has the turn.
    pub fn freeze(&self, frozen: bool) -> Result<(), ContainerError> {
        self.cgroup.freeze(frozen)?;
        self.frozen.store(frozen, Ordering::SeqCst);
        Ok(())
    }

    /// Whether its first process has been started and has not ended.
    pub fn is_running(&self) -> bool {
        self.init.is_started() && self.init.is_alive()
    }

    /// Root, cgroup, bundle and writable files. What cannot be removed is logged; the machine's end removes it.
    fn remove_files(&self) {
        drop(self.root.lock().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.cgroup.kill();
        if let Err(e) = self.cgroup.remove() {
            warn!(container = self.id; "remove cgroup: {e}");
        }
        // Nobody writes to them any more.
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        remove_directories(&self.name, &self.directory, &self.writable);
    }
}

/// Removes what a container left; also of one that was never finished.
fn remove_directories(name: &str, bundle: &Path, writable: &Path) {
    for directory in [bundle, &Path::new(STATE).join(name), writable] {
        match fs::remove_dir_all(directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => warn!(path:% = directory.display(); "remove: {e}"),
            _ => {}
        }
    }
}

/// Tells the first process, which waits at this socket, to become its program.
fn notify_start(state: &Path) -> std::io::Result<()> {
    UnixStream::connect(state.join(NOTIFY_FILE))?.write_all(b"start container")
}

/// An id that is taken for as long as its container is being made.
struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
    name: String,
}

impl Reservation<'_> {
    /// The container is there.
    fn made(self, container: Arc<Container>) {
        self.containers.table().insert(self.id.clone(), Entry::Made(container));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut table = self.containers.table();
        if matches!(table.get(&self.id), Some(Entry::Creating)) {
            table.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_while_its_container_is_made() {
        let containers = Containers::new(Arc::default(), Arc::default(), Arc::default());
        let first = containers.reserve("a").unwrap();
        assert!(matches!(containers.reserve("a"), Err(ContainerError::Exists(_))));
        assert!(matches!(containers.get("a"), Err(ContainerError::State(_))));
        let second = containers.reserve("b").unwrap();
        assert_ne!(first.name, second.name);
        drop(first);
        assert!(matches!(containers.get("a"), Err(ContainerError::NoContainer(_))));
        assert!(containers.reserve("a").is_ok());
    }

    #[tokio::test]
    async fn what_does_not_exist_is_said() {
        let containers = Containers::new(Arc::default(), Arc::default(), Arc::default());
        assert!(matches!(containers.start("a", "").await, Err(ContainerError::NoContainer(_))));
        assert!(matches!(containers.delete("a", "e").await, Err(ContainerError::NoContainer(_))));
    }
}
