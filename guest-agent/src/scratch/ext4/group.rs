//! Group descriptors (`struct ext4_group_desc`, 32 bytes) and bitmaps.

use super::{
    BLOCK, FIRST_INODE, GROUP_BLOCKS, GROUP_INODES, Layout,
    bytes::{crc16, put16, put32},
};

/// Bytes of a descriptor without the feature `64bit`.
pub const DESCRIPTOR_BYTES: u64 = 32;

/// `EXT4_BG_INODE_UNINIT`: the inode bitmap is all free and was never written.
const INODE_UNINIT: u16 = 1;
/// `EXT4_BG_BLOCK_UNINIT`: the block bitmap follows from the layout and was never written.
const BLOCK_UNINIT: u16 = 2;

/// The whole table, in whole blocks.
pub fn descriptor_table(layout: &Layout) -> Vec<u8> {
    let mut table = vec![0; (layout.descriptor_blocks * BLOCK) as usize];
    for (group, descriptor) in (0..layout.groups).zip(table.chunks_exact_mut(DESCRIPTOR_BYTES as usize)) {
        fill_descriptor(layout, group, descriptor);
    }
    table
}

fn fill_descriptor(layout: &Layout, group: u32, descriptor: &mut [u8]) {
    let used_inodes = if group == 0 { FIRST_INODE } else { 0 };
    let unused_inodes = (GROUP_INODES - used_inodes) as u16;
    let mut flags = 0;
    if group != 0 {
        flags |= INODE_UNINIT;
        // The last bitmap is written: the kernel derives everything but the padding behind a group that is cut short.
        if !layout.is_last(group) {
            flags |= BLOCK_UNINIT;
        }
    }
    put32(descriptor, 0x00, layout.block_bitmap(group) as u32);
    put32(descriptor, 0x04, layout.inode_bitmap(group) as u32);
    put32(descriptor, 0x08, layout.inode_table(group) as u32);
    put16(descriptor, 0x0c, layout.free_blocks(group) as u16);
    put16(descriptor, 0x0e, unused_inodes);
    // Root and lost+found.
    put16(descriptor, 0x10, if group == 0 { 2 } else { 0 });
    put16(descriptor, 0x12, flags);
    // bg_itable_unused: nothing behind the used inodes is ever read.
    put16(descriptor, 0x1c, unused_inodes);
    let crc = crc16(crc16(!0, &layout.uuid), &group.to_le_bytes());
    put16(descriptor, 0x1e, crc16(crc, &descriptor[..0x1e]));
}

/// The bitmap of a group's blocks: what is used at its beginning, and what does not exist at its end.
pub fn block_bitmap(layout: &Layout, group: u32) -> Vec<u8> {
    let mut bitmap = vec![0; BLOCK as usize];
    set_bits(&mut bitmap, 0, layout.used_blocks(group));
    set_bits(&mut bitmap, layout.group_blocks(group), GROUP_BLOCKS);
    bitmap
}

/// The bitmap of the first group's inodes.
pub fn first_inode_bitmap() -> Vec<u8> {
    let mut bitmap = vec![0; BLOCK as usize];
    set_bits(&mut bitmap, 0, u64::from(FIRST_INODE));
    set_bits(&mut bitmap, u64::from(GROUP_INODES), GROUP_BLOCKS);
    bitmap
}

fn set_bits(bitmap: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_from_and_to() {
        let mut bitmap = vec![0; 3];
        set_bits(&mut bitmap, 3, 18);
        assert_eq!(bitmap, [0b1111_1000, 0xff, 0b0000_0011]);
    }
}
