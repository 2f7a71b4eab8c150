//! A process that keeps the VM's place: it has a network namespace of its own, and becomes the monitor once it is told which. In between,
//! OCI hooks and CNI configure that namespace by the process's number, which is the one that the container has from then on.
//!
//! It is a program, not a mere fork: a copy of a process with several threads could do nothing but wait, and would hold open whatever
//! that process has open. It has a VM's parent-death signal from its first moment and is in the record before anybody hears of it, so
//! that it goes whatever is killed, and its namespace with it.

use super::{Command, Process, SpawnError};
use nix::{
    fcntl::{FcntlArg, fcntl},
    sched::{CloneFlags, unshare},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{io::AsyncReadExt, time::timeout};

/// First argument of the program that keeps a place; it hands the rest to [`become_vm`].
pub const ARGUMENT: &str = "launch-vm";
/// How long a namespace may take to be made.
const READY: Duration = Duration::from_secs(30);
/// Longest order, in bytes; a command line is some thousand.
const MAX_ORDER: u64 = 1 << 20;
/// Most descriptors of an order: one for each interface, and the vsock device's. The kernel passes at most 253 at once (`SCM_MAX_FD`).
const MAX_FDS: usize = 64;

/// A place that is kept. Dropping it ends the process.
#[derive(Debug)]
pub struct Launcher {
    process: Process,
    orders: UnixStream,
    program: PathBuf,
}

impl Launcher {
    /// Starts `program`, which passes its arguments to [`become_vm`], and waits until it is in its namespace.
    pub async fn start(sandbox_id: &str, program: &Path) -> Result<Self, SpawnError> {
        let failed = |source| SpawnError::Spawn { program: program.to_owned(), source };
        let (orders, theirs) = UnixStream::pair().map_err(failed)?;
        // The last argument is for whoever looks at a list of processes.
        let arguments = [ARGUMENT.to_owned(), theirs.as_raw_fd().to_string(), format!("cloister-{sandbox_id}")];
        let command = Command { program: program.to_owned(), arguments: arguments.map(Into::into).into(), inherited: vec![theirs.into()] };
        let process = Process::spawn(sandbox_id, command)?;
        let readable = orders.try_clone().and_then(|stream| {
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        });
        let mut readable = readable.map_err(failed)?;
        match timeout(READY, readable.read_exact(&mut [0])).await {
            Ok(Ok(_)) => {}
            // It has said why on its standard error, which is in the VM's last words.
            Ok(Err(_)) => return Err(failed(io::Error::other(process.exited().await.to_string()))),
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        }
        Ok(Self { process, orders, program: program.to_owned() })
    }

    /// Its process id: the VM's, later.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Path of its network namespace.
    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    /// Has it become `command`, with its descriptors under their own numbers.
    pub fn launch(self, command: &Command) -> Result<Process, SpawnError> {
        let failed = |source| SpawnError::Spawn { program: self.program.clone(), source };
        // The clone that waited for the first byte has made them both so.
        self.orders.set_nonblocking(false).and_then(|()| send(&self.orders, command)).map_err(failed)?;
        Ok(self.process)
    }
}

/// An order: the descriptors' numbers, the program, its arguments; each ends with a NUL. The descriptors travel beside it.
fn send(orders: &UnixStream, command: &Command) -> io::Result<()> {
    let fds: Vec<RawFd> = command.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let numbers: OsString = fds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",").into();
    let words = [numbers.as_os_str(), command.program.as_os_str()].into_iter().chain(command.arguments.iter().map(OsString::as_os_str));
    let mut text = Vec::new();
    for word in words {
        text.extend_from_slice(word.as_bytes());
        text.push(0);
    }
    let beside = [ControlMessage::ScmRights(&fds)];
    let beside = if fds.is_empty() { &[][..] } else { &beside };
    let sent = sendmsg::<()>(orders.as_raw_fd(), &[IoSlice::new(&text)], beside, MsgFlags::MSG_NOSIGNAL, None)?;
    let mut rest = orders;
    rest.write_all(text.get(sent..).unwrap_or_default())
}

