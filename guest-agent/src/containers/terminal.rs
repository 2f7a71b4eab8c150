//! A container's terminal: the master of its pty, which the process's side sends over a socket.

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg},
};
use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

/// The socket over which the master comes; removed when dropped.
#[derive(Debug)]
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // The process's side has ended when this is asked, so whatever it sent is there already.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the master that has been sent.
    pub fn receive(&self) -> io::Result<Terminal> {
        let (stream, _) = self.listener.accept()?;
        let mut name = [0u8; 64];
        let mut slices = [IoSliceMut::new(&mut name)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control
                && let Some(fd) = fds.first()
            {
                // SAFETY: the kernel made this descriptor for us with the message, and nothing else knows it.
                return Terminal::new(unsafe { OwnedFd::from_raw_fd(*fd) });
            }
        }
        Err(io::Error::other("no terminal was sent"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The master's side of a pty; clones are the same terminal.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(master.as_fd(), FcntlArg::F_GETFL)?);
        fcntl(master.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by the AsyncFd, and neither replaced nor closed while it is registered.
        Ok(Self(Arc::new(unsafe { AsyncFd::register(master)? })))
    }

    /// Sets its size in characters.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize (ioctl_tty(2)), which lives until the call returns.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match guard.try_io(|fd| Ok(nix::unistd::read(fd.as_fd(), buffer.initialize_unfilled())?)) {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // EIO is how a pty says that its last process has gone.
                Ok(Err(e)) if e.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.as_fd(), data)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A terminal has no end of file of its own; whoever types sends one (^D).
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{
        pty::openpty,
        sys::socket::{ControlMessage, sendmsg},
    };
    use std::{io::IoSlice, os::unix::net::UnixStream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn received() -> (Terminal, OwnedFd, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::bind(&dir.path().join("tty.sock")).unwrap();
        let pty = openpty(None, None).unwrap();
        let sender = UnixStream::connect(socket.path()).unwrap();
        let fds = [pty.master.as_raw_fd()];
        sendmsg::<UnixAddr>(sender.as_raw_fd(), &[IoSlice::new(b"x")], &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)
            .unwrap();
        (socket.receive().unwrap(), pty.slave, dir)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_end() {
        let (mut terminal, slave, _dir) = received();
        terminal.resize(80, 25).unwrap();
        terminal.write_all(b"hi\n").await.unwrap();
        let mut line = [0; 16];
        assert_eq!(nix::unistd::read(slave.as_fd(), &mut line).unwrap(), 3);
        let mut echo = [0; 4];
        terminal.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hi\r\n");
        drop(slave);
        assert_eq!(terminal.read(&mut line).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_socket_without_a_terminal_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::bind(&dir.path().join("tty.sock")).unwrap();
        assert!(socket.receive().is_err());
        let sender = UnixStream::connect(socket.path()).unwrap();
        drop(sender);
        assert!(socket.receive().is_err());
    }
}
