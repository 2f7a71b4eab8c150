//! A Linux bzImage as firmware measures it: an EFI program (PE/COFF), whose digest leaves out what a signature changes.

use sha2::Digest;
use thiserror::Error;

/// Not a kernel that firmware can start, or one whose digest is not defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("kernel: {0}; it has to be a bzImage with an EFI stub, as distributions have it in /boot")]
pub struct KernelError(&'static str);

/// The Authenticode digest (Microsoft, "Windows Authenticode Portable Executable Signature Format"): headers without the checksum and the
/// certificate table's entry, then each section in the order of its place in the file, then what follows them but the certificates.
pub fn authenticode<D: Digest>(file: &[u8]) -> Result<sha2::digest::Output<D>, KernelError> {
    let bad = |what| move || KernelError(what);
    let pe = usize::try_from(u32_at(file, 0x3c).ok_or(KernelError("it ends early"))?).map_err(|_| KernelError("it ends early"))?;
    if file.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0") {
        return Err(KernelError("it is no EFI program"));
    }
    let (coff, optional) = (pe + 4, pe + 24);
    if u16_at(file, optional) != Some(0x20b) {
        return Err(KernelError("it is not of 64 bits"));
    }
    let field = |at: usize| u32_at(file, at).map(|value| value as usize).ok_or(KernelError("it ends early"));
    let (checksum, headers, certificates) = (optional + 64, field(optional + 60)?, optional + 112 + 4 * 8);
    let certificate_length = field(certificates + 4)?;
    let mut digest = D::new();
    for range in [0..checksum, checksum + 4..certificates, certificates + 8..headers] {
        digest.update(file.get(range).ok_or_else(bad("its headers overlap"))?);
    }
    let count = u16_at(file, coff + 2).ok_or(KernelError("it ends early"))?;
    let table = optional + usize::from(u16_at(file, coff + 16).ok_or(KernelError("it ends early"))?);
    let mut sections = Vec::with_capacity(usize::from(count).min(96));
    for section in 0..usize::from(count).min(96) {
        let at = table + 40 * section;
        let (length, begin) = (field(at + 16)?, field(at + 20)?);
        if length > 0 {
            sections.push((begin, length));
        }
    }
    sections.sort_unstable();
    let mut hashed = headers;
    for (begin, length) in sections {
        digest.update(begin.checked_add(length).and_then(|end| file.get(begin..end)).ok_or_else(bad("a section lies outside of it"))?);
        hashed += length;
    }
    let end = file.len().checked_sub(certificate_length).ok_or_else(bad("its certificates lie outside of it"))?;
    if end > hashed {
        digest.update(&file[hashed..end]);
    }
    Ok(digest.finalize())
}

/// Offsets in the setup header (Documentation/arch/x86/boot.rst of Linux).
mod header {
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADER: usize = 0x210;
    pub(super) const FLAGS: usize = 0x211;
    pub(super) const INITRD_ADDRESS: usize = 0x218;
    pub(super) const INITRD_SIZE: usize = 0x21c;
    pub(super) const HEAP_END: usize = 0x224;
    pub(super) const CMDLINE: usize = 0x228;
    pub(super) const INITRD_MAX: usize = 0x22c;
    pub(super) const XLOADFLAGS: usize = 0x236;
}

/// What QEMU keeps at the end of low memory for ACPI tables and the like on a PC, in bytes.
const ACPI_DATA: u64 = 0x28000;
/// A q35 with more than this has its memory split; below it, all of it is low.
const LOW_MEMORY_LIMIT: u64 = 0xb000_0000;
/// Low memory of a q35 that is split.
const LOW_MEMORY_SPLIT: u64 = 0x8000_0000;

