//! PID 1's first duty: to wait for every process that ends, its own children and the orphans of all containers.
//!
//! One loop calls `waitpid(-1)`; nobody else waits for a child (`tokio::process` and `std::process::Child::wait` would race with it).
//! Whoever starts a process does so through [`Reaper::spawn`], under the lock that reaping takes, so that no end is missed.

use log::{debug, warn};
use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{FromRawFd, OwnedFd},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Ends of processes that nobody has asked for yet. A container's first process can end before it is adopted; orphans without
/// number must not fill the memory.
const MAX_UNCLAIMED: usize = 256;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 and the signal's number.
    pub status: u32,
    /// When its end was seen.
    pub at: SystemTime,
}

/// A process that is watched until its end.
#[derive(Debug)]
pub struct Watched {
    /// Its process id in the guest's first pid namespace.
    pub pid: u32,
    /// Refers to this process and no other, even after its id has been given away again; none if it had ended already.
    pub pidfd: Option<OwnedFd>,
    /// Becomes `Some` at its end.
    pub exit: watch::Receiver<Option<Exit>>,
}

impl Watched {
    /// Waits for its end; any number of callers may.
    pub async fn wait(exit: &watch::Receiver<Option<Exit>>) -> Exit {
        let mut exit = exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(ended) => ended.unwrap_or(Exit { status: 255, at: SystemTime::now() }),
            // The reaper has gone, and with it the machine.
            Err(_) => Exit { status: 255, at: SystemTime::now() },
        }
    }

    /// Sends `signal`; a process that has ended is left alone.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        if self.exit.borrow().is_some() {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        let Some(pidfd) = &self.pidfd else { return Err(io::Error::from_raw_os_error(libc::ESRCH)) };
        use std::os::fd::AsRawFd;
        // SAFETY: pidfd_send_signal(2) with a descriptor that we own, no siginfo and no flags; it reads no memory of ours.
        let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0u32) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[derive(Default)]
struct Table {
    waiting: HashMap<i32, watch::Sender<Option<Exit>>>,
    unclaimed: VecDeque<(i32, Exit, Instant)>,
}

/// The table of watched processes.
#[derive(Default)]
pub struct Reaper {
    table: Mutex<Table>,
}

impl Reaper {
    /// Starts `command` as a watched child.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Watched> {
        // Held from before the start until the entry is there: the loop below cannot reap what it does not know.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropping a Child neither waits nor kills.
        let pid = command.spawn()?.id();
        Ok(watch_pid(&mut table, pid))
    }

    /// Watches a process that somebody else started and that is ours by its parent's end. `since` is a moment before its start:
    /// an older end of the same number was another process's.
    pub fn adopt(&self, pid: u32, since: Instant) -> Watched {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = table.unclaimed.iter().position(|(p, _, at)| *p == pid.cast_signed() && *at >= since);
        if let Some((_, exit, _)) = ended.and_then(|index| table.unclaimed.remove(index)) {
            let (_, exit) = watch::channel(Some(exit));
            return Watched { pid, pidfd: None, exit };
        }
        watch_pid(&mut table, pid)
    }

    /// Reaps for ever. `signals` must have been made before the first child.
    pub async fn run(self: Arc<Self>, mut signals: Signal) {
        loop {
            self.reap();
            if signals.recv().await.is_none() {
                return;
            }
        }
    }

    /// SIGCHLD, which wakes [`Reaper::run`].
    pub fn signals() -> io::Result<Signal> {
        signal(SignalKind::child())
    }

    fn reap(&self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pid, status) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code.cast_unsigned()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + (signal as i32).cast_unsigned()),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(e) => {
                    warn!("waitpid: {e}");
                    return;
                }
            };
            let exit = Exit { status, at: SystemTime::now() };
            match table.waiting.remove(&pid.as_raw()) {
                Some(waiter) => drop(waiter.send_replace(Some(exit))),
                None => {
                    debug!(pid = pid.as_raw(); "orphan reaped");
                    if table.unclaimed.len() == MAX_UNCLAIMED {
                        table.unclaimed.pop_front();
                    }
                    table.unclaimed.push_back((pid.as_raw(), exit, Instant::now()));
                }
            }
        }
    }
}

fn watch_pid(table: &mut Table, pid: u32) -> Watched {
    let (sender, exit) = watch::channel(None);
    table.waiting.insert(pid.cast_signed(), sender);
    // SAFETY: pidfd_open(2) takes two integers. The process has not been reaped, because reaping needs the table.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.cast_signed(), 0) };
    let pidfd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(|fd| {
        // SAFETY: a new descriptor that nobody else knows.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    Watched { pid, pidfd, exit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::children;

    #[tokio::test]
    async fn ends_are_reported_to_all_who_wait() {
        let _guard = children().await;
        let reaper = Arc::new(Reaper::default());
        let running = tokio::spawn(reaper.clone().run(Reaper::signals().unwrap()));
        let watched = reaper.spawn(Command::new("/bin/sh").args(["-c", "exit 7"])).unwrap();
        let (first, second) = tokio::join!(Watched::wait(&watched.exit), Watched::wait(&watched.exit));
        assert_eq!((first.status, second.status), (7, 7));
        assert!(watched.signal(libc::SIGTERM).is_err());
        running.abort();
    }

    #[tokio::test]
    async fn a_signal_is_128_and_more() {
        let _guard = children().await;
        let reaper = Arc::new(Reaper::default());
        let running = tokio::spawn(reaper.clone().run(Reaper::signals().unwrap()));
        let watched = reaper.spawn(Command::new("/bin/sleep").arg("60")).unwrap();
        watched.signal(libc::SIGKILL).unwrap();
        assert_eq!(Watched::wait(&watched.exit).await.status, 128 + 9);
        running.abort();
    }

    #[tokio::test]
    async fn an_end_before_adoption_is_kept_and_an_older_one_is_not() {
        let _guard = children().await;
        let reaper = Reaper::default();
        let since = Instant::now();
        let ended = (4242, Exit { status: 3, at: SystemTime::now() }, Instant::now());
        reaper.table.lock().unwrap().unclaimed.push_back(ended);
        let watched = reaper.adopt(4242, since);
        assert_eq!(Watched::wait(&watched.exit).await.status, 3);
        reaper.table.lock().unwrap().unclaimed.push_back(ended);
        let later = reaper.adopt(4242, Instant::now());
        assert_eq!(*later.exit.borrow(), None);
    }
}
