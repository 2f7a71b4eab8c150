//! The inodes that exist from the beginning, `/`, `/lost+found` and the journal, and the directories' blocks.

use super::{
    BLOCK, FIRST_INODE, INODE_BYTES, JOURNAL_INODE, Layout, ROOT_INODE,
    bytes::{put16, put32},
};

/// `S_IFDIR`, stat(2).
const DIRECTORY: u16 = 0o040_000;
/// `S_IFREG`.
const FILE: u16 = 0o100_000;
/// `EXT4_EXTENTS_FL`.
const EXTENTS: u32 = 0x8_0000;
/// `EXT4_FT_DIR`, the type in a directory entry.
const TYPE_DIRECTORY: u8 = 2;

/// The first block of the inode table: inodes 1 to 16.
pub fn first_table_block(layout: &Layout) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut place = |inode: u32, mode: u16, links: u16, data: u64, blocks: u64| {
        let at = u64::from(inode - 1) * INODE_BYTES;
        fill(layout, &mut block[at as usize..(at + INODE_BYTES) as usize], mode, links, data, blocks);
    };
    place(ROOT_INODE, DIRECTORY | 0o755, 3, layout.root_block(), 1);
    place(FIRST_INODE, DIRECTORY | 0o700, 2, layout.lost_found_block(), 1);
    if layout.journal_blocks > 0 {
        place(JOURNAL_INODE, FILE | 0o600, 1, layout.journal_block(), layout.journal_blocks);
    }
    block
}

/// `struct ext4_inode` of one whose blocks lie side by side from `data` on; at most 32,768 of them (`EXT_INIT_MAX_LEN`).
fn fill(layout: &Layout, inode: &mut [u8], mode: u16, links: u16, data: u64, blocks: u64) {
    put16(inode, 0x00, mode);
    put32(inode, 0x04, (blocks * BLOCK) as u32);
    for time in [0x08, 0x0c, 0x10, 0x90] {
        put32(inode, time, layout.now);
    }
    put16(inode, 0x1a, links);
    // i_blocks counts sectors of 512 bytes.
    put32(inode, 0x1c, (blocks * BLOCK / 512) as u32);
    put32(inode, 0x20, EXTENTS);
    // struct ext4_extent_header: magic, one entry of four, depth 0; then one struct ext4_extent.
    put16(inode, 0x28, 0xf30a);
    put16(inode, 0x2a, 1);
    put16(inode, 0x2c, 4);
    put16(inode, 0x38, blocks as u16);
    put32(inode, 0x3c, data as u32);
    // i_extra_isize: the fields up to i_projid.
    put16(inode, 0x80, 32);
}

/// `.`, `..` and `lost+found`.
pub fn root_directory() -> Vec<u8> {
    directory(&[(ROOT_INODE, "."), (ROOT_INODE, ".."), (FIRST_INODE, "lost+found")])
}

/// `.` and `..`.
pub fn lost_found_directory() -> Vec<u8> {
    directory(&[(FIRST_INODE, "."), (ROOT_INODE, "..")])
}

/// `struct ext4_dir_entry_2`, the last one reaching to the end of the block.
fn directory(entries: &[(u32, &str)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    for (index, (inode, name)) in entries.iter().enumerate() {
        let length = if index + 1 == entries.len() { block.len() - at } else { (8 + name.len()).next_multiple_of(4) };
        put32(&mut block, at, *inode);
        put16(&mut block, at + 4, length as u16);
        block[at + 6] = name.len() as u8;
        block[at + 7] = TYPE_DIRECTORY;
        block[at + 8..at + 8 + name.len()].copy_from_slice(name.as_bytes());
        at += length;
    }
    block
}
