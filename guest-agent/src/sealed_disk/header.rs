//! The first block of a sealed disk: by which it is known, and by which a key is known to be its own. It is the host's to write, and so its
//! fields count only once the owner's key has shown that they are the owner's.
//!
//! ```text
//! 0   16  "cloister-sealed1"
//! 16  32  salt: random, of each disk that is made new
//! 48   8  blocks of 4 KiB, little-endian
//! 56  32  HMAC-SHA-256 of the bytes before it
//! 88      zeros
//! ```
//!
//! The keys are HMAC-SHA-256 of the salt and a word under the owner's key. So a key serves for several disks, and for one that is made new again:
//! no block of one is a block of another, and none has more than its own writes under its key.

use super::layout::Layout;
use crate::scratch::{ext4, sealed::KEY_BYTES};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

const MAGIC: &[u8; 16] = b"cloister-sealed1";
const SALT: std::ops::Range<usize> = 16..48;
const BLOCKS: std::ops::Range<usize> = 48..56;
const SIGNED: usize = 56;
const END: usize = 88;
/// Bytes of the block.
pub const BYTES: usize = ext4::BLOCK as usize;

/// What a first block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but zeros.
    Blank,
    /// Of a sealed disk, as it says itself.
    Sealed,
    /// Of anything else.
    Foreign,
}

/// Why a header was not believed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Its code is another.
    #[error("the key does not open this disk: it is another disk's, or the disk's first block was changed")]
    Key,
    /// Right, and of no use.
    #[error("it says that it has {0} blocks, which no sealed disk has")]
    Blocks(u64),
}

/// The owner's key of a disk.
pub struct DiskKey(Zeroizing<[u8; KEY_BYTES]>);

/// The keys of one disk.
pub struct Keys {
    /// Of its blocks.
    pub data: Zeroizing<[u8; KEY_BYTES]>,
    /// Of dm-integrity's journal.
    pub journal: Zeroizing<[u8; KEY_BYTES]>,
}

/// A header that is the owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// By which the disk is known from others.
    pub salt: [u8; 32],
    /// Where everything is.
    pub layout: Layout,
}

impl DiskKey {
    /// From what the broker released.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        (bytes.len() == KEY_BYTES).then(|| key.copy_from_slice(bytes)).map(|()| Self(key))
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // A key of one block of the hash, which HMAC makes of every shorter one (RFC 2104, 2).
        let mut block = Zeroizing::new([0; 64]);
        block[..KEY_BYTES].copy_from_slice(self.0.as_slice());
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        parts.iter().for_each(|part| mac.update(part));
        mac
    }

    fn derive(&self, salt: &[u8; 32], word: &str) -> Zeroizing<[u8; KEY_BYTES]> {
        Zeroizing::new(self.mac(&[salt, word.as_bytes()]).finalize().into_bytes().into())
    }

    /// The keys of the disk with this header.
    pub fn keys(&self, header: &Header) -> Keys {
        Keys { data: self.derive(&header.salt, "data"), journal: self.derive(&header.salt, "journal") }
    }
}

/// What a first block is, as far as it can be said without a key.
pub fn kind(block: &[u8; BYTES]) -> Kind {
    if block.starts_with(MAGIC) {
        return Kind::Sealed;
    }
    if block.iter().all(|byte| *byte == 0) { Kind::Blank } else { Kind::Foreign }
}

impl Header {
    /// The block of this header.
    pub fn seal(&self, key: &DiskKey) -> [u8; BYTES] {
        let mut block = [0; BYTES];
        block[..MAGIC.len()].copy_from_slice(MAGIC);
        block[SALT].copy_from_slice(&self.salt);
        block[BLOCKS].copy_from_slice(&self.layout.blocks.to_le_bytes());
        let code = key.mac(&[&block[..SIGNED]]).finalize().into_bytes();
        block[SIGNED..END].copy_from_slice(&code);
        block
    }

    /// The header in a block, if it was written with this key.
    pub fn open(block: &[u8; BYTES], key: &DiskKey) -> Result<Self, HeaderError> {
        key.mac(&[&block[..SIGNED]]).verify_slice(&block[SIGNED..END]).map_err(|_| HeaderError::Key)?;
        let (mut salt, mut blocks) = ([0; 32], [0; 8]);
        salt.copy_from_slice(&block[SALT]);
        blocks.copy_from_slice(&block[BLOCKS]);
        let layout = Layout { blocks: u64::from_le_bytes(blocks) };
        if !layout.is_usable() {
            return Err(HeaderError::Blocks(layout.blocks));
        }
        Ok(Self { salt, layout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> DiskKey {
        DiskKey::new(&[byte; KEY_BYTES]).unwrap()
    }

    fn header(blocks: u64) -> Header {
        Header { salt: [7; 32], layout: Layout { blocks } }
    }

    #[test]
    fn a_header_comes_back_under_its_own_key_only() {
        let block = header(20_000).seal(&key(1));
        assert_eq!(kind(&block), Kind::Sealed);
        assert_eq!(Header::open(&block, &key(1)), Ok(header(20_000)));
        assert_eq!(Header::open(&block, &key(2)), Err(HeaderError::Key));
        for at in 0..END {
            let mut changed = block;
            changed[at] ^= 0x80;
            assert_eq!(Header::open(&changed, &key(1)), Err(HeaderError::Key), "byte {at}");
        }
        // What the owner's key says is bounded too.
        for blocks in [0, u64::MAX] {
            assert_eq!(Header::open(&header(blocks).seal(&key(1)), &key(1)), Err(HeaderError::Blocks(blocks)));
        }
    }

    #[test]
    fn other_blocks_are_none() {
        let mut block = [0; BYTES];
        assert_eq!(kind(&block), Kind::Blank);
        block[BYTES - 1] = 1;
        assert_eq!(kind(&block), Kind::Foreign);
        block[..7].copy_from_slice(b"integrt");
        assert_eq!((kind(&block), Header::open(&block, &key(1))), (Kind::Foreign, Err(HeaderError::Key)));
        assert!([0, 31, 33, 64].iter().all(|length| DiskKey::new(&vec![1; *length]).is_none()));
    }

    #[test]
    fn each_disk_and_each_purpose_has_its_own_keys() {
        let (one, other) = (key(1).keys(&header(1)), key(1).keys(&Header { salt: [8; 32], ..header(1) }));
        let all = [one.data, one.journal, other.data, other.journal];
        assert!((0..all.len()).all(|n| all[..n].iter().all(|earlier| **earlier != *all[n])));
        // RFC 2104 over the salt and the word, as `printf … | openssl dgst -sha256 -mac HMAC` has it.
        let expected = key(1).mac(&[&[7; 32], b"data"]).finalize().into_bytes();
        assert_eq!(all[0][..], expected[..]);
    }
}
