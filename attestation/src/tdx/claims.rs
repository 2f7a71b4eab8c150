//! What a genuine quote says, in the words of release rules.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};
use std::fmt;

/// What Intel thinks of a platform with these versions. Written as Intel writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing to do.
    UpToDate,
    /// Up to date, but the software in the guest has to work around something.
    SWHardeningNeeded,
    /// Up to date, but configured in a way that exposes it.
    ConfigurationNeeded,
    /// Both.
    ConfigurationAndSWHardeningNeeded,
    /// Known holes are open.
    OutOfDate,
    /// And it is configured in a way that exposes it.
    OutOfDateConfigurationNeeded,
    /// The module was updated below a running guest; the guest should be launched anew.
    TDRelaunchAdvised,
    /// And it is configured in a way that exposes it.
    TDRelaunchAdvisedConfigurationNeeded,
}

impl fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A bit of a guest's attributes (Intel TDX Module ABI, `ATTRIBUTES`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attribute {
    /// The host may read and write the guest's memory and registers.
    Debug,
    /// Someone may follow its execution: one of the profiling bits.
    Profiling,
    /// The host cannot cause exceptions by taking pages away.
    SeptVeDisable,
    /// It may be taken to another machine.
    Migratable,
    /// Protection keys for kernel pages.
    Pks,
    /// Key locker.
    KeyLocker,
    /// The guest may count events.
    Perfmon,
}

impl Attribute {
    fn mask(self) -> u64 {
        match self {
            Self::Debug => 1,
            Self::Profiling => 0xfe,
            Self::SeptVeDisable => 1 << 28,
            Self::Migratable => 1 << 29,
            Self::Pks => 1 << 30,
            Self::KeyLocker => 1 << 31,
            Self::Perfmon => 1 << 63,
        }
    }

    /// Whether it is set.
    pub fn is_set(self, attributes: u64) -> bool {
        attributes & self.mask() != 0
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a genuine quote says beyond the claims that all TEEs have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TdxClaims {
    /// Version of the quote: 4 or 5.
    pub quote_version: u16,
    /// What Intel thinks of the platform, the quoting enclave and the module together.
    pub tcb_status: TcbStatus,
    /// Intel's security advisories that are open on it.
    pub advisories: Vec<String>,
    /// Number of Intel's evaluation that this is by: a higher one knows more.
    pub evaluation: u32,
    /// Of the newest versions that the platform meets, seconds since 1970.
    pub tcb_date: u64,
    /// Family, model, stepping and more of the platform.
    #[serde(with = "hex::serde")]
    pub fmspc: [u8; 6],
    /// Id of the platform's own key.
    #[serde(with = "hex::serde")]
    pub ppid: Vec<u8>,
    /// Security versions of the module and what is below it.
    #[serde(with = "hex::serde")]
    pub tee_tcb_svn: [u8; 16],
    /// Digest of the module.
    #[serde(with = "hex::serde")]
    pub mr_seam: [u8; 48],
    /// Who signed the module: zeros for Intel.
    #[serde(with = "hex::serde")]
    pub mr_signer_seam: [u8; 48],
    /// Of the guest; see [`Attribute`].
    pub attributes: u64,
    /// Extended features of the processor that the guest may use.
    pub xfam: u64,
    /// Digest of the firmware as it was loaded.
    #[serde(with = "hex::serde")]
    pub mr_td: [u8; 48],
    /// What the owner of the guest was said to be.
    #[serde(with = "hex::serde")]
    pub mr_owner: [u8; 48],
    /// And its configuration.
    #[serde(with = "hex::serde")]
    pub mr_owner_config: [u8; 48],
    /// Digest of the service guests that are bound to it: zeros where there are none.
    #[serde(with = "hex::serde")]
    pub mr_service_td: [u8; 48],
    /// Firmware's configuration, devices, ACPI tables.
    #[serde(with = "hex::serde")]
    pub rtmr0: [u8; 48],
    /// What the firmware started: the kernel.
    #[serde(with = "hex::serde")]
    pub rtmr1: [u8; 48],
    /// What the kernel was given: command line, initramfs.
    #[serde(with = "hex::serde")]
    pub rtmr2: [u8; 48],
    /// What ran later.
    #[serde(with = "hex::serde")]
    pub rtmr3: [u8; 48],
    /// Manifests of the images that were run, in their order, `sha256:…`: they give RTMR3. None where the evidence does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
}

impl TdxClaims {
    /// The launch measurement; see [`launch_measurement`].
    pub fn launch_measurement(&self) -> [u8; 48] {
        launch_measurement(&self.mr_td, &self.rtmr1, &self.rtmr2)
    }

    /// Whether the host may read the guest's memory.
    pub fn is_debug(&self) -> bool {
        Attribute::Debug.is_set(self.attributes)
    }
}

/// What was launched, as one digest: SHA-384 over MRTD, RTMR1 and RTMR2, that is firmware, kernel, command line and initramfs. MRTD alone
/// would say which firmware it was, and nothing of what that started. RTMR0 is not in it: it holds memory map and ACPI tables, which vary
/// with the size of a guest.
pub fn launch_measurement(mr_td: &[u8; 48], rtmr1: &[u8; 48], rtmr2: &[u8; 48]) -> [u8; 48] {
    Sha384::new().chain_update(mr_td).chain_update(rtmr1).chain_update(rtmr2).finalize().into()
}
