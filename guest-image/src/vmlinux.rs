//! The uncompressed kernel out of a bzImage.
//!
//! Format: `Documentation/arch/x86/boot.rst` of the kernel, "The Real-Mode Kernel Header": `payload_offset` counts from the
//! start of the protected-mode code, which follows the boot sector and `setup_sects` sectors of 512 bytes. QEMU starts the ELF
//! file inside through its PVH note, without the decompressor that costs a third of a boot on a machine without KVM.

use std::io::Read;
use thiserror::Error;

/// Largest kernel, decompressed, in bytes (Debian's is 58 MB).
pub const MAX_VMLINUX: u64 = 256 << 20;

const SECTOR: usize = 512;
/// Offsets in the header, and what they must hold.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// First boot protocol with `payload_offset`.
const PAYLOAD_VERSION: u16 = 0x0208;
/// Frame header of zstd, RFC 8878 §3.1.1.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why there is no kernel in a file.
#[derive(Debug, Error)]
pub enum VmlinuxError {
    /// Not a bzImage.
    #[error("not a bzImage with boot protocol 2.08 or newer")]
    NotBzImage,
    /// The header points outside the file.
    #[error("payload of {length} bytes at {offset} lies outside the file of {size} bytes; the file is cut off")]
    Truncated {
        /// From the file's start.
        offset: usize,
        /// Of the payload.
        length: usize,
        /// Of the file.
        size: usize,
    },
    /// Compressed in a way that we do not read.
    #[error("kernel compressed with {0}, only zstd (CONFIG_KERNEL_ZSTD) is read; use Debian's linux-image-cloud-amd64 6.12 or newer")]
    Compression(&'static str),
    /// The payload does not decompress.
    #[error("decompress the kernel: {0}")]
    Decompress(std::io::Error),
    /// Larger than the bound.
    #[error("kernel larger than {} MiB when decompressed", MAX_VMLINUX >> 20)]
    TooLarge,
    /// The payload is something else.
    #[error("payload is not an x86-64 ELF executable")]
    NotElf,
}

/// The ELF file inside `bzimage`.
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    let header_ok = bzimage.get(MAGIC..MAGIC + 4) == Some(b"HdrS") && read_u16(bzimage, VERSION) >= Some(PAYLOAD_VERSION);
    let (Some(&setup_sects), Some(offset), Some(length), true) =
        (bzimage.get(SETUP_SECTS), read_u32(bzimage, PAYLOAD_OFFSET), read_u32(bzimage, PAYLOAD_LENGTH), header_ok)
    else {
        return Err(VmlinuxError::NotBzImage);
    };
    // Zero means four, by the boot protocol.
    let setup_sects = if setup_sects == 0 { 4 } else { usize::from(setup_sects) };
    let offset = (setup_sects + 1) * SECTOR + offset as usize;
    let length = length as usize;
    let payload = offset.checked_add(length).and_then(|end| bzimage.get(offset..end));
    let payload = payload.ok_or(VmlinuxError::Truncated { offset, length, size: bzimage.len() })?;
    let vmlinux = decompress(payload)?;
    if is_elf(&vmlinux) { Ok(vmlinux) } else { Err(VmlinuxError::NotElf) }
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    if !payload.starts_with(&ZSTD_MAGIC) {
        return Err(VmlinuxError::Compression(name_of(payload)));
    }
    // One frame: the kernel's build appends the decompressed size behind it.
    let decoder = zstd::Decoder::with_buffer(payload).map_err(VmlinuxError::Decompress)?.single_frame();
    let mut vmlinux = Vec::new();
    decoder.take(MAX_VMLINUX + 1).read_to_end(&mut vmlinux).map_err(VmlinuxError::Decompress)?;
    if vmlinux.len() as u64 > MAX_VMLINUX { Err(VmlinuxError::TooLarge) } else { Ok(vmlinux) }
}

fn name_of(payload: &[u8]) -> &'static str {
    match payload {
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x5d, 0, 0, ..] => "lzma",
        [b'B', b'Z', b'h', ..] => "bzip2",
        _ => "an unknown algorithm",
    }
}

/// A 64-bit little-endian ELF executable for x86-64.
fn is_elf(bytes: &[u8]) -> bool {
    // e_ident: magic, class, data, version; then e_type (2 executable, 3 position independent), e_machine 62.
    bytes.len() >= 64
        && bytes.starts_with(b"\x7fELF\x02\x01\x01")
        && matches!(read_u16(bytes, 16), Some(2 | 3))
        && read_u16(bytes, 18) == Some(62)
}

/// Whether the kernel can start `bytes` without an interpreter: no `PT_INTERP` among the program headers.
pub fn is_static_executable(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    if !is_elf(bytes) {
        return false;
    }
    // e_phoff, e_phentsize, e_phnum of the ELF64 header.
    let (Some(offset), Some(size), Some(count)) = (read_u32(bytes, 32), read_u16(bytes, 54), read_u16(bytes, 56)) else {
        return false;
    };
    count > 0
        && (0..usize::from(count)).all(|i| {
            let at = offset as usize + i * usize::from(size);
            read_u32(bytes, at).is_some_and(|kind| kind != PT_INTERP)
        })
}

/// Little-endian, if the bytes are there.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

/// Little-endian, if the bytes are there.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

/// Little-endian, if the bytes are there and the number is one that memory can hold.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> Option<usize> {
    let value: [u8; 8] = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(value)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn the_kernel_comes_out_as_it_went_in() {
        let kernel = fixture::executable(false);
        assert_eq!(extract(&fixture::bzimage(&kernel)).unwrap(), kernel);
    }

    #[test]
    fn every_truncation_is_refused() {
        let image = fixture::bzimage(&fixture::executable(false));
        for length in 0..image.len() {
            assert!(extract(&image[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_header_that_points_elsewhere_is_refused() {
        let image = fixture::bzimage(&fixture::executable(false));
        for (at, value) in [(PAYLOAD_OFFSET, u32::MAX), (PAYLOAD_LENGTH, u32::MAX), (PAYLOAD_OFFSET, 1)] {
            let mut bad = image.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(extract(&bad).is_err());
        }
        let mut old = image;
        old[VERSION..VERSION + 2].copy_from_slice(&0x207u16.to_le_bytes());
        assert!(matches!(extract(&old), Err(VmlinuxError::NotBzImage)));
    }

    #[test]
    fn another_compression_is_named() {
        let mut image = fixture::bzimage(&fixture::executable(false));
        let payload = image.windows(4).position(|w| w == ZSTD_MAGIC).unwrap();
        image[payload..payload + 2].copy_from_slice(&[0x1f, 0x8b]);
        assert!(extract(&image).unwrap_err().to_string().contains("gzip"));
    }

    #[test]
    fn a_payload_that_is_no_kernel_is_refused() {
        assert!(matches!(extract(&fixture::bzimage(b"not an ELF file")), Err(VmlinuxError::NotElf)));
    }
}
