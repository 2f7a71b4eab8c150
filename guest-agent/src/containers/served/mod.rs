//! Disks that the host serves to a guest that runs already (`protocol::nbd`): a pod's containers come when its VM, which can be given no disk
//! any more, has long started.
//!
//! - [`device`]: the kernel's side. - [`relay`]: what goes between it and the host, and what does not.
//!
//! A device belongs to whoever has it: containers that name the same disk have one, with one cache, and the last to go ends it. What has ended
//! stays so; every request of it fails.

mod device;
mod relay;

use super::disks::Disk;
use device::Device;
use log::{info, warn};
use protocol::{api, nbd::MAX_DISKS};
use relay::Ends;
use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Weak},
    thread,
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, MutexGuard},
    task::spawn_blocking,
};
use tokio_vsock::VsockStream;

/// Stack of the thread that waits for a disk's end.
const STACK: usize = 128 << 10;

/// Most disks in a machine's life: the kernel's numbers (`MINORMASK`).
const MAX_MADE: u32 = 1 << 20;

/// Why a disk is not served.
#[derive(Debug, Error)]
pub enum ServedError {
    /// Too many.
    #[error("a guest is served at most {MAX_DISKS} disks at a time")]
    Full,
    /// Too many in the machine's life.
    #[error("a guest is served {MAX_MADE} disks and no more; start the pod again")]
    Used,
    /// The kernel.
    #[error("disk of the kernel: {0}")]
    Kernel(#[from] io::Error),
}

/// Which disk: containers that say the same have the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    name: String,
    bytes: u64,
    readonly: bool,
}

impl Wanted {
    /// As a volume says, within its bounds.
    pub fn of(volume: &api::Volume) -> Self {
        Self { name: volume.name.clone(), bytes: volume.size, readonly: volume.readonly }
    }
}

/// A stream of the host's that threads can go on with.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin {
    /// A descriptor of it.
    fn descriptor(&self) -> io::Result<OwnedFd>;
}

impl Carrier for VsockStream {
    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }
}

/// All that are served.
#[derive(Default)]
pub struct ServedDisks {
    /// Held while one is made: of two containers that want it, one makes it.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    disks: HashMap<Wanted, Weak<Served>>,
    /// Number of the next device. None comes twice: a container whose disk has ended would find another's under the numbers that it may open.
    next: u32,
}

/// A disk that is served, for as long as somebody has this.
pub struct Served {
    disk: Disk,
    ends: Arc<Ends>,
}

impl Served {
    /// Takes the host's stream for a device that asks at the other end of `kernel`.
    fn start(device: Device, kernel: UnixStream, stream: OwnedFd) -> io::Result<Self> {
        let served = Self { disk: device.disk(), ends: Arc::new(Ends::new(kernel, stream)?) };
        let ends = served.ends.clone();
        thread::Builder::new().name("disk".to_owned()).stack_size(STACK).spawn(move || {
            let name = device.name();
            match ends.carry() {
                Ok(()) => info!(disk = name; "disk ended"),
                Err(error) => warn!(disk = name; "disk ended: {error}"),
            }
            // What the kernel still waits for fails.
            drop(device);
        })?;
        Ok(served)
    }

    /// As containers have it.
    pub fn disk(&self) -> Disk {
        self.disk
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.ends.shut();
    }
}

/// A disk on its way.
pub struct Connecting<'a> {
    table: MutexGuard<'a, Table>,
    wanted: Wanted,
    made: Made,
}

enum Made {
    /// Another container has it.
    Before(Arc<Served>),
    /// A device, and the other end of its socket.
    Now(Device, UnixStream),
}

impl ServedDisks {
    /// Has the kernel make a disk, or finds the one that is there.
    pub async fn connect(&self, wanted: &Wanted) -> Result<Connecting<'_>, ServedError> {
        let mut table = self.table.lock().await;
        table.disks.retain(|_, served| served.upgrade().is_some_and(|served| !served.ends.are_shut()));
        let made = match table.disks.get(wanted).and_then(Weak::upgrade) {
            Some(served) => Made::Before(served),
            None if table.disks.len() >= MAX_DISKS => return Err(ServedError::Full),
            None if table.next >= MAX_MADE => return Err(ServedError::Used),
            None => {
                let (kernel, ours) = UnixStream::pair()?;
                let (index, bytes, readonly) = (table.next, wanted.bytes, wanted.readonly);
                table.next += 1;
                let device = spawn_blocking(move || Device::connect(index, kernel, bytes, readonly)).await.map_err(io::Error::other)??;
                Made::Now(device, ours)
            }
        };
        Ok(Connecting { table, wanted: wanted.clone(), made })
    }
}

impl Connecting<'_> {
    /// Takes the host's stream, which from here on carries the disk; the caller does nothing with it any more. One that the guest has already
    /// needs none.
    pub fn carry(mut self, stream: &impl Carrier) -> io::Result<Arc<Served>> {
        let (device, kernel) = match self.made {
            Made::Before(served) => return Ok(served),
            Made::Now(device, kernel) => (device, kernel),
        };
        let served = Arc::new(Served::start(device, kernel, stream.descriptor()?)?);
        self.table.disks.insert(self.wanted, Arc::downgrade(&served));
        Ok(served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Carrier for tokio::io::DuplexStream {
        fn descriptor(&self) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}
