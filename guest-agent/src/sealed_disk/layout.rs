//! Where everything is on a sealed disk, and dm-integrity's superblock, which is not on it.
//!
//! ```text
//! block 0     header (super::header)
//! block 1 …   dm-integrity's journal, then nonce and tag of each block
//! from `tags` sectors on, the blocks: ciphertext
//! ```
//!
//! dm-integrity has its superblock before the journal. There the kernel finds a block of the guest's memory instead (super::stack), which is
//! written here whenever a disk is opened: it says nothing that does not follow from the number of blocks, and whatever the host had in its
//! place, now or at the next read, the kernel would have parsed.

use crate::scratch::{ext4, sealed::TAG_BYTES};

/// Sectors of a block.
const BLOCK_SECTORS: u64 = ext4::BLOCK / SECTOR;
pub const SECTOR: u64 = 512;
/// Sectors of dm-integrity's superblock (`SB_SECTORS`).
pub const SUPERBLOCK_SECTORS: u64 = 8;
/// Sections of its journal: 4 MiB, which it also keeps in memory.
const SECTIONS: u32 = 32;
/// Sectors of a section: 8 sectors of 4 entries of 104 bytes, each entry with the 8 sectors of its block (`calculate_journal_section_size`, with
/// a MAC and tags of 28 bytes).
const SECTION_SECTORS: u64 = 8 + 8 * 4 * BLOCK_SECTORS;
/// Sectors that it wants behind (`METADATA_PADDING_SECTORS`), and sectors of the buffers in which it reads tags.
const PADDING_SECTORS: u64 = 8;
pub const BUFFER_SECTORS: u64 = 8;
/// Blocks begin at a multiple of this: 1 MiB.
const ALIGNMENT: u64 = 2048;
/// `SB_FLAG_HAVE_JOURNAL_MAC`.
const HAVE_JOURNAL_MAC: u32 = 1;

/// A disk of so many blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of 4 KiB that can be used.
    pub blocks: u64,
}

impl Layout {
    /// The largest that a disk of so many bytes has room for; none where that is too small for a file system.
    pub fn largest(bytes: u64) -> Option<Self> {
        let sectors = bytes / SECTOR;
        // Too many at first: without their tags.
        let mut layout = Self { blocks: (sectors / BLOCK_SECTORS).min(ext4::MAX_BYTES / ext4::BLOCK) };
        while layout.sectors() > sectors {
            // A block less is a tag less too.
            let excess = (layout.sectors() - sectors) * SECTOR / (ext4::BLOCK + TAG_BYTES);
            layout.blocks = layout.blocks.checked_sub(excess.max(1))?;
        }
        layout.is_usable().then_some(layout)
    }

    /// One that is written somewhere: whether there can be such a disk.
    pub fn is_usable(self) -> bool {
        (ext4::MIN_BYTES..=ext4::MAX_BYTES).contains(&self.blocks.saturating_mul(ext4::BLOCK))
    }

    /// Bytes of the blocks.
    pub fn bytes(self) -> u64 {
        self.blocks * ext4::BLOCK
    }

    /// Sectors before the blocks: header, journal, tags.
    pub fn tag_sectors(self) -> u64 {
        let tags = (self.blocks * TAG_BYTES).div_ceil(BUFFER_SECTORS * SECTOR) * BUFFER_SECTORS;
        (SUPERBLOCK_SECTORS + journal_sectors() + tags + PADDING_SECTORS + 1).next_multiple_of(ALIGNMENT)
    }

    /// Sectors of the blocks.
    pub fn data_sectors(self) -> u64 {
        self.blocks * BLOCK_SECTORS
    }

    /// Sectors that the disk has to have.
    pub fn sectors(self) -> u64 {
        self.tag_sectors() + self.data_sectors()
    }

    /// `struct superblock` (drivers/md/dm-integrity.c) of version 2, little-endian.
    pub fn superblock(self) -> [u8; (SUPERBLOCK_SECTORS * SECTOR) as usize] {
        let mut block = [0; (SUPERBLOCK_SECTORS * SECTOR) as usize];
        block[0..7].copy_from_slice(b"integrt");
        block[8] = 2;
        block[10..12].copy_from_slice(&(TAG_BYTES as u16).to_le_bytes());
        block[12..16].copy_from_slice(&SECTIONS.to_le_bytes());
        block[16..24].copy_from_slice(&self.data_sectors().to_le_bytes());
        block[24..28].copy_from_slice(&HAVE_JOURNAL_MAC.to_le_bytes());
        block[28] = BLOCK_SECTORS.trailing_zeros() as u8;
        block
    }

    /// Whether this is what [`Self::superblock`] says: what a kernel has made new, which a later one will be told to find. Byte 29 is of a mode
    /// that is not used.
    pub fn is_superblock(self, block: &[u8]) -> bool {
        let expected = self.superblock();
        block.len() == expected.len() && block[..29] == expected[..29] && block[30..] == expected[30..]
    }
}

/// Sectors of dm-integrity's journal.
pub fn journal_sectors() -> u64 {
    u64::from(SECTIONS) * SECTION_SECTORS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_used_as_far_as_its_tags_go() {
        for bytes in [80 << 20, (96 << 20) + 512, 1 << 30, 5_000_000_000, 1 << 40, u64::MAX] {
            let layout = Layout::largest(bytes).unwrap();
            assert!(layout.sectors() * SECTOR <= bytes && layout.is_usable(), "{bytes}");
            // One block more would not fit, or be beyond the file system's bound. Alignment may cost a MiB.
            let wasted = bytes.min(ext4::MAX_BYTES + (16 << 30)) - layout.sectors() * SECTOR;
            assert!(layout.bytes() == ext4::MAX_BYTES || wasted < 2 << 20, "{bytes}: {wasted}");
            // As the kernel counts (`calculate_device_limits`).
            let (initial, tags) = (SUPERBLOCK_SECTORS + journal_sectors(), (layout.blocks * 28).div_ceil(4096) * 8);
            assert!(initial + tags <= layout.tag_sectors() && initial + 8 < layout.tag_sectors(), "{bytes}");
        }
        for bytes in [0, 511, 64 << 20] {
            assert_eq!(Layout::largest(bytes), None, "{bytes}");
        }
        for blocks in [0, 1, (ext4::MAX_BYTES / ext4::BLOCK) + 1, u64::MAX] {
            assert!(!Layout { blocks }.is_usable(), "{blocks}");
        }
    }

    #[test]
    fn the_superblock_is_the_kernels() {
        let layout = Layout { blocks: 20_000 };
        let block = layout.superblock();
        assert_eq!(&block[..10], b"integrt\0\x02\0");
        assert_eq!((block[10], block[12], block[24], block[28]), (28, 32, 1, 3));
        assert_eq!(journal_sectors(), 8448);
        assert!(layout.is_superblock(&block));
        // Of the fields, each counts but the one that only the bitmap mode has.
        for at in 0..block.len() {
            let mut other = block;
            other[at] ^= 1;
            assert_eq!(layout.is_superblock(&other), at == 29, "byte {at}");
        }
        assert!(!layout.is_superblock(&block[1..]));
    }
}
