//! A process behind a descriptor (pidfd_open(2)), so that its number can be reused without harm.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// An open process. Other than a number it cannot come to mean another process.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens process `pid`; `None` where there is no such process. The caller sees to it that the number is still the one it means:
    /// either it is a child that was not waited for, or the start time is compared afterwards.
    pub fn open(pid: u32) -> io::Result<Option<Self>> {
        // SAFETY: pidfd_open takes a number and flags, and returns a descriptor that nobody else has.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd >= 0 {
            // SAFETY: as above; the descriptor is open and ours. It is a small number, so that nothing is cut off.
            return Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) })));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            error => Err(error),
        }
    }

    /// Sends SIGKILL. A process that has ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: a signal to the process behind an open pidfd; no memory is passed.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, 0, 0) };
        match io::Error::last_os_error() {
            error if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the process ends within `limit`.
    pub fn ended_within(&self, limit: Duration) -> io::Result<bool> {
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        let mut wait = [nix::poll::PollFd::new(self.0.as_fd(), nix::poll::PollFlags::POLLIN)];
        Ok(nix::poll::poll(&mut wait, limit)? > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    #[test]
    fn a_process_is_ended_and_then_gone() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = PidFd::open(child.id()).unwrap().unwrap();
        assert!(!process.ended_within(Duration::ZERO).unwrap());
        process.kill().unwrap();
        assert!(process.ended_within(Duration::from_secs(10)).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        process.kill().unwrap();
        assert!(PidFd::open(child.id()).unwrap().is_none());
    }
}
