//! Reports of real machines. Most of their keys' certificates are valid at [`THEN`]; what is not says so.

use crate::{
    Details, EvidenceError, Verifier,
    snp::{
        Generation, Report, Requirements, SigningKey, SnpVerifier,
        evidence::{CertType, Certificate, KnownCert, SnpEvidence},
        store::CertificateStore,
    },
};
use serde_json::Value;
use std::path::Path;
use vectors::{folder, read};

/// 2026-11-25.
const THEN: u64 = 1_795_000_000;

/// 2025-06-01: the provider's key was valid for one year.
const VLEK_TIME: u64 = 1_748_736_000;

struct Recorded {
    report: &'static str,
    certificate: &'static str,
    generation: Generation,
    version: u32,
    time: u64,
    /// First bytes of the measurement.
    measurement: &'static str,
    /// Boot loader, TEE, SNP, microcode.
    tcb: [u8; 4],
}

const fn recorded(
    report: &'static str,
    certificate: &'static str,
    generation: Generation,
    version: u32,
    measurement: &'static str,
    tcb: [u8; 4],
) -> Recorded {
    Recorded { report, certificate, generation, version, time: THEN, measurement, tcb }
}

use Generation::{Genoa, Milan, Turin};

/// Every report whose key's certificate is there too.
const GENUINE: [Recorded; 8] = [
    recorded("snp/virtee_milan_report.hex", "snp/virtee_milan_vcek.der", Milan, 2, "7a1e5c26", [3, 0, 8, 115]),
    recorded("snp/gosev_milan_attestation.bin", "snp/gosev_milan_vcek.der", Milan, 2, "", [2, 0, 5, 68]),
    recorded("snp/trustee_test-report.bin", "snp/trustee_test-vcek.der", Milan, 2, "a1f39304", [3, 0, 8, 115]),
    recorded("snp/dstack_milan_report.bin", "snp/dstack_milan_vcek.pem", Milan, 3, "7f51e17f", [4, 0, 23, 213]),
    recorded("snp/routex_genoa_v3.bin", "snp/routex_vcek-chain-genoa.pem", Genoa, 3, "b0f5d097", [9, 0, 23, 72]),
    recorded("snp/routex_turin_v5.bin", "snp/routex_vcek-chain-turin.pem", Turin, 5, "f924dd18", [1, 0, 2, 71]),
    recorded("snp/azure_genoa_report.bin", "tpm/trustee_az-snp_vcek-genoa.pem", Genoa, 3, "", [10, 0, 23, 84]),
    Recorded {
        time: VLEK_TIME,
        ..recorded("snp/trustee_test-vlek-report.bin", "snp/trustee_test-vlek.der", Milan, 3, "8922ebbd", [4, 0, 24, 217])
    },
];

/// Reports whose key's certificate is not there.
const WITHOUT_CERTIFICATE: [&str; 2] = ["snp/routex_genoa_v2.bin", "snp/routex_milan_v2.bin"];

/// Certificates that no report here was signed with.
const FOREIGN: [&str; 4] = [
    "snp/trustee_test-vcek-invalid-legacy.der",
    "snp/trustee_test-vcek-invalid-new.der",
    "snp/virtee_turin_vcek.der",
    "snp/milan_ask_ark_asvk.pem",
];

impl Recorded {
    fn is_vlek(&self) -> bool {
        self.certificate.contains("vlek")
    }

    fn certificate(&self, folder: &Path, file: &str) -> [Certificate; 1] {
        let kind = if self.is_vlek() { KnownCert::Vlek } else { KnownCert::Vcek };
        [Certificate { cert_type: CertType::Known(kind), data: read(folder, file) }]
    }
}

fn report_bytes(folder: &Path, name: &str) -> Vec<u8> {
    let bytes = read(folder, name);
    if name.ends_with(".hex") { hex::decode(bytes.trim_ascii()).unwrap() } else { bytes }
}

fn verifier() -> SnpVerifier {
    SnpVerifier::new(CertificateStore::new()).unwrap()
}

