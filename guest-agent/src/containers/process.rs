//! One process of a container, from its preparation to its deletion: the container's first, or an exec.

use crate::{
    containers::{
        launch::{Launched, Pipes, Wanted},
        streams::{Copies, CopiesBuilder},
        terminal::Terminal,
    },
    reaper::{Exit, Watched},
};
use protocol::{api, stream::Kind};
use std::{collections::HashMap, io, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_vsock::VsockStream;

/// How long an exec's output may stay open after its end, by a grandchild in the background (containerd's shim waits as long).
const EXEC_OUTPUT: Duration = Duration::from_secs(2);
/// How long the host may take to read the last output of a container: with its first process all others have ended.
const INIT_OUTPUT: Duration = Duration::from_secs(10);

/// A process that exists.
#[derive(Debug)]
pub struct Running {
    /// Its end, its id, and the way to signal it.
    pub watched: Watched,
    /// Its terminal, if it has one.
    pub terminal: Option<Terminal>,
    copies: std::sync::OnceLock<Copies>,
}

/// Where a process is in its life. The order never goes back.
#[derive(Debug, Clone)]
enum Phase {
    /// Announced, not made.
    Prepared,
    /// Made; it may have ended.
    Exists(Arc<Running>),
    /// Deleted.
    Gone,
}

/// A process of a container.
#[derive(Debug)]
pub struct Process {
    /// Which of its streams the host connects.
    pub stdio: api::Stdio,
    phase: watch::Sender<Phase>,
    /// Whether StartProcess has been done, or is being done.
    started: std::sync::atomic::AtomicBool,
    is_init: bool,
}

impl Process {
    /// A process that is not made yet.
    pub fn prepared(stdio: api::Stdio, is_init: bool) -> Self {
        Self { stdio, phase: watch::Sender::new(Phase::Prepared), started: false.into(), is_init }
    }

    /// Which of its streams are pipes.
    pub fn wanted(&self) -> Wanted {
        let piped = !self.stdio.terminal;
        Wanted { stdin: piped && self.stdio.stdin, stdout: piped && self.stdio.stdout, stderr: piped && self.stdio.stderr }
    }

    /// It exists now; gives our ends of its pipes back.
    pub fn exists(&self, launched: Launched, terminal: Option<Terminal>) -> Pipes {
        let running = Running { watched: launched.process, terminal, copies: std::sync::OnceLock::new() };
        self.phase.send_replace(Phase::Exists(Arc::new(running)));
        launched.pipes
    }

    /// The process, if it exists.
    pub fn running(&self) -> Option<Arc<Running>> {
        match &*self.phase.borrow() {
            Phase::Exists(running) => Some(running.clone()),
            Phase::Prepared | Phase::Gone => None,
        }
    }

    /// Claims the one start; false if it has been claimed.
    pub fn claim_start(&self) -> bool {
        !self.started.swap(true, std::sync::atomic::Ordering::SeqCst)
    }

    /// Gives a claimed start back: it failed before anything happened.
    pub fn unclaim_start(&self) {
        self.started.store(false, std::sync::atomic::Ordering::SeqCst);
    }

    /// Whether it has been started.
    pub fn is_started(&self) -> bool {
        self.started.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Whether it exists and has not ended.
    pub fn is_alive(&self) -> bool {
        self.running().is_some_and(|running| running.watched.exit.borrow().is_none())
    }

    /// Joins its streams with the host's connections.
    pub fn connect(&self, running: &Running, pipes: Pipes, mut streams: HashMap<Kind, VsockStream>) {
        let mut copies = CopiesBuilder::default();
        let (stdin, stdout, stderr) = (streams.remove(&Kind::Stdin), streams.remove(&Kind::Stdout), streams.remove(&Kind::Stderr));
        if let Some(terminal) = &running.terminal {
            if let Some(stream) = stdin {
                copies.input(stream, terminal.clone());
            }
            if let Some(stream) = stdout {
                copies.output(terminal.clone(), stream);
            }
        } else {
            if let (Some(stream), Some(pipe)) = (stdin, pipes.stdin) {
                copies.input(stream, pipe);
            }
            if let (Some(stream), Some(pipe)) = (stdout, pipes.stdout) {
                copies.output(pipe, stream);
            }
            if let (Some(stream), Some(pipe)) = (stderr, pipes.stderr) {
                copies.output(pipe, stream);
            }
        }
        let _ = running.copies.set(copies.finish());
    }

    /// Waits for its end, whenever it comes to exist; `None` if it is deleted before.
    pub async fn wait(&self) -> Option<Exit> {
        let mut phase = self.phase.subscribe();
        let running = match &*phase.wait_for(|phase| !matches!(phase, Phase::Prepared)).await.ok()? {
            Phase::Exists(running) => running.clone(),
            Phase::Prepared | Phase::Gone => return None,
        };
        let exit = Watched::wait(&running.watched.exit).await;
        if let Some(copies) = running.copies.get() {
            copies.drained(if self.is_init { INIT_OUTPUT } else { EXEC_OUTPUT }).await;
        }
        Some(exit)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match self.running() {
            Some(running) => running.watched.signal(signal),
            None => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    }

    /// Ends its life here: whoever waits for it without its ever having existed is released.
    pub fn gone(&self) {
        self.phase.send_replace(Phase::Gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn launched(exit: Option<Exit>) -> (watch::Sender<Option<Exit>>, Launched) {
        let (sender, exit) = watch::channel(exit);
        (sender, Launched { process: Watched { pid: 1, pidfd: None, exit }, pipes: Pipes::default() })
    }

    #[tokio::test]
    async fn waiting_may_begin_before_the_process() {
        let process = Arc::new(Process::prepared(api::Stdio::default(), true));
        let waiter = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        tokio::task::yield_now().await;
        let (end, launched) = launched(None);
        process.exists(launched, None);
        assert!(process.is_alive());
        end.send_replace(Some(Exit { status: 5, at: SystemTime::now() }));
        assert_eq!(waiter.await.unwrap().unwrap().status, 5);
        assert!(!process.is_alive());
    }

    #[tokio::test]
    async fn a_deletion_releases_who_waits() {
        let process = Process::prepared(api::Stdio::default(), false);
        let (waited, ()) = tokio::join!(process.wait(), async { process.gone() });
        assert_eq!(waited, None);
    }

    #[test]
    fn a_process_is_started_once() {
        let process = Process::prepared(api::Stdio::default(), false);
        assert!(process.claim_start());
        assert!(!process.claim_start());
        process.unclaim_start();
        assert!(process.claim_start());
    }

    #[test]
    fn a_terminal_has_no_pipes() {
        let stdio = api::Stdio { stdin: true, stdout: true, stderr: true, terminal: true, ..Default::default() };
        let wanted = Process::prepared(stdio, true).wanted();
        assert!(!wanted.stdin && !wanted.stdout && !wanted.stderr);
    }
}