/// The kernel as QEMU gives it to firmware where the guest is not confidential: as a boot loader would, it fills in the setup header (type
/// of loader, heap, addresses of command line and initramfs), although an EFI kernel looks at none of it.
pub fn as_qemu_hands_it_over(file: &[u8], initramfs_len: usize, memory_mib: u32) -> Result<Vec<u8>, KernelError> {
    if file.get(header::MAGIC..header::MAGIC + 4) != Some(b"HdrS") || u16_at(file, header::VERSION).is_none_or(|version| version < 0x20c) {
        return Err(KernelError("it has no setup header of version 2.12 or later"));
    }
    let memory = u64::from(memory_mib) << 20;
    let low = if memory >= LOW_MEMORY_LIMIT { LOW_MEMORY_SPLIT } else { memory };
    let anywhere = u16_at(file, header::XLOADFLAGS).is_some_and(|flags| flags & 2 != 0);
    let limit = if anywhere { u32::MAX } else { u32_at(file, header::INITRD_MAX).unwrap_or_default() };
    let limit = u64::from(limit).min(low.saturating_sub(ACPI_DATA + 1));
    let size = u32::try_from(initramfs_len).map_err(|_| KernelError("the initramfs is too large"))?;
    let address = limit.checked_sub(size.into()).ok_or(KernelError("the initramfs does not fit into the memory"))? & !0xfff;
    let mut image = file.to_vec();
    image[header::LOADER] = 0xb0;
    image[header::FLAGS] |= 0x80;
    put(&mut image, header::INITRD_ADDRESS, &u32::try_from(address).unwrap_or(u32::MAX).to_le_bytes());
    put(&mut image, header::INITRD_SIZE, &size.to_le_bytes());
    put(&mut image, header::HEAP_END, &0xfe00_u16.to_le_bytes());
    put(&mut image, header::CMDLINE, &0x2_0000_u32.to_le_bytes());
    Ok(image)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = image.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn u16_at(file: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(file.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sha2::Sha256;

    const HEADERS: usize = 0x400;

    /// A kernel in miniature: the fields that count, two sections in another order than their table, and certificates.
    pub(crate) fn kernel() -> Vec<u8> {
        let mut file = vec![0; HEADERS];
        put(&mut file, 0x3c, &0x80_u32.to_le_bytes());
        put(&mut file, 0x80, b"PE\0\0");
        put(&mut file, 0x86, &2_u16.to_le_bytes());
        put(&mut file, 0x94, &0xf0_u16.to_le_bytes());
        put(&mut file, 0x98, &0x20b_u16.to_le_bytes());
        put(&mut file, 0x98 + 60, &(HEADERS as u32).to_le_bytes());
        put(&mut file, 0x98 + 64, b"SUM!");
        put(&mut file, 0x98 + 112 + 32, &[&0x700_u32.to_le_bytes()[..], &8_u32.to_le_bytes()].concat());
        for (section, begin) in [(0, 0x500_u32), (1, 0x400)] {
            put(&mut file, 0x98 + 0xf0 + 40 * section + 16, &[&0x100_u32.to_le_bytes()[..], &begin.to_le_bytes()].concat());
        }
        put(&mut file, header::MAGIC, b"HdrS");
        put(&mut file, header::VERSION, &0x20f_u16.to_le_bytes());
        put(&mut file, header::XLOADFLAGS, &0x7f_u16.to_le_bytes());
        file.extend([1; 0x100]);
        file.extend([2; 0x100]);
        file.extend(b"tail");
        file.extend(b"signed!!");
        file
    }

    #[test]
    fn the_digest_leaves_out_checksum_and_certificates() {
        let file = kernel();
        let wanted = [&file[..0xd8], &file[0xdc..0x128], &file[0x130..file.len() - 8]].concat();
        assert_eq!(authenticode::<Sha256>(&file).unwrap(), Sha256::digest(wanted));
        let of = |at: usize| {
            let mut changed = file.clone();
            changed[at] ^= 1;
            authenticode::<Sha256>(&changed).unwrap()
        };
        // A signature changes the checksum, the certificates and where they begin; nothing else.
        for at in [0xd9, 0x128, file.len() - 1] {
            assert_eq!(of(at), authenticode::<Sha256>(&file).unwrap(), "{at:#x}");
        }
        for at in [0, 0xdc, 0x210, 0x450, 0x550, file.len() - 9] {
            assert_ne!(of(at), authenticode::<Sha256>(&file).unwrap(), "{at:#x}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let file = kernel();
        for length in 0..file.len() - 4 - 8 {
            assert!(authenticode::<Sha256>(&file[..length]).is_err(), "{length:#x}");
        }
        assert!(as_qemu_hands_it_over(&file[..0x200], 1, 512).is_err());
        assert!(as_qemu_hands_it_over(&file, 600 << 20, 512).is_err());
        let mut old = file;
        old[header::VERSION] = 0;
        assert!(as_qemu_hands_it_over(&old, 1, 512).unwrap_err().to_string().contains("bzImage"));
    }

    #[test]
    fn the_header_is_filled_in_as_by_a_boot_loader() {
        let image = as_qemu_hands_it_over(&kernel(), 1_983_840, 512).unwrap();
        // As QEMU 7.2 did, seen in the guest's memory.
        assert_eq!(u32_at(&image, header::INITRD_ADDRESS), Some(0x1fdf_3000));
        assert_eq!(u32_at(&image, header::INITRD_SIZE), Some(1_983_840));
        // All that is above the split is left alone.
        let (low, high) = (as_qemu_hands_it_over(&kernel(), 4096, 4096).unwrap(), as_qemu_hands_it_over(&kernel(), 4096, 8192).unwrap());
        assert_eq!((low == high, u32_at(&low, header::INITRD_ADDRESS)), (true, Some(0x7ffd_6000)));
    }
}
