//! vsock between host and guest: of the host's kernel where it has one, else of our own.

mod kernel;
mod user;

pub use kernel::KernelVsock;
pub use user::UserVsock;

use crate::vmm::VsockDevice;
use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

/// A connection to or from the guest.
#[derive(Debug)]
pub enum VsockStream {
    /// Through the host's kernel.
    Kernel(tokio_vsock::VsockStream),
    /// Through our own device.
    User(UnixStream),
}

/// The host's end of a guest's vsock device.
#[derive(Debug, Clone)]
pub enum Vsock {
    /// The host's kernel serves the device.
    Kernel(KernelVsock),
    /// We serve the device.
    User(UserVsock),
}

/// Connections of the guest to one port of the host.
#[derive(Debug)]
pub enum VsockListener {
    /// Through the host's kernel.
    Kernel(kernel::KernelListener),
    /// Through our own device.
    User(user::UserListener),
}

impl Vsock {
    /// The device for one VM: the kernel's if `/dev/vhost-vsock` opens. A socket may be in `dir` for a moment.
    pub fn for_vm(dir: &Path) -> io::Result<(Self, VsockDevice)> {
        if let Some((kernel, device)) = KernelVsock::claim()? {
            let device = VsockDevice::Kernel { cid: kernel.cid(), device };
            return Ok((Self::Kernel(kernel), device));
        }
        let (user, monitor) = UserVsock::start(dir)?;
        Ok((Self::User(user), VsockDevice::User(monitor)))
    }

    /// Connects to a port of the guest.
    pub async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        match self {
            Self::Kernel(kernel) => kernel.connect(port).await.map(VsockStream::Kernel),
            Self::User(user) => user.connect(port).await.map(VsockStream::User),
        }
    }

    /// Takes the connections that this guest opens to a port of the host.
    pub fn listen(&self, port: u32) -> io::Result<VsockListener> {
        match self {
            Self::Kernel(kernel) => kernel.listen(port).map(VsockListener::Kernel),
            Self::User(user) => Ok(VsockListener::User(user.listen(port))),
        }
    }
}

impl VsockListener {
    /// The next connection of this guest.
    pub async fn accept(&mut self) -> io::Result<VsockStream> {
        match self {
            Self::Kernel(listener) => listener.accept().await.map(VsockStream::Kernel),
            Self::User(listener) => listener.accept().await.map(VsockStream::User),
        }
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::User(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::User(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_flush(cx),
            Self::User(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Kernel(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::User(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
