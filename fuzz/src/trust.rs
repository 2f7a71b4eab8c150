//! What decides on trust, as functions of arbitrary bytes that must neither panic nor hang: evidence, certificates, the messages between guest and
//! broker, and what an owner writes. An error is one line that a log can hold.

use attestation::{
    Jwe, TeeKey, Verifier,
    event_log::{Bank, EventLog},
    jwks::Jwks,
    kbs::{Attestation, Challenge, Request},
    report_data, sample, sealed,
    snp::{SnpVerifier, cert_table, store::CertificateStore},
    tdx::{
        TdxVerifier,
        collateral::{self, CollateralStore},
    },
    token,
    tpm::{TpmVerifier, quote},
    x509::X509,
};
use key_broker::Rule;
use policy::{ImageSettings, Initdata, Policy};
use serde_json::Value;
use std::{
    fmt::Display,
    sync::LazyLock,
    task::{Context, Poll, Waker},
};

/// 2026-11-25.
const NOW: u64 = 1_795_000_000;

/// What is read; or the reason why it is not, on one line whatever the bytes are: else they could write lines of their own into a log.
fn one_line<T, E: Display>(result: Result<T, E>) -> Option<T> {
    result.inspect_err(|error| assert!(!error.to_string().contains('\n'), "{error}")).ok()
}

/// Evidence in JSON: the first byte says of which TEE. What is made up proves nothing, whatever it is; a TPM's may be anybody's.
pub fn evidence(data: &[u8]) {
    static SNP: LazyLock<Option<SnpVerifier>> = LazyLock::new(|| SnpVerifier::new(CertificateStore::new()).ok());
    let Some((kind, json)) = data.split_first() else { return };
    let Ok(json) = serde_json::from_slice::<Value>(json) else { return };
    match kind {
        b'S' => drop(SNP.as_ref().map(|verifier| one_line(verifier.appraise(&json, NOW)))),
        b'X' => drop(one_line(TdxVerifier::new(CollateralStore::new()).appraise(&json, NOW))),
        b'P' => drop(one_line(TpmVerifier.appraise(&json))),
        _ => {
            let claims = one_line(sample::SampleVerifier.verify(&json, &[5; 48], NOW));
            assert!(claims.is_none_or(|claims| claims.report_data == [5; 48]), "bound to something else");
        }
    }
}

/// What is inside evidence: a quote of TDX, a TPM's message, signature and key, the log, a host's table of certificates.
pub fn quote(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'X' => drop(one_line(TdxVerifier::new(CollateralStore::new()).verify_quote(bytes, NOW))),
        b'Q' => drop(one_line(quote::Quote::parse(bytes))),
        b'S' => drop(one_line(quote::signature(bytes))),
        b'K' => drop(one_line(quote::modulus(bytes)).map(|modulus| assert_eq!(quote::spki(modulus), bytes))),
        b'T' => drop(one_line(cert_table::parse(bytes))),
        _ => {
            for bank in [Bank::Sha256, Bank::Sha384] {
                let Some(log) = one_line(EventLog::parse(bytes, bank)) else { continue };
                assert!(log.replay().values().all(|register| register.len() == bank.length()));
            }
        }
    }
}

/// Certificates, and Intel's collateral.
pub fn certificate(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'J' => drop(collateral::parse(bytes)),
        b'P' => drop(X509::parse_pem(bytes)),
        _ => {
            let Some(certificate) = one_line(X509::parse(bytes)) else { return };
            let _ = (certificate.issuer(), certificate.public_key().len());
            one_line(certificate.verify_time(NOW));
            one_line(certificate.verify_issued_by(&certificate));
        }
    }
}

/// The messages of KBS, what they carry, and what others publish.
pub fn kbs(data: &[u8]) {
    static KEY: LazyLock<Option<TeeKey>> = LazyLock::new(|| TeeKey::generate().ok());
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'R' => drop(serde_json::from_slice::<Request>(bytes)),
        b'C' => drop(serde_json::from_slice::<Challenge>(bytes)),
        b'A' => {
            let Ok(message) = serde_json::from_slice::<Attestation>(bytes) else { return };
            let runtime = &message.runtime_data;
            report_data::primary(&runtime.nonce, &runtime.tee_pubkey, &message.tee_evidence.additional_evidence);
        }
        b'J' => {
            let Ok(jwe) = serde_json::from_slice::<Jwe>(bytes) else { return };
            let opened = KEY.as_ref().and_then(|key| one_line(key.decrypt(&jwe)));
            assert!(opened.is_none(), "opened by a key that nobody encrypted to");
        }
        b'T' => {
            let Ok(signer) = token::TokenSigner::generate() else { return };
            let text = String::from_utf8_lossy(bytes);
            assert!(one_line(token::verify(&text, signer.verifying_key(), NOW)).is_none(), "signed by nobody");
        }
        _ => drop(one_line(Jwks::parse(bytes))),
    }
}

/// Initdata as the host hands it over, compressed, and as it is written. What is read is the same when it is packed again.
pub fn initdata(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    let read = match kind {
        b'G' => Initdata::parse_gzip(bytes),
        _ => Initdata::parse_toml(&String::from_utf8_lossy(bytes)),
    };
    let Ok((initdata, digest)) = read else { return };
    let _ = (initdata.broker(), Policy::from_initdata(Some(&initdata)), ImageSettings::from_initdata(Some(&initdata)));
    let again = Initdata::parse_gzip(&initdata.to_gzip());
    assert!(again.is_ok_and(|(again, same)| again.toml() == initdata.toml() && same == digest));
}

/// An owner's policy. One that is read can be explained, and says nothing else than itself.
pub fn policy(data: &[u8]) {
    let Ok(policy) = Policy::parse(&String::from_utf8_lossy(data)) else { return };
    assert!(!policy.is_open(), "a policy that is written is a closed door");
    assert!(!policy::explain::explain(&policy).is_empty());
    assert!(policy::explain::difference(&policy, &policy).is_empty());
}

/// An owner's release rule. One that is read is the same when its text is read again.
pub fn rule(data: &[u8]) {
    let Ok(rule) = Rule::parse(&String::from_utf8_lossy(data)) else { return };
    assert!(Rule::parse(rule.text()).is_ok_and(|again| again.text() == rule.text()));
}

/// A sealed secret. Its owner's key is never at hand here, so it stays sealed.
pub fn secret(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let opening = std::pin::pin!(sealed::unseal(&text, |_| std::future::ready(Err("not here".to_owned()))));
    match opening.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => assert!(one_line(result).is_none(), "opened without a key"),
        Poll::Pending => panic!("waits for nothing"),
    }
}
