//! Evidence of a TPM 2.0: a quote over its registers, bound to the handshake, and the event log that explains them.
//!
//! What it proves depends on whose the TPM is. One that the host emulates (swtpm) shows a changed firmware, kernel, initramfs, command
//! line or initdata to whoever trusts the host; against the host it proves nothing, because the host has the TPM's keys and hands it the
//! measurements. Its attestation key says which TPM it is: a release rule names the key, or the broker is one for development.
//!
//! | PCR | holds |
//! |---|---|
//! | 0 | the firmware's volumes |
//! | 1 | QEMU's ACPI tables and the boot order: it differs with the devices of a guest, and is not in the measurement |
//! | 2, 3, 6 | nothing: no option ROMs |
//! | 4, 5 | the kernel, as an EFI program, and its start |
//! | 7 | Secure Boot: off |
//! | 8 | the initdata's digest, extended by the agent, once, before anything else |
//! | 9 | command line and initramfs, by the kernel's EFI stub |
//! | 13 | the images that were run, extended by the agent before each; see [`crate::images`] |

pub mod device;
pub mod predict;
pub mod quote;

mod attester;
mod evidence;
mod firmware;
#[cfg(feature = "verify")]
mod verifier;
mod wire;

pub use attester::TpmAttester;
pub use device::{Device, DeviceError};
#[cfg(feature = "verify")]
pub use verifier::TpmVerifier;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Registers of a TPM (TCG PC Client Platform TPM Profile).
pub const PCRS: usize = 24;
/// One register of the SHA-256 bank.
pub type Pcr = [u8; 32];

/// The register that the initdata's digest is extended into.
pub const INITDATA_PCR: u8 = 8;
/// The register that the images are extended into.
pub const IMAGES_PCR: u8 = 13;
/// The registers of the launch measurement, which is SHA-256 over their concatenation: what TPM2_Quote calls the PCR digest.
pub const LAUNCH_PCRS: [usize; 8] = [0, 2, 3, 4, 5, 6, 7, 9];

/// What a TPM's evidence says beyond measurement and initdata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmClaims {
    /// SHA-256 over the attestation key (SubjectPublicKeyInfo, DER). A rule names it: nothing else says whose TPM this is.
    #[serde(with = "hex::serde")]
    pub ak: Vec<u8>,
    /// The registers of [`LAUNCH_PCRS`], for whoever asks which part of a guest is another one.
    pub pcrs: Vec<String>,
    /// Manifests of the images that were run, in their order, `sha256:…`; none where the evidence does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
}

/// The launch measurement of these registers.
pub fn launch_measurement(pcr: impl Fn(usize) -> Pcr) -> [u8; 32] {
    let mut digest = Sha256::new();
    for index in LAUNCH_PCRS {
        digest.update(pcr(index));
    }
    digest.finalize().into()
}

/// What is extended into [`INITDATA_PCR`]: the initdata's digest, cut or padded to the register's length; zeros without initdata, so that
/// nobody can extend another digest later and pass for a guest that was started with it.
pub fn initdata_event(digest: Option<&[u8]>) -> Pcr {
    let mut event = [0; 32];
    let digest = digest.unwrap_or_default();
    let common = digest.len().min(event.len());
    event[..common].copy_from_slice(&digest[..common]);
    event
}

/// A register after `event` was extended into it.
pub fn extended(register: &Pcr, event: &Pcr) -> Pcr {
    Sha256::new().chain_update(register).chain_update(event).finalize().into()
}

#[cfg(test)]
mod tests;
