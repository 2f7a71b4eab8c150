//! `struct ext4_super_block`, at byte 1024 of the first block.

use super::{
    BLOCK, FIRST_INODE, GROUP_BLOCKS, GROUP_INODES, INODE_BYTES, JOURNAL_INODE, Kind, Layout,
    bytes::{put16, put32},
};

/// ext_attr, dir_index, sparse_super2 (with no copy of the superblock at all).
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// has_journal.
const JOURNAL: u32 = 0x4;
/// filetype, extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// large_file, huge_file, uninit_bg, dir_nlink, extra_isize.
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x8 | 0x10 | 0x20 | 0x40;

/// The first block.
pub fn block(layout: &Layout, kind: Kind) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    fill(layout, kind, &mut block[1024..2048]);
    block
}

fn fill(layout: &Layout, kind: Kind, sb: &mut [u8]) {
    let free_blocks: u64 = (0..layout.groups).map(|group| layout.free_blocks(group)).sum();
    let inodes = layout.groups * GROUP_INODES;
    put32(sb, 0x00, inodes);
    put32(sb, 0x04, layout.blocks as u32);
    put32(sb, 0x0c, free_blocks as u32);
    put32(sb, 0x10, inodes - FIRST_INODE);
    // log2 of the block's and the cluster's size in KiB.
    put32(sb, 0x18, 2);
    put32(sb, 0x1c, 2);
    put32(sb, 0x20, GROUP_BLOCKS as u32);
    put32(sb, 0x24, GROUP_BLOCKS as u32);
    put32(sb, 0x28, GROUP_INODES);
    put32(sb, 0x30, layout.now);
    // Never checked for having been mounted often.
    put16(sb, 0x36, 0xffff);
    put16(sb, 0x38, 0xef53);
    // Clean; on errors, read only: a host that damages the disk is not to be lived with.
    put16(sb, 0x3a, 1);
    put16(sb, 0x3c, 2);
    put32(sb, 0x40, layout.now);
    // Dynamic revision.
    put32(sb, 0x4c, 1);
    put32(sb, 0x54, FIRST_INODE);
    put16(sb, 0x58, INODE_BYTES as u16);
    put32(sb, 0x5c, if kind == Kind::Lasting { COMPATIBLE | JOURNAL } else { COMPATIBLE });
    put32(sb, 0x60, INCOMPATIBLE);
    put32(sb, 0x64, READ_ONLY_COMPATIBLE);
    sb[0x68..0x78].copy_from_slice(&layout.uuid);
    match kind {
        Kind::Scratch => sb[0x78..0x7f].copy_from_slice(b"scratch"),
        Kind::Lasting => put32(sb, 0xe0, JOURNAL_INODE),
    }
    sb[0xec..0xfc].copy_from_slice(&layout.hash_seed);
    // half_md4, with signed characters (EXT2_FLAGS_SIGNED_HASH).
    sb[0xfc] = 1;
    put32(sb, 0x160, 1);
    // user_xattr and acl by default.
    put32(sb, 0x100, 0xc);
    put32(sb, 0x108, layout.now);
    put16(sb, 0x15c, 32);
    put16(sb, 0x15e, 32);
}
