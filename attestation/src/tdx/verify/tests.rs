//! The verifier against recorded quotes of real machines, with the collateral of their time.

use super::*;
use crate::tdx::{Requirements, collateral};
use std::path::Path;
use vectors::{folder, read};

mod mutations;

/// When each collateral was valid, seconds since 1970: 2023-06-23, 2025-07-01, 2026-03-01, 2025-11-13.
const JUNE_2023: u64 = 1_687_500_000;
const SUMMER_2025: u64 = 1_751_328_000;
const MARCH_2026: u64 = 1_772_323_200;
const NOVEMBER_2025: u64 = 1_763_000_000;

fn recorded_collateral(folder: &Path, name: &str) -> QuoteCollateralV3 {
    collateral::parse(&read(folder, name)).unwrap()
}

/// Collateral of a machine's time; what was not recorded with it is of the same issuers at other times.
fn summer_2025(folder: &Path) -> QuoteCollateralV3 {
    recorded_collateral(folder, "tdx/phala_tdx_quote_v4_collateral.json")
}

fn march_2026(folder: &Path) -> QuoteCollateralV3 {
    recorded_collateral(folder, "tdx/phala_tdx_quote_outdated_collateral.json")
}

/// The part of a recorded answer that is signed, byte for byte, and the signature.
fn answer(folder: &Path, name: &str) -> (String, Vec<u8>) {
    let text = String::from_utf8(read(folder, name)).unwrap();
    let (body, signature) = text.trim().rsplit_once(",\"signature\":\"").unwrap();
    let body = body.split_once(':').unwrap().1;
    (body.to_owned(), hex::decode(signature.trim_end_matches("\"}")).unwrap())
}

fn november_2025(folder: &Path) -> QuoteCollateralV3 {
    let (tcb_info, tcb_info_signature) = answer(folder, "tdx/trustee_tcbInfo.json");
    let (qe_identity, qe_identity_signature) = answer(folder, "tdx/trustee_enclaveIdentity.json");
    QuoteCollateralV3 { tcb_info, tcb_info_signature, qe_identity, qe_identity_signature, ..march_2026(folder) }
}

/// Intel's statement on the platforms of an earlier day of the same month.
fn february_2026(folder: &Path) -> QuoteCollateralV3 {
    let (tcb_info, tcb_info_signature) = answer(folder, "tdx/gotdx_sample_tcbinfo_response_v5");
    QuoteCollateralV3 { tcb_info, tcb_info_signature, ..march_2026(folder) }
}

/// What Intel's service answered then. The chains of issuers, which it sends in headers, are the root's of any time, and the certificate that
/// signed such statements until May 2025.
fn june_2023(folder: &Path) -> QuoteCollateralV3 {
    let (tcb_info, tcb_info_signature) = answer(folder, "tdx/gotdx_sample_tcbInfo_response");
    let (qe_identity, qe_identity_signature) = answer(folder, "tdx/gotdx_sample_qeIdentity_response");
    let later = march_2026(folder);
    let begin = later.tcb_info_issuer_chain.rfind("-----BEGIN").unwrap();
    let root = &later.tcb_info_issuer_chain[begin..];
    let signer = format!("{}{root}", include_str!("../../../testdata/tdx/tcb_signing_2018.pem"));
    QuoteCollateralV3 {
        root_ca_crl: read(folder, "tdx/gotdx_rootcrl.der"),
        pck_crl: read(folder, "tdx/gotdx_pckcrl"),
        tcb_info_issuer_chain: signer.clone(),
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: signer,
        qe_identity,
        qe_identity_signature,
        ..later
    }
}

fn with(quote: &[u8], collateral: &QuoteCollateralV3, now: u64) -> Result<TdxQuote, EvidenceError> {
    TdxVerifier::new(CollateralStore::new()).verify_with(quote, collateral, now)
}

fn dstack_quote(folder: &Path) -> Vec<u8> {
    let recorded: Value = serde_json::from_slice(&read(folder, "tdx/dstack_quote-report.json")).unwrap();
    hex::decode(recorded["quote"].as_str().unwrap()).unwrap()
}

