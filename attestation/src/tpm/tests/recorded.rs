//! Quotes of clouds' machines. Azure's name their key in a text that the processor's own report signs over; Google's and those of Windows are
//! of other kinds than are read here.

use super::*;
use crate::{
    encoding::from_url,
    event_log::EventLogError,
    snp::{
        Report, SnpVerifier,
        evidence::{CertType, Certificate, KnownCert},
        store::CertificateStore,
    },
    tpm::quote::{Quote, QuoteError},
    x509::{X509, X509Error},
};
use vectors::{folder, read};

/// 2026-11-25: the chips' certificates are valid.
const THEN: u64 = 1_795_000_000;

fn json_of(folder: &std::path::Path, name: &str) -> Value {
    serde_json::from_slice(&read(folder, name)).unwrap()
}

#[test]
fn trustees_recorded_evidence_is_read() {
    let Some(folder) = folder() else { return };
    let evidence: Value = serde_json::from_slice(&read(&folder, "tpm/trustee_tpm_evidence.json")).unwrap();
    let message = from_standard(evidence["tpm_quote"]["message"].as_str().unwrap()).unwrap();
    let bound: ReportData = quote::Quote::parse(&message).unwrap().binding[..48].try_into().unwrap();
    let claims = verify(&evidence, &bound).unwrap();
    assert_eq!(claims.init_data, Vec::<u8>::new());
    // An emulator without a machine: the measurement of nothing, which is no guest's.
    assert_eq!(claims.launch_measurement, launch_measurement(|_| [0; 32]));
    assert!(matches!(verify(&evidence, &BOUND), Err(EvidenceError::Binding { .. })));
}

/// Azure's envelope: a header of 32 bytes, the processor's report, five numbers of which the last is the length of the text behind them.
struct Envelope {
    report: Vec<u8>,
    text: Vec<u8>,
    /// Of the TPM's attestation key, as the text has it.
    modulus: Vec<u8>,
}

impl Envelope {
    fn parse(bytes: &[u8]) -> Self {
        assert!(bytes.starts_with(b"HCLA"));
        let (report, rest) = bytes[32..].split_at(1184);
        let length = u32::from_le_bytes(rest[16..20].try_into().unwrap()) as usize;
        let text = rest[20..20 + length].to_vec();
        let runtime: Value = serde_json::from_slice(&text).unwrap();
        let key = runtime["keys"].as_array().unwrap().iter().find(|key| key["kid"] == "HCLAkPub").unwrap();
        Self { report: report.to_vec(), modulus: from_url(key["n"].as_str().unwrap()).unwrap(), text }
    }

    /// Whether the chip with this certificate signed that this text goes with the machine.
    fn is_vouched_for_by(&self, certificate: Vec<u8>) {
        let report = Report::parse(&self.report).unwrap();
        let certificate = [Certificate { cert_type: CertType::Known(KnownCert::Vcek), data: certificate }];
        let verifier = SnpVerifier::new(CertificateStore::new()).unwrap();
        verifier.verify_report(&report, &certificate, THEN).unwrap();
        assert_eq!(report.report_data[..32], Sha256::digest(&self.text)[..]);
        let mut changed = report;
        changed.report_data[0] ^= 1;
        let error = verifier.verify_report(&changed, &certificate, THEN).unwrap_err().to_string();
        assert!(error.contains("its signature is not the one of the vcek"), "{error}");
    }
}

/// Bytes as Azure's evidence has them: hexadecimal, base64url, or numbers.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => hex::decode(text).ok().or_else(|| from_url(text.trim_end_matches('='))).unwrap(),
        numbers => serde_json::from_value(numbers.clone()).unwrap(),
    }
}

fn registers(value: &Value) -> [Pcr; PCRS] {
    let pcrs: Vec<Pcr> = value.as_array().unwrap().iter().map(|pcr| bytes(pcr).try_into().unwrap()).collect();
    pcrs.try_into().unwrap()
}

/// The quote is the key's, over these registers; and no other key's, over no others.
fn is_verified(modulus: &[u8], quote: &Value, binding: Option<&[u8]>) {
    let (message, signature) = (bytes(&quote["message"]), bytes(&quote["signature"]));
    quote::verify(modulus, &message, &signature).unwrap();
    let parsed = Quote::parse(&message).unwrap();
    assert!(binding.is_none_or(|binding| parsed.binding == binding));
    let mut pcrs = registers(&quote["pcrs"]);
    parsed.check_registers(&pcrs).unwrap();
    pcrs[4][0] ^= 1;
    assert_eq!(parsed.check_registers(&pcrs), Err(QuoteError::Registers));
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        assert_eq!(quote::verify(modulus, &changed, &signature), Err(QuoteError::Signature), "{at}");
    }
}

