//! How a guest gets its quote: by the kernel's common interface. The quote is made by the host's quoting enclave; what it is about is
//! signed by the TDX module, and what the host does to it on the way shows.

use crate::{
    event_log::Bank,
    evidence::{Attester, EvidenceError},
    images::{self, Images, Manifest},
    kbs::Tee,
    report_data::{self, ReportData},
    tdx::{TdxEvidence, device, rtmr},
    tsm::Tsm,
};
use serde_json::Value;
use std::path::PathBuf;

/// What the common interface calls us.
pub const PROVIDER: &str = "tdx_guest";

/// Collects quotes.
#[derive(Debug)]
pub struct TdxAttester {
    tsm: Tsm,
    device: PathBuf,
    /// The register for images, and what is in it; none where the kernel has no such file.
    images: Option<(PathBuf, Images)>,
}

impl TdxAttester {
    /// An attester over the common interface, the device for what needs no quote, and the file of RTMR3, which older kernels do not have
    /// ([`device::PATH`] and [`rtmr::PATH`] but for tests).
    pub fn new(tsm: Tsm, device: PathBuf, rtmr: PathBuf) -> Self {
        let images = rtmr.exists().then(|| (rtmr, Images::default()));
        Self { tsm, device, images }
    }

    /// Whether the images that run are measured.
    pub fn measures_images(&self) -> bool {
        self.images.is_some()
    }

    /// What the host gave as MRCONFIGID when it launched this guest, as the TDX module reports it.
    pub fn mr_config_id(&self) -> Result<[u8; 48], EvidenceError> {
        device::mr_config_id(&self.device).map_err(|e| EvidenceError::Collect { tee: Tee::Tdx, reason: e.to_string() })
    }
}

impl TdxAttester {
    fn quote(&self, bound: &ReportData) -> Result<Vec<u8>, EvidenceError> {
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
        Ok(report.outblob)
    }
}

impl Attester for TdxAttester {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn evidence(&self, bound: &ReportData) -> Result<Value, EvidenceError> {
        let (quote, images) = match &self.images {
            Some((_, images)) => images.while_still(|list| (self.quote(bound), Some(images::to_json(list)))),
            None => (self.quote(bound), None),
        };
        TdxEvidence { quote: quote?, images }.to_json()
    }

    fn measure(&self, image: &Manifest) -> Result<(), EvidenceError> {
        let Some((register, images)) = &self.images else { return Ok(()) };
        let measured = images.add(image, || rtmr::extend(register, &images::event(Bank::Sha384, image)));
        measured.map_err(|reason| EvidenceError::Measure { tee: Tee::Tdx, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tsm::fake;

    #[test]
    fn a_quote_is_carried_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let attester = |make| TdxAttester::new(Tsm::with_maker(dir.path(), make), "/nonexistent".into(), "/nonexistent".into());
        let evidence =
            attester(|path| fake::fill(path, "tdx_guest", None, false, |data| [b"quote", data].concat())).evidence(&[7; 48]).unwrap();
        let quote = TdxEvidence::from_json(&evidence).unwrap().quote;
        assert_eq!(quote, [b"quote".as_slice(), &report_data::padded(&[7; 48])].concat());
        let error = attester(|path| fake::fill(path, "tdx_guest", None, false, |_| Vec::new())).evidence(&[7; 48]).unwrap_err().to_string();
        assert!(error.contains("quote service"), "{error}");
        let error = attester(|path| fake::fill(path, "sev_guest", None, false, <[u8]>::to_vec)).evidence(&[7; 48]).unwrap_err().to_string();
        assert!(error.contains("sev_guest"), "{error}");
    }

    /// The kernel's file extends what is written to it; this one keeps what was written last.
    #[test]
    fn images_are_measured_where_the_kernel_has_the_register() {
        let dir = tempfile::tempdir().unwrap();
        let (requests, file) = (dir.path().join("requests"), dir.path().join("rtmr3:sha384"));
        std::fs::create_dir(&requests).unwrap();
        let tsm = || Tsm::with_maker(&requests, |path| fake::fill(path, "tdx_guest", None, false, <[u8]>::to_vec));
        let older = TdxAttester::new(tsm(), "/nonexistent".into(), file.clone());
        older.measure(&[5; 32]).unwrap();
        assert!(!older.measures_images() && older.evidence(&[7; 48]).unwrap().get("images").is_none());
        std::fs::write(&file, [0; 48]).unwrap();
        let attester = TdxAttester::new(tsm(), "/nonexistent".into(), file.clone());
        attester.measure(&[5; 32]).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), [[5; 32].as_slice(), &[0; 16]].concat());
        std::fs::remove_file(&file).unwrap();
        attester.measure(&[5; 32]).unwrap();
        let error = attester.measure(&[6; 32]).unwrap_err().to_string();
        assert!(error.contains("rtmr3") && error.contains("does not run"), "{error}");
        let evidence = TdxEvidence::from_json(&attester.evidence(&[7; 48]).unwrap()).unwrap();
        assert_eq!(evidence.images, Some(vec![format!("sha256:{}", "05".repeat(32))]));
    }
}
