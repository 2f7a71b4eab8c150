//! The tasks of one shim: its containers, their processes, and what containerd may do to them.
//!
//! - [`state`]: the life of a process. - [`process`], [`container`]: what is known of each.
//! - [`create`], [`run`], [`control`], [`remove`]: the verbs. - [`sandbox`]: those of the Sandbox service.
//! - [`image`], [`guest_spec`]: what a VM is made from. - [`usage`]: what it costs.
//!
//! Questions (`State`, `Pids`, `Connect`) are answered from memory and never wait for the guest. Everything that changes
//! something runs in a task of its own: the ttrpc server drops a handler at its deadline, and a change must not stop half-way.

mod container;
mod control;
mod create;
mod error;
mod guest_spec;
mod image;
mod process;
mod remove;
mod run;
mod sandbox;
mod state;
#[cfg(test)]
mod tests;
mod usage;

pub use container::Container;
pub use error::TaskError;
pub use process::Process;
pub use sandbox::Life;
pub use state::{Exit, State};

use crate::{
    events::Events,
    group::Group,
    guest::{Guest, Host},
    volumes::ServedDisks,
};
use sandbox::PodSandbox;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// Most containers of one shim.
const MAX_CONTAINERS: usize = 1024;

/// How long the `poststop` hooks of a shim that is told to end may take.
const HOOKS_TIMEOUT: Duration = Duration::from_secs(5);

/// What a shim is told when it is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's gRPC socket; empty from CRI-O.
    pub address: String,
    /// The group that is served.
    pub group: Group,
}

/// A container's place: taken while it is being made, so that its id cannot be used twice.
enum Slot {
    Creating,
    Made(Arc<Container>),
}

#[derive(Default)]
struct Table {
    slots: BTreeMap<String, Slot>,
    guest: Option<Arc<dyn Guest>>,
    /// The pod that the Sandbox service was asked for.
    sandbox: Option<Arc<PodSandbox>>,
}

/// All tasks of this shim.
pub struct Tasks {
    settings: Settings,
    host: Box<dyn Host>,
    events: Events,
    table: Mutex<Table>,
    served: ServedDisks,
    /// Number of places taken, and of pods.
    taken: watch::Sender<usize>,
    shutdown: Notify,
}

impl Tasks {
    /// None yet.
    pub fn new(settings: Settings, host: Box<dyn Host>, events: Events) -> Self {
        let (table, taken) = (Mutex::default(), watch::Sender::new(0));
        Self { settings, host, events, table, served: ServedDisks::default(), taken, shutdown: Notify::new() }
    }

    /// Returns once containerd has asked to end and nothing is left.
    pub async fn asked_to_end(&self) {
        self.shutdown.notified().await;
    }

    /// Number of containers and pods, with those that are being made.
    pub fn watch_count(&self) -> watch::Receiver<usize> {
        self.taken.subscribe()
    }

    /// Ends the VM, if there is one, with all that runs in it.
    pub async fn end(&self) {
        let guest = self.table().guest.take();
        if let Some(guest) = guest {
            guest.stop().await;
        }
    }

    /// The shim is told to end while containers are there: their VM ends, and their `poststop` hooks run. containerd would have `delete` run
    /// them; CRI-O would not.
    pub async fn give_up(&self) {
        self.end().await;
        let made = |slot: &Slot| match slot {
            Slot::Made(container) => Some(container.hooks.clone()),
            Slot::Creating => None,
        };
        let hooks: Vec<_> = self.table().slots.values().filter_map(made).collect();
        let all = async {
            for hooks in hooks {
                hooks.after_delete().await;
            }
        };
        if tokio::time::timeout(HOOKS_TIMEOUT, all).await.is_err() {
            log::warn!("not all poststop hooks ended within {} s", HOOKS_TIMEOUT.as_secs());
        }
    }

    /// `Shutdown`: the end, if nothing is left. containerd says it after every task; the pod of the Sandbox service has an end of its own.
    pub fn shut_down(&self) {
        let table = self.table();
        if table.slots.is_empty() && table.sandbox.is_none() {
            self.shutdown.notify_one();
        }
    }

    /// A container by its id.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        match self.table().slots.get(id) {
            Some(Slot::Made(container)) => Ok(container.clone()),
            _ => Err(TaskError::NotCreated),
        }
    }

    /// A process by container and exec; the exec is empty for the first one.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        self.container(id)?.process(exec_id)
    }

    fn members(&self) -> Vec<Arc<Container>> {
        let made = |slot: &Slot| match slot {
            Slot::Made(container) if !container.owns_guest() => Some(container.clone()),
            _ => None,
        };
        self.table().slots.values().filter_map(made).collect()
    }

    fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, TaskError> {
        let mut table = self.table();
        if table.slots.contains_key(id) {
            return Err(TaskError::Exists(format!("container {id}")));
        }
        if table.slots.len() >= MAX_CONTAINERS {
            return Err(TaskError::Invalid(format!("a shim serves at most {MAX_CONTAINERS} containers")));
        }
        table.slots.insert(id.to_owned(), Slot::Creating);
        self.count(&table);
        Ok(Reservation { tasks: self.clone(), id: id.to_owned(), kept: false })
    }

    fn forget(&self, id: &str) {
        let mut table = self.table();
        table.slots.remove(id);
        self.count(&table);
    }

    fn count(&self, table: &Table) {
        self.taken.send_replace(table.slots.len() + usize::from(table.sandbox.is_some()));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id that is taken; given back unless a container comes of it.
struct Reservation {
    tasks: Arc<Tasks>,
    id: String,
    kept: bool,
}

impl Reservation {
    /// Puts the container in its place; `publish` is called before anyone can see it there.
    fn keep(mut self, container: Arc<Container>, publish: impl FnOnce()) {
        self.kept = true;
        let mut table = self.tasks.table();
        publish();
        table.slots.insert(self.id.clone(), Slot::Made(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.tasks.forget(&self.id);
        }
    }
}

/// Runs `work` to its end, whether or not somebody waits for it.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T, TaskError>> + Send + 'static) -> Result<T, TaskError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(TaskError::Sandbox(format!("internal error of the shim: {error}"))),
    }
}