#[test]
fn recorded_quotes_are_genuine_and_judged() {
    let Some(folder) = folder() else { return };
    let refused = |text: &'static str| Some(text);
    let cases = [
        (read(&folder, "tdx/phala_tdx_quote_v4.dat"), summer_2025(&folder), SUMMER_2025, 4, "91eb2b44", TcbStatus::UpToDate, None),
        (read(&folder, "tdx/gotdx_quote_v5_sample.dat"), march_2026(&folder), MARCH_2026, 5, "", TcbStatus::UpToDate, None),
        (read(&folder, "tdx/gotdx_quote_v5_sample.dat"), february_2026(&folder), MARCH_2026, 5, "", TcbStatus::UpToDate, None),
        (dstack_quote(&folder), march_2026(&folder), MARCH_2026, 4, "", TcbStatus::UpToDate, None),
        (
            read(&folder, "tdx/trustee_tdx_quote_6.dat"),
            november_2025(&folder),
            NOVEMBER_2025,
            4,
            "",
            TcbStatus::OutOfDate,
            refused("tdx.tcb_status is OutOfDate"),
        ),
        (
            read(&folder, "tdx/trustee_tdx_quote_4.dat"),
            june_2023(&folder),
            JUNE_2023,
            4,
            "",
            TcbStatus::UpToDate,
            refused("tdx.attributes has debug set, the release rule does not allow it: the host can read the memory of such a guest"),
        ),
    ];
    for (quote, collateral, now, version, mr_td, status, refusal) in cases {
        let verified = with(&quote, &collateral, now).unwrap();
        let claims = &verified.claims;
        assert_eq!((claims.quote_version, claims.tcb_status), (version, status));
        assert!(hex::encode(claims.mr_td).starts_with(mr_td), "{}", hex::encode(claims.mr_td));
        assert_eq!(claims.mr_signer_seam, [0; 48], "Intel's own module");
        match (Requirements::default().check(claims), refusal) {
            (Ok(()), None) => {}
            (Err(found), Some(wanted)) => assert!(found.starts_with(wanted), "{found}"),
            (found, wanted) => panic!("{found:?}, not {wanted:?}"),
        }
    }
    // As Trustee's guests bind it: the digest of a handshake, padded, and that of the initdata.
    let quote = with(&read(&folder, "tdx/trustee_tdx_quote_6.dat"), &november_2025(&folder), NOVEMBER_2025).unwrap();
    assert!(hex::encode(quote.mr_config_id).starts_with("889abf47") && hex::encode(quote.report_data).starts_with("26cae1c7"));
    assert!(quote.report_data[48..].iter().all(|b| *b == 0));
}

#[test]
fn recorded_quotes_of_platforms_that_intel_does_not_know_well_are_refused() {
    let Some(folder) = folder() else { return };
    let refused = |name: &str, collateral: &QuoteCollateralV3, now| with(&read(&folder, name), collateral, now).unwrap_err().to_string();
    for (name, collateral, now) in [
        ("tdx/phala_tdx_quote_outdated.dat", march_2026(&folder), MARCH_2026),
        ("tdx/trustee_tdx_quote_5.dat", march_2026(&folder), MARCH_2026),
        ("tdx/gotdx_tdx_prod_quote_SPR_E4.dat", june_2023(&folder), JUNE_2023),
    ] {
        let reason = refused(name, &collateral, now);
        assert!(reason.contains("No matching TCB level found"), "{name}: {reason}");
    }
    // Of this one's platform (FMSPC 00806f050000, Azure's) no collateral was recorded; it is taken apart, and with another's refused.
    let quote = read(&folder, "tpm/trustee_az-tdx_td-quote.bin");
    let found = platform(&parse(&quote).unwrap()).unwrap();
    assert_eq!((found.fmspc.as_str(), found.ca), ("00806f050000", "platform"));
    let reason = refused("tpm/trustee_az-tdx_td-quote.bin", &march_2026(&folder), MARCH_2026);
    assert!(reason.contains("Fmspc mismatch"), "{reason}");
}

