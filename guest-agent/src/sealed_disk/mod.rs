//! A disk of the host's that outlives its machine, encrypted and authenticated by the owner's key: what a container reads of it is what one with
//! the same key wrote at that place, or an error.
//!
//! - [`header`]: its first block, and the keys. - [`layout`]: where everything is. - [`stack`]: its mapped devices.
//!
//! What the host can do: it gives back the disk as it once was, or a block, with its tag, as it once was; or an empty one, where the owner lets an
//! empty one become a new one. What it cannot: read it, change a byte of it, put a block in another's place or another disk in this one's, or have the kernel parse anything
//! of its own. docs/threat-model.md has the same for the reader of the whole.

mod header;
mod layout;
mod stack;

pub use header::{BYTES as HEADER_BYTES, DiskKey, Kind, kind};

use crate::scratch::{
    device_mapper::DmError,
    ext4::{self, FormatError},
    random,
};
use header::{Header, HeaderError};
use layout::Layout;
use stack::Stack;
use std::{fs::OpenOptions, io, os::unix::fs::FileExt};
use thiserror::Error;

/// Why a disk stays closed.
#[derive(Debug, Error)]
pub enum SealedDiskError {
    /// There is none on it, and none is to be made.
    #[error(
        "the disk is empty, and the policy does not let an empty one become a new one: set format = true for it once, or give the disk that was meant"
    )]
    Blank,
    /// There is something else on it.
    #[error("neither a sealed disk nor an empty one: to have it made new, clear its first 4096 bytes (what is on it is then lost)")]
    Foreign,
    /// It is too small.
    #[error("{0} bytes are too few for a sealed disk, which has 80 MiB at least")]
    TooSmall(u64),
    /// It was larger.
    #[error("the disk has {found} bytes, and had {wanted} when it was made")]
    Shrunk {
        /// It has.
        found: u64,
        /// It has to have.
        wanted: u64,
    },
    /// The host, or the mount, keeps it from being written to.
    #[error("a sealed disk has to be writable: mount it without `ro`")]
    ReadOnly,
    /// The key and the first block.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The kernel.
    #[error(transparent)]
    Mapper(#[from] DmError),
    /// The kernel made something else than it is told to find later.
    #[error("this kernel's dm-integrity makes a superblock that this agent does not know")]
    Superblock,
    /// The file system.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// The cause.
        source: io::Error,
    },
}

impl SealedDiskError {
    fn io(path: &str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// A disk as the kernel has it.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Its node.
    pub node: String,
    /// `major:minor`.
    pub device: String,
    /// Its size, as the host says.
    pub bytes: u64,
}

/// A disk whose key was right, before its devices exist.
pub struct Opened {
    raw: Raw,
    header: Header,
    key: DiskKey,
    fresh: bool,
}

impl Opened {
    /// Reads the first block, once, and decides what the disk is. `format` lets an empty one become a new one.
    pub fn read(raw: Raw, key: DiskKey, format: bool) -> Result<Self, SealedDiskError> {
        let mut block = [0; HEADER_BYTES];
        let device = OpenOptions::new().read(true).open(&raw.node).map_err(SealedDiskError::io(&raw.node))?;
        device.read_exact_at(&mut block, 0).map_err(SealedDiskError::io(&raw.node))?;
        let (header, fresh) = decide(&block, raw.bytes, &key, format)?;
        Ok(Self { raw, header, key, fresh })
    }

    /// By which this disk is known, whichever device it comes by.
    pub fn salt(&self) -> [u8; 32] {
        self.header.salt
    }

    /// Whether it was empty.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Makes its devices, and its file system if it has none yet. `slot` tells it from others of the machine.
    pub fn map(&self, slot: usize) -> Result<Mapped, SealedDiskError> {
        let (layout, keys) = (self.header.layout, self.key.keys(&self.header));
        let stack = Stack::create(&self.raw.device, slot, layout, &keys, self.fresh)?;
        let mapped = Mapped { stack };
        if self.fresh {
            let made = self.make_new(&mapped.stack.node);
            if let Err(error) = made {
                let _ = mapped.remove();
                return Err(error);
            }
        }
        Ok(mapped)
    }

