//! The journal of a file system that outlives its machine: empty, and every block of it written.
//!
//! Format: include/linux/jbd2.h and Documentation/filesystems/ext4/journal.rst of Linux; big-endian, unlike the rest.

use super::{BLOCK, Layout};
use std::{fs::File, io, os::unix::fs::FileExt};

/// `JBD2_MAGIC_NUMBER`.
const MAGIC: u32 = 0xc03b_3998;
/// `JBD2_SUPERBLOCK_V2`.
const SUPERBLOCK: u32 = 4;
/// Blocks that are written at a time.
const CHUNK: u64 = 256;

/// Blocks of the journal for a disk of so many bytes: 4 MiB, and 16 from a GiB on. The kernel wants 1024 at least (`JBD2_MIN_JOURNAL_BLOCKS`).
pub fn blocks(bytes: u64) -> u64 {
    if bytes < 1 << 30 { 1024 } else { 4096 }
}

/// Writes all of it, its superblock last.
pub fn write(layout: &Layout, disk: &File) -> io::Result<()> {
    if layout.journal_blocks == 0 {
        return Ok(());
    }
    let zeros = vec![0; (CHUNK * BLOCK) as usize];
    for chunk in (0..layout.journal_blocks).step_by(CHUNK as usize) {
        disk.write_all_at(&zeros, (layout.journal_block() + chunk) * BLOCK)?;
    }
    disk.write_all_at(&superblock(layout), layout.journal_block() * BLOCK)
}

/// `struct journal_superblock_s`: nothing to replay, from block 1 on, by one file system.
fn superblock(layout: &Layout) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut put = |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_be_bytes());
    put(0x00, MAGIC);
    put(0x04, SUPERBLOCK);
    put(0x0c, BLOCK as u32);
    put(0x10, layout.journal_blocks as u32);
    put(0x14, 1);
    put(0x18, 1);
    put(0x40, 1);
    block[0x30..0x40].copy_from_slice(&layout.uuid);
    block
}