#[test]
fn collateral_of_another_time_or_platform_proves_nothing() {
    let Some(folder) = folder() else { return };
    let quote = read(&folder, "tdx/phala_tdx_quote_v4.dat");
    let good = summer_2025(&folder);
    with(&quote, &good, SUMMER_2025).unwrap();
    // The last second, and the next.
    with(&quote, &good, 1_752_920_163).unwrap_err();
    for (collateral, now, wanted) in [
        (good.clone(), 1_795_000_000, "expired"),
        (good.clone(), SUMMER_2025 - 30 * 86_400, "future"),
        (march_2026(&folder), MARCH_2026, "Fmspc mismatch"),
        (QuoteCollateralV3 { tcb_info: good.tcb_info.replace("UpToDate", "OutOfDate"), ..good.clone() }, SUMMER_2025, ""),
        (QuoteCollateralV3 { tcb_info_signature: good.qe_identity_signature.clone(), ..good.clone() }, SUMMER_2025, ""),
        (QuoteCollateralV3 { qe_identity: good.qe_identity.replace('1', "2"), ..good.clone() }, SUMMER_2025, ""),
        (QuoteCollateralV3 { pck_crl: good.root_ca_crl.clone(), ..good.clone() }, SUMMER_2025, ""),
        (QuoteCollateralV3 { root_ca_crl: Vec::new(), ..good.clone() }, SUMMER_2025, ""),
        (recorded_collateral(&folder, "tdx/phala_sgx_quote_v3_collateral.json"), SUMMER_2025, "QE version 2"),
    ] {
        let error = with(&quote, &collateral, now).unwrap_err();
        assert!(matches!(error, EvidenceError::Untrusted { .. }) && !error.to_string().contains('\n'), "{error}");
        assert!(error.to_string().to_lowercase().contains(&wanted.to_lowercase()), "{wanted}: {error}");
    }
}

#[test]
fn the_root_is_intels() {
    let Some(folder) = folder() else { return };
    let quote = read(&folder, "tdx/phala_tdx_quote_v4.dat");
    let below = |root: Vec<u8>| {
        let verifier = TdxVerifier { store: CollateralStore::new(), root: Some(root) };
        verifier.verify_with(&quote, &summer_2025(&folder), SUMMER_2025)
    };
    // As Intel publishes it; and a root that signed none of this.
    assert_eq!(below(read(&folder, "tdx/intel_sgx_root_ca.der")), with(&quote, &summer_2025(&folder), SUMMER_2025));
    assert!(below(read(&folder, "tpm/gotpm_gcp_ek_ak_ca_root.crt")).is_err());
}

