//! vsock of the host's kernel (`/dev/vhost-vsock`).

use std::{fs, io, path::Path};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// The kernel's device.
const DEVICE: &str = "/dev/vhost-vsock";
/// Guests' context ids are drawn from here up; below are reserved ones (linux/vm_sockets.h).
const FIRST_CID: u32 = 1 << 16;

/// One guest's context id.
#[derive(Debug, Clone)]
pub struct KernelVsock {
    cid: u32,
}

impl KernelVsock {
    /// Draws a context id; `None` where the kernel has no device. Should two guests draw the same one, the kernel refuses the second
    /// (EADDRINUSE) when QEMU starts.
    pub fn claim() -> io::Result<Option<Self>> {
        if !Path::new(DEVICE).exists() || fs::OpenOptions::new().read(true).write(true).open(DEVICE).is_err() {
            return Ok(None);
        }
        let mut random = [0; 4];
        io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
        Ok(Some(Self { cid: FIRST_CID + u32::from_ne_bytes(random) % (protocol::MAX_KERNEL_CID - FIRST_CID) }))
    }

    /// The guest's context id.
    pub fn cid(&self) -> u32 {
        self.cid
    }

    /// Connects to a port of the guest.
    pub async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        VsockStream::connect(VsockAddr::new(self.cid, port)).await
    }

    /// Takes the connections that this guest opens to a port of the host.
    pub fn listen(&self, port: u32) -> io::Result<KernelListener> {
        let port = protocol::host_port::of(self.cid, port);
        Ok(KernelListener { listener: VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?, cid: self.cid })
    }
}

/// Connections of one guest.
#[derive(Debug)]
pub struct KernelListener {
    listener: VsockListener,
    cid: u32,
}

impl KernelListener {
    /// The next connection of this guest; those of others are dropped.
    pub async fn accept(&mut self) -> io::Result<VsockStream> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            if peer.cid() == self.cid {
                return Ok(stream);
            }
            log::warn!(cid = peer.cid(); "vsock: a stranger called");
        }
    }
}
