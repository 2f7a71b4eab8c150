//! Scratch: where layers and everything that containers write go. A disk of the host behind authenticated encryption (`sealed`), with a
//! key that is made here, kept in the kernel only, and ends with the machine; or the guest's memory where there is no disk.
//!
//! No header of the host is read (a LUKS2 header can be swapped for one with a null cipher: CVE-2025-59054), and no file system that
//! the host made is mounted.

pub mod device_mapper;
mod disk;
pub mod ext4;
pub mod sealed;

use crate::boot::{
    marks,
    modules::{ModuleError, Modules, Stage},
};
use device_mapper::DmError;
use disk::{Disk, DiskError};
use log::info;
use nix::mount::{MsFlags, mount};
use sealed::SealedDisk;
use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Where scratch is mounted.
const MOUNT_POINT: &str = "/run/scratch";

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
        let memory = memory()?;
        match disk::find()?.map(|disk| (sealed::usable(disk.bytes, memory), disk)) {
            Some((bytes, disk)) if bytes >= ext4::MIN_BYTES => mount_disk(&disk, bytes)?,
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

fn mount_disk(disk: &Disk, bytes: u64) -> Result<(), ScratchError> {
    let sealed = SealedDisk::create(disk, bytes)?;
    if let Err(error) = mount_sealed(&sealed.node, bytes) {
        let _ = sealed.remove();
        return Err(error);
    }
    info!(device = disk.device, mib = bytes >> 20, of_mib = disk.bytes >> 20; "scratch is a sealed disk");
    Ok(())
}

fn mount_sealed(node: &str, bytes: u64) -> Result<(), ScratchError> {
    let device = OpenOptions::new().read(true).write(true).open(node).map_err(|e| ScratchError::io(node, e))?;
    ext4::format(&device, bytes, ext4::Kind::Scratch)?;
    drop(device);
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(node), MOUNT_POINT, Some("ext4"), flags, Some(ext4::OPTIONS)).map_err(|e| ScratchError::io(MOUNT_POINT, e))
}

/// The guest's memory in bytes.
fn memory() -> Result<u64, ScratchError> {
    const FILE: &str = "/proc/meminfo";
    let text = fs::read_to_string(FILE).map_err(|e| ScratchError::io(FILE, e))?;
    total_of(&text).ok_or_else(|| ScratchError::io(FILE, io::Error::other("no line MemTotal")))
}

/// `MemTotal:  475992 kB` (proc(5)), in bytes.
fn total_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn mount_memory() -> Result<(), ScratchError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), MOUNT_POINT, Some("tmpfs"), flags, Some("mode=0700,size=75%")).map_err(|e| ScratchError::io(MOUNT_POINT, e))?;
    info!("scratch is memory: the host gave no disk");
    Ok(())
}

/// Bytes of the kernel's random generator.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
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
    fn memory_is_read_in_bytes() {
        assert_eq!(total_of("MemTotal:         475992 kB\nMemFree: 1 kB\n"), Some(475_992 << 10));
        for bad in ["", "MemTotal: 5", "MemTotal: x kB", "MemTotal: 18446744073709551615 kB"] {
            assert_eq!(total_of(bad), None, "{bad}");
        }
        assert!(memory().unwrap() > 1 << 20);
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }
}
