//! The guest's side.

use super::{
    Device, IMAGES_PCR, INITDATA_PCR, Pcr,
    device::DeviceError,
    evidence::{Evidence, TpmQuote},
    initdata_event, quote,
};
use crate::{
    encoding::standard,
    event_log::MAX_LOG,
    evidence::{Attester, EvidenceError},
    images::{self, Images, Manifest},
    kbs::Tee,
    report_data::ReportData,
};
use serde_json::Value;
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Length of the binding: Trustee's verifier wants the digest cut to it.
pub(super) const BINDING_LEN: usize = 32;

/// Quotes the machine's TPM.
#[derive(Debug)]
pub struct TpmAttester {
    event_log: PathBuf,
    init_data: Option<Pcr>,
    images: Images,
}

impl TpmAttester {
    /// Binds the TPM to the initdata with this digest, or to there being none, for good. To be called once, before anything that the host
    /// sent is acted upon. `event_log` is the kernel's `binary_bios_measurements`.
    pub fn bind(event_log: &Path, initdata_digest: Option<&[u8]>) -> Result<Self, DeviceError> {
        let event = initdata_event(initdata_digest);
        Device::open()?.extend(INITDATA_PCR, &event)?;
        Ok(Self { event_log: event_log.to_owned(), init_data: initdata_digest.map(|_| event), images: Images::default() })
    }

    /// The firmware's log; evidence without one is good, it only explains less.
    fn read_log(&self) -> Vec<u8> {
        let mut log = Vec::new();
        let read = File::open(&self.event_log).and_then(|file| file.take(MAX_LOG as u64 + 1).read_to_end(&mut log));
        match read {
            Ok(length) if length <= MAX_LOG => log,
            Ok(_) => Vec::new(),
            Err(error) => {
                log::warn!("{}: {error}: the evidence has no event log", self.event_log.display());
                Vec::new()
            }
        }
    }
}

impl Attester for TpmAttester {
    fn tee(&self) -> Tee {
        Tee::Tpm
    }

    fn evidence(&self, report_data: &ReportData) -> Result<Value, EvidenceError> {
        let failed = |reason: String| EvidenceError::Collect { tee: Tee::Tpm, reason };
        let mut device = Device::open().map_err(|e| failed(e.to_string()))?;
        let log = self.read_log();
        let evidence = self.images.while_still(|images| collect(&mut device, report_data, &log, self.init_data.as_ref(), images));
        evidence.map_err(|e| failed(e.to_string()))
    }

    fn measure(&self, image: &Manifest) -> Result<(), EvidenceError> {
        let extend = || Device::open().and_then(|mut device| device.extend(IMAGES_PCR, image)).map_err(|e| e.to_string());
        self.images.add(image, extend).map_err(|reason| EvidenceError::Measure { tee: Tee::Tpm, reason })
    }
}

/// Evidence of this TPM.
pub(super) fn collect<T: Read + std::io::Write>(
    device: &mut Device<T>,
    report_data: &ReportData,
    event_log: &[u8],
    init_data: Option<&Pcr>,
    images: &[Manifest],
) -> Result<Value, DeviceError> {
    let quoted = device.quote(&report_data[..BINDING_LEN])?;
    let pcrs = device.pcrs()?;
    let evidence = Evidence {
        ak_public: standard(&quote::spki(&quoted.modulus)),
        tpm_quote: TpmQuote {
            message: standard(&quoted.message),
            signature: standard(&quoted.signature),
            pcrs: pcrs.iter().map(hex::encode).collect(),
        },
        event_log: standard(event_log),
        init_data: init_data.map(hex::encode).unwrap_or_default(),
        images: Some(images::to_json(images)),
    };
    serde_json::to_value(evidence).map_err(|e| DeviceError::Malformed(e.to_string()))
}