/// The other end, in the program that was started with [`ARGUMENT`]: makes the namespace, waits for the order, and becomes what it says.
/// Returns where that cannot be.
pub fn become_vm(arguments: &[OsString]) -> io::Result<Infallible> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{ARGUMENT}: {what}"));
    let fd: RawFd = arguments.first().and_then(|n| n.to_str()?.parse().ok()).filter(|fd| *fd > 2).ok_or_else(|| invalid("no socket"))?;
    // Whoever runs this by hand has nothing under that number.
    // SAFETY: fcntl takes numbers only; the answer is checked before the descriptor is owned, and nobody else of this process has it.
    let mut orders = unsafe {
        if libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            return Err(invalid("no socket"));
        }
        UnixStream::from_raw_fd(fd)
    };
    unshare(CloneFlags::CLONE_NEWNET)?;
    orders.write_all(b"r")?;
    let (words, fds) = receive(&mut orders)?;
    drop(orders);
    let mut words = words.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let (Some(numbers), Some(program)) = (words.next(), words.next().filter(|program| !program.is_empty())) else {
        return Err(invalid("the one who asked for a VM is gone"));
    };
    let numbers = numbers.to_str().unwrap_or_default().split(',').filter_map(|number| number.parse().ok()).collect::<Vec<RawFd>>();
    place(fds, &numbers)?;
    let mut arguments: Vec<OsString> = words.map(OsStr::to_owned).collect();
    // What follows the last NUL.
    arguments.pop();
    Err(std::process::Command::new(program).args(arguments).exec())
}

/// Reads an order to its end.
fn receive(orders: &mut UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; 64 << 10];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut fds = Vec::new();
    let length = {
        let mut slices = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(orders.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for beside in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = beside {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
                fds.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        message.bytes
    };
    text.truncate(length);
    orders.take(MAX_ORDER).read_to_end(&mut text)?;
    Ok((text, fds))
}

/// Puts each descriptor under its number, to be inherited.
fn place(fds: Vec<OwnedFd>, numbers: &[RawFd]) -> io::Result<()> {
    if fds.len() != numbers.len() || numbers.iter().any(|number| *number <= 2) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "descriptors and their numbers do not match"));
    }
    // Out of the way first: one of them may have arrived under the number of another.
    let above = numbers.iter().max().map_or(3, |highest| highest + 1);
    let moved: Vec<RawFd> = fds.iter().map(|fd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above))).collect::<Result<_, _>>()?;
    drop(fds);
    for (from, to) in moved.into_iter().zip(numbers) {
        // SAFETY: plain numbers; below `above` nothing but the standard streams is open any more.
        if unsafe { libc::dup2(from, *to) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::ffi::OsStringExt;

    /// The whole way with a real program is in the shim's tests: this crate has none.
    #[test]
    fn an_order_arrives_with_its_descriptors() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"through").unwrap();
        drop(writer);
        let number = reader.as_raw_fd();
        let odd = OsString::from_vec(b"\xff, ".to_vec());
        let command = Command { program: "/bin/vm".into(), arguments: vec!["-x".into(), "".into(), odd], inherited: vec![reader.into()] };
        send(&ours, &command).unwrap();
        drop(ours);
        let (text, mut fds) = receive(&mut theirs).unwrap();
        assert_eq!(text, [format!("{number}\0/bin/vm\0-x\0\0").as_bytes(), b"\xff, \0"].concat());
        let mut content = String::new();
        std::fs::File::from(fds.remove(0)).read_to_string(&mut content).unwrap();
        assert_eq!(content, "through");
    }

    #[test]
    fn numbers_without_descriptors_and_standard_streams_are_refused() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(place(vec![null()], &[]).is_err());
        assert!(place(Vec::new(), &[5]).is_err());
        assert!(place(vec![null()], &[2]).is_err());
        assert!(become_vm(&[]).is_err() && become_vm(&["2".into()]).is_err() && become_vm(&["9999".into()]).is_err());
    }
}
