//! States that recorded evidence does not have, with keys of our own below roots of our own.

use crate::{
    Claims, Details, EvidenceError, Tee, Verifier,
    report_data::padded,
    snp::{
        Report, SnpVerifier,
        evidence::{CertType, Certificate, KnownCert, MAX_CERTIFICATES},
        store::{CertificateStore, KeyName},
        testing::{
            CRL_ASK, CRL_NONE, CRL_STALE, CRL_TURIN, NAMELESS, NOW, TURIN, VCEK, VLEK, certificate, evidence, milan, signed, turin,
            verifier,
        },
    },
};
use serde_json::json;

const BOUND: [u8; 48] = [7; 48];

fn bound(report: Report) -> Report {
    signed(Report { report_data: padded(&BOUND), ..report })
}

fn with(report: Report, kind: KnownCert, data: &[u8]) -> Result<Claims, EvidenceError> {
    verifier(CertificateStore::new()).verify(&evidence(bound(report), vec![certificate(kind, data)]), &BOUND, NOW)
}

fn reason(result: Result<Claims, EvidenceError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_genuine_is_claimed() {
    let claims = with(milan(), KnownCert::Vcek, VCEK).unwrap();
    assert_eq!((claims.tee, claims.launch_measurement, claims.init_data), (Tee::Snp, vec![0x5a; 48], vec![0x33; 32]));
    assert_eq!(claims.report_data, padded(&BOUND));
    assert!(matches!(claims.details, Details::Snp(claims) if claims.chip_id == [0x11; 64] && claims.launch_mitigations.is_none()));
    let claims = with(turin(), KnownCert::Vcek, TURIN).unwrap();
    assert!(matches!(claims.details, Details::Snp(claims) if claims.launch_mitigations == Some(1)));
    with(Report { key_info: 1 << 2, chip_id: [0; 64], ..milan() }, KnownCert::Vlek, VLEK).unwrap();
}

#[test]
fn the_roots_of_tests_are_not_amds() {
    let amd = SnpVerifier::new(CertificateStore::new()).unwrap();
    let error = amd.verify(&evidence(bound(milan()), vec![certificate(KnownCert::Vcek, VCEK)]), &BOUND, NOW).unwrap_err();
    assert!(error.to_string().contains("certificate SEV-VCEK: not signed by SEV-Milan"), "{error}");
}

#[test]
fn who_signed_must_be_who_is_said_to_have_signed() {
    let key = |kind: u32| Report { key_info: kind << 2, ..milan() };
    let cases = [
        (with(key(7), KnownCert::Vcek, VCEK), "it is not signed"),
        (with(key(3), KnownCert::Vcek, VCEK), "a key of kind 3"),
        (with(key(1), KnownCert::Vlek, VCEK), "the report says signing key vlek, the certificate is for vcek"),
        (with(key(0), KnownCert::Vcek, VLEK), "the report says signing key vcek, the certificate is for vlek"),
        (with(key(1), KnownCert::Vcek, VCEK), "the certificate of its vlek is not at hand"),
        (with(key(0), KnownCert::Ask, VCEK), "the certificate of its vcek is not at hand"),
        (with(milan(), KnownCert::Vcek, NAMELESS), "has no chip id"),
        (with(milan(), KnownCert::Vcek, TURIN), "the report says processor milan, the certificate is for turin"),
        (with(turin(), KnownCert::Vcek, VCEK), "the report says processor turin, the certificate is for milan"),
        (with(Report { cpuid_fam_id: Some(0x19), cpuid_mod_id: Some(0x50), ..milan() }, KnownCert::Vcek, VCEK), "processor 0x19/0x50"),
        (with(Report { sig_algo: 2, ..milan() }, KnownCert::Vcek, VCEK), "signature algorithm 2"),
        (with(Report { chip_id: [0; 64], ..milan() }, KnownCert::Vcek, VCEK), "the report says chip 0000"),
        (with(milan(), KnownCert::Vcek, b"junk"), "not a certificate"),
        (with(milan(), KnownCert::Vcek, b"-----BEGIN CERTIFICATE-----\n"), "not a certificate"),
    ];
    for (result, wanted) in cases {
        let reason = reason(result);
        assert!(reason.contains(wanted) && !reason.contains('\n'), "{wanted}: {reason}");
    }
    // A Turin chip's id has 8 bytes: what follows them is not for the host to choose.
    let mut long = turin();
    long.chip_id[63] = 1;
    assert!(reason(with(long, KnownCert::Vcek, TURIN)).contains("the report says chip"));
}

#[test]
fn what_is_bound_to_something_else_is_a_replay() {
    let stale = signed(Report { report_data: padded(&[8; 48]), ..milan() });
    let verify =
        |report| verifier(CertificateStore::new()).verify(&evidence(report, vec![certificate(KnownCert::Vcek, VCEK)]), &BOUND, NOW);
    assert!(matches!(verify(stale), Err(EvidenceError::Binding { .. })));
    let mut longer = padded(&BOUND);
    longer[63] = 1;
    assert!(matches!(verify(signed(Report { report_data: longer, ..milan() })), Err(EvidenceError::Binding { .. })));
    // Corrected without the key.
    let mut forged = signed(Report { report_data: padded(&[8; 48]), ..milan() });
    forged.report_data = padded(&BOUND);
    assert!(matches!(verify(forged), Err(EvidenceError::Untrusted { .. })));
}

#[test]
fn a_signature_has_one_form() {
    let good = bound(milan());
    let verify = |report: Report| verifier(CertificateStore::new()).verify_report(&report, &[certificate(KnownCert::Vcek, VCEK)], NOW);
    verify(good.clone()).unwrap();
    let mut swapped = good.clone();
    std::mem::swap(&mut swapped.signature.r, &mut swapped.signature.s);
    let mut padded = good.clone();
    padded.signature.r[48] = 1;
    let mut none = good.clone();
    none.signature.r = [0; 72];
    none.signature.s = [0; 72];
    for report in [swapped, padded, none] {
        assert!(verify(report).unwrap_err().to_string().contains("its signature is not the one"));
    }
}

#[test]
fn a_certificate_that_fits_is_found_among_others() {
    let many = vec![certificate(KnownCert::Vcek, b"junk"), certificate(KnownCert::Vcek, TURIN), certificate(KnownCert::Vcek, VCEK)];
    verifier(CertificateStore::new()).verify(&evidence(bound(milan()), many), &BOUND, NOW).unwrap();
    // The host's is of before an update; the store has the right one.
    let folder = tempfile::tempdir().unwrap();
    let store = || CertificateStore::new().with_directory(folder.path().to_owned());
    let stale = evidence(bound(milan()), vec![certificate(KnownCert::Vcek, TURIN)]);
    assert!(verifier(store()).verify(&stale, &BOUND, NOW).is_err());
    let name = KeyName::of(&milan(), crate::snp::Generation::Milan, crate::snp::SigningKey::Vcek);
    store().keep(&name, VCEK);
    verifier(store()).verify(&stale, &BOUND, NOW).unwrap();
}

#[test]
fn what_amds_root_has_revoked_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("milan");
    std::fs::create_dir(&place).unwrap();
    let with = |list: &[u8], report: Report, (kind, key)| {
        std::fs::write(place.join("crl.der"), list).unwrap();
        let store = CertificateStore::new().with_directory(folder.path().to_owned());
        verifier(store).verify(&evidence(bound(report), vec![certificate(kind, key)]), &BOUND, NOW)
    };
    let (chip, provider) = ((KnownCert::Vcek, VCEK), (KnownCert::Vlek, VLEK));
    let providers = || Report { key_info: 1 << 2, chip_id: [0; 64], ..milan() };
    with(CRL_NONE, milan(), chip).unwrap();
    with(CRL_NONE, providers(), provider).unwrap();
    // The issuer of chips' keys, and not that of providers'.
    let error = reason(with(CRL_ASK, milan(), chip));
    assert!(error.contains("not genuine: certificate SEV-Milan: revoked by ARK-Milan"), "{error}");
    with(CRL_ASK, providers(), provider).unwrap();
    // A list that says nothing is no list without an entry.
    let last = CRL_NONE.len() - 1;
    let mut changed = CRL_ASK.to_vec();
    changed[last] ^= 1;
    for (list, wanted) in [
        (changed.as_slice(), "list of what ARK-Milan revoked: it did not sign this list"),
        (CRL_STALE, "it holds at another time; fetch a new one"),
        (CRL_TURIN, "it did not sign this list"),
        (&b"junk"[..], "nor a list of revoked ones"),
        (&[0; 2 << 20], "longer than"),
    ] {
        let error = reason(with(list, milan(), chip));
        assert!(error.contains(wanted) && !error.contains('\n'), "{wanted}: {error}");
    }
    // Another generation's is not asked.
    std::fs::remove_file(place.join("crl.der")).unwrap();
    std::fs::create_dir(folder.path().join("turin")).unwrap();
    std::fs::write(folder.path().join("turin/crl.der"), b"junk").unwrap();
    let store = CertificateStore::new().with_directory(folder.path().to_owned());
    verifier(store).verify(&evidence(bound(milan()), vec![certificate(KnownCert::Vcek, VCEK)]), &BOUND, NOW).unwrap();
}

