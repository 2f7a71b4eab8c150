//! TDX's registers after a direct boot: MRTD over the firmware as KVM loads it (Intel TDX Module Base Architecture Specification, `TDH.MEM.PAGE.ADD`
//! and `TDH.MR.EXTEND`), and RTMR1 and RTMR2 over what the firmware (EDK II's `TdTcg2Dxe`) and the kernel's EFI stub measure.
//!
//! MRTD depends on the firmware alone. RTMR1 and RTMR2 depend on kernel, command line and initramfs, if QEMU hands the kernel over
//! as it is, which it does for TDX from 10.2 on. RTMR0 is not predicted: it has the memory map and the host's ACPI tables in it.

use crate::measure::ovmf::{Ovmf, OvmfError, TdxSection};
use sha2::{Digest, Sha384};
use thiserror::Error;

/// A register.
pub type Register = [u8; 48];

const PAGE: usize = 4096;
const CHUNK: usize = 256;

/// Largest section, in bytes.
const MAX_SECTION: u64 = 256 << 20;

/// Contents are measured.
const EXTEND: u32 = 1;
/// Pages are added later, and not measured.
const AUGMENT: u32 = 2;

/// Why there is no MRTD.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TdxMeasureError {
    /// The firmware.
    #[error(transparent)]
    Firmware(#[from] OvmfError),
    /// A section of it.
    #[error(
        "firmware: section of kind {kind} at {gpa:#x} with {size} bytes, {raw_size} of them from {offset:#x} of the file, cannot be measured"
    )]
    Section {
        /// As described.
        kind: u32,
        /// As described.
        gpa: u64,
        /// As described.
        size: u64,
        /// As described.
        raw_size: u32,
        /// As described.
        offset: u32,
    },
}

/// MRTD of a guest with this firmware.
pub fn mr_td(ovmf: &Ovmf) -> Result<Register, TdxMeasureError> {
    let mut digest = Sha384::new();
    for section in ovmf.tdx_sections()? {
        measure(&mut digest, &section, ovmf.image())?;
    }
    Ok(digest.finalize().into())
}

fn measure(digest: &mut Sha384, section: &TdxSection, image: &[u8]) -> Result<(), TdxMeasureError> {
    let &TdxSection { offset, raw_size, gpa, size, kind, attributes } = section;
    let refused = || TdxMeasureError::Section { kind, gpa, size, raw_size, offset };
    if size > MAX_SECTION || !size.is_multiple_of(PAGE as u64) || !gpa.is_multiple_of(PAGE as u64) || u64::from(raw_size) > size {
        return Err(refused());
    }
    let raw = (offset as usize).checked_add(raw_size as usize).and_then(|end| image.get(offset as usize..end)).ok_or_else(refused)?;
    if attributes & AUGMENT != 0 {
        return Ok(());
    }
    let end = gpa.checked_add(size).ok_or_else(refused)?;
    for (page, gpa) in (gpa..end).step_by(PAGE).enumerate() {
        digest.update(record(b"MEM.PAGE.ADD", gpa));
        if attributes & EXTEND == 0 {
            continue;
        }
        for chunk in (0..PAGE).step_by(CHUNK) {
            digest.update(record(b"MR.EXTEND", gpa + chunk as u64));
            let mut contents = [0; CHUNK];
            let rest = raw.get(page * PAGE + chunk..).unwrap_or_default();
            let length = rest.len().min(CHUNK);
            contents[..length].copy_from_slice(&rest[..length]);
            digest.update(contents);
        }
    }
    Ok(())
}

/// What the module hashes for an operation on an address.
fn record(name: &[u8], gpa: u64) -> [u8; 128] {
    let mut record = [0; 128];
    record[..name.len()].copy_from_slice(name);
    record[16..24].copy_from_slice(&gpa.to_le_bytes());
    record
}

/// Where the firmware puts its own word into the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitrdWord {
    /// `initrd=initrd …`: EDK II from stable202508 on.
    First,
    /// `… initrd=initrd`: before.
    Last,
}

/// RTMR1: that the kernel with this Authenticode digest was started, and boot services were left.
pub fn rtmr1(kernel_authenticode: &Register) -> Register {
    let digest = |text: &[u8]| Sha384::digest(text).into();
    replay(&[
        *kernel_authenticode,
        digest(b"Calling EFI Application from Boot Option"),
        // The end of what ran before the operating system.
        digest(&[0; 4]),
        digest(b"Exit Boot Services Invocation"),
        digest(b"Exit Boot Services Returned with Success"),
    ])
}

/// RTMR2: with which command line and initramfs the kernel was started.
pub fn rtmr2(cmdline: &str, initrd: &[u8], word: InitrdWord) -> Register {
    let options = match word {
        InitrdWord::First => format!("initrd=initrd {cmdline}"),
        InitrdWord::Last => format!("{cmdline} initrd=initrd"),
    };
    // As EFI has it, with the zero that ends it.
    let options: Vec<u8> = options.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    replay(&[Sha384::digest(options).into(), Sha384::digest(initrd).into()])
}

