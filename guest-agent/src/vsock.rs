//! vsock: the ports that the host calls, and the calls that the agent makes.

use async_trait::async_trait;
use futures_util::{Stream, stream};
use log::warn;
use protocol::{
    HOST_CID,
    console::READY,
    courier::Request,
    host_port,
    line::{self, LineError},
};
use std::{fs::File, io, os::fd::AsRawFd};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// Opens a port of the guest.
pub fn listen(port: u32) -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))
}

/// Accepts the host's next connection. Containers can call these ports too, over the loopback of vsock: they are hung up on.
pub async fn accept(listener: &VsockListener) -> io::Result<VsockStream> {
    loop {
        let (stream, peer) = listener.accept().await?;
        if peer.cid() == HOST_CID {
            return Ok(stream);
        }
        warn!(cid = peer.cid(); "vsock connection that is not the host's refused");
    }
}

/// All of the host's connections to a port.
pub fn incoming(listener: VsockListener) -> impl Stream<Item = io::Result<VsockStream>> + Send + 'static {
    stream::unfold(listener, |listener| async move { Some((accept(&listener).await, listener)) })
}

/// Calls one of the host's ports. On a host whose kernel serves all guests, each guest's ports have numbers of their own.
async fn dial_host(port: u32) -> io::Result<VsockStream> {
    let port = host_port::of(own_cid()?, port);
    VsockStream::connect(VsockAddr::new(HOST_CID, port)).await
}

/// The guest's context id, from the device (`IOCTL_VM_SOCKETS_GET_LOCAL_CID`, include/uapi/linux/vm_sockets.h).
fn own_cid() -> io::Result<u32> {
    const GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let device = File::open("/dev/vsock")?;
    let mut cid = 0u32;
    // SAFETY: the call writes one unsigned int, which lives until it returns.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &mut cid) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(cid) }
}

/// Tells the host that the guest's ports are open; the connection then carries the log.
pub async fn announce() -> Result<VsockStream, LineError> {
    let mut stream = dial_host(host_port::CONSOLE).await?;
    line::write_line(&mut stream, READY).await?;
    Ok(stream)
}

/// The host's courier (`protocol::courier`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Courier;

impl Courier {
    /// Asks for a blob; gives its size and its bytes as the host claims them. Nothing of it may be believed.
    pub async fn get(self, digest: &str) -> Result<(u64, VsockStream), LineError> {
        let mut stream = dial_host(host_port::COURIER).await?;
        let size = Request::Get(digest.to_owned()).send(&mut stream).await?;
        let size = size.parse().map_err(|_| LineError::Unexpected(size))?;
        Ok((size, stream))
    }

    /// Asks for a TCP connection from the node's network.
    pub async fn connect(self, authority: &str) -> Result<VsockStream, LineError> {
        let mut stream = dial_host(host_port::COURIER).await?;
        Request::Connect(authority.to_owned()).send(&mut stream).await?;
        Ok(stream)
    }
}

#[async_trait]
impl transport::Dialer for Courier {
    async fn dial(&self, authority: &str) -> io::Result<Box<dyn transport::Stream>> {
        match self.connect(authority).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(LineError::Io(e)) => Err(e),
            Err(e) => Err(io::Error::other(e.to_string())),
        }
    }
}
