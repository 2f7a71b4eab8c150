//! Scratch: where layers and everything that containers write go. A disk of the host behind dm-crypt with a key that is made here, kept
//! in the kernel only, and ends with the machine; or the guest's memory where there is no disk.
//!
//! No header of the host is read (a LUKS2 header can be swapped for one with a null cipher: CVE-2025-59054), and no file system that
//! the host made is mounted.

mod device_mapper;
mod disk;
mod ext4;

use crate::boot::{
    marks,
    modules::{ModuleError, Modules, Stage},
};
use device_mapper::{DeviceMapper, DmError};
use disk::{Disk, DiskError};
use log::info;
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// Where scratch is mounted.
const MOUNT_POINT: &str = "/run/scratch";
/// The mapped device's name.
const NAME: &str = "scratch";
/// AES-256-XTS takes two keys of 32 bytes.
const KEY_BYTES: usize = 64;
const SECTOR: u64 = 512;

/// Why there is no scratch.
#[derive(Debug, Error)]
pub enum ScratchError {
    /// Its kernel modules.
    #[error("scratch: {0}")]
    Modules(#[from] ModuleError),
    /// The search for the disk.
    #[error("scratch: {0}")]
    Disk(#[from] DiskError),
    /// Encryption.
    #[error("scratch: {0}")]
    Crypt(#[from] DmError),
    /// The file system.
    #[error("scratch: {0}")]
    Format(#[from] ext4::FormatError),
    /// A file or directory.
    #[error("scratch: {path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

impl ScratchError {
    fn io(path: &str, source: impl Into<io::Error>) -> Self {
        Self::Io { path: path.to_owned(), source: source.into() }
    }
}

/// The mounted scratch space.
#[derive(Debug, Clone)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    /// Finds, encrypts, formats and mounts. Blocks.
    pub fn prepare(modules: &Modules) -> Result<Self, ScratchError> {
        modules.load(Stage::Scratch)?;
        fs::create_dir_all(MOUNT_POINT).map_err(|e| ScratchError::io(MOUNT_POINT, e))?;
        match disk::find()? {
            Some(disk) if disk.bytes >= ext4::MIN_BYTES => mount_disk(&disk)?,
            _ => mount_memory()?,
        }
        marks::mark("scratch");
        Self::at(Path::new(MOUNT_POINT))
    }

    /// Scratch in a directory that exists.
    pub fn at(root: &Path) -> Result<Self, ScratchError> {
        let scratch = Self { root: root.to_owned() };
        for dir in [scratch.spool(), scratch.layers(), scratch.containers()] {
            fs::create_dir_all(&dir).map_err(|e| ScratchError::io(&dir.display().to_string(), e))?;
        }
        Ok(scratch)
    }

    /// Blobs as they come in, until they are verified and unpacked.
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// Unpacked layers.
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// What containers write.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }
}

fn mount_disk(disk: &Disk) -> Result<(), ScratchError> {
    // Whole blocks only: dm-crypt works in sectors of 4096 bytes here, an eighth of the requests.
    let bytes = disk.bytes.min(ext4::MAX_BYTES) / ext4::BLOCK * ext4::BLOCK;
    let device = encrypt(disk, bytes)?;
    let mounted = mount_mapped(device, bytes);
    if mounted.is_err() {
        // So that a second attempt fails for the same reason, and not because the name is taken.
        let _ = DeviceMapper::open().and_then(|mapper| mapper.remove(NAME));
    }
    mounted?;
    info!(device = disk.device, mib = bytes >> 20; "scratch is an encrypted disk");
    Ok(())
}

fn mount_mapped(device: u64, bytes: u64) -> Result<(), ScratchError> {
    let node = format!("/dev/dm-{}", libc::minor(device));
    let mapped = OpenOptions::new().read(true).write(true).open(&node).map_err(|e| ScratchError::io(&node, e))?;
    ext4::format(&mapped, bytes)?;
    drop(mapped);
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // noinit_itable: the inode tables are never cleared, see ext4::format. nodiscard: the host learns nothing of what is freed.
    mount(Some(node.as_str()), MOUNT_POINT, Some("ext4"), flags, Some("noinit_itable,nodiscard"))
        .map_err(|e| ScratchError::io(MOUNT_POINT, e))
}

/// Puts dm-crypt with a new random key before the disk.
fn encrypt(disk: &Disk, bytes: u64) -> Result<u64, ScratchError> {
    let mut key: [u8; KEY_BYTES] = random().map_err(|e| ScratchError::io("random key", e))?;
    let hex = Zeroizing::new(hex::encode(key));
    key.zeroize();
    let options = "3 sector_size:4096 no_read_workqueue no_write_workqueue";
    // Built in one piece: a string that grows would leave pieces of the key in freed memory.
    let mut table = Zeroizing::new(String::with_capacity(64 + 2 * KEY_BYTES + disk.device.len() + options.len()));
    for part in ["aes-xts-plain64 ", &hex, " 0 ", &disk.device, " 0 ", options] {
        table.push_str(part);
    }
    Ok(DeviceMapper::open()?.create(NAME, bytes / SECTOR, "crypt", &table)?)
}

fn mount_memory() -> Result<(), ScratchError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), MOUNT_POINT, Some("tmpfs"), flags, Some("mode=0700,size=75%")).map_err(|e| ScratchError::io(MOUNT_POINT, e))?;
    info!("scratch is memory: the host gave no disk");
    Ok(())
}

/// Bytes of the kernel's random generator.
fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_apart() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::at(dir.path()).unwrap();
        for path in [scratch.spool(), scratch.layers(), scratch.containers()] {
            assert!(path.is_dir());
        }
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }
}
