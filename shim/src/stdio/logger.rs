//! `binary://` and `binary-v2://`: a program takes the output, as nerdctl does it. It finds its streams under fixed descriptors: 3 is standard
//! output, 4 standard error, and by 5 it says that it is ready ([`Readiness`]).

use super::{StdioError, uri::Readiness};
use nix::fcntl::{FcntlArg, fcntl};
use std::{
    fmt::Display,
    io::{self, PipeWriter},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::{Receiver, Sender},
    process::{Child, Command},
    time::timeout,
};

/// How long the program may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may take to write what it has, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Descriptors below this one are the program's; ours are moved above before any is put in its place.
const FIRST_FREE: i32 = 10;

/// A logger's program, running.
pub struct Logger {
    /// Where standard output goes.
    pub stdout: Option<Sender>,
    /// Where standard error goes.
    pub stderr: Option<Sender>,
    child: Child,
}

impl Logger {
    /// Starts the program and waits until it is ready.
    pub async fn start(path: PathBuf, words: &[String], readiness: Readiness, namespace: &str, id: &str) -> Result<Self, StdioError> {
        let failed = |reason: &dyn Display| StdioError::Logger { path: path.clone(), reason: reason.to_string() };
        let pipe = || io::pipe().map_err(|e| failed(&e));
        let ((out, stdout), (err, stderr), (ready, done)) = (pipe()?, pipe()?, pipe()?);
        let inherited: [OwnedFd; 3] = [out.into(), err.into(), done.into()];
        let [out, err, done] = inherited.map(above);
        let inherited = [out.map_err(|e| failed(&e))?, err.map_err(|e| failed(&e))?, done.map_err(|e| failed(&e))?];
        let numbers = inherited.each_ref().map(AsRawFd::as_raw_fd);

        let mut command = Command::new(&path);
        command.args(words).env_clear().env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        // SAFETY: between fork and exec only dup2 is called, which is async-signal-safe; sources lie above all targets.
        unsafe {
            command.pre_exec(move || {
                for (number, target) in numbers.into_iter().zip(3..) {
                    if libc::dup2(number, target) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(|e| failed(&e))?;
        drop(inherited);

        let mut ready = Receiver::from_owned_fd(ready.into()).map_err(|e| failed(&e))?;
        match timeout(READY, ready.read(&mut [0])).await {
            Ok(Ok(0)) if readiness == Readiness::Byte => return Err(failed(&"ended before it was ready")),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(failed(&format!("not ready within {} s", READY.as_secs()))),
        }
        let sender = |pipe: PipeWriter| Sender::from_owned_fd(pipe.into()).map(Some).map_err(|e| failed(&e));
        Ok(Self { stdout: sender(stdout)?, stderr: sender(stderr)?, child })
    }

    /// Ends the program, whose streams have been closed: it has time to write what it has, then it is asked, then killed.
    pub async fn close(mut self) {
        drop((self.stdout.take(), self.stderr.take()));
        if timeout(GRACE, self.child.wait()).await.is_ok() {
            return;
        }
        if let Some(pid) = self.child.id() {
            // Not reaped yet: the number is still its own.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGTERM);
        }
        if timeout(GRACE, self.child.wait()).await.is_err() {
            log::warn!("a logger did not end after SIGTERM: killed");
            let _ = self.child.kill().await;
        }
    }
}

/// The same description under a number that is no target of the child's.
fn above(fd: OwnedFd) -> io::Result<OwnedFd> {
    let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(FIRST_FREE))?;
    // SAFETY: fcntl has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};
    use tokio::io::AsyncWriteExt;

    fn script(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("logger");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn the_program_gets_streams_words_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let program =
            script(&dir, "exec 5>&-; echo \"$1=$2 $CONTAINER_NAMESPACE/$CONTAINER_ID\" > \"$2\"; cat <&3 >> \"$2\"; cat <&4 >> \"$2\"");
        let words = ["to".to_owned(), log.display().to_string()];
        let mut logger = Logger::start(program, &words, Readiness::ByteOrEnd, "ns", "c").await.unwrap();
        for (pipe, text) in [(logger.stdout.take(), "out\n"), (logger.stderr.take(), "err\n")] {
            pipe.unwrap().write_all(text.as_bytes()).await.unwrap();
        }
        logger.close().await;
        assert_eq!(fs::read_to_string(&log).unwrap(), format!("to={} ns/c\nout\nerr\n", log.display()));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Logger::start("/nowhere/logger".into(), &[], Readiness::Byte, "ns", "c").await.err().unwrap();
        assert!(error.to_string().contains("/nowhere/logger"), "{error}");
    }

    #[tokio::test]
    async fn one_of_the_second_kind_has_to_say_that_it_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let start = |text: &str| Logger::start(script(&dir, text), &[], Readiness::Byte, "ns", "c");
        start("echo >&5; exec 5>&-; cat <&3").await.unwrap().close().await;
        let error = start("exit 3").await.err().unwrap().to_string();
        assert!(error.contains("ended before it was ready"), "{error}");
    }
}
