//! The attestation report: 1184 bytes, little-endian, in versions 2 to 5.
//!
//! Version 2 does not say which processor made it; 3 does; 5 adds the mitigation vectors. A report is taken apart only if putting it
//! together again gives the same bytes: one with something in a reserved field was written for readers that know more than this one.

use crate::snp::Generation;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Length of a report in bytes.
pub const LENGTH: usize = 0x4a0;

/// How many of them are signed: all before the signature.
pub const SIGNED: usize = 0x2a0;

/// Versions that are read.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 2..=5;

/// `sig_algo`: ECDSA on P-384 with SHA-384.
pub const ECDSA_P384_SHA384: u32 = 1;

/// Why bytes are no report.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReportError {
    /// Neither more nor less.
    #[error("{0} bytes, a report has {LENGTH}")]
    Length(usize),
    /// From before or after our time.
    #[error("report version {0}, only 2 to 5 are known")]
    Version(u32),
    /// What follows the version that it states.
    #[error("reserved bytes are set, which version {0} does not allow")]
    Reserved(u32),
    /// In the JSON form: fields that the version does not have, or that do not fit the processor.
    #[error("{0}")]
    Fields(&'static str),
}

/// The security versions of what runs below the guest. In the report it has eight bytes, whose order depends on the generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tcb {
    /// Of the firmware of the management controller; Turin and later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fmc: Option<u8>,
    /// Of the secure processor's boot loader.
    pub bootloader: u8,
    /// Of its operating system.
    pub tee: u8,
    /// Of the SNP firmware.
    pub snp: u8,
    /// Lowest patch level of all cores.
    pub microcode: u8,
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc}, ")?;
        }
        write!(f, "bootloader {}, tee {}, snp {}, microcode {}", self.bootloader, self.tee, self.snp, self.microcode)
    }
}

/// A firmware version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// First, since it decides first.
    pub major: u8,
    /// Next.
    pub minor: u8,
    /// Last.
    pub build: u8,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

impl FromStr for Version {
    type Err = ReportError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
            (Some(major), Some(minor), Some(build), None) => Ok(Self { major, minor, build }),
            _ => Err(ReportError::Fields("a firmware version has three numbers up to 255, as 1.55.29")),
        }
    }
}

/// A signature: both numbers little-endian, 48 significant bytes in 72.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The first number.
    #[serde(with = "numbers")]
    pub r: [u8; 72],
    /// The second.
    #[serde(with = "numbers")]
    pub s: [u8; 72],
}

/// The report. Names of members are those of the JSON form that Trustee reads and writes (the crate `sev`'s), where each array of
/// bytes is a list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Of this format.
    pub version: u32,
    /// Security version of the guest, from its ID block.
    pub guest_svn: u32,
    /// What the host was allowed to do when it launched the guest; see [`crate::snp::claims::Policy`].
    pub policy: u64,
    /// From the ID block.
    #[serde(with = "numbers")]
    pub family_id: [u8; 16],
    /// From the ID block.
    #[serde(with = "numbers")]
    pub image_id: [u8; 16],
    /// Privilege level of who asked for the report, 0 to 3.
    pub vmpl: u32,
    /// [`ECDSA_P384_SHA384`].
    pub sig_algo: u32,
    /// Of what runs.
    pub current_tcb: Tcb,
    /// Bits about the machine; see [`crate::snp::claims::PlatformInfo`].
    pub plat_info: u64,
    /// Bit 0: an author key signed the ID key. Bit 1: the chip's key is masked. Bits 2 to 4: which key signed this.
    pub key_info: u32,
    /// What the guest asked to have signed.
    #[serde(with = "numbers")]
    pub report_data: [u8; 64],
    /// Digest of what was launched.
    #[serde(with = "numbers")]
    pub measurement: [u8; 48],
    /// What the host gave at launch: here, the digest of the initdata.
    #[serde(with = "numbers")]
    pub host_data: [u8; 32],
    /// SHA-384 of the key that signed the ID block.
    #[serde(with = "numbers")]
    pub id_key_digest: [u8; 48],
    /// SHA-384 of the key that signed that key.
    #[serde(with = "numbers")]
    pub author_key_digest: [u8; 48],
    /// Of this guest, until it ends.
    #[serde(with = "numbers")]
    pub report_id: [u8; 32],
    /// Of its migration agent.
    #[serde(with = "numbers")]
    pub report_id_ma: [u8; 32],
    /// What the host reports as its security version, and what the signing key belongs to.
    pub reported_tcb: Tcb,
    /// From version 3: CPUID family.
    #[serde(default)]
    pub cpuid_fam_id: Option<u8>,
    /// From version 3: CPUID model.
    #[serde(default)]
    pub cpuid_mod_id: Option<u8>,
    /// From version 3: CPUID stepping.
    #[serde(default)]
    pub cpuid_step: Option<u8>,
    /// Of the chip; zeros where the host hides it.
    #[serde(with = "numbers")]
    pub chip_id: [u8; 64],
    /// What the host cannot go back behind.
    pub committed_tcb: Tcb,
    /// Of the firmware that runs.
    pub current: Version,
    /// Of the firmware that is committed.
    pub committed: Version,
    /// At launch.
    pub launch_tcb: Tcb,
    /// From version 5: mitigations that were on at launch.
    #[serde(default)]
    pub launch_mit_vector: Option<u64>,
    /// From version 5: mitigations that are on.
    #[serde(default)]
    pub current_mit_vector: Option<u64>,
    /// Over all before it.
    pub signature: Signature,
}

