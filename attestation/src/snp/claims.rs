//! What a genuine report says, in the words of release rules.

use crate::snp::{Report, Tcb, report::Version};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Generations of processors whose reports are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004 and 8004: Genoa, Bergamo, Siena.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Generation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// By the processor's own words: family (base and extended added) and model (extended above base).
    pub fn of_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// As AMD writes it in its certificates and in the paths of its service.
    pub fn product(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Which key signed a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SigningKey {
    /// Of one chip at one security version.
    Vcek,
    /// Of a cloud provider, loaded into its chips.
    Vlek,
}

impl fmt::Display for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A bit of the guest policy: what the host was allowed to do, or had to, when it launched the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Two guests' threads may share a core.
    Smt,
    /// A migration agent may take the guest to another machine.
    Migration,
    /// The host may read and write the guest's memory: nothing in it is confidential.
    Debug,
    /// On a machine with one socket only.
    SingleSocket,
    /// Memory behind CXL may be used.
    Cxl,
    /// Memory is encrypted with AES-256-XTS.
    #[serde(rename = "aes-256-xts")]
    Aes256Xts,
    /// Power cannot be measured by software.
    RaplOff,
    /// The host does not see the ciphertext.
    CiphertextHiding,
    /// Pages of the guest cannot be moved.
    PageSwapOff,
}

impl Policy {
    fn mask(self) -> u64 {
        1 << match self {
            Self::Smt => 16,
            Self::Migration => 18,
            Self::Debug => 19,
            Self::SingleSocket => 20,
            Self::Cxl => 21,
            Self::Aes256Xts => 22,
            Self::RaplOff => 23,
            Self::CiphertextHiding => 24,
            Self::PageSwapOff => 25,
        }
    }
}

/// A bit about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlatformInfo {
    /// Two threads run on one core.
    Smt,
    /// All memory of the machine is encrypted, the host's too.
    Tsme,
    /// Memory has error correction.
    Ecc,
    /// Power cannot be measured by software.
    RaplOff,
    /// The host does not see the ciphertext of guests.
    CiphertextHiding,
    /// Since its last reset no two addresses lead to one place in memory (CVE-2024-21944, BadRAM).
    AliasCheck,
    /// Trusted devices are possible.
    Tio,
}

impl PlatformInfo {
    fn mask(self) -> u64 {
        1 << match self {
            Self::Smt => 0,
            Self::Tsme => 1,
            Self::Ecc => 2,
            Self::RaplOff => 3,
            Self::CiphertextHiding => 4,
            Self::AliasCheck => 5,
            Self::Tio => 7,
        }
    }
}

/// Either kind of bit, as rules name it.
pub trait Bit: Copy + PartialEq + Serialize {
    /// Whether it is set.
    fn is_set(self, claims: &SnpClaims) -> bool;
}

impl Bit for Policy {
    fn is_set(self, claims: &SnpClaims) -> bool {
        claims.policy & self.mask() != 0
    }
}

impl Bit for PlatformInfo {
    fn is_set(self, claims: &SnpClaims) -> bool {
        claims.platform_info & self.mask() != 0
    }
}

/// What a genuine report says beyond the claims that all TEEs have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnpClaims {
    /// Version of the report.
    pub report_version: u32,
    /// Of the processor.
    pub generation: Generation,
    /// Which key signed the report.
    pub signing_key: SigningKey,
    /// Privilege level of who asked for the report.
    pub vmpl: u32,
    /// Security version of the guest.
    pub guest_svn: u32,
    /// Guest policy; see [`Policy`]. Its first two bytes are minor and major of the lowest ABI version.
    pub policy: u64,
    /// See [`PlatformInfo`].
    pub platform_info: u64,
    /// Of what runs.
    pub current_tcb: Tcb,
    /// What the signing key belongs to.
    pub reported_tcb: Tcb,
    /// What the host cannot go back behind.
    pub committed_tcb: Tcb,
    /// At launch.
    pub launch_tcb: Tcb,
    /// Of the firmware that runs.
    pub current_firmware: Version,
    /// Of the firmware that is committed.
    pub committed_firmware: Version,
    /// From the ID block.
    #[serde(with = "hex::serde")]
    pub family_id: [u8; 16],
    /// From the ID block.
    #[serde(with = "hex::serde")]
    pub image_id: [u8; 16],
    /// SHA-384 of the key that signed the ID block; zeros without one.
    #[serde(with = "hex::serde")]
    pub id_key: [u8; 48],
    /// SHA-384 of the key that signed the ID key; zeros without one.
    #[serde(with = "hex::serde")]
    pub author_key: [u8; 48],
    /// Of this guest, until it ends.
    #[serde(with = "hex::serde")]
    pub report_id: [u8; 32],
    /// Of its migration agent.
    #[serde(with = "hex::serde")]
    pub report_id_ma: [u8; 32],
    /// Of the chip.
    #[serde(with = "hex::serde")]
    pub chip_id: [u8; 64],
    /// Mitigations that were on at launch; reports from version 5.
    pub launch_mitigations: Option<u64>,
    /// Mitigations that are on; reports from version 5.
    pub current_mitigations: Option<u64>,
}

impl SnpClaims {
    /// The claims of a report whose generation and key are established.
    pub fn new(report: &Report, generation: Generation, signing_key: SigningKey) -> Self {
        Self {
            report_version: report.version,
            generation,
            signing_key,
            vmpl: report.vmpl,
            guest_svn: report.guest_svn,
            policy: report.policy,
            platform_info: report.plat_info,
            current_tcb: report.current_tcb,
            reported_tcb: report.reported_tcb,
            committed_tcb: report.committed_tcb,
            launch_tcb: report.launch_tcb,
            current_firmware: report.current,
            committed_firmware: report.committed,
            family_id: report.family_id,
            image_id: report.image_id,
            id_key: report.id_key_digest,
            author_key: report.author_key_digest,
            report_id: report.report_id,
            report_id_ma: report.report_id_ma,
            chip_id: report.chip_id,
            launch_mitigations: report.launch_mit_vector,
            current_mitigations: report.current_mit_vector,
        }
    }

    /// Whether the host may read the guest's memory.
    pub fn is_debug(&self) -> bool {
        Policy::Debug.is_set(self)
    }
}
