//! The monitor's process: spawned so that it cannot outlive us, waited for without polling, its console kept for the error text.

use super::Command;
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};
use thiserror::Error;
use tokio::sync::watch;

/// Lines of console that are kept for an error text.
const KEPT_LINES: usize = 64;
/// Longest line of console that is kept, in bytes; the guest writes what it likes.
const MAX_LINE: u64 = 1024;

/// The monitor did not start.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// No thread to wait on it.
    #[error("thread for the VM's process: {0}")]
    Thread(io::Error),
    /// No process.
    #[error("{program}: cannot start: {source}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmExit {
    /// In words: exit status or signal.
    pub status: String,
    /// The last lines of the guest's console and the monitor's own errors.
    pub last_lines: Vec<String>,
}

impl std::fmt::Display for VmExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the VM ended ({})", self.status)?;
        match self.last_lines.iter().rev().find(|line| !line.trim().is_empty()) {
            Some(line) => write!(f, "; its last words: {}", line.trim()),
            None => Ok(()),
        }
    }
}

type Lines = Arc<Mutex<VecDeque<String>>>;

/// A running monitor. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    exit: watch::Receiver<Option<VmExit>>,
}

impl Process {
    /// Starts `command`. The process gets SIGKILL when we die, whatever we die of.
    pub fn spawn(sandbox_id: &str, command: Command) -> Result<Self, SpawnError> {
        let (started, start) = mpsc::channel();
        let (report, exit) = watch::channel(None);
        let id = sandbox_id.to_owned();
        // The parent-death signal is sent when the *thread* that forked ends (prctl(2)): this one lives as long as the process.
        let guard = move || {
            let program = command.program.clone();
            match spawn_child(command) {
                Ok(mut child) => {
                    let lines = Lines::default();
                    let readers = read_output(&id, &mut child, &lines);
                    // A caller that has gone away has dropped its end; the process is then killed by nobody but us.
                    if started.send(Ok(child.id())).is_err() {
                        let _ = child.kill();
                    }
                    let status = child.wait();
                    for reader in readers {
                        let _ = reader.join();
                    }
                    let last_lines = lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
                    report.send_replace(Some(VmExit { status: describe(status), last_lines }));
                }
                Err(source) => drop(started.send(Err(SpawnError::Spawn { program, source }))),
            }
        };
        thread::Builder::new().name("vm".into()).stack_size(256 << 10).spawn(guard).map_err(SpawnError::Thread)?;
        let pid = start.recv().map_err(|_| SpawnError::Thread(io::Error::other("ended early")))??;
        Ok(Self { pid, exit })
    }

    /// Process id on this host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns once the process has ended; any number of callers.
    pub fn exited(&self) -> impl Future<Output = VmExit> + Send + 'static {
        let mut exit = self.exit.clone();
        async move {
            match exit.wait_for(Option::is_some).await {
                Ok(ended) => ended.clone().unwrap_or_else(lost),
                Err(_) => lost(),
            }
        }
    }

    /// Ends the process at once.
    pub fn kill(&self) {
        // Not reaped before `exit` is set, so that until then the pid is still this process.
        if self.exit.borrow().is_none() {
            let pid = nix::unistd::Pid::from_raw(self.pid.cast_signed());
            if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
                log::debug!(pid = self.pid; "kill of the VM: {error}");
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lost() -> VmExit {
    VmExit { status: "its end was not seen".into(), last_lines: Vec::new() }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("exit status {}", status.code().unwrap_or_default()),
        },
        Err(error) => error.to_string(),
    }
}

fn spawn_child(command: Command) -> io::Result<Child> {
    let parent = nix::unistd::getpid();
    let mut fds: Vec<RawFd> = command.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut child = std::process::Command::new(&command.program);
    child.args(&command.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A signal to the shim's group is not for the VM.
    child.process_group(0);
    // SAFETY: between fork and exec only prctl, getppid, fcntl and dup2 are called, which are async-signal-safe; nothing allocates.
    unsafe {
        child.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // We may have died between fork and prctl; then nobody would send the signal.
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            inherit(&mut fds)
        });
    }
    child.spawn()
    // `command.inherited` is closed here; the child has its own.
}

/// Puts `fds` at 3, 4, … in the child; first out of each other's way, then in place (dup2 also clears close-on-exec).
fn inherit(fds: &mut [RawFd]) -> io::Result<()> {
    let high = 3 + fds.len() as RawFd;
    for fd in fds.iter_mut() {
        // SAFETY: a plain call on a descriptor that the child has a copy of.
        *fd = unsafe { libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, high) };
        if *fd < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (target, fd) in (3..).zip(fds.iter()) {
        // SAFETY: as above.
        if unsafe { libc::dup2(*fd, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn read_output(id: &str, child: &mut Child, lines: &Lines) -> Vec<thread::JoinHandle<()>> {
    let outputs: [(&'static str, Option<Box<dyn Read + Send>>); 2] =
        [("console", child.stdout.take().map(|o| Box::new(o) as _)), ("qemu", child.stderr.take().map(|e| Box::new(e) as _))];
    outputs
        .into_iter()
        .filter_map(|(name, output)| {
            let (id, lines, output) = (id.to_owned(), lines.clone(), output?);
            let reader = move || keep_lines(&id, name, output, &lines);
            thread::Builder::new().name(name.into()).stack_size(128 << 10).spawn(reader).ok()
        })
        .collect()
}

fn keep_lines(id: &str, name: &str, output: impl Read, lines: &Lines) {
    let mut output = BufReader::with_capacity(4096, output);
    loop {
        let mut line = Vec::new();
        match output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text: String = String::from_utf8_lossy(&line).trim_end().chars().filter(|c| !c.is_control()).collect();
        log::info!(sandbox = id, source = name; "{text}");
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Write;

    fn shell(script: &str, inherited: Vec<std::os::fd::OwnedFd>) -> Command {
        Command { program: "/bin/sh".into(), arguments: vec!["-c".into(), script.into()], inherited }
    }

    #[tokio::test]
    async fn the_end_carries_status_and_last_words() {
        let process = Process::spawn("s", shell("echo one; echo two >&2; exit 3", Vec::new())).unwrap();
        let (first, second) = tokio::join!(process.exited(), process.exited());
        assert_eq!(first, second);
        assert_eq!(first.status, "exit status 3");
        assert!(first.last_lines.contains(&"one".into()) && first.last_lines.contains(&"two".into()));
    }

    #[tokio::test]
    async fn descriptors_arrive_under_their_numbers() {
        let (mut writer, reader) = {
            let (r, w) = std::io::pipe().unwrap();
            (w, r)
        };
        writer.write_all(b"through\n").unwrap();
        drop(writer);
        let null = std::fs::File::open("/dev/null").unwrap();
        let process = Process::spawn("s", shell("cat <&3; cat <&4", vec![null.into(), reader.into()])).unwrap();
        assert_eq!(process.exited().await.last_lines, ["through"]);
    }

    #[tokio::test]
    async fn dropping_it_ends_the_process() {
        let process = Process::spawn("s", shell("exec sleep 1000", Vec::new())).unwrap();
        let exited = process.exited();
        drop(process);
        assert_eq!(exited.await.status, "signal 9");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let command = Command { program: "/nonexistent/qemu".into(), arguments: Vec::new(), inherited: Vec::new() };
        assert!(Process::spawn("s", command).unwrap_err().to_string().contains("/nonexistent/qemu"));
    }
}