impl Report {
    /// Takes a report apart.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() != LENGTH {
            return Err(ReportError::Length(bytes.len()));
        }
        let version = number32(bytes, 0);
        if !VERSIONS.contains(&version) {
            return Err(ReportError::Version(version));
        }
        let cpuid = |at: usize| (version >= 3).then(|| bytes[at]);
        let mitigations = |at: usize| (version >= 5).then(|| number64(bytes, at));
        let layout = TcbLayout::of(cpuid(0x188));
        let firmware = |at: usize| Version { build: bytes[at], minor: bytes[at + 1], major: bytes[at + 2] };
        let report = Self {
            version,
            guest_svn: number32(bytes, 0x04),
            policy: number64(bytes, 0x08),
            family_id: array(bytes, 0x10),
            image_id: array(bytes, 0x20),
            vmpl: number32(bytes, 0x30),
            sig_algo: number32(bytes, 0x34),
            current_tcb: layout.read(bytes, 0x38),
            plat_info: number64(bytes, 0x40),
            key_info: number32(bytes, 0x48),
            report_data: array(bytes, 0x50),
            measurement: array(bytes, 0x90),
            host_data: array(bytes, 0xc0),
            id_key_digest: array(bytes, 0xe0),
            author_key_digest: array(bytes, 0x110),
            report_id: array(bytes, 0x140),
            report_id_ma: array(bytes, 0x160),
            reported_tcb: layout.read(bytes, 0x180),
            cpuid_fam_id: cpuid(0x188),
            cpuid_mod_id: cpuid(0x189),
            cpuid_step: cpuid(0x18a),
            chip_id: array(bytes, 0x1a0),
            committed_tcb: layout.read(bytes, 0x1e0),
            current: firmware(0x1e8),
            committed: firmware(0x1ec),
            launch_tcb: layout.read(bytes, 0x1f0),
            launch_mit_vector: mitigations(0x1f8),
            current_mit_vector: mitigations(0x200),
            signature: Signature { r: array(bytes, 0x2a0), s: array(bytes, 0x2e8) },
        };
        if report.to_bytes()?.as_slice() == bytes { Ok(report) } else { Err(ReportError::Reserved(version)) }
    }

    /// The report as the firmware wrote it; fails for one from JSON whose members do not belong together.
    pub fn to_bytes(&self) -> Result<[u8; LENGTH], ReportError> {
        if !VERSIONS.contains(&self.version) {
            return Err(ReportError::Version(self.version));
        }
        let cpuid = [self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step];
        if cpuid.iter().any(|part| part.is_some() != (self.version >= 3)) {
            return Err(ReportError::Fields("cpuid_fam_id, cpuid_mod_id and cpuid_step belong to versions from 3, all three"));
        }
        let mitigations = [self.launch_mit_vector, self.current_mit_vector];
        if mitigations.iter().any(|vector| vector.is_some() != (self.version >= 5)) {
            return Err(ReportError::Fields("launch_mit_vector and current_mit_vector belong to versions from 5, both"));
        }
        let layout = TcbLayout::of(self.cpuid_fam_id);
        let firmware = |version: &Version| [version.build, version.minor, version.major];
        let mut bytes = [0; LENGTH];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0x00, &self.version.to_le_bytes());
        put(0x04, &self.guest_svn.to_le_bytes());
        put(0x08, &self.policy.to_le_bytes());
        put(0x10, &self.family_id);
        put(0x20, &self.image_id);
        put(0x30, &self.vmpl.to_le_bytes());
        put(0x34, &self.sig_algo.to_le_bytes());
        put(0x38, &layout.write(&self.current_tcb)?);
        put(0x40, &self.plat_info.to_le_bytes());
        put(0x48, &self.key_info.to_le_bytes());
        put(0x50, &self.report_data);
        put(0x90, &self.measurement);
        put(0xc0, &self.host_data);
        put(0xe0, &self.id_key_digest);
        put(0x110, &self.author_key_digest);
        put(0x140, &self.report_id);
        put(0x160, &self.report_id_ma);
        put(0x180, &layout.write(&self.reported_tcb)?);
        put(0x188, &cpuid.map(Option::unwrap_or_default));
        put(0x1a0, &self.chip_id);
        put(0x1e0, &layout.write(&self.committed_tcb)?);
        put(0x1e8, &firmware(&self.current));
        put(0x1ec, &firmware(&self.committed));
        put(0x1f0, &layout.write(&self.launch_tcb)?);
        put(0x1f8, &self.launch_mit_vector.unwrap_or_default().to_le_bytes());
        put(0x200, &self.current_mit_vector.unwrap_or_default().to_le_bytes());
        put(0x2a0, &self.signature.r);
        put(0x2e8, &self.signature.s);
        Ok(bytes)
    }

    /// The generation of the processor that made it; none in version 2, which does not say, and for a processor that is not known.
    pub fn generation(&self) -> Option<Generation> {
        Generation::of_cpuid(self.cpuid_fam_id?, self.cpuid_mod_id?)
    }
}

