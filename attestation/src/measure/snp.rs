//! SEV-SNP's launch digest: what the secure processor computes over the pages that QEMU hands it, in their order (SEV Secure Nested Paging
//! Firmware ABI Specification, section 8.17, `PAGE_INFO`).
//!
//! The number of virtual processors, their model, and the features of the guest change it. Memory size, devices, disks and ACPI tables
//! do not: what a guest believes of those it believes its host.

use crate::measure::{
    ovmf::{Guid, Ovmf, OvmfError, SevSection, guid},
    vmsa::{self, PAGE, RESET_EIP},
};
use sha2::{Digest, Sha256, Sha384};
use thiserror::Error;

/// A launch digest.
pub type LaunchDigest = [u8; 48];

/// The feature that makes a guest an SNP guest, and all that QEMU sets unless told otherwise.
pub const SNP_ACTIVE: u64 = 1;

/// Most virtual processors of a guest.
pub const MAX_VCPUS: u32 = 512;

/// Where a processor's state is measured.
const VMSA_GPA: u64 = 0xffff_ffff_f000;

/// Largest section beside the image, in bytes.
const MAX_SECTION: u32 = 64 << 20;

const TABLE: Guid = guid("9438d606-4f22-4cc9-b479-a793d411fd21");
const CMDLINE: Guid = guid("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
const INITRD: Guid = guid("44baf731-3a2f-4bd7-9af1-41e29169781d");
const KERNEL: Guid = guid("4de79437-abd2-427f-b835-d5b172d2045b");

/// Why there is no digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SnpMeasureError {
    /// The firmware.
    #[error(transparent)]
    Firmware(#[from] OvmfError),
    /// A section of it.
    #[error("firmware: section of kind {kind:#x} at {gpa:#x} with {size} bytes cannot be measured")]
    Section {
        /// As described.
        kind: u32,
        /// As described.
        gpa: u64,
        /// As described.
        size: u32,
    },
    /// Processors.
    #[error("{0} virtual CPUs: a guest has 1 to {MAX_VCPUS}")]
    Vcpus(u32),
}

/// A firmware, measured once for all shapes of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpFirmware {
    /// The digest after the image itself.
    pub image: LaunchDigest,
    /// What is measured after it.
    pub sections: Vec<SevSection>,
    /// Where the hashes of what is booted are in the guest's memory.
    pub hash_table: Option<u32>,
    /// Where the processors other than the first begin.
    pub reset_eip: u32,
}

/// The hashes of what is booted, which QEMU writes into a measured page and the firmware holds against what it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelHashes {
    kernel: [u8; 32],
    initrd: [u8; 32],
    cmdline: [u8; 32],
}

impl KernelHashes {
    /// Of the kernel's file (the bzImage, as it is on disk), the initramfs (empty without one) and the command line.
    pub fn new(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Self {
        Self::from_digests(Sha256::digest(kernel).into(), Sha256::digest(initrd).into(), cmdline)
    }

    /// The same where the files were hashed before.
    pub fn from_digests(kernel: [u8; 32], initrd: [u8; 32], cmdline: &str) -> Self {
        // With the zero that ends it.
        let cmdline = Sha256::new().chain_update(cmdline).chain_update([0]).finalize().into();
        Self { kernel, initrd, cmdline }
    }

    /// The page that holds the table at this address.
    fn page(&self, table: u32) -> Option<[u8; PAGE]> {
        const LENGTH: u16 = 168;
        let mut bytes = [TABLE.as_slice(), &LENGTH.to_le_bytes()].concat();
        for (guid, digest) in [(CMDLINE, self.cmdline), (INITRD, self.initrd), (KERNEL, self.kernel)] {
            bytes.extend([guid.as_slice(), &50u16.to_le_bytes(), &digest].concat());
        }
        let mut page = [0; PAGE];
        let at = table as usize % PAGE;
        page.get_mut(at..at + bytes.len())?.copy_from_slice(&bytes);
        Some(page)
    }
}

/// The shape of a guest, as far as it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Virtual processors, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// CPUID function 1, EAX, of their model.
    pub cpu_signature: u32,
    /// [`SNP_ACTIVE`], and whatever else the host sets.
    pub features: u64,
}

impl SnpFirmware {
    /// Measures an image.
    pub fn new(ovmf: &Ovmf) -> Result<Self, SnpMeasureError> {
        let image = ovmf.image();
        let mut digest = Context::new();
        // It ends where 32-bit addresses end.
        digest.normal_pages((1 << 32) - image.len() as u64, image);
        Ok(Self {
            image: digest.0,
            sections: ovmf.sev_sections()?,
            hash_table: ovmf.sev_hash_table(),
            reset_eip: ovmf.sev_es_reset().ok_or(OvmfError::NoMetadata("SEV-ES reset"))?,
        })
    }

