//! A genuine quote with one thing changed: each byte that is signed or names a signer, and each certificate, is refused with the reason that
//! its place in the quote gives.

use super::*;
use crate::encoding::{from_standard, standard};
use std::ops::Range;

/// Where what is in a quote (Intel, "TDX DCAP Quoting Library API", appendix 3).
struct Layout {
    /// Behind header and body.
    signed: usize,
    signature: Range<usize>,
    /// The attestation key, for which the quoting enclave vouches.
    key: Range<usize>,
    /// The quoting enclave's report.
    report: Range<usize>,
    report_signature: Range<usize>,
    /// What the quoting enclave hashed with the key.
    auth: Range<usize>,
    /// The platform's key, its issuer and the root, in PEM.
    chain: Range<usize>,
}

impl Layout {
    fn of(quote: &[u8], signed: usize) -> Self {
        let number = |at: usize, length: usize| quote[at..at + length].iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte));
        // The length of what follows; behind signature and key, a kind and a length.
        let signature = signed + 4..signed + 68;
        let key = signature.end..signature.end + 64;
        let report = key.end + 6..key.end + 6 + 384;
        let report_signature = report.end..report.end + 64;
        let auth = report_signature.end + 2..report_signature.end + 2 + number(report_signature.end, 2);
        let chain = auth.end + 6..auth.end + 6 + number(auth.end + 2, 4);
        assert_eq!((number(key.end, 2), number(auth.end, 2)), (6, 5), "the kinds of what is in it");
        Self { signed, signature, key, report, report_signature, auth, chain }
    }

    /// The certificates, DER.
    fn certificates(&self, quote: &[u8]) -> Vec<Vec<u8>> {
        let text = String::from_utf8(quote[self.chain.clone()].to_vec()).unwrap();
        let inside = |part: &str| part.split_once("-----END").unwrap().0.split_whitespace().collect::<String>();
        text.split("-----BEGIN CERTIFICATE-----").skip(1).map(|part| from_standard(&inside(part)).unwrap()).collect()
    }

    /// The quote with another chain. What is behind it is padding, and goes.
    fn with_chain(&self, quote: &[u8], certificates: &[Vec<u8>]) -> Vec<u8> {
        let pem = |der: &Vec<u8>| format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", standard(der));
        let chain: String = certificates.iter().map(pem).collect();
        let mut quote = quote[..self.chain.start].to_vec();
        let length = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
        quote[self.auth.end + 2..self.chain.start].copy_from_slice(&length(chain.len()));
        quote.extend(chain.into_bytes());
        // The lengths of all around it: the certification data with the report, and the whole signature.
        let (inner, whole) = (length(quote.len() - self.report.start), length(quote.len() - self.signature.start));
        quote[self.key.end + 2..self.report.start].copy_from_slice(&inner);
        quote[self.signed..self.signature.start].copy_from_slice(&whole);
        quote
    }
}

fn genuine(folder: &Path) -> [(Vec<u8>, QuoteCollateralV3, u64, usize); 2] {
    [
        (read(folder, "tdx/phala_tdx_quote_v4.dat"), summer_2025(folder), SUMMER_2025, 48 + 584),
        (read(folder, "tdx/gotdx_quote_v5_sample.dat"), march_2026(folder), MARCH_2026, 54 + 648),
    ]
}

fn refusal(quote: &[u8], collateral: &QuoteCollateralV3, now: u64) -> Option<String> {
    parse(quote).and_then(|_| with(quote, collateral, now)).err().map(|e| e.to_string())
}

#[test]
fn every_change_of_a_byte_is_refused_with_its_reason() {
    let Some(folder) = folder() else { return };
    for (good, collateral, now, signed) in genuine(&folder) {
        let layout = Layout::of(&good, signed);
        let version = good[0];
        let whole = [0..signed, layout.signature.clone(), layout.key.clone(), layout.report.clone()];
        for at in whole.into_iter().chain([layout.report_signature.clone(), layout.auth.clone()]).flatten() {
            let mut quote = good.clone();
            quote[at] ^= 1;
            let reason = refusal(&quote, &collateral, now).unwrap_or_else(|| panic!("version {version}, accepted with a change at {at}"));
            let own: &[&str] = match at {
                // Versions 4 and 5 do not have the same form.
                0..2 => &["only versions 4 and 5", "quote: "],
                2..4 => &["Unsupported DCAP attestation key type", "quote: "],
                4..8 => &["only versions 4 and 5", "quote: "],
                12..28 => &["Unknown QE vendor ID"],
                // A body of another kind or length.
                48..54 if version == 5 => &["quote: "],
                _ if at < layout.signature.end => &["ISV enclave report signature is invalid"],
                _ if at < layout.key.end => &["QE report hash mismatch"],
                _ if at < layout.report_signature.end => &["Signature is invalid for qe_report in quote"],
                _ => &["QE report hash mismatch"],
            };
            assert!(own.iter().any(|own| reason.contains(own)), "version {version} at {at}: {reason}");
        }
    }
}

#[test]
fn every_change_of_its_keys_certificates_is_refused_with_its_reason() {
    let Some(folder) = folder() else { return };
    for (good, collateral, now, signed) in genuine(&folder) {
        let layout = Layout::of(&good, signed);
        let certificates = layout.certificates(&good);
        assert_eq!(certificates.len(), 3, "the platform's key, its issuer, the root");
        assert_eq!(refusal(&layout.with_chain(&good, &certificates), &collateral, now), None, "the same chain, written again");
        // Intel's root is the verifier's own: the quote's copy of it counts for nothing.
        for which in 0..2 {
            for at in 0..certificates[which].len() {
                let mut changed = certificates.clone();
                changed[which][at] ^= 1;
                let reason = refusal(&layout.with_chain(&good, &changed), &collateral, now);
                let reason = reason.unwrap_or_else(|| panic!("accepted with a change of certificate {which} at {at}"));
                let own = ["Failed to verify certificate chain", "Failed to parse PCK certificate"];
                assert!(own.iter().any(|own| reason.contains(own)), "certificate {which} at {at}: {reason}");
            }
        }
        for (chain, own) in [
            (&[][..], "Certificate chain is too short in quote"),
            (&certificates[..1], "UnknownIssuer"),
            (&certificates[1..], "CaUsedAsEndEntity"),
            (&[certificates[0].clone(), certificates[2].clone()][..], "UnknownIssuer"),
        ] {
            let reason = refusal(&layout.with_chain(&good, chain), &collateral, now).unwrap();
            assert!(reason.contains(own), "{own}: {reason}");
        }
    }
}

#[test]
fn certificates_of_another_platform_are_refused() {
    let Some(folder) = folder() else { return };
    let older = read(&folder, "tdx/trustee_tdx_quote_4.dat");
    let theirs = Layout::of(&older, 48 + 584).certificates(&older);
    for (good, collateral, now, signed) in genuine(&folder) {
        // Genuine, of the same issuer, valid at that time, and not of the key that signed the quoting enclave's report.
        let layout = Layout::of(&good, signed);
        assert_ne!(layout.certificates(&good)[0], theirs[0]);
        let reason = refusal(&layout.with_chain(&good, &theirs), &collateral, now).unwrap();
        assert!(reason.contains("Signature is invalid for qe_report in quote"), "{reason}");
    }
}