#[test]
fn every_recorded_report_is_genuine() {
    let Some(folder) = folder() else { return };
    let verifier = verifier();
    for case in &GENUINE {
        let report = Report::parse(&report_bytes(&folder, case.report)).unwrap_or_else(|e| panic!("{}: {e}", case.report));
        let claims = verifier.verify_report(&report, &case.certificate(&folder, case.certificate), case.time);
        let claims = claims.unwrap_or_else(|e| panic!("{}: {e}", case.report));
        assert_eq!((claims.generation, claims.report_version), (case.generation, case.version), "{}", case.report);
        assert!(hex::encode(report.measurement).starts_with(case.measurement), "{}", case.report);
        let tcb = claims.reported_tcb;
        assert_eq!([tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode], case.tcb, "{}", case.report);
        assert_eq!(claims.signing_key, if case.is_vlek() { SigningKey::Vlek } else { SigningKey::Vcek });
        assert_eq!(tcb.fmc.is_some(), case.generation == Turin);
        // A guest in debugging, and one that asked at another privilege level, are genuine and nevertheless nothing that an owner wants.
        let refusal = Requirements::default().check(&claims);
        match case.report {
            "snp/gosev_milan_attestation.bin" => assert!(refusal.unwrap_err().starts_with("snp.policy has debug set")),
            "snp/trustee_test-vlek-report.bin" => assert!(refusal.unwrap_err().starts_with("snp.vmpl is 1")),
            _ => assert_eq!(refusal, Ok(()), "{}", case.report),
        }
    }
}

#[test]
fn a_certificate_ends() {
    let Some(folder) = folder() else { return };
    for case in &GENUINE {
        let report = Report::parse(&report_bytes(&folder, case.report)).unwrap();
        for time in [0, 4_000_000_000] {
            let error = verifier().verify_report(&report, &case.certificate(&folder, case.certificate), time).unwrap_err();
            assert!(error.to_string().contains("valid from"), "{}: {error}", case.report);
        }
    }
    let vlek = GENUINE.iter().find(|case| case.is_vlek()).unwrap();
    let report = Report::parse(&report_bytes(&folder, vlek.report)).unwrap();
    let error = verifier().verify_report(&report, &vlek.certificate(&folder, vlek.certificate), THEN).unwrap_err();
    assert!(error.to_string().contains("certificate SEV-VLEK: valid from"), "{error}");
}

#[test]
fn every_other_certificate_is_refused() {
    let Some(folder) = folder() else { return };
    let verifier = verifier();
    let others: Vec<&str> = GENUINE.iter().map(|case| case.certificate).chain(FOREIGN).collect();
    for case in &GENUINE {
        let report = Report::parse(&report_bytes(&folder, case.report)).unwrap();
        for other in others.iter().filter(|other| **other != case.certificate) {
            let error = verifier.verify_report(&report, &case.certificate(&folder, other), case.time).unwrap_err();
            assert!(matches!(error, EvidenceError::Untrusted { .. }), "{} with {other}: {error}", case.report);
        }
        let error = verifier.verify_report(&report, &[], case.time).unwrap_err();
        assert!(matches!(error, EvidenceError::Endorsement { .. }), "{}: {error}", case.report);
    }
    for name in WITHOUT_CERTIFICATE {
        let report = Report::parse(&report_bytes(&folder, name)).unwrap();
        for other in &others {
            let certificate = [Certificate { cert_type: CertType::Known(KnownCert::Vcek), data: read(&folder, other) }];
            let result = verifier.verify_report(&report, &certificate, THEN);
            // One of them is a report that is here under another name.
            if name == "snp/routex_milan_v2.bin" && *other == "snp/virtee_milan_vcek.der" {
                result.unwrap();
            } else {
                let error = result.unwrap_err();
                assert!(matches!(error, EvidenceError::Untrusted { .. }), "{name} with {other}: {error}");
            }
        }
    }
}

#[test]
fn every_change_of_a_byte_is_refused() {
    let Some(folder) = folder() else { return };
    let verifier = verifier();
    for case in &GENUINE {
        let good = report_bytes(&folder, case.report);
        let certificate = case.certificate(&folder, case.certificate);
        let mut reached = 0;
        for at in 0..0x330 {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            // What the parser refuses by itself: the version, and what is reserved.
            let Ok(report) = Report::parse(&bytes) else { continue };
            reached += 1;
            let error = verifier.verify_report(&report, &certificate, case.time).expect_err(case.report);
            assert!(matches!(error, EvidenceError::Untrusted { .. }), "{error}");
            let own: &[&str] = match at {
                0 | 0x188..0x18b => &["the report says processor", "its signature is not the one"],
                0x34..0x38 => &["signature algorithm"],
                0x180..0x188 => &["the report says reported TCB"],
                0x1a0..0x1e0 if !case.is_vlek() => &["the report says chip"],
                _ => &["its signature is not the one"],
            };
            assert!(own.iter().any(|own| error.to_string().contains(own)), "{} at {at:#x}: {error}", case.report);
        }
        assert!(reached > 0x240, "{}: only {reached} changes reached the verifier", case.report);
    }
}

