//! How a guest gets its quote: by the kernel's common interface. The quote is made by the host's quoting enclave; what it is about is
//! signed by the TDX module, and what the host does to it on the way shows.

use crate::{
    evidence::{Attester, EvidenceError},
    kbs::Tee,
    report_data::{self, ReportData},
    tdx::{TdxEvidence, device},
    tsm::Tsm,
};
use serde_json::Value;
use std::path::PathBuf;

/// What the common interface calls us.
pub const PROVIDER: &str = "tdx_guest";

/// Collects quotes.
#[derive(Debug, Clone)]
pub struct TdxAttester {
    tsm: Tsm,
    device: PathBuf,
}

impl TdxAttester {
    /// An attester over the common interface, and the device for what needs no quote ([`device::PATH`] but for tests).
    pub fn new(tsm: Tsm, device: PathBuf) -> Self {
        Self { tsm, device }
    }

    /// What the host gave as MRCONFIGID when it launched this guest, as the TDX module reports it.
    pub fn mr_config_id(&self) -> Result<[u8; 48], EvidenceError> {
        device::mr_config_id(&self.device).map_err(|e| EvidenceError::Collect { tee: Tee::Tdx, reason: e.to_string() })
    }
}

impl Attester for TdxAttester {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn evidence(&self, bound: &ReportData) -> Result<Value, EvidenceError> {
        let failed = |reason: String| EvidenceError::Collect { tee: Tee::Tdx, reason };
        let report = self.tsm.report(&report_data::padded(bound)).map_err(|e| failed(e.to_string()))?;
        if report.provider != PROVIDER {
            return Err(failed(format!("the kernel's reports are made by {:?}", report.provider)));
        }
        if report.outblob.is_empty() {
            return Err(failed(
                "the host's quote service gave nothing; is it running, and is its address in the host's configuration?".into(),
            ));
        }
        TdxEvidence { quote: report.outblob }.to_json()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsm::fake;

    #[test]
    fn a_quote_is_carried_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let attester = |make| TdxAttester::new(Tsm::with_maker(dir.path(), make), "/nonexistent".into());
        let evidence =
            attester(|path| fake::fill(path, "tdx_guest", None, false, |data| [b"quote", data].concat())).evidence(&[7; 48]).unwrap();
        let quote = TdxEvidence::from_json(&evidence).unwrap().quote;
        assert_eq!(quote, [b"quote".as_slice(), &report_data::padded(&[7; 48])].concat());
        let error = attester(|path| fake::fill(path, "tdx_guest", None, false, |_| Vec::new())).evidence(&[7; 48]).unwrap_err().to_string();
        assert!(error.contains("quote service"), "{error}");
        let error = attester(|path| fake::fill(path, "sev_guest", None, false, <[u8]>::to_vec)).evidence(&[7; 48]).unwrap_err().to_string();
        assert!(error.contains("sev_guest"), "{error}");
    }
}
