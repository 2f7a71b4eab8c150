//! The monitor's process: spawned so that it cannot outlive us, waited for without polling, its console kept for the error text.

use super::{
    Command,
    output::{self, Output},
    pidfd::PidFd,
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::mpsc,
    thread,
};
use thiserror::Error;
use tokio::sync::watch;

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
        match output::last_words(&self.last_lines) {
            Some(words) => write!(f, "; its last words: {words}"),
            None => Ok(()),
        }
    }
}

/// A running monitor. Dropping it kills the process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    handle: PidFd,
    exit: watch::Receiver<Option<VmExit>>,
}

impl Process {
    /// Starts `command`. The process gets SIGKILL when we die, whatever we die of.
    pub fn spawn(sandbox_id: &str, command: Command) -> Result<Self, SpawnError> {
        Self::spawn_in(sandbox_id, command, None)
    }

    /// Starts `command` in a network namespace: what asks for the container's by its process id then finds it.
    pub fn spawn_in(sandbox_id: &str, command: Command, netns: Option<File>) -> Result<Self, SpawnError> {
        let (started, starting) = mpsc::channel();
        let (report, exit) = watch::channel(None);
        let id = sandbox_id.to_owned();
        // The parent-death signal is sent when the *thread* that forked ends (prctl(2)): this one lives as long as the process.
        let guard = move || {
            let program = command.program.clone();
            let (mut child, handle, output) = match start(&id, command, netns) {
                Ok(all) => all,
                Err(source) => return drop(started.send(Err(SpawnError::Spawn { program, source }))),
            };
            // A caller that has gone away has dropped its end; the process is then killed by nobody but us.
            if started.send(Ok((child.id(), handle))).is_err() {
                let _ = child.kill();
            }
            let status = describe(child.wait());
            report.send_replace(Some(VmExit { status, last_lines: output.finish() }));
        };
        thread::Builder::new().name("vm".into()).stack_size(256 << 10).spawn(guard).map_err(SpawnError::Thread)?;
        let (pid, handle) = starting.recv().map_err(|_| SpawnError::Thread(io::Error::other("ended early")))??;
        Ok(Self { pid, handle, exit })
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
        if let Err(error) = self.handle.kill() {
            log::warn!(pid = self.pid; "kill of the VM: {error}");
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

fn start(id: &str, command: Command, netns: Option<File>) -> io::Result<(Child, PidFd, Output)> {
    let mut child = spawn_child(command, netns)?;
    // The child was not waited for, so that its number is its own.
    let rest = PidFd::open(child.id()).and_then(|handle| handle.ok_or_else(|| io::ErrorKind::NotFound.into()));
    match rest.and_then(|handle| Ok((handle, Output::read(id, &mut child)?))) {
        Ok((handle, output)) => Ok((child, handle, output)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn spawn_child(command: Command, netns: Option<File>) -> io::Result<Child> {
    let parent = nix::unistd::getpid();
    let fds: Vec<RawFd> = command.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut child = std::process::Command::new(&command.program);
    child.args(&command.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Nothing of ours that it does not need: containerd hands its whole environment to the shim, and the shim's folder goes away.
    child.env_clear().current_dir("/");
    // A signal to the shim's group is not for the VM.
    child.process_group(0);
    // SAFETY: between fork and exec only prctl, getppid, setns, close_range and fcntl are called, which are async-signal-safe; nothing
    // allocates.
    unsafe {
        child.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // We may have died between fork and prctl; then nobody would send the signal.
            if nix::unistd::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(netns) = &netns {
                nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            }
            inherit_only(&fds)
        });
    }
    child.spawn()
    // `command.inherited` is closed here; the child has its own.
}

/// Leaves the child `fds` and nothing else beyond its stdio: what containerd or a library opened without close-on-exec stays here.
fn inherit_only(fds: &[RawFd]) -> io::Result<()> {
    // SAFETY: marks descriptors of this process; the call takes numbers only. Linux before 5.11 refuses the flag; there each
    // descriptor has the mark that it was opened with.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    for fd in fds {
        // SAFETY: a plain call on a descriptor that the child has a copy of.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
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
    async fn only_what_is_meant_for_it_arrives() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"through\n").unwrap();
        drop(writer);
        // Open without close-on-exec, as a careless library may leave it.
        let stray = std::fs::File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&stray, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let script = format!("cat /proc/self/fd/{}; test -e /proc/self/fd/{} || echo closed; pwd", reader.as_raw_fd(), stray.as_raw_fd());
        let process = Process::spawn("s", shell(&script, vec![reader.into()])).unwrap();
        assert_eq!(process.exited().await.last_lines, ["through", "closed", "/"]);
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
