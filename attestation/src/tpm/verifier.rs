//! The broker's side: signature, binding, registers, log, initdata, images; in this order, and each with its own refusal.

use super::{
    IMAGES_PCR, INITDATA_PCR, LAUNCH_PCRS, PCRS, Pcr, TpmClaims,
    attester::BINDING_LEN,
    evidence::Evidence,
    extended, initdata_event, launch_measurement,
    quote::{self, Quote, QuoteError},
};
use crate::{
    encoding::from_standard,
    event_log::{Bank, EventLog, MAX_LOG},
    evidence::{Claims, Details, EvidenceError, Verifier},
    images::{self, ListError},
    kbs::Tee,
    report_data::{self, ReportData},
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Longest message or signature, in bytes; both are a few hundred.
const MAX_PART: usize = 4096;
/// The registers that firmware and kernel extend, and so the log explains. PCR 8 is the agent's, 10 and above others'.
const LOGGED: [usize; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 9];

/// Verifies a TPM's evidence. It does not say whose the TPM is: see [`TpmClaims::ak`].
#[derive(Debug, Clone, Copy, Default)]
pub struct TpmVerifier;

impl Verifier for TpmVerifier {
    fn tee(&self) -> Tee {
        Tee::Tpm
    }

    fn verify(&self, evidence: &Value, report_data: &ReportData, _now: u64) -> Result<Claims, EvidenceError> {
        let claims = inspect(evidence, |binding| check_binding(binding, report_data))?;
        Ok(Claims { report_data: report_data.to_vec(), ..claims })
    }
}

impl TpmVerifier {
    /// What evidence proves, whatever it is bound to: whether it is fresh is then not known.
    pub fn appraise(&self, evidence: &Value) -> Result<Claims, EvidenceError> {
        inspect(evidence, |_| Ok(()))
    }
}

fn inspect(evidence: &Value, check_binding: impl FnOnce(&[u8]) -> Result<(), EvidenceError>) -> Result<Claims, EvidenceError> {
    let evidence = Evidence::deserialize(evidence).map_err(|e| malformed(e.to_string()))?;
    let spki = part("ak_public", &evidence.ak_public, MAX_PART)?;
    let message = part("message", &evidence.tpm_quote.message, MAX_PART)?;
    let signature = part("signature", &evidence.tpm_quote.signature, MAX_PART)?;
    let signature = quote::signature(&signature).map_err(|e| refused(&e))?;
    quote::modulus(&spki).and_then(|modulus| quote::verify(modulus, &message, signature)).map_err(|e| refused(&e))?;

    let quote = Quote::parse(&message).map_err(|e| refused(&e))?;
    check_binding(&quote.binding)?;
    if !quote.selected[..=9].iter().all(|selected| *selected) {
        return Err(malformed("the quote leaves out registers of firmware, kernel or initdata".into()));
    }
    let pcrs = registers(&evidence.tpm_quote.pcrs)?;
    quote.check_registers(&pcrs).map_err(|e| refused(&e))?;
    check_log(&evidence.event_log, &pcrs)?;
    check_images(evidence.images.as_deref(), &quote, &pcrs)?;
    Ok(Claims {
        tee: Tee::Tpm,
        launch_measurement: launch_measurement(|index| pcrs[index]).to_vec(),
        init_data: init_data(&evidence.init_data, &pcrs[usize::from(INITDATA_PCR)])?,
        report_data: quote.binding,
        details: Details::Tpm(TpmClaims {
            ak: Sha256::digest(&spki).to_vec(),
            pcrs: LAUNCH_PCRS.iter().map(|index| format!("{index}:{}", hex::encode(pcrs[*index]))).collect(),
            images: evidence.images,
        }),
    })
}

fn malformed(reason: String) -> EvidenceError {
    EvidenceError::Malformed { tee: Tee::Tpm, reason }
}

fn untrusted(reason: String) -> EvidenceError {
    EvidenceError::Untrusted { tee: Tee::Tpm, reason }
}

fn refused(error: &QuoteError) -> EvidenceError {
    match error {
        QuoteError::Malformed(_) | QuoteError::Algorithm(_) => malformed(error.to_string()),
        QuoteError::Signature | QuoteError::Registers => untrusted(error.to_string()),
    }
}

fn part(name: &str, text: &str, max: usize) -> Result<Vec<u8>, EvidenceError> {
    if text.len() > max.div_ceil(3) * 4 {
        return Err(malformed(format!("{name} is longer than {max} bytes")));
    }
    from_standard(text).ok_or_else(|| malformed(format!("{name} is not base64")))
}

/// The whole digest, or cut to no less than SHA-256, or padded with zeros: implementations differ.
fn check_binding(found: &[u8], report_data: &ReportData) -> Result<(), EvidenceError> {
    let wanted = report_data::padded(report_data);
    if found.len() >= BINDING_LEN && wanted.get(..found.len()) == Some(found) {
        return Ok(());
    }
    let found = hex::encode(&found[..found.len().min(wanted.len())]);
    Err(EvidenceError::Binding { tee: Tee::Tpm, found, wanted: hex::encode(&wanted[..BINDING_LEN]) })
}

fn registers(texts: &[String]) -> Result<[Pcr; PCRS], EvidenceError> {
    let bad = || malformed(format!("pcrs are not {PCRS} times 32 bytes of hex"));
    let mut pcrs = [[0; 32]; PCRS];
    if texts.len() != PCRS {
        return Err(bad());
    }
    for (pcr, text) in pcrs.iter_mut().zip(texts) {
        hex::decode_to_slice(text, pcr).map_err(|_| bad())?;
    }
    Ok(pcrs)
}

/// A log that does not explain the registers is somebody's invention; none at all is Trustee's habit.
fn check_log(text: &str, pcrs: &[Pcr; PCRS]) -> Result<(), EvidenceError> {
    if text.is_empty() {
        return Ok(());
    }
    let log = part("event_log", text, MAX_LOG)?;
    let replayed = EventLog::parse(&log, Bank::Sha256).map_err(|e| malformed(e.to_string()))?.replay();
    for index in LOGGED {
        let wanted = replayed.get(&u32::try_from(index).unwrap_or(u32::MAX)).map_or(&[0; 32][..], Vec::as_slice);
        if pcrs[index] != wanted {
            return Err(untrusted(format!("the event log gives another PCR {index} than the TPM signed")));
        }
    }
    Ok(())
}

/// Who does not say which images ran claims nothing; who says it has to be right.
fn check_images(list: Option<&[String]>, quote: &Quote, pcrs: &[Pcr; PCRS]) -> Result<(), EvidenceError> {
    let (Some(list), index) = (list, usize::from(IMAGES_PCR)) else { return Ok(()) };
    if !quote.selected[index] {
        return Err(malformed(format!("it lists images, and the quote leaves out PCR {index}")));
    }
    images::check(Bank::Sha256, list, &pcrs[index]).map_err(|e| match e {
        ListError::Malformed(reason) => malformed(reason),
        ListError::Unexplained => untrusted(format!("its images give another PCR {index} than the TPM signed")),
    })
}

/// The digest that PCR 8 was extended with; empty without initdata.
fn init_data(text: &str, pcr: &Pcr) -> Result<Vec<u8>, EvidenceError> {
    let untouched = [0; 32];
    if text.is_empty() {
        // Neither extended, nor with anything but zeros: nobody claims an initdata.
        return Ok(Vec::new());
    }
    let mut event = [0; 32];
    hex::decode_to_slice(text, &mut event).map_err(|_| malformed("init_data is not 32 bytes of hex".into()))?;
    if event == initdata_event(None) || extended(&untouched, &event) != *pcr {
        return Err(untrusted("PCR 8 was not extended with the initdata that the evidence names, once and alone".into()));
    }
    Ok(event.to_vec())
}