/// Which byte of a TCB version is what.
#[derive(Clone, Copy)]
enum TcbLayout {
    /// `bootloader, tee, 0, 0, 0, 0, snp, microcode`: Milan, Genoa.
    Zen3,
    /// `fmc, bootloader, tee, snp, 0, 0, 0, microcode`: Turin.
    Zen5,
}

impl TcbLayout {
    /// Turin's reports all say their family; one that does not say is older.
    fn of(family: Option<u8>) -> Self {
        if family.is_some_and(|family| family >= 0x1a) { Self::Zen5 } else { Self::Zen3 }
    }

    fn read(self, bytes: &[u8], at: usize) -> Tcb {
        let b = &bytes[at..at + 8];
        match self {
            Self::Zen3 => Tcb { fmc: None, bootloader: b[0], tee: b[1], snp: b[6], microcode: b[7] },
            Self::Zen5 => Tcb { fmc: Some(b[0]), bootloader: b[1], tee: b[2], snp: b[3], microcode: b[7] },
        }
    }

    fn write(self, tcb: &Tcb) -> Result<[u8; 8], ReportError> {
        match (self, tcb.fmc) {
            (Self::Zen3, None) => Ok([tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode]),
            (Self::Zen5, Some(fmc)) => Ok([fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode]),
            _ => Err(ReportError::Fields("a TCB has the member fmc from Turin on, and not before")),
        }
    }
}

/// The caller has checked the length: every offset is a constant within it.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// An array of bytes as a list of numbers, in any length: serde itself stops at 32.
mod numbers {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
        let list = Vec::<u8>::deserialize(deserializer)?;
        let length = list.len();
        list.try_into().map_err(|_| D::Error::custom(format!("{length} numbers where {N} are expected")))
    }
}

#[cfg(test)]
mod tests;