    /// The digest of a guest of this shape that boots what has these hashes (none: the firmware finds something to boot by itself,
    /// which nothing vouches for).
    pub fn launch_digest(&self, hashes: Option<&KernelHashes>, shape: Shape) -> Result<LaunchDigest, SnpMeasureError> {
        if !(1..=MAX_VCPUS).contains(&shape.vcpus) {
            return Err(SnpMeasureError::Vcpus(shape.vcpus));
        }
        if hashes.is_some() && (self.hash_table.is_none() || !self.sections.iter().any(|section| section.kind == 0x10)) {
            return Err(OvmfError::NoKernelHashes.into());
        }
        let mut digest = Context(self.image);
        for &section in &self.sections {
            self.measure(&mut digest, section, hashes)?;
        }
        let state = |eip| vmsa::page(eip, shape.cpu_signature, shape.features);
        digest.page(2, VMSA_GPA, Sha384::digest(state(RESET_EIP)).into());
        let others: [u8; 48] = Sha384::digest(state(self.reset_eip)).into();
        for _ in 1..shape.vcpus {
            digest.page(2, VMSA_GPA, others);
        }
        Ok(digest.0)
    }

    fn measure(&self, digest: &mut Context, section: SevSection, hashes: Option<&KernelHashes>) -> Result<(), SnpMeasureError> {
        let SevSection { gpa, size, kind } = section;
        let refused = || SnpMeasureError::Section { kind, gpa, size };
        if size > MAX_SECTION || !size.is_multiple_of(PAGE as u32) {
            return Err(refused());
        }
        match kind {
            // Memory, and the calling area of a service module, of which there is none.
            1 | 4 => digest.blank_pages(3, gpa, size),
            // What is in them is the firmware's own business, so that only their place is measured.
            2 => digest.blank_pages(5, gpa, size),
            3 => digest.blank_pages(6, gpa, size),
            0x10 => match hashes {
                Some(hashes) if size as usize == PAGE => {
                    let page = hashes.page(self.hash_table.ok_or(OvmfError::NoKernelHashes)?).ok_or_else(refused)?;
                    digest.normal_pages(gpa, &page);
                }
                Some(_) => return Err(refused()),
                None => digest.blank_pages(3, gpa, size),
            },
            _ => return Err(refused()),
        }
        Ok(())
    }
}

/// The digest so far.
struct Context(LaunchDigest);

impl Context {
    fn new() -> Self {
        Self([0; 48])
    }

    /// One page: its kind, its place, and the digest of its contents (zeros where they are not measured).
    fn page(&mut self, kind: u8, gpa: u64, contents: [u8; 48]) {
        const LENGTH: u16 = 0x70;
        let mut info = [0; LENGTH as usize];
        info[..48].copy_from_slice(&self.0);
        info[48..96].copy_from_slice(&contents);
        info[96..98].copy_from_slice(&LENGTH.to_le_bytes());
        info[98] = kind;
        // Not for migration, and no permissions for the other privilege levels: zeros.
        info[104..].copy_from_slice(&gpa.to_le_bytes());
        self.0 = Sha384::digest(info).into();
    }

    fn normal_pages(&mut self, gpa: u64, contents: &[u8]) {
        for (gpa, page) in (gpa..).step_by(PAGE).zip(contents.chunks_exact(PAGE)) {
            self.page(1, gpa, Sha384::digest(page).into());
        }
    }

