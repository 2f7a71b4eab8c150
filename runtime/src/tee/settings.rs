//! The tables `[snp]`, `[tdx]` and `[vtpm]` of the configuration.

use serde::{Deserialize, Deserializer, de::Error as _};
use std::{path::PathBuf, str::FromStr};
use thiserror::Error;

/// A value that an enclave cannot have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct SettingError(String);

/// Guest policy of SNP: reserved, always one (SNP ABI specification, table "Guest Policy").
const POLICY_RESERVED: u64 = 1 << 17;
/// A migration agent may be associated: a second way to the guest's keys.
const POLICY_MIGRATE: u64 = 1 << 18;
/// The host may read and write the guest's memory.
const POLICY_DEBUG: u64 = 1 << 19;
/// SMT allowed, and the reserved bit.
const DEFAULT_POLICY: u64 = 0x3_0000;

/// AMD SEV-SNP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnpSettings {
    /// QEMU's processor model; it is in the measurement.
    pub cpu: String,
    /// The guest policy; in the report, and in the ID block where there is one.
    pub policy: u64,
    /// The ID block, 96 bytes in base64: the processor then launches nothing but the guest that it names.
    pub id_block: Option<String>,
    /// Its signatures and keys, 4096 bytes in base64.
    pub id_auth: Option<String>,
    /// Whether `id_auth` has an author key.
    pub author_key: bool,
}

impl Default for SnpSettings {
    fn default() -> Self {
        Self { cpu: "EPYC-v4".into(), policy: DEFAULT_POLICY, id_block: None, id_auth: None, author_key: false }
    }
}

impl SnpSettings {
    /// Refuses what no launch could honour, and what would open the guest to the host.
    pub fn check(&self) -> Result<(), SettingError> {
        let refuse = |text: &str| Err(SettingError(text.into()));
        if self.policy & POLICY_RESERVED == 0 {
            return refuse("snp.policy: bit 17 must be set; 0x30000 is usual");
        }
        if self.policy & (POLICY_DEBUG | POLICY_MIGRATE) != 0 {
            return refuse("snp.policy: bits 18 (migration agent) and 19 (debug) give the host the guest's memory; clear them");
        }
        if self.cpu.is_empty() || !self.cpu.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return refuse("snp.cpu: a model of QEMU's, for example EPYC-v4");
        }
        match (&self.id_block, &self.id_auth) {
            (None, None) => Ok(()),
            (Some(block), Some(auth)) if is_base64_of(block, 96) && is_base64_of(auth, 4096) => Ok(()),
            (Some(_), Some(_)) => refuse("snp.id_block, snp.id_auth: 96 and 4096 bytes in base64"),
            _ => refuse("snp.id_block and snp.id_auth: both or neither"),
        }
    }
}

/// Whether `text` is standard base64 of that many bytes, in its characters and length; QEMU decodes it.
fn is_base64_of(text: &str, bytes: usize) -> bool {
    let digits = text.trim_end_matches('=');
    text.len() == bytes.div_ceil(3) * 4
        && digits.len() == (bytes * 8).div_ceil(6)
        && digits.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

/// Intel TDX.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TdxSettings {
    /// Who turns a report of the guest into a quote.
    pub quote_service: QuoteService,
}

/// Where Intel's quote generation service listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuoteService {
    /// `unix:/path`.
    Unix(PathBuf),
    /// `vsock:CID:PORT`.
    Vsock {
        /// Context id; 2 is the host.
        cid: u32,
        /// Port.
        port: u32,
    },
}

impl Default for QuoteService {
    /// As Intel's package configures it.
    fn default() -> Self {
        Self::Vsock { cid: 2, port: 4050 }
    }
}

impl FromStr for QuoteService {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let bad = || SettingError(format!("tdx.quote_service: {text:?} is neither unix:/PATH nor vsock:CID:PORT"));
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(bad()) };
        }
        let (cid, port) = text.strip_prefix("vsock:").and_then(|rest| rest.split_once(':')).ok_or_else(bad)?;
        Ok(Self::Vsock { cid: cid.parse().map_err(|_| bad())?, port: port.parse().map_err(|_| bad())? })
    }
}

impl<'de> Deserialize<'de> for QuoteService {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A TPM that this host emulates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VtpmSettings {
    /// The emulator: a name in `PATH`, or a path.
    pub swtpm: PathBuf,
    /// A folder with a TPM's state, from which each guest's TPM is copied: all have the same attestation key, which a release rule can
    /// name. Without it each guest's TPM is new.
    pub state: Option<PathBuf>,
}

impl Default for VtpmSettings {
    fn default() -> Self {
        Self { swtpm: "swtpm".into(), state: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use base64::{Engine, engine::general_purpose::STANDARD};

    #[test]
    fn a_policy_that_opens_the_guest_is_refused() {
        let with = |policy| SnpSettings { policy, ..SnpSettings::default() }.check();
        assert_eq!(with(0x3_0000), Ok(()));
        for (policy, bit) in [(0x1_0000, "17"), (0xb_0000, "19"), (0x7_0000, "18")] {
            assert!(with(policy).unwrap_err().to_string().contains(bit), "{policy:#x}");
        }
    }

    #[test]
    fn an_id_block_comes_whole() {
        let block = Some("A".repeat(128));
        let auth = Some(format!("{}==", "A".repeat(5462)));
        let with = |id_block: &Option<String>, id_auth: &Option<String>| {
            SnpSettings { id_block: id_block.clone(), id_auth: id_auth.clone(), ..SnpSettings::default() }.check()
        };
        assert_eq!(with(&block, &auth), Ok(()));
        assert!(with(&block, &None).is_err());
        assert!(with(&auth, &block).is_err());
        assert!(with(&Some("A,".repeat(64)), &auth).is_err(), "a comma would begin another option");
        let cpu = SnpSettings { cpu: "EPYC-v4,+x".into(), ..SnpSettings::default() };
        assert!(cpu.check().is_err());
    }

    /// A block whose keys have signed, as the processor's maker's library tests it.
    #[test]
    fn a_recorded_id_block_is_taken_whole_and_not_in_part() {
        let Some(folder) = vectors::folder() else { return };
        let auth = vectors::read(&folder, "measure/virtee_test_auth_block.bin");
        // Where the firmware looks for both signatures.
        assert!(auth[0x40..].starts_with(&vectors::read(&folder, "measure/virtee_test_id_sig.bin")));
        assert!(auth[0x680..].starts_with(&vectors::read(&folder, "measure/virtee_test_auth_sig.bin")));
        let with = |auth: &[u8]| {
            SnpSettings { id_block: Some("A".repeat(128)), id_auth: Some(STANDARD.encode(auth)), ..SnpSettings::default() }.check()
        };
        assert_eq!(with(&auth), Ok(()));
        assert!(with(&auth[1..]).unwrap_err().to_string().contains("96 and 4096 bytes"));
    }

    #[test]
    fn quote_services_are_read() {
        assert_eq!("vsock:2:4050".parse(), Ok(QuoteService::default()));
        assert_eq!("unix:/run/qgs".parse(), Ok(QuoteService::Unix("/run/qgs".into())));
        for bad in ["", "unix:run", "vsock:2", "vsock:x:1", "tcp:1:2"] {
            assert!(bad.parse::<QuoteService>().is_err(), "{bad}");
        }
    }
}
