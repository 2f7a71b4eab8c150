//! A process of a container: its first one, or an exec.

use super::state::{Exit, Illegal, State};
use crate::stdio::{Bridge, Ends, Paths};
use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// What belongs to a process's streams.
#[derive(Default)]
pub struct Io {
    /// The host's ends, until the process is started.
    pub ends: Option<Ends>,
    /// Holds standard input open until CloseIO.
    pub stdin_hold: Option<OwnedFd>,
    /// Output that is still being read after its process has ended.
    pub unread: Option<Bridge>,
    /// Width and height that the terminal is to have from the start.
    pub size: Option<(u32, u32)>,
}

/// A process, as this shim knows it.
pub struct Process {
    /// Its container.
    pub container_id: String,
    /// Empty for the container's first process.
    pub exec_id: String,
    /// The VM's process id: a process of the guest has none on this host, and one that is another's would be worse than none.
    pub pid: u32,
    /// Its streams' addresses.
    pub paths: Paths,
    /// Held by whoever starts, pauses, resumes or deletes it: one at a time.
    pub turn: tokio::sync::Mutex<()>,
    io: Mutex<Io>,
    state: watch::Sender<State>,
}

impl Process {
    /// A process that was prepared in the guest.
    pub fn new(container_id: &str, exec_id: &str, pid: u32, paths: Paths, mut ends: Ends) -> Self {
        let stdin_hold = ends.stdin_hold.take();
        Self {
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid,
            paths,
            turn: tokio::sync::Mutex::default(),
            io: Mutex::new(Io { ends: Some(ends), stdin_hold, ..Io::default() }),
            state: watch::Sender::new(State::Created),
        }
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Its streams.
    pub fn io(&self) -> MutexGuard<'_, Io> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a transition. `publish` is called with the new state in place and not yet visible to anyone, so that an event and what
    /// it reports come as one, and in one order.
    pub fn change(&self, step: impl FnOnce(State) -> Result<State, Illegal>, publish: impl FnOnce()) -> Result<(), Illegal> {
        let mut result = Ok(());
        self.state.send_if_modified(|state| match step(*state) {
            Ok(next) => {
                *state = next;
                publish();
                true
            }
            Err(illegal) => {
                result = Err(illegal);
                false
            }
        });
        result
    }

    /// Waits for its end; any number of callers, each may be dropped.
    pub async fn wait(&self) -> Exit {
        let mut states = self.state.subscribe();
        let stopped = states.wait_for(|state| state.exit().is_some()).await.ok().and_then(|state| state.exit());
        // The sender is ours and lives as long as we do.
        stopped.unwrap_or_else(|| Exit::now(super::state::KILLED))
    }
}
