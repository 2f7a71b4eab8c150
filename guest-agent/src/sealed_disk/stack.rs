//! The mapped devices of one sealed disk.
//!
//! ```text
//! diskN         dm-crypt: AES-256-GCM for each block of 4 KiB, nonce drawn at each write, the block's number authenticated with it
//! diskN-tags    dm-integrity, journalled: a block and its tag are written together or not at all
//!   ├─ diskN-meta   the superblock in the guest's memory, then journal and tags on the disk
//!   └─ diskN-data   the blocks
//! ```

use super::{
    SealedDiskError,
    header::Keys,
    layout::{BUFFER_SECTORS, Layout, SECTOR, SUPERBLOCK_SECTORS, journal_sectors},
};
use crate::scratch::{
    device_mapper::{DeviceMapper, DmError, Target},
    ext4,
    sealed::{TAG_BYTES, crypt_table},
};
use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt,
    thread,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// The RAM disk with superblocks, one behind the other; its number and its node. The one before it has the tags of scratch.
const RAM_DISK: &str = "1:1";
const RAM_NODE: &str = "/dev/ram1";
/// How long a device may still be held by what is dying.
const BUSY: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(10);

/// Mapped devices, the lowest first.
#[derive(Debug)]
pub struct Stack {
    names: Vec<String>,
    /// The node of the highest.
    pub node: String,
}

impl Stack {
    /// Maps the disk with this number (`major:minor`). `slot` tells it from others of the machine. A fresh one has no journal yet, and what lies
    /// where it will be is not read.
    pub fn create(device: &str, slot: usize, layout: Layout, keys: &Keys, fresh: bool) -> Result<Self, SealedDiskError> {
        // Zeros have the kernel make all of it new.
        let superblock = if fresh { [0; (SUPERBLOCK_SECTORS * SECTOR) as usize] } else { layout.superblock() };
        let ram = OpenOptions::new().write(true).open(RAM_NODE).map_err(SealedDiskError::io(RAM_NODE))?;
        ram.write_all_at(&superblock, superblock.len() as u64 * slot as u64).map_err(SealedDiskError::io(RAM_NODE))?;
        ram.sync_all().map_err(SealedDiskError::io(RAM_NODE))?;

        let mut making = Making { mapper: DeviceMapper::open()?, names: Vec::new() };
        let own = format!("{RAM_DISK} {}", SUPERBLOCK_SECTORS * slot as u64);
        let rest = format!("{device} {SUPERBLOCK_SECTORS}");
        let linear = |sectors, table| Target { sectors, kind: "linear", table };
        let behind = layout.tag_sectors() - SUPERBLOCK_SECTORS;
        let meta = making.add(format!("disk{slot}-meta"), &[linear(SUPERBLOCK_SECTORS, &own), linear(behind, &rest)])?;
        let table = format!("{device} {}", layout.tag_sectors());
        let sectors = layout.data_sectors();
        let data = making.add(format!("disk{slot}-data"), &[linear(sectors, &table)])?;
        let table = integrity_table(meta, data, keys);
        let tags = making.add(format!("disk{slot}-tags"), &[Target { sectors, kind: "integrity", table: &table }])?;
        if fresh {
            // A kernel with another idea of it would find its own journal, and we another one at the next start.
            let node = node(meta);
            let mut found = superblock;
            File::open(&node).and_then(|mut meta| meta.read_exact(&mut found)).map_err(SealedDiskError::io(&node))?;
            if !layout.is_superblock(&found) {
                return Err(SealedDiskError::Superblock);
            }
        }
        let table = crypt_table(&keys.data, tags);
        let device = making.add(format!("disk{slot}"), &[Target { sectors, kind: "crypt", table: &table }])?;
        Ok(Self { names: std::mem::take(&mut making.names), node: node(device) })
    }

    /// Takes the devices down, which writes what is still to be written. Whatever held them is waited for, but not for ever.
    pub fn remove(&self) -> Result<(), DmError> {
        let (mapper, since) = (DeviceMapper::open()?, Instant::now());
        self.names.iter().rev().try_for_each(|name| {
            loop {
                match mapper.remove(name) {
                    Err(error) if error.is_busy() && since.elapsed() < BUSY => thread::sleep(AGAIN),
                    done => return done,
                }
            }
        })
    }
}

/// Devices that are taken down again unless the highest comes to be.
struct Making {
    mapper: DeviceMapper,
    names: Vec<String>,
}

impl Making {
    fn add(&mut self, name: String, targets: &[Target<'_>]) -> Result<u64, DmError> {
        let device = self.mapper.create(&name, targets)?;
        self.names.push(name);
        Ok(device)
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            if let Err(error) = self.mapper.remove(name) {
                log::warn!("{error}");
            }
        }
    }
}

fn node(device: u64) -> String {
    format!("/dev/dm-{}", libc::minor(device))
}

/// Documentation/admin-guide/device-mapper/dm-integrity.rst. The journal has a code of its own: what the host writes there is never parsed.
fn integrity_table(meta: u64, data: u64, keys: &Keys) -> Zeroizing<String> {
    let number = |device: u64| format!("{}:{}", libc::major(device), libc::minor(device));
    let hex = Zeroizing::new(hex::encode(*keys.journal));
    let options = format!(
        "{} 0 {TAG_BYTES} J 5 block_size:{} meta_device:{} journal_sectors:{} buffer_sectors:{BUFFER_SECTORS} journal_mac:hmac(sha256):",
        number(data),
        ext4::BLOCK,
        number(meta),
        journal_sectors()
    );
    // In one piece: a string that grows would leave pieces of the key in freed memory.
    let mut table = Zeroizing::new(String::with_capacity(options.len() + hex.len()));
    table.push_str(&options);
    table.push_str(&hex);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_kernels_documentation() {
        let keys = Keys { data: Zeroizing::new([1; 32]), journal: Zeroizing::new([0xcd; 32]) };
        let table = integrity_table(libc::makedev(253, 0), libc::makedev(253, 1), &keys);
        let mac = format!("journal_mac:hmac(sha256):{}", "cd".repeat(32));
        let expected =
            ["253:1", "0", "28", "J", "5", "block_size:4096", "meta_device:253:0", "journal_sectors:8448", "buffer_sectors:8", &mac];
        assert_eq!(table.split(' ').collect::<Vec<_>>(), expected);
        assert_eq!(table.capacity(), table.len(), "no piece of the key stays behind");
    }
}