/// A register after these events.
fn replay(events: &[Register]) -> Register {
    events.iter().fold([0; 48], |register, event| Sha384::new().chain_update(register).chain_update(event).finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use sha2::Sha256;
    use std::path::Path;
    use vectors::{folder, read};

    /// Debian's firmware, out of its package as `scripts/setup` unpacks it. The file has 4 MiB, so it is read in place, and must be there;
    /// what it gives is known for one version of the package.
    #[test]
    fn an_independent_calculation_of_debians_firmware_agrees() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/deps/firmware/usr/share/ovmf/OVMF.fd");
        let image = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; run scripts/setup", path.display()));
        let ovmf = Ovmf::parse(&image).unwrap();
        let measured = hex::encode(mr_td(&ovmf).unwrap());
        assert!(ovmf.sev_sections().unwrap().iter().all(|section| section.kind != 0x10), "it has no room for hashes of a kernel");
        let Some(folder) = folder() else { return };
        let predictions: Value = serde_json::from_slice(&read(&folder, "measure/debian_ovmf_predictions.json")).unwrap();
        let expected = &predictions["debian_trixie_ovmf_2025.02-8+deb13u1"];
        assert_eq!(hex::encode(Sha256::digest(&image)) == expected["sha256"], measured == expected["mrtd_single_pass"]);
    }

    /// Of a page that is measured with its contents, half of them from the file, and one that is only added.
    #[test]
    fn each_page_and_each_chunk_has_its_record() {
        let section = |gpa, raw_size, attributes| TdxSection { offset: 0, raw_size, gpa, size: 4096, kind: 0, attributes };
        let mut digest = Sha384::new();
        let image = [7; 2048];
        measure(&mut digest, &section(0x8000, 2048, EXTEND), &image).unwrap();
        measure(&mut digest, &section(0x1_0000, 0, 0), &image).unwrap();
        measure(&mut digest, &section(0x2_0000, 0, AUGMENT), &image).unwrap();
        let mut expected = Vec::new();
        let mut record = |name: &[u8], gpa: u64| {
            expected.extend([name, &vec![0; 16 - name.len()], &gpa.to_le_bytes(), &[0; 104]].concat());
            expected.len()
        };
        record(b"MEM.PAGE.ADD", 0x8000);
        let mut chunks = Vec::new();
        for chunk in 0..16 {
            chunks.push(record(b"MR.EXTEND", 0x8000 + 256 * chunk));
        }
        record(b"MEM.PAGE.ADD", 0x1_0000);
        for (chunk, at) in chunks.into_iter().enumerate().rev() {
            expected.splice(at..at, [if chunk < 8 { 7 } else { 0 }; 256]);
        }
        assert_eq!(digest.finalize(), Sha384::digest(expected));
    }

    #[test]
    fn what_a_machine_quoted_comes_out() {
        let Some(folder) = folder() else { return };
        let recorded: Value = serde_json::from_slice(&read(&folder, "tdx/dstack_quote-report.json")).unwrap();
        let quote = hex::decode(recorded["quote"].as_str().unwrap()).unwrap();
        let rtmr = |n: usize| &quote[48 + 328 + 48 * n..48 + 328 + 48 * (n + 1)];
        let log: Vec<Value> = serde_json::from_str(recorded["event_log"].as_str().unwrap()).unwrap();
        let digests = |register: u64| -> Vec<Register> {
            let events = log.iter().filter(|event| event["imr"].as_u64() == Some(register));
            events.map(|event| hex::decode(event["digest"].as_str().unwrap()).unwrap().try_into().unwrap()).collect()
        };
        // The first event of RTMR1 is the kernel; all others are the same on each machine.
        assert_eq!(rtmr1(&digests(1)[0]).as_slice(), rtmr(1));
        assert_ne!(rtmr1(&digests(2)[0]).as_slice(), rtmr(1));
        assert_eq!(digests(2).len(), 2, "command line and initramfs");
        assert_eq!(replay(&digests(2)).as_slice(), rtmr(2));
    }

    #[test]
    fn command_line_and_initramfs_count() {
        let one = rtmr2("quiet", b"initramfs", InitrdWord::First);
        assert_ne!(one, rtmr2("quiet", b"initramfs", InitrdWord::Last));
        assert_ne!(one, rtmr2("quiet ", b"initramfs", InitrdWord::First));
        assert_ne!(one, rtmr2("quiet", b"initramfs!", InitrdWord::First));
    }

    #[test]
    fn sections_outside_the_file_are_refused() {
        let section = |offset, raw_size, size, gpa| TdxSection { offset, raw_size, gpa, size, kind: 0, attributes: EXTEND };
        for bad in [
            section(0, 8192, 8192, 0),
            section(4096, 1, 4096, 0),
            section(u32::MAX, u32::MAX, 1 << 33, 0),
            section(0, 4096, 100, 0),
            section(0, 4096, 4096, 1),
            section(0, 4096, 4096, u64::MAX - 4095),
        ] {
            assert!(matches!(measure(&mut Sha384::new(), &bad, &[0; 4096]), Err(TdxMeasureError::Section { .. })), "{bad:?}");
        }
        measure(&mut Sha384::new(), &section(0, 4096, 8192, 0), &[0; 4096]).unwrap();
    }
}
