//! Makes an empty ext4 on an encrypted disk, with a dozen block writes whatever the disk's size, and those of a journal.
//!
//! The scratch disk is new, encrypted with a key that exists only in this guest, and ends with it: so there is no journal there. One that
//! outlives its machine has one, all of whose blocks are written: one that never was would read as an error when the journal is replayed.
//! There is no copy of the superblock, and no inode table is cleared. Groups are marked as not initialised (`uninit_bg`), so that the kernel makes their
//! bitmaps when it first needs them and never reads an inode that it did not write.
//!
//! Format: fs/ext4/ext4.h and Documentation/filesystems/ext4 of Linux; the choices are those of
//! `mke2fs -O [^]has_journal,^resize_inode,^metadata_csum,^64bit,^flex_bg,sparse_super2,uninit_bg -E num_backup_sb=0`.

mod bytes;
mod group;
mod inode;
mod journal;
mod superblock;

use crate::scratch::random;
use std::{fs::File, io, os::unix::fs::FileExt, time::SystemTime};
use thiserror::Error;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Blocks of a group: what a bitmap of one block can count.
const GROUP_BLOCKS: u64 = 8 * BLOCK;
/// One inode for 16 KiB, as mke2fs has it.
const GROUP_INODES: u32 = 8192;
const INODE_BYTES: u64 = 256;
/// Blocks of a group's inode table.
const TABLE_BLOCKS: u64 = GROUP_INODES as u64 * INODE_BYTES / BLOCK;
/// Bitmaps and inode table.
const GROUP_OVERHEAD: u64 = 2 + TABLE_BLOCKS;
/// A last group with fewer usable blocks than this is left out, as mke2fs does.
const MIN_LAST_GROUP: u64 = GROUP_OVERHEAD + 50;
/// First inode that is not reserved; lost+found has it.
const FIRST_INODE: u32 = 11;
const ROOT_INODE: u32 = 2;

/// The journal's inode (`EXT4_JOURNAL_INO`).
const JOURNAL_INODE: u32 = 8;

/// With which one is mounted. noinit_itable: the inode tables are never cleared. inode_readahead_blks: what was never written is not read
/// ahead, for it has no tag.
pub const OPTIONS: &str = "noinit_itable,nodiscard,inode_readahead_blks=0";
/// Smallest disk, in bytes.
pub const MIN_BYTES: u64 = 64 << 20;
/// Largest disk, in bytes; what is beyond is not used.
pub const MAX_BYTES: u64 = 1 << 40;

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It ends with its machine.
    Scratch,
    /// It is found again after a crash.
    Lasting,
}

/// Why there is no file system.
#[derive(Debug, Error)]
pub enum FormatError {
    /// A disk that is too small to be of use.
    #[error("the disk has {0} bytes, at least {MIN_BYTES} are needed")]
    TooSmall(u64),
    /// Writing failed.
    #[error("cannot write the file system: {0}")]
    Write(#[from] io::Error),
}

/// Where everything is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    blocks: u64,
    groups: u32,
    /// Blocks of the journal; 0 where there is none.
    journal_blocks: u64,
    /// Blocks of the group descriptor table.
    descriptor_blocks: u64,
    uuid: [u8; 16],
    hash_seed: [u8; 16],
    /// Seconds since 1970.
    now: u32,
}

impl Layout {
    fn new(bytes: u64, kind: Kind, uuid: [u8; 16], hash_seed: [u8; 16]) -> Result<Self, FormatError> {
        if bytes < MIN_BYTES {
            return Err(FormatError::TooSmall(bytes));
        }
        let mut blocks = bytes.min(MAX_BYTES) / BLOCK;
        let rest = blocks % GROUP_BLOCKS;
        if rest < MIN_LAST_GROUP && blocks > GROUP_BLOCKS {
            blocks -= rest;
        }
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| u32::try_from(d.as_secs()).unwrap_or(u32::MAX));
        Ok(Self {
            blocks,
            journal_blocks: if kind == Kind::Lasting { journal::blocks(bytes) } else { 0 },
            // At most 8192, by MAX_BYTES.
            groups: groups as u32,
            descriptor_blocks: (groups * group::DESCRIPTOR_BYTES).div_ceil(BLOCK),
            uuid,
            hash_seed,
            now,
        })
    }

    /// Blocks before a group's bitmaps: superblock and descriptors, in the first group only.
    fn lead(&self, group: u32) -> u64 {
        if group == 0 { 1 + self.descriptor_blocks } else { 0 }
    }

    fn start(&self, group: u32) -> u64 {
        u64::from(group) * GROUP_BLOCKS
    }

    fn block_bitmap(&self, group: u32) -> u64 {
        self.start(group) + self.lead(group)
    }

    fn inode_bitmap(&self, group: u32) -> u64 {
        self.block_bitmap(group) + 1
    }

    fn inode_table(&self, group: u32) -> u64 {
        self.block_bitmap(group) + 2
    }

    fn root_block(&self) -> u64 {
        self.inode_table(0) + TABLE_BLOCKS
    }

    fn lost_found_block(&self) -> u64 {
        self.root_block() + 1
    }

    fn journal_block(&self) -> u64 {
        self.lost_found_block() + 1
    }

    fn group_blocks(&self, group: u32) -> u64 {
        (self.blocks - self.start(group)).min(GROUP_BLOCKS)
    }

    fn used_blocks(&self, group: u32) -> u64 {
        self.lead(group) + GROUP_OVERHEAD + if group == 0 { 2 + self.journal_blocks } else { 0 }
    }

    fn free_blocks(&self, group: u32) -> u64 {
        self.group_blocks(group) - self.used_blocks(group)
    }

    fn is_last(&self, group: u32) -> bool {
        group + 1 == self.groups
    }
}

/// Makes the file system on the first `bytes` of `disk`. What was there before is not read.
pub fn format(disk: &File, bytes: u64, kind: Kind) -> Result<(), FormatError> {
    let layout = Layout::new(bytes, kind, random()?, random()?)?;
    let block = |number: u64, data: &[u8]| disk.write_all_at(data, number * BLOCK);
    for (index, descriptors) in group::descriptor_table(&layout).chunks(BLOCK as usize).enumerate() {
        block(1 + index as u64, descriptors)?;
    }
    block(layout.inode_bitmap(0), &group::first_inode_bitmap())?;
    // The first group's bitmap, and the last one's, whose end has to be marked as used.
    for group in if layout.groups == 1 { vec![0] } else { vec![0, layout.groups - 1] } {
        block(layout.block_bitmap(group), &group::block_bitmap(&layout, group))?;
    }
    block(layout.inode_table(0), &inode::first_table_block(&layout))?;
    block(layout.root_block(), &inode::root_directory())?;
    block(layout.lost_found_block(), &inode::lost_found_directory())?;
    journal::write(&layout, disk)?;
    // Last: without it nothing of the above is a file system.
    block(0, &superblock::block(&layout, kind))?;
    Ok(())
}

#[cfg(test)]
mod tests;