    /// The first block comes last: until it is there the disk is an empty one, for whoever comes next.
    fn make_new(&self, node: &str) -> Result<(), SealedDiskError> {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path).map_err(SealedDiskError::io(path));
        let inner = open(node)?;
        ext4::format(&inner, self.header.layout.bytes(), ext4::Kind::Lasting)?;
        inner.sync_all().map_err(SealedDiskError::io(node))?;
        let raw = open(&self.raw.node)?;
        let written = raw.write_all_at(&self.header.seal(&self.key), 0).and_then(|()| raw.sync_all());
        written.map_err(SealedDiskError::io(&self.raw.node))
    }
}

fn decide(block: &[u8; HEADER_BYTES], bytes: u64, key: &DiskKey, format: bool) -> Result<(Header, bool), SealedDiskError> {
    match kind(block) {
        Kind::Foreign => Err(SealedDiskError::Foreign),
        Kind::Blank if !format => Err(SealedDiskError::Blank),
        Kind::Blank => {
            let layout = Layout::largest(bytes).ok_or(SealedDiskError::TooSmall(bytes))?;
            let salt = random().map_err(SealedDiskError::io("random salt"))?;
            Ok((Header { salt, layout }, true))
        }
        Kind::Sealed => {
            let header = Header::open(block, key)?;
            let wanted = header.layout.sectors() * layout::SECTOR;
            if bytes < wanted {
                return Err(SealedDiskError::Shrunk { found: bytes, wanted });
            }
            Ok((header, false))
        }
    }
}

/// A sealed disk whose node can be mounted.
#[derive(Debug)]
pub struct Mapped {
    stack: Stack,
}

impl Mapped {
    /// Its node.
    pub fn node(&self) -> &str {
        &self.stack.node
    }

    /// Takes it down again.
    pub fn remove(&self) -> Result<(), DmError> {
        self.stack.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 96 << 20;

    fn key(byte: u8) -> DiskKey {
        DiskKey::new(&[byte; 32]).unwrap()
    }

    #[test]
    fn an_empty_disk_becomes_a_new_one_only_where_it_may() {
        let blank = [0; HEADER_BYTES];
        assert!(matches!(decide(&blank, SIZE, &key(1), false), Err(SealedDiskError::Blank)));
        let (one, fresh) = decide(&blank, SIZE, &key(1), true).unwrap();
        let (other, _) = decide(&blank, SIZE, &key(1), true).unwrap();
        assert!(fresh && one.salt != other.salt);
        assert!(matches!(decide(&blank, 64 << 20, &key(1), true), Err(SealedDiskError::TooSmall(_))));
        let mut foreign = blank;
        foreign[1080] = 0x53;
        assert!(matches!(decide(&foreign, SIZE, &key(1), true), Err(SealedDiskError::Foreign)), "it is not overwritten");
    }

    #[test]
    fn a_full_one_is_opened_by_its_key_and_never_made_new() {
        let (header, _) = decide(&[0; HEADER_BYTES], SIZE, &key(1), true).unwrap();
        let block = header.seal(&key(1));
        for format in [false, true] {
            assert_eq!(decide(&block, SIZE, &key(1), format).unwrap(), (header, false));
            assert_eq!(
                decide(&block, SIZE << 1, &key(1), format).unwrap(),
                (header, false),
                "a larger one keeps its blocks where they are"
            );
            let error = decide(&block, SIZE, &key(2), format).unwrap_err().to_string();
            assert!(error.starts_with("the key does not open this disk"), "{error}");
            assert!(matches!(decide(&block, SIZE >> 1, &key(1), format), Err(SealedDiskError::Shrunk { .. })));
        }
    }
}
