//! AMD SEV-SNP, with QEMU's `sev-snp-guest`. The firmware's measurement covers the hashes of kernel, initramfs and command line
//! (`kernel-hashes=on`), which the firmware of edk2's AmdSev package compares before it starts them.

use super::{Helper, Machine, Platform, Request, Shape, SnpSettings, Tee, TeeError, firmware, fitted};
use crate::vmm::QemuVersion;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{arch::x86_64::__cpuid, path::PathBuf};

/// Where packages put the firmware whose measurement has room for the hashes. Debian 13's OVMF has none.
const PLACES: &[&str] = &["/usr/lib/cloister/OVMF.amdsev.fd", "/usr/share/ovmf/OVMF.amdsev.fd", "/usr/share/edk2/ovmf/OVMF.amdsev.fd"];

/// The largest leaf of the processor's extended functions, and the one that describes memory encryption (AMD APM volume 3).
const LARGEST: u32 = 0x8000_0000;
const ENCRYPTION: u32 = 0x8000_001f;
/// EAX of the latter: the processor has SNP.
const HAS_SNP: u32 = 1 << 4;

/// AMD SEV-SNP.
#[derive(Debug)]
pub(super) struct Snp {
    pub(super) settings: SnpSettings,
    pub(super) firmware: Option<PathBuf>,
    /// `guest.acpi`.
    pub(super) acpi: Option<bool>,
}

/// How this processor marks an encrypted page.
#[derive(Debug, Clone, Copy)]
struct Encryption {
    c_bit: u32,
    reduced_bits: u32,
}

impl Encryption {
    fn of_this_processor() -> Option<Self> {
        if __cpuid(LARGEST).eax < ENCRYPTION {
            return None;
        }
        let leaf = __cpuid(ENCRYPTION);
        (leaf.eax & HAS_SNP != 0).then_some(Self { c_bit: leaf.ebx & 0x3f, reduced_bits: leaf.ebx >> 6 & 0x3f })
    }
}

impl Tee for Snp {
    fn name(&self) -> &'static str {
        "snp"
    }

    fn oldest_qemu(&self) -> QemuVersion {
        QemuVersion { major: 9, minor: 1 }
    }

    fn shape(&self, vcpus: u32) -> Result<Shape, TeeError> {
        // ACPI tables are the host's and not measured here, and they are programs that the kernel runs (BadAML). Without them the
        // kernel does not find a second processor.
        let acpi = self.acpi.unwrap_or(false);
        if !acpi && vcpus > 1 {
            return Err(TeeError::Unsupported {
                tee: "snp",
                reason: format!(
                    "a guest of {vcpus} CPUs needs ACPI tables, which are unmeasured code of the host's; give it one CPU, or, with a kernel \
                     that keeps AML out of private memory, set guest.acpi = true"
                ),
            });
        }
        let remedy = "take OVMF.amdsev.fd out of Debian's package ovmf-amdsev";
        let firmware = firmware::find("snp", self.firmware.as_deref(), PLACES, remedy)?;
        Ok(Shape { machine: Machine::Q35, cpu: Some(self.settings.cpu.clone()), firmware: Some(firmware), acpi })
    }

    fn prepare(&self, request: &Request<'_>) -> Result<(Platform, Vec<Helper>), TeeError> {
        let hardware = || TeeError::Hardware { tee: "snp", reason: "this processor does not have SEV-SNP".into() };
        let encryption = Encryption::of_this_processor().ok_or_else(hardware)?;
        Ok((self.platform(self.shape(request.vcpus)?, encryption, request), Vec::new()))
    }
}

impl Snp {
    fn platform(&self, shape: Shape, encryption: Encryption, request: &Request<'_>) -> Platform {
        let SnpSettings { policy, id_block, id_auth, author_key, .. } = &self.settings;
        let mut object = format!(
            "sev-snp-guest,id=tee0,cbitpos={},reduced-phys-bits={},policy={policy:#x},kernel-hashes=on,host-data={}",
            encryption.c_bit,
            encryption.reduced_bits,
            STANDARD.encode(fitted::<32>(request.initdata)),
        );
        if let (Some(block), Some(auth)) = (id_block, id_auth) {
            object += &format!(",id-block={block},id-auth={auth}");
            if *author_key {
                object += ",author-key-enabled=on";
            }
        }
        Platform {
            shape,
            machine_options: ",kernel-irqchip=split,confidential-guest-support=tee0",
            objects: vec![object],
            private_memory: true,
            tpm: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::path::Path;

    fn snp(settings: SnpSettings, acpi: Option<bool>) -> Snp {
        Snp { settings, firmware: Some("Cargo.toml".into()), acpi }
    }

    fn platform(settings: SnpSettings) -> Platform {
        let snp = snp(settings, None);
        let shape = Shape { firmware: Some("/f/OVMF.amdsev.fd".into()), ..snp.shape(1).unwrap() };
        let request = Request { dir: Path::new("/s"), initdata: &[0x11; 48], vcpus: 1 };
        snp.platform(shape, Encryption { c_bit: 51, reduced_bits: 1 }, &request)
    }

    /// For the golden test of QEMU's command line.
    pub(crate) fn example() -> Platform {
        platform(SnpSettings { id_block: Some("QkxP".into()), id_auth: Some("QVVU".into()), author_key: true, ..SnpSettings::default() })
    }

    #[test]
    fn the_initdata_is_in_the_host_data() {
        let platform = platform(SnpSettings::default());
        let wanted = format!("host-data={}", STANDARD.encode([0x11; 32]));
        assert!(platform.objects[0].ends_with(&wanted), "{:?}", platform.objects);
    }

    #[test]
    fn the_hosts_acpi_tables_are_read_only_where_that_was_asked_for() {
        assert!(!snp(SnpSettings::default(), None).shape(1).unwrap().acpi);
        let error = snp(SnpSettings::default(), None).shape(2).unwrap_err().to_string();
        assert!(error.contains("guest.acpi = true") && !error.contains('\n'), "{error}");
        assert!(snp(SnpSettings::default(), Some(true)).shape(2).unwrap().acpi);
    }
}
