//! The disk of the host behind authenticated encryption: what comes back is what was written last, or an error.
//!
//! ```text
//! ext4
//! dm-crypt       AES-256-GCM for each block of 4 KiB, nonce drawn at each write
//! dm-integrity   keeps nonce and tag of each block: 28 bytes
//!   ├─ data      the host's disk: ciphertext, nothing else
//!   └─ tags      a RAM disk of the guest (brd), which takes memory as blocks are written
//! ```
//!
//! Tags lie in the guest's memory for three reasons. A block that the host rolls back to what it once was carries the tag of then: with
//! tags on the disk it would pass. dm-integrity's superblock stands before the tags: on the disk, the host could swap it. And a tag costs
//! no second write. The price is [`TAG_BYTES`] of memory for each block that was ever written, 7 MiB for each GiB; [`usable`] bounds it.
//!
//! Nothing is wiped at the start. A block that was never written has no tag and reads as an error, so that whoever uses the device writes
//! a block before it reads it: [`super::ext4`] and the kernel's ext4 do.
//!
//! Discards are not passed on. dm-integrity marks a discarded block by a tag that everybody knows, and takes any data under it as right.
//!
//! The journal of dm-integrity is left out (mode `D`): what it would repair after a crash is gone with the key.

use super::{
    ScratchError,
    device_mapper::{DeviceMapper, DmError, Target},
    disk::Disk,
    ext4, random,
};
use zeroize::Zeroizing;

/// The mapped devices' names.
const CRYPT: &str = "scratch";
const INTEGRITY: &str = "scratch-tags";
/// `/dev/ram0`, by its number (Documentation/admin-guide/devices.txt). Its size is a parameter of its module, in the initramfs's list.
const RAM_DISK: &str = "1:0";
/// AES-256.
pub const KEY_BYTES: usize = 32;
/// GCM's tag of 16 bytes, and its nonce of 12. A random nonce of 96 bits serves for 2^32 writes (NIST SP 800-38D, 8.3): 16 TiB.
pub const TAG_BYTES: u64 = 28;
/// What tags may take of the guest's memory: a fourth.
const MEMORY_SHARE: u64 = 4;
const SECTOR: u64 = 512;

/// Bytes of a disk that are used in a guest with `memory` bytes: whole blocks, for which there is memory to keep their tags.
pub fn usable(disk: u64, memory: u64) -> u64 {
    let blocks = (disk.min(ext4::MAX_BYTES) / ext4::BLOCK).min(memory / MEMORY_SHARE / TAG_BYTES);
    blocks * ext4::BLOCK
}

/// A disk that is sealed with a key that nobody knows any more.
#[derive(Debug)]
pub struct SealedDisk {
    /// Its device node.
    pub node: String,
}

impl SealedDisk {
    /// Seals the first `bytes` of `disk`. What lies on it is not read.
    pub fn create(disk: &Disk, bytes: u64) -> Result<Self, ScratchError> {
        let (mapper, sectors) = (DeviceMapper::open()?, bytes / SECTOR);
        let tags = mapper.create(INTEGRITY, &[Target { sectors, kind: "integrity", table: &integrity_table(disk) }])?;
        let key = random::<KEY_BYTES>().map(Zeroizing::new).map_err(|e| ScratchError::io("random key", e));
        let device = key.and_then(|key| Ok(mapper.create(CRYPT, &[Target { sectors, kind: "crypt", table: &crypt_table(&key, tags) }])?));
        if device.is_err() {
            let _ = mapper.remove(INTEGRITY);
        }
        Ok(Self { node: format!("/dev/dm-{}", libc::minor(device?)) })
    }

    /// Takes the devices down again, so that a second attempt fails for the same reason as the first and not because a name is taken.
    pub fn remove(self) -> Result<(), DmError> {
        let mapper = DeviceMapper::open()?;
        mapper.remove(CRYPT)?;
        mapper.remove(INTEGRITY)
    }
}

/// Documentation/admin-guide/device-mapper/dm-integrity.rst. The smallest journal, for it is not used; small buffers, for they hold copies
/// of what is in memory anyway.
fn integrity_table(disk: &Disk) -> String {
    let options = format!("4 block_size:{} meta_device:{RAM_DISK} journal_sectors:8 buffer_sectors:8", ext4::BLOCK);
    format!("{} 0 {TAG_BYTES} D {options}", disk.device)
}

/// Documentation/admin-guide/device-mapper/dm-crypt.rst, over a device that keeps tags.
pub fn crypt_table(key: &[u8; KEY_BYTES], tags: u64) -> Zeroizing<String> {
    let hex = Zeroizing::new(hex::encode(key));
    let device = format!("{}:{}", libc::major(tags), libc::minor(tags));
    let options = format!("2 integrity:{TAG_BYTES}:aead sector_size:{}", ext4::BLOCK);
    // Built in one piece: a string that grows would leave pieces of the key in freed memory.
    let mut table = Zeroizing::new(String::with_capacity(64 + 2 * KEY_BYTES + device.len() + options.len()));
    for part in ["capi:gcm(aes)-random ", &hex, " 0 ", &device, " 0 ", &options] {
        table.push_str(part);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_take_no_more_than_their_share() {
        let (mib, gib) = (1 << 20, 1 << 30);
        assert_eq!(usable(10 * gib, 512 * mib), 10 * gib, "the default disk in the default guest");
        for (disk, memory) in [(100 * gib, 512 * mib), (ext4::MAX_BYTES + 1, 64 * gib), (gib + 5, gib), (u64::MAX, u64::MAX)] {
            let bytes = usable(disk, memory);
            assert!(
                bytes <= disk && bytes.is_multiple_of(ext4::BLOCK) && bytes / ext4::BLOCK * TAG_BYTES <= memory / MEMORY_SHARE,
                "{disk} {memory}"
            );
        }
    }

    #[test]
    fn tables_are_those_of_the_kernels_documentation() {
        let disk = Disk { device: "254:0".into(), bytes: 1 << 30 };
        let table = integrity_table(&disk);
        assert_eq!(table, "254:0 0 28 D 4 block_size:4096 meta_device:1:0 journal_sectors:8 buffer_sectors:8");
        let table = crypt_table(&[0xab; KEY_BYTES], libc::makedev(253, 1));
        let words: Vec<&str> = table.split(' ').collect();
        assert_eq!((words[0], words[1], words[3]), ("capi:gcm(aes)-random", "ab".repeat(KEY_BYTES).as_str(), "253:1"));
        assert_eq!(words[4..], ["0", "2", "integrity:28:aead", "sector_size:4096"]);
    }
}
