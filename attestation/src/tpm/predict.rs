//! What a TPM will hold after a measured direct boot (QEMU's `-kernel` with OVMF), computed from the files.

use super::{LAUNCH_PCRS, Pcr, extended, firmware::Firmware, launch_measurement};
use crate::{
    efi_kernel::{self, KernelError},
    measure::tdx::InitrdWord,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why there is no prediction.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PredictError {
    /// The firmware.
    #[error(
        "firmware with SHA-256 {0}: what it measures of itself is not known; take the ovmf of Debian 13, or give its PCR 0, which \
         `cloister check --launch` shows"
    )]
    Firmware(String),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What is launched.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The firmware's file.
    pub firmware: &'a [u8],
    /// What the firmware measures of itself, where it is none of the known ones.
    pub pcr0: Option<Pcr>,
    /// Where a firmware that is not known puts its own word into the command line.
    pub initrd_word: InitrdWord,
    /// The kernel's file, a bzImage.
    pub kernel: &'a [u8],
    /// The initramfs's file.
    pub initramfs: &'a [u8],
    /// The kernel command line.
    pub cmdline: &'a str,
    /// Memory in MiB: QEMU writes the initramfs's address into the kernel's header, which the firmware measures with the rest.
    pub memory_mib: u32,
}

/// The registers of a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    /// Those of [`LAUNCH_PCRS`].
    pub pcrs: BTreeMap<usize, Pcr>,
}

impl Prediction {
    /// The launch measurement.
    pub fn measurement(&self) -> [u8; 32] {
        launch_measurement(|index| self.pcrs.get(&index).copied().unwrap_or_default())
    }
}

/// Predicts.
pub fn predict(launch: &Launch<'_>) -> Result<Prediction, PredictError> {
    let known = Firmware::of(launch.firmware);
    let (pcr0, initrd_first) = match (launch.pcr0, known) {
        (Some(pcr0), known) => (pcr0, known.map_or(launch.initrd_word == InitrdWord::First, |known| known.initrd_first)),
        (None, Ok(known)) => (known.pcr0(), known.initrd_first),
        (None, Err(sha256)) => return Err(PredictError::Firmware(sha256)),
    };
    let as_launched = efi_kernel::as_qemu_hands_it_over(launch.kernel, launch.initramfs.len(), launch.memory_mib)?;
    let kernel: Pcr = efi_kernel::authenticode::<Sha256>(&as_launched)?.into();
    let options = if initrd_first { format!("initrd=initrd {}", launch.cmdline) } else { format!("{} initrd=initrd", launch.cmdline) };

    let separator = sha256(&[0; 4]);
    let events = |index: usize| -> Vec<Pcr> {
        match index {
            4 => vec![kernel, sha256(b"Calling EFI Application from Boot Option"), separator],
            5 => vec![separator, sha256(b"Exit Boot Services Invocation"), sha256(b"Exit Boot Services Returned with Success")],
            7 => SECURE_BOOT.iter().map(|(guid, name)| sha256(&variable(guid, name))).chain([separator]).collect(),
            9 => vec![sha256(&utf16(&options)), sha256(launch.initramfs)],
            _ => vec![separator],
        }
    };
    let value = |index: usize| if index == 0 { pcr0 } else { events(index).iter().fold([0; 32], |pcr, event| extended(&pcr, event)) };
    Ok(Prediction { pcrs: LAUNCH_PCRS.iter().map(|index| (*index, value(*index))).collect() })
}

/// The variables that decide on Secure Boot, in the order of their measurement, each with its namespace: EFI_GLOBAL_VARIABLE and
/// EFI_IMAGE_SECURITY_DATABASE (UEFI specification, 3.3 and 32.6.1). The firmware has no keys, so all are empty.
const SECURE_BOOT: [(&[u8; 16], &str); 5] = [(GLOBAL, "SecureBoot"), (GLOBAL, "PK"), (GLOBAL, "KEK"), (DATABASE, "db"), (DATABASE, "dbx")];
const GLOBAL: &[u8; 16] = &[0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c];
const DATABASE: &[u8; 16] = &[0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f];

/// UEFI_VARIABLE_DATA of an empty variable (TCG PC Client Platform Firmware Profile, 10.2.6).
fn variable(guid: &[u8; 16], name: &str) -> Vec<u8> {
    let name: Vec<u8> = name.encode_utf16().flat_map(u16::to_le_bytes).collect();
    [guid, &(name.len() as u64 / 2).to_le_bytes()[..], &0_u64.to_le_bytes(), &name].concat()
}

/// The kernel's options as EFI has them, with their NUL.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn sha256(bytes: &[u8]) -> Pcr {
    Sha256::digest(bytes).into()
}