#[test]
fn quotes_of_azures_tpms_are_verified_up_to_the_processors_maker() {
    let Some(folder) = folder() else { return };
    let mut keys = Vec::new();
    for name in ["tpm/trustee_az-snp_evidence-v1.json", "tpm/trustee_az-snp_evidence-v2.json"] {
        let evidence = json_of(&folder, name);
        let envelope = Envelope::parse(&bytes(&evidence["hcl_report"]));
        envelope.is_vouched_for_by(bytes(&evidence["vcek"]));
        is_verified(&envelope.modulus, &evidence["tpm_quote"], None);
        keys.push(envelope.modulus);
    }
    let genoa = json_of(&folder, "tpm/trustee_az-snp_evidence-genoa.json");
    let envelope = Envelope::parse(&bytes(&genoa["report"]));
    assert_eq!(envelope.report, read(&folder, "snp/azure_genoa_report.bin"));
    envelope.is_vouched_for_by(genoa["vcek"].as_str().unwrap().as_bytes().to_vec());
    is_verified(&envelope.modulus, &genoa["quote"], None);
    keys.push(envelope.modulus);

    let envelope = Envelope::parse(&read(&folder, "tpm/trustee_az-snp_hcl-report.bin"));
    envelope.is_vouched_for_by(read(&folder, "tpm/trustee_az-snp_vcek.pem"));
    let quote = json_of(&folder, "tpm/trustee_az-snp_tpm-quote-v1.json");
    is_verified(&envelope.modulus, &quote, Some(b"challenge"));
    // The same in a memory image of Trustee's older agent.
    let older = read(&folder, "tpm/trustee_az-snp_quote.bin");
    for part in ["message", "signature"] {
        assert!(older.windows(bytes(&quote[part]).len()).any(|window| window == bytes(&quote[part])), "{part}");
    }
    // A quote over some registers only, by a key that is not here: none of these is it.
    let (message, signature) = (read(&folder, "tpm/trustee_az-snp_tpm-quote.msg"), read(&folder, "tpm/trustee_az-snp_tpm-quote.sig"));
    let parsed = Quote::parse(&message).unwrap();
    assert_eq!((parsed.binding.as_slice(), parsed.selected[7], parsed.selected[8]), (&b"challenge"[..], true, false));
    for key in keys.iter().chain([&envelope.modulus]) {
        assert_eq!(quote::verify(key, &message, &signature), Err(QuoteError::Signature));
    }
}

/// On TDX the text's digest stands in a quote: its signature is Intel's business, whose statements about that platform were not recorded.
#[test]
fn a_quote_of_azures_tpm_on_tdx_is_verified_up_to_the_text() {
    let Some(folder) = folder() else { return };
    let evidence = json_of(&folder, "tpm/trustee_az-tdx_evidence-v1.json");
    let td_quote = bytes(&evidence["td_quote"]);
    assert_eq!(td_quote, read(&folder, "tpm/trustee_az-tdx_td-quote.bin"));
    let envelope = Envelope::parse(&bytes(&evidence["hcl_report"]));
    assert_eq!(td_quote[48 + 520..48 + 552], Sha256::digest(&envelope.text)[..]);
    is_verified(&envelope.modulus, &evidence["tpm_quote"], Some(b"challenge"));
    let older = read(&folder, "tpm/trustee_az-tdx_quote.bin");
    assert!(older.windows(256).any(|window| window == bytes(&evidence["tpm_quote"]["signature"])));
}

/// TPMs and logs that are not read, each with the reason.
#[test]
fn what_others_tpms_sign_in_other_ways_is_refused() {
    let Some(folder) = folder() else { return };
    // SHA-1, and a log in the form of TPM 1.2.
    let windows = json_of(&folder, "tpm/goattest_windows_gcp_shielded_vm.json");
    let part = |pointer: &str| from_standard(windows.pointer(pointer).unwrap().as_str().unwrap()).unwrap();
    assert_eq!(quote::signature(&part("/Quote/Signature")), Err(QuoteError::Algorithm("the signature is of another scheme")));
    assert_eq!(Quote::parse(&part("/Quote/Quote")), Err(QuoteError::Malformed("it is not over the SHA-256 bank alone")));
    assert_eq!(EventLog::parse(&part("/Log/Raw"), Bank::Sha256), Err(EventLogError::Header));
    // A message of another kind: that the TPM made a key.
    assert_eq!(Quote::parse(&part("/AK/CreateAttestation")), Err(QuoteError::Malformed("it is no quote")));
    // A quote of which neither key nor signature was recorded: over three registers, and too few.
    let sample = Quote::parse(&read(&folder, "tpm/dstack_tpm_quote_sample.bin")).unwrap();
    assert!(sample.selected[..3].iter().all(|selected| *selected) && !sample.selected[4]);
    // Google's certificates for its TPMs are signed in a way that neither AMD's nor Intel's are.
    let [root, issuer] = ["tpm/gotpm_gcp_ek_ak_ca_root.crt", "tpm/gotpm_gcp_ek_ak_ca_intermediate_v3.crt"]
        .map(|name| X509::parse(&read(&folder, name)).unwrap());
    assert_eq!((root.subject(), issuer.subject()), ("EK/AK CA Root", "EK/AK CA Intermediate"));
    assert!(matches!(issuer.verify_issued_by(&root), Err(X509Error::Algorithm { .. })));
}

/// See [`crate::cost`].
#[test]
#[ignore = "a benchmark"]
fn benchmark() {
    let Some(folder) = folder() else { return crate::cost::absent("TPM quote") };
    let evidence: Value = serde_json::from_slice(&read(&folder, "tpm/trustee_tpm_evidence.json")).unwrap();
    let part = |pointer: &str| from_standard(evidence.pointer(pointer).unwrap().as_str().unwrap()).unwrap();
    let (spki, message, signature) = (part("/ak_public"), part("/tpm_quote/message"), part("/tpm_quote/signature"));
    let (modulus, signature) = (quote::modulus(&spki).unwrap(), quote::signature(&signature).unwrap());
    let whole = || TpmVerifier.appraise(&evidence).unwrap();
    crate::cost::print("TPM quote", whole, 1, "RSA 2048", || quote::verify(modulus, &message, signature).unwrap());
}
