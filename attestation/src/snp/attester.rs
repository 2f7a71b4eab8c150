//! How a guest gets its report: by the kernel's common interface, and on kernels without it from the device `/dev/sev-guest`.

use crate::{
    evidence::{Attester, EvidenceError},
    kbs::Tee,
    report_data::{self, ReportData},
    snp::{Report, device, evidence::SnpEvidence},
    tsm::Tsm,
};
use serde_json::Value;
use std::path::PathBuf;

/// What the common interface calls us.
pub const PROVIDER: &str = "sev_guest";

/// Where reports come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The kernel's common interface.
    Tsm(Tsm),
    /// The older device, at this path.
    Device(PathBuf),
}

/// Collects reports.
#[derive(Debug, Clone)]
pub struct SnpAttester {
    source: Source,
}

impl SnpAttester {
    /// An attester with this source.
    pub fn new(source: Source) -> Self {
        Self { source }
    }

    /// What the host gave as HOST_DATA when it launched this guest, as the hardware reports it.
    pub fn host_data(&self) -> Result<[u8; 32], EvidenceError> {
        Ok(self.report(&[0; 64])?.attestation_report.host_data)
    }

    fn report(&self, data: &[u8; 64]) -> Result<SnpEvidence, EvidenceError> {
        let failed = |reason: String| EvidenceError::Collect { tee: Tee::Snp, reason };
        let (report, table) = match &self.source {
            Source::Tsm(tsm) => {
                let report = tsm.report(data).map_err(|e| failed(e.to_string()))?;
                if report.provider != PROVIDER {
                    return Err(failed(format!("the kernel's reports are made by {:?}", report.provider)));
                }
                (report.outblob, report.auxblob)
            }
            Source::Device(path) => device::report(path, data).map_err(|e| failed(e.to_string()))?,
        };
        // The interface may give more than the report's own length.
        let report = report.get(..crate::snp::report::LENGTH).unwrap_or(&report);
        let evidence = SnpEvidence::collected(report, &table)?;
        let Report { report_data, .. } = &evidence.attestation_report;
        if report_data != data {
            return Err(failed("the kernel gave the report of another request".into()));
        }
        Ok(evidence)
    }
}

impl Attester for SnpAttester {
    fn tee(&self) -> Tee {
        Tee::Snp
    }

    fn evidence(&self, bound: &ReportData) -> Result<Value, EvidenceError> {
        let evidence = self.report(&report_data::padded(bound))?;
        serde_json::to_value(evidence).map_err(|e| EvidenceError::Collect { tee: Tee::Snp, reason: e.to_string() })
    }
}

#[cfg(all(test, feature = "verify"))]
mod tests {
    use super::*;
    use crate::{
        evidence::Verifier,
        snp::{
            store::CertificateStore,
            testing::{NOW, VCEK, milan, signed, verifier},
        },
        tsm::fake,
    };

    /// What the firmware would answer.
    fn firmware(data: &[u8]) -> Vec<u8> {
        signed(Report { report_data: data.try_into().unwrap(), ..milan() }).to_bytes().unwrap().to_vec()
    }

    /// The chip's certificate as a host hands it over.
    fn table() -> Vec<u8> {
        let guid = hex::decode("63da758de6644564adc5f4b93be8accd").unwrap();
        let entry = [guid, 48u32.to_le_bytes().to_vec(), (VCEK.len() as u32).to_le_bytes().to_vec()].concat();
        [entry, vec![0; 24], VCEK.to_vec()].concat()
    }

    #[test]
    fn what_the_kernel_gives_is_what_the_broker_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let tsm = Tsm::with_maker(dir.path(), |path| fake::fill(path, "sev_guest", Some(&table()), false, firmware));
        let attester = SnpAttester::new(Source::Tsm(tsm));
        let evidence = attester.evidence(&[7; 48]).unwrap();
        let claims = verifier(CertificateStore::new()).verify(&evidence, &[7; 48], NOW).unwrap();
        assert_eq!(claims.launch_measurement, [0x5a; 48]);
        assert_eq!(attester.host_data().unwrap(), [0x33; 32]);
    }

    #[test]
    fn a_broken_table_costs_the_certificates_only() {
        let dir = tempfile::tempdir().unwrap();
        let tsm = Tsm::with_maker(dir.path(), |path| fake::fill(path, "sev_guest", Some(&[1; 100]), false, firmware));
        let evidence = SnpAttester::new(Source::Tsm(tsm)).evidence(&[7; 48]).unwrap();
        assert!(evidence["cert_chain"].is_null());
    }

    #[test]
    fn a_report_of_something_else_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let evidence = |make| SnpAttester::new(Source::Tsm(Tsm::with_maker(dir.path(), make))).evidence(&[7; 48]).unwrap_err().to_string();
        let other = evidence(|path| fake::fill(path, "tdx_guest", None, false, firmware));
        assert!(other.contains("made by \"tdx_guest\""), "{other}");
        let stale = evidence(|path| fake::fill(path, "sev_guest", None, false, |_| firmware(&[9; 64])));
        assert!(stale.contains("another request"), "{stale}");
        let junk = evidence(|path| fake::fill(path, "sev_guest", None, false, |_| b"junk".to_vec()));
        assert!(junk.contains("a report has"), "{junk}");
        let none = SnpAttester::new(Source::Device(dir.path().join("none"))).evidence(&[7; 48]).unwrap_err().to_string();
        assert!(none.contains("none"), "{none}");
    }
}
