//! A process that the test bed starts and ends.
//!
//! It is ended in every case: orderly by [`Daemon::stop`] or drop, by the kernel (parent death signal) when the test program
//! dies, and by the next run ([`end_stale`]) through the pid and start time recorded on disk before anything else.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(20);
/// How long between two looks at a condition that has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running process with its log and its record on disk.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    record: PathBuf,
}

impl Daemon {
    /// Starts `command` with both outputs in `<directory>/<name>.log`.
    pub fn start(name: &str, directory: &Path, mut command: Command) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = spawn(command).with_context(|| format!("starting {name}"))?;
        let record = directory.join(format!("{name}.pid"));
        fs::write(&record, format!("{} {}", child.id(), start_time(child.id()).unwrap_or_default()))?;
        Ok(Self { name: name.to_owned(), child, log, record })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Path of the log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until `ready` says so; ends early, with the log's last lines, if the process ends.
    pub fn wait_until(&mut self, limit: Duration, what: &str, ready: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}: {}", self.name, self.last_lines());
            }
            if Instant::now() > deadline {
                bail!("{}: not {what} after {} s: {}", self.name, limit.as_secs(), self.last_lines());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// The last lines of the log, for an error text.
    pub fn last_lines(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Ends the process, orderly first.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            kill(pid(self.child.id())?, Signal::SIGTERM).ok();
            let deadline = Instant::now() + GRACE;
            while self.child.try_wait()?.is_none() {
                if Instant::now() > deadline {
                    self.kill()?;
                    bail!("{} did not end within {} s of SIGTERM", self.name, GRACE.as_secs());
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        fs::remove_file(&self.record).ok();
        Ok(())
    }

    /// Ends the process as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        fs::remove_file(&self.record).ok();
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            println!("{error:#}");
        }
    }
}

/// Ends what an earlier run of the test program left behind below `directory`: only processes whose recorded start time still
/// matches, because a pid alone may belong to somebody else by now.
pub fn end_stale(directory: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let (id, started) = text.split_once(' ').with_context(|| format!("{} is not 'pid start-time'", path.display()))?;
        let id: u32 = id.parse()?;
        if started.parse().ok() == start_time(id) && start_time(id).is_some() {
            kill(pid(id)?, Signal::SIGKILL).ok();
        }
        fs::remove_file(&path)?;
    }
    Ok(())
}

/// Start time of a process in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)). None once it is gone.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold spaces and brackets; what follows the last bracket may not.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn pid(id: u32) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(id)?))
}

type Request = (Command, Sender<std::io::Result<Child>>);

/// The parent death signal is sent when the *thread* that made the child ends. Tests run in threads that come and go, so one
/// thread that lives as long as the program makes all daemons.
static SPAWNER: LazyLock<Mutex<Sender<Request>>> = LazyLock::new(|| {
    let (requests, inbox) = channel::<Request>();
    std::thread::spawn(move || {
        for (mut command, answer) in inbox {
            answer.send(command.spawn()).ok();
        }
    });
    Mutex::new(requests)
});

fn spawn(command: Command) -> Result<Child> {
    let (answer, outbox) = channel();
    let spawner = SPAWNER.lock().map_err(|_| anyhow!("the spawning thread is gone"))?;
    spawner.send((command, answer)).map_err(|_| anyhow!("the spawning thread is gone"))?;
    drop(spawner);
    Ok(outbox.recv()??)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-daemon-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_process_that_ends_early_is_reported_with_its_last_line() {
        let directory = scratch("early");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such registry; exit 3"]);
        let mut daemon = Daemon::start("early", &directory, command).unwrap();
        let text = daemon.wait_until(Duration::from_secs(20), "listening", || false).unwrap_err().to_string();
        assert!(text.contains("before listening") && text.contains("no such registry"), "{text}");
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_daemon_outlives_the_thread_that_asked_for_it_and_ends_with_drop() {
        let directory = scratch("thread");
        let at = directory.clone();
        let daemon = std::thread::spawn(move || {
            let mut command = Command::new("sleep");
            command.arg("600");
            Daemon::start("sleep", &at, command).unwrap()
        });
        let daemon = daemon.join().unwrap();
        let id = daemon.pid();
        assert!(start_time(id).is_some());
        drop(daemon);
        assert_eq!(start_time(id), None);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_stale_record_of_another_process_kills_nobody() {
        let directory = scratch("stale");
        fs::write(directory.join("x.pid"), format!("{} 1", std::process::id())).unwrap();
        end_stale(&directory).unwrap();
        assert!(!directory.join("x.pid").exists());
        fs::remove_dir_all(directory).unwrap();
    }
}