    fn blank_pages(&mut self, kind: u8, gpa: u64, size: u32) {
        for gpa in (gpa..).step_by(PAGE).take(size as usize / PAGE) {
            self.page(kind, gpa, [0; 48]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{measure::vmsa::CpuModel, snp::Report};
    use serde_json::Value;
    use vectors::{folder, read};

    fn shape(vcpus: u32, features: u64) -> Shape {
        Shape { vcpus, cpu_signature: CpuModel::find("EPYC-v4").unwrap().signature(), features }
    }

    /// The values that the makers of sev-snp-measure publish with their tests.
    #[test]
    fn published_digests_come_out() {
        let Some(folder) = folder() else { return };
        let image = read(&folder, "measure/ovmf_AmdSev_suffix.bin");
        let firmware = SnpFirmware::new(&Ovmf::parse(&image).unwrap()).unwrap();
        assert_eq!(
            hex::encode(firmware.image),
            "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
        );
        let boot = |cmdline| Some(KernelHashes::new(b"", b"", cmdline));
        for (hashes, vcpus, features, wanted) in [
            (
                boot("console=ttyS0 loglevel=7"),
                1,
                1,
                "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
            ),
            (
                boot("console=ttyS0 loglevel=7"),
                1,
                0x21,
                "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
            ),
            (boot(""), 4, 1, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"),
            (None, 1, 1, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"),
        ] {
            let digest = firmware.launch_digest(hashes.as_ref(), shape(vcpus, features)).unwrap();
            assert_eq!(hex::encode(digest), wanted);
        }
        let image = read(&folder, "measure/ovmf_OvmfX64_suffix.bin");
        let other = SnpFirmware::new(&Ovmf::parse(&image).unwrap()).unwrap();
        assert_eq!(
            hex::encode(other.launch_digest(None, shape(1, 1)).unwrap()),
            "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005"
        );
        let error = other.launch_digest(boot("").as_ref(), shape(1, 1)).unwrap_err();
        assert_eq!(error, SnpMeasureError::Firmware(OvmfError::NoKernelHashes));
    }

    /// A machine of AMD's own signed this one.
    #[test]
    fn what_hardware_signed_comes_out() {
        let Some(folder) = folder() else { return };
        let inputs: Value = serde_json::from_slice(&read(&folder, "measure/dstack_snp_measurement_inputs.json")).unwrap();
        let digest = |name: &str| hex::decode(inputs[name].as_str().unwrap()).unwrap();
        let number = |value: &Value| value.as_u64().unwrap();
        let sections = inputs["sections"].as_array().unwrap().iter();
        let sections =
            sections.map(|s| SevSection { gpa: number(&s["gpa"]), size: number(&s["size"]) as u32, kind: number(&s["type"]) as u32 });
        let firmware = SnpFirmware {
            image: digest("ovmf_hash").try_into().unwrap(),
            sections: sections.collect(),
            hash_table: Some(number(&inputs["hashes_table_gpa"]) as u32),
            reset_eip: 0x80_b004,
        };
        assert_eq!(number(&inputs["reset_eip"]) as u32, firmware.reset_eip, "the recorded inputs agree with themselves");
        let [kernel, initrd] = ["kernel_sha256", "initrd_sha256"].map(|name| digest(name).try_into().unwrap());
        let hashes = KernelHashes::from_digests(kernel, initrd, inputs["cmdline"].as_str().unwrap());
        let shape = shape(number(&inputs["vcpus"]) as u32, number(&inputs["guest_features"]));
        let predicted = firmware.launch_digest(Some(&hashes), shape).unwrap();
        let report = Report::parse(&read(&folder, "snp/dstack_milan_report.bin")).unwrap();
        assert_eq!(hex::encode(predicted), hex::encode(report.measurement));
        // Each input counts.
        let other = KernelHashes::from_digests(kernel, initrd, "console=ttyS0");
        assert_ne!(firmware.launch_digest(Some(&other), shape).unwrap(), predicted);
        assert_ne!(firmware.launch_digest(Some(&hashes), Shape { vcpus: 3, ..shape }).unwrap(), predicted);
        assert_ne!(firmware.launch_digest(Some(&hashes), Shape { cpu_signature: 1, ..shape }).unwrap(), predicted);
    }

    #[test]
    fn shapes_and_sections_have_bounds() {
        let section = |size, kind| SevSection { gpa: 0x1000, size, kind };
        let firmware = |section| SnpFirmware { image: [0; 48], sections: vec![section], hash_table: Some(0x10_0fff), reset_eip: 0 };
        let hashes = KernelHashes::new(b"k", b"", "");
        for vcpus in [0, MAX_VCPUS + 1] {
            assert!(matches!(firmware(section(4096, 1)).launch_digest(None, shape(vcpus, 1)), Err(SnpMeasureError::Vcpus(_))));
        }
        for bad in [section(4095, 1), section(1 << 30, 1), section(4096, 7)] {
            assert!(matches!(firmware(bad).launch_digest(None, shape(1, 1)), Err(SnpMeasureError::Section { .. })));
        }
        // A table that would not fit into its page, and a page that is two.
        for bad in [section(4096, 0x10), section(8192, 0x10)] {
            assert!(matches!(firmware(bad).launch_digest(Some(&hashes), shape(1, 1)), Err(SnpMeasureError::Section { .. })));
        }
    }
}
