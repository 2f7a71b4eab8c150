//! vsock of the host's kernel (`/dev/vhost-vsock`).

use nix::errno::Errno;
use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

/// The kernel's device.
const DEVICE: &str = "/dev/vhost-vsock";
/// Guests' context ids are drawn from here up; below are reserved ones (linux/vm_sockets.h).
const FIRST_CID: u32 = 1 << 16;

/// Attempts to draw a context id that no other guest has.
const ATTEMPTS: usize = 16;

nix::ioctl_write_ptr!(vhost_vsock_set_guest_cid, 0xaf, 0x60, u64);

/// One guest's context id.
#[derive(Debug, Clone)]
pub struct KernelVsock {
    cid: u32,
}

impl KernelVsock {
    /// Claims a context id, for as long as the returned device is open somewhere; `None` where the kernel has no such device.
    pub fn claim() -> io::Result<Option<(Self, OwnedFd)>> {
        let Ok(device) = fs::OpenOptions::new().read(true).write(true).open(DEVICE) else { return Ok(None) };
        for _ in 0..ATTEMPTS {
            let mut random = [0; 4];
            io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
            let cid = FIRST_CID + u32::from_ne_bytes(random) % (protocol::MAX_KERNEL_CID - FIRST_CID);
            // SAFETY: the descriptor is an open vhost-vsock device; the kernel reads one u64, which outlives the call.
            match unsafe { vhost_vsock_set_guest_cid(device.as_raw_fd(), &u64::from(cid)) } {
                Ok(_) => return Ok(Some((Self { cid }, device.into()))),
                Err(Errno::EADDRINUSE) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other(format!("{DEVICE}: no free context id in {ATTEMPTS} attempts")))
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