#[test]
fn what_is_no_quote_of_tdx_is_refused() {
    let Some(folder) = folder() else { return };
    let requested: Value = serde_json::from_slice(&read(&folder, "kbs/trustee_coco-as_request.json")).unwrap();
    let evidence = crate::encoding::from_url(requested["verification_requests"][0]["evidence"].as_str().unwrap()).unwrap();
    let evidence: Value = serde_json::from_slice(&evidence).unwrap();
    let error = TdxVerifier::new(CollateralStore::new()).appraise(&evidence, SUMMER_2025).unwrap_err().to_string();
    assert!(error.contains("quote of version 3 for TEE 0x0"), "{error}");
    let sgx = read(&folder, "tdx/phala_sgx_quote_v3.dat");
    let error = TdxVerifier::new(CollateralStore::new()).verify_quote(&sgx, SUMMER_2025).unwrap_err().to_string();
    assert!(error.contains("quote of version 3 for TEE 0x0"), "{error}");
    // Random bytes in the length of a module's report.
    assert!(matches!(parse(&read(&folder, "tdx/gotdx_report.dat")), Err(EvidenceError::Malformed { .. })));
    let good = read(&folder, "tdx/phala_tdx_quote_v4.dat");
    for bad in [&[][..], &good[..47], &good[..700], &good[..1200], &[0; 5000], &[0xff; 5000], &vec![4; MAX_QUOTE + 1]] {
        let error = TdxVerifier::new(CollateralStore::new()).verify_quote(bad, SUMMER_2025).unwrap_err();
        assert!(matches!(error, EvidenceError::Malformed { .. }) && error.to_string().len() < 400, "{error}");
    }
    // Every cut of a good one.
    for length in (0..good.len()).step_by(7) {
        let _ = parse(&good[..length]).and_then(|quote| platform(&quote));
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(head in proptest::collection::vec(0u8.., 0..1200), version in 3u8..6) {
        let mut quote = head;
        quote.splice(..quote.len().min(8), [version, 0, 2, 0, 0x81, 0, 0, 0]);
        let _ = parse(&quote).and_then(|quote| platform(&quote));
    }
}

#[test]
fn evidence_is_bound_to_a_handshake() {
    let Some(folder) = folder() else { return };
    let quote = read(&folder, "tdx/trustee_tdx_quote_6.dat");
    let parsed = parse(&quote).unwrap();
    let store = CollateralStore::new();
    store.remember(&platform(&parsed).unwrap(), november_2025(&folder));
    let verifier = TdxVerifier::new(store);
    let evidence = TdxEvidence { quote: quote.clone(), images: None }.to_json().unwrap();
    let bound: ReportData = quote[48 + 520..48 + 568].try_into().unwrap();
    let claims = verifier.verify(&evidence, &bound, NOVEMBER_2025).unwrap();
    assert_eq!((claims.tee, claims.init_data.len(), claims.launch_measurement.len()), (Tee::Tdx, 48, 48));
    assert!(!claims.is_debug());
    let error = verifier.verify(&evidence, &[7; 48], NOVEMBER_2025).unwrap_err();
    assert!(matches!(error, EvidenceError::Binding { .. }), "{error}");
    let nothing = TdxVerifier::new(CollateralStore::new()).verify(&evidence, &bound, NOVEMBER_2025).unwrap_err();
    assert!(nothing.to_string().contains("collateral for platform 00a06d080000 is not at hand"), "{nothing}");
    for bad in [Value::Null, serde_json::json!({}), serde_json::json!({"quote": "%"}), serde_json::json!({"quote": "A".repeat(100_000)})] {
        assert!(matches!(verifier.verify(&bad, &bound, NOVEMBER_2025), Err(EvidenceError::Malformed { .. })));
    }
}

/// See [`crate::cost`]. Ten signatures: the quote, the quoting enclave's report, the platform's key and its issuer, Intel's two statements and
/// their signer, and three lists of revoked keys.
#[test]
#[ignore = "a benchmark"]
fn benchmark() {
    let Some(folder) = folder() else { return crate::cost::absent("TDX quote") };
    let (quote, collateral) = (read(&folder, "tdx/phala_tdx_quote_v4.dat"), summer_2025(&folder));
    // Behind header and body: the length of what follows, the signature, the key.
    let (signed, rest) = quote.split_at(48 + 584);
    let (signature, key) = (&rest[4..68], [&[4], &rest[68..132]].concat());
    let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ECDSA_P256_SHA256_FIXED, key);
    key.verify(signed, signature).unwrap();
    let whole = || with(&quote, &collateral, SUMMER_2025).unwrap();
    crate::cost::print("TDX quote", whole, 10, "ECDSA P-256", || key.verify(signed, signature).unwrap());
}

#[test]
fn images_that_the_quote_does_not_know_are_refused() {
    let Some(folder) = folder() else { return };
    let quote = read(&folder, "tdx/trustee_tdx_quote_6.dat");
    let store = CollateralStore::new();
    store.remember(&platform(&parse(&quote).unwrap()).unwrap(), november_2025(&folder));
    let verifier = TdxVerifier::new(store);
    let appraise = |images| verifier.appraise(&TdxEvidence { quote: quote.clone(), images }.to_json().unwrap(), NOVEMBER_2025);
    let Details::Tdx(silent) = appraise(None).unwrap().details else { panic!("not of TDX") };
    assert_eq!(silent.images, None);
    // Nothing was extended into this one's register.
    assert_eq!(silent.rtmr3, [0; 48]);
    let Details::Tdx(none) = appraise(Some(Vec::new())).unwrap().details else { panic!("not of TDX") };
    assert_eq!(none.images, Some(Vec::new()));
    let error = appraise(Some(vec![format!("sha256:{}", "11".repeat(32))])).unwrap_err().to_string();
    assert!(error.contains("another RTMR3"), "{error}");
}
