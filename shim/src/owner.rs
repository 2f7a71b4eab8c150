//! Which process serves a bundle, on disk for `delete`: a shim that lost its socket or its mind must not outlive its bundle.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

/// The file in the bundle that the daemon was started in.
const FILE: &str = "shim.pid";
/// How long a shim may take to end in order, in milliseconds, of the five seconds that `delete` has.
const GRACE_MS: u16 = 1500;

/// Notes a process, a child of ours, in its bundle.
pub fn note(bundle: &Path, pid: u32) -> io::Result<()> {
    fs::write(bundle.join(FILE), format!("{pid} {}", start_time(pid).unwrap_or_default()))
}

/// Ends the process that is noted in the bundle, if it is still the one that was noted: in order, then by force.
pub fn end(bundle: &Path) {
    let Ok(text) = fs::read_to_string(bundle.join(FILE)) else { return };
    let mut words = text.split_whitespace();
    let (Some(pid), Some(noted)) = (words.next().and_then(|w| w.parse::<u32>().ok()), words.next().and_then(|w| w.parse::<u64>().ok()))
    else {
        return;
    };
    // SAFETY: pidfd_open takes a number and flags, and returns a descriptor that nobody else has.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd) = i32::try_from(fd) else { return };
    if fd < 0 {
        return;
    }
    // SAFETY: as above; the descriptor is open and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Asked with the pidfd in hand: from here on the number cannot be reused under us.
    if start_time(pid) != Some(noted) {
        return;
    }
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        // SAFETY: a signal to the process behind an open pidfd; no memory is passed.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal, 0, 0) };
        let mut wait = [nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN)];
        if matches!(nix::poll::poll(&mut wait, GRACE_MS), Ok(n) if n > 0) {
            return;
        }
    }
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)): start time in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    #[test]
    fn only_the_process_that_was_noted_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        end(dir.path());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let started = start_time(child.id()).unwrap();
        for other in [String::new(), "x y".to_owned(), format!("{} {}", child.id(), started + 1)] {
            fs::write(dir.path().join(FILE), other).unwrap();
            end(dir.path());
            assert!(child.try_wait().unwrap().is_none());
        }
        fs::write(dir.path().join(FILE), format!("{} {started}", child.id())).unwrap();
        end(dir.path());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
    }
}
