//! Disks of the host's that are mounted in containers. Without initdata one has an ext4 that the host has made, and is mounted as it is. With
//! initdata it is a sealed disk ([`crate::sealed_disk`]) whose key the policy names for this container, or it is refused: a file system that a
//! host has made is input of its choice for the kernel, and for the workload.

mod open;

use super::{disks::Disk, in_root::InRoot, users::Ids};
use crate::sealed_disk::{DiskKey, HEADER_BYTES, Kind, Mapped, Opened, Raw, SealedDiskError, kind};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{Gid, Uid, chown, syncfs},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use thiserror::Error;

/// Where they are mounted, each under the number of its slot.
const DISKS: &str = "/run/cloister/disks";
/// Most at a time.
const MAX_DISKS: usize = 256;

/// Why a disk is not mounted: which, with which key.
#[derive(Debug, Error)]
#[error("disk at {destination}{}: {reason}", key.as_ref().map(|key| format!(" with the key {key}")).unwrap_or_default())]
pub struct MountError {
    destination: String,
    key: Option<String>,
    reason: Reason,
}

/// Why not.
#[derive(Debug, Error)]
pub enum Reason {
    /// The machine does not know of a broker.
    #[error("the machine was started without initdata that names a broker; add aa.toml to the initdata")]
    NoBroker,
    /// The broker did not give the key.
    #[error("{0}")]
    Key(String),
    /// It gave something else.
    #[error("it has {0} bytes and has to have 32 random ones (openssl rand 32)")]
    Length(usize),
    /// Someone else has it.
    #[error("another container of this machine has the same disk; give each a disk of its own")]
    Taken,
    /// No more room.
    #[error("at most {MAX_DISKS} disks are mounted at a time")]
    Full,
    /// The sealed disk.
    #[error(transparent)]
    Sealed(#[from] SealedDiskError),
    /// A sealed disk, and no key.
    #[error("it is a sealed disk, and without initdata there is no key for it")]
    Locked,
    /// Nothing that can be mounted.
    #[error("there is no ext4 on it; make one on the host (mkfs.ext4), or bind it to a place below /dev to have it as a disk")]
    NoFileSystem,
    /// A step that failed.
    #[error("{step}: {source}")]
    Step {
        /// Which.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl Reason {
    fn step(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Step { step, source }
    }

    fn errno(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Step { step, source: errno.into() }
    }

    /// Says which disk it was, and with which key.
    pub fn of(self, destination: &str, key: Option<&str>) -> MountError {
        MountError { destination: destination.to_owned(), key: key.map(str::to_owned), reason: self }
    }
}

/// How a disk is to be mounted.
pub enum How {
    /// As the host has made it.
    Plain {
        /// Not to be written to.
        readonly: bool,
    },
    /// Sealed.
    Sealed {
        /// The owner's key.
        key: DiskKey,
        /// An empty one becomes a new one.
        format: bool,
        /// Whose the root of a new one is.
        owner: Ids,
    },
}

/// Those that are mounted, by their slots.
#[derive(Debug, Default)]
pub struct Disks(Mutex<BTreeMap<usize, Taken>>);

/// What a slot is taken by.
#[derive(Debug)]
struct Taken {
    device: (u32, u32),
    /// Of a sealed one, by which it is known through a second device as well.
    salt: Option<[u8; 32]>,
}

/// A mounted disk; taken down when it is dropped, after its container.
#[derive(Debug)]
pub struct Mounted {
    disks: Arc<Disks>,
    slot: usize,
    mapped: Option<Mapped>,
    mounted: bool,
}

impl Disks {
    fn table(&self) -> MutexGuard<'_, BTreeMap<usize, Taken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts a disk. Blocks.
    pub fn mount(self: &Arc<Self>, disk: Disk, how: How) -> Result<Mounted, Reason> {
        let raw = Raw { node: disk.node().map_err(Reason::step("find its node"))?, device: disk.number(), bytes: disk.bytes };
        match how {
            How::Plain { readonly } => {
                check_plain(&raw)?;
                let mounted = self.take(disk, None)?;
                let readonly = if readonly || disk.readonly { MsFlags::MS_RDONLY } else { MsFlags::empty() };
                mounted.mount(&raw.node, readonly, None)
            }
            How::Sealed { .. } if disk.readonly => Err(SealedDiskError::ReadOnly.into()),
            How::Sealed { key, format, owner } => {
                let opened = Opened::read(raw, key, format)?;
                let mut mounted = self.take(disk, Some(opened.salt()))?;
                let mapped = mounted.mapped.insert(opened.map(mounted.slot)?);
                let node = mapped.node().to_owned();
                let mounted = mounted.mount(&node, MsFlags::empty(), Some(crate::scratch::ext4::OPTIONS))?;
                if opened.is_fresh() {
                    chown(&mounted.place(), Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
                        .map_err(Reason::errno("chown"))?;
                }
                Ok(mounted)
            }
        }
    }

    fn take(self: &Arc<Self>, disk: Disk, salt: Option<[u8; 32]>) -> Result<Mounted, Reason> {
        let device = (disk.major, disk.minor);
        let mut table = self.table();
        if table.values().any(|taken| taken.device == device || (salt.is_some() && taken.salt == salt)) {
            return Err(Reason::Taken);
        }
        let slot = (0..MAX_DISKS).find(|slot| !table.contains_key(slot)).ok_or(Reason::Full)?;
        table.insert(slot, Taken { device, salt });
        Ok(Mounted { disks: self.clone(), slot, mapped: None, mounted: false })
    }

    /// Writes what is still to be written, for the end of the machine. Blocks.
    pub fn sync(&self) {
        let slots: Vec<usize> = self.table().keys().copied().collect();
        for slot in slots {
            let synced = File::open(place(slot)).and_then(|root| Ok(syncfs(&root)?));
            if let Err(error) = synced {
                log::warn!("write disk {slot}: {error}");
            }
        }
    }
}

impl Mounted {
    fn mount(mut self, node: &str, flags: MsFlags, options: Option<&str>) -> Result<Self, Reason> {
        let place = self.place();
        fs::create_dir_all(&place).map_err(Reason::step("make its mount point"))?;
        let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(node), &place, Some("ext4"), flags, options).map_err(Reason::errno("mount ext4"))?;
        self.mounted = true;
        Ok(self)
    }

    /// Where it is mounted.
    pub fn place(&self) -> PathBuf {
        place(self.slot)
    }

    /// Makes a directory in it, and those above.
    pub fn make_directory(&self, path: &Path) -> io::Result<()> {
        InRoot::open(&self.place())?.make_dirs(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = if self.mounted { umount2(&self.place(), MntFlags::empty()) } else { Ok(()) };
        let removed = self.mapped.as_ref().map_or(Ok(()), Mapped::remove);
        match (unmounted, removed) {
            (Ok(()), Ok(())) => {
                let _ = fs::remove_dir(self.place());
                self.disks.table().remove(&self.slot);
            }
            // It stays taken: two file systems on one disk would destroy it.
            (unmounted, removed) => log::error!(
                "disk {} stays in use: {}",
                self.slot,
                unmounted.err().map_or_else(|| removed.err().map_or_else(String::new, |e| e.to_string()), |e| e.to_string())
            ),
        }
    }
}

fn place(slot: usize) -> PathBuf {
    Path::new(DISKS).join(slot.to_string())
}

/// Whether there is a file system that the kernel can be asked to mount: for the sake of the message.
fn check_plain(raw: &Raw) -> Result<(), Reason> {
    /// Where `s_magic` of ext4 is (fs/ext4/ext4.h), and what.
    const MAGIC: (usize, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);
    let mut block = [0; HEADER_BYTES];
    let read = File::open(&raw.node).and_then(|disk| disk.read_exact_at(&mut block, 0));
    read.map_err(Reason::step("read its first block"))?;
    match kind(&block) {
        Kind::Sealed => Err(Reason::Locked),
        _ if block[MAGIC.0..MAGIC.0 + 2] == MAGIC.1 => Ok(()),
        _ => Err(Reason::NoFileSystem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(minor: u32) -> Disk {
        Disk { major: 254, minor, bytes: 1 << 30, readonly: false }
    }

    #[test]
    fn a_disk_is_mounted_once_whatever_it_comes_by() {
        let disks = Arc::new(Disks::default());
        let first = disks.take(disk(16), Some([1; 32])).unwrap();
        assert!(matches!(disks.take(disk(16), None), Err(Reason::Taken)), "the same device");
        assert!(matches!(disks.take(disk(32), Some([1; 32])), Err(Reason::Taken)), "the same sealed disk by another device");
        let second = disks.take(disk(32), Some([2; 32])).unwrap();
        let plain = disks.take(disk(48), None).unwrap();
        let other = disks.take(disk(64), None).unwrap();
        assert_eq!([first.slot, second.slot, plain.slot, other.slot], [0, 1, 2, 3]);
        drop(first);
        assert_eq!(disks.take(disk(16), Some([1; 32])).unwrap().slot, 0, "free again");
    }

    #[test]
    fn a_refusal_names_disk_and_key() {
        let error = Reason::from(SealedDiskError::Blank).of("/data", Some("kbs:///a/b/c")).to_string();
        assert!(error.starts_with("disk at /data with the key kbs:///a/b/c: the disk is empty") && !error.contains('\n'), "{error}");
        assert!(Reason::Locked.of("/data", None).to_string().starts_with("disk at /data: it is a sealed disk"));
    }

    #[test]
    fn what_is_no_file_system_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let check = |content: &[u8]| {
            let path = dir.path().join("disk");
            fs::write(&path, content).unwrap();
            check_plain(&Raw { node: path.display().to_string(), device: "254:16".into(), bytes: content.len() as u64 })
        };
        let mut block = vec![0; HEADER_BYTES];
        assert!(matches!(check(&block), Err(Reason::NoFileSystem)));
        block[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert!(check(&block).is_ok());
        block[..16].copy_from_slice(b"cloister-sealed1");
        assert!(matches!(check(&block), Err(Reason::Locked)));
        assert!(matches!(check(&[0; 512]), Err(Reason::Step { .. })));
    }
}