#[test]
fn malformed_evidence_is_refused() {
    let good = evidence(bound(milan()), vec![certificate(KnownCert::Vcek, VCEK)]);
    let change = |path: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let many = vec![certificate(KnownCert::Ark, b""); MAX_CERTIFICATES + 1];
    let long = certificate(KnownCert::Ark, &[0; 10_000]);
    let other = Certificate { cert_type: CertType::Other(json!({"OTHER": "x"})), data: vec![] };
    let bad = [
        json!(null),
        json!({}),
        json!({"attestation_report": {}}),
        change("/attestation_report/measurement", json!([1, 2])),
        change("/attestation_report/measurement", json!("00")),
        change("/attestation_report/report_data/0", json!(256)),
        change("/attestation_report/version", json!(6)),
        change("/attestation_report/version", json!(1)),
        change("/attestation_report/version", json!(2)),
        change("/attestation_report/version", json!(5)),
        change("/attestation_report/cpuid_fam_id", json!(null)),
        change("/attestation_report/reported_tcb", json!({"fmc": 1, "bootloader": 4, "tee": 0, "snp": 23, "microcode": 80})),
        change("/attestation_report/launch_mit_vector", json!(1)),
        change("/cert_chain", serde_json::to_value(many).unwrap()),
        change("/cert_chain", serde_json::to_value([long]).unwrap()),
        change("/cert_chain/0/data", json!("AA==")),
    ];
    let verifier = verifier(CertificateStore::new());
    for evidence in bad {
        let error = verifier.verify(&evidence, &BOUND, NOW).unwrap_err();
        assert!(matches!(error, EvidenceError::Malformed { .. }), "{error}");
        assert!(error.to_string().len() < 400 && !error.to_string().contains('\n'), "{error}");
    }
    // What others add does not disturb.
    let mut more = evidence(bound(milan()), vec![other, certificate(KnownCert::Vcek, VCEK)]);
    more["attestation_report"]["future"] = json!(1);
    verifier.verify(&more, &BOUND, NOW).unwrap();
}