#[test]
fn trustees_json_form_is_read_and_written() {
    let Some(folder) = folder() else { return };
    for (name, report) in [
        ("kbs/snp_evidence_trustee_sev7_turin_v5.json", "snp/routex_turin_v5.bin"),
        ("kbs/snp_evidence_trustee_sev7_dstack_milan.json", "snp/dstack_milan_report.bin"),
    ] {
        let json: Value = serde_json::from_slice(&read(&folder, name)).unwrap();
        let evidence = SnpEvidence::from_json(&json).unwrap();
        assert_eq!(evidence.attestation_report, Report::parse(&read(&folder, report)).unwrap());
        let mut written = serde_json::to_value(&evidence).unwrap();
        // A member that is null and one that is not there mean the same.
        for tcb in ["current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"] {
            written["attestation_report"][tcb].as_object_mut().unwrap().entry("fmc").or_insert(Value::Null);
        }
        assert_eq!(written, json, "{name}");
        // A whole verification: these are bound to something else than our handshake.
        let bound: [u8; 48] = evidence.attestation_report.report_data[..48].try_into().unwrap();
        let padding_free = evidence.attestation_report.report_data[48..].iter().all(|b| *b == 0);
        let result = verifier().verify(&json, &bound, THEN);
        assert_eq!(result.is_ok(), padding_free, "{name}: {result:?}");
        let error = verifier().verify(&json, &[9; 48], THEN).unwrap_err();
        assert!(matches!(error, EvidenceError::Binding { .. }), "{error}");
    }
}

/// A recorded request of Trustee's own tests, of a machine of the Genoa family with a certificate beside the report.
#[test]
fn trustees_recorded_evidence_is_genuine() {
    let Some(folder) = folder() else { return };
    let json: Value = serde_json::from_slice(&read(&folder, "kbs/trustee_e2e_evidence.json")).unwrap();
    let claims = verifier().appraise(&json, THEN).unwrap();
    assert!(hex::encode(&claims.launch_measurement).starts_with("6a6519d7"));
    let Details::Snp(details) = &claims.details else { panic!("{claims:?}") };
    assert_eq!((details.generation, details.report_version, details.reported_tcb.microcode), (Genoa, 3, 25));
    assert_eq!(Requirements::default().check(details), Ok(()));
    for member in ["measurement", "host_data", "chip_id", "report_data"] {
        let mut changed = json.clone();
        let byte = &mut changed["attestation_report"][member][0];
        *byte = (byte.as_u64().unwrap() ^ 1).into();
        assert!(matches!(verifier().appraise(&changed, THEN), Err(EvidenceError::Untrusted { .. })), "{member}");
    }
}

/// One report in the forms in which its maker's verifier tests it.
#[test]
fn a_report_inside_another_form_is_the_same() {
    let Some(folder) = folder() else { return };
    let report = read(&folder, "snp/dstack_milan_report.bin");
    let fixture: Value = serde_json::from_slice(&read(&folder, "snp/dstack_milan_verifier_fixture.json")).unwrap();
    let attestation = hex::decode(fixture["attestation"].as_str().unwrap()).unwrap();
    for whole in [read(&folder, "snp/dstack_milan_attestation_scale.bin"), attestation] {
        assert_eq!(whole[4..4 + report.len()], report);
        // What is around it is not read as a report.
        assert!(Report::parse(&whole).is_err());
    }
}

/// See [`crate::cost`]. The chain up to AMD's root is verified once for each chip; every handshake costs the report's own signature.
#[test]
#[ignore = "a benchmark"]
fn benchmark() {
    let Some(folder) = folder() else { return crate::cost::absent("SNP report") };
    let case = &GENUINE[3];
    let report = Report::parse(&report_bytes(&folder, case.report)).unwrap();
    let (bytes, certificates) = (report.to_bytes().unwrap(), case.certificate(&folder, case.certificate));
    let verifier = verifier();
    let vek = verifier.vek(&certificates[0].data).unwrap();
    let whole = || verifier.verify_report(&report, &certificates, case.time).unwrap();
    crate::cost::print("SNP report", whole, 1, "ECDSA P-384", || assert!(vek.has_signed(&bytes)));
    crate::cost::print_once("SNP key's chain, once for each chip", || {
        verifier.verified.lock().unwrap().clear();
        verifier.vek(&certificates[0].data).unwrap()
    });
}
