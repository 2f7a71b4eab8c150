//! For tests: reports with whatever in them, signed by a key whose chain is shaped like AMD's and ends in roots of our own. It reaches
//! the states that recorded evidence does not have. Nothing but a verifier that was made with these roots accepts it.
#![allow(clippy::unwrap_used)]

use crate::snp::{
    Generation, Report, SnpVerifier, Tcb,
    evidence::{CertType, Certificate, KnownCert, SnpEvidence},
    report::{SIGNED, Signature, Version},
    roots::Roots,
    store::CertificateStore,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::Value;

/// A time within the validity of all of the certificates.
pub const NOW: u64 = 1_900_000_000;

/// The chip's key of [`milan`].
pub const VCEK: &[u8] = include_bytes!("../../testdata/snp/vcek_milan.der");
/// A provider's key of the same generation.
pub const VLEK: &[u8] = include_bytes!("../../testdata/snp/vlek_milan.der");
/// The chip's key of [`turin`].
pub const TURIN: &[u8] = include_bytes!("../../testdata/snp/vcek_turin.der");
/// A chip's key that does not say which chip.
pub const NAMELESS: &[u8] = include_bytes!("../../testdata/snp/vcek_milan_nohwid.der");

/// A list of the root of [`milan`] without an entry.
pub const CRL_NONE: &[u8] = include_bytes!("../../testdata/snp/crl_milan_none.der");
/// One in which the issuer of chips' keys is.
pub const CRL_ASK: &[u8] = include_bytes!("../../testdata/snp/crl_milan_ask.der");
/// One that has run out at [`NOW`].
pub const CRL_STALE: &[u8] = include_bytes!("../../testdata/snp/crl_milan_stale.der");
/// One of the other root, without an entry.
pub const CRL_TURIN: &[u8] = include_bytes!("../../testdata/snp/crl_turin_none.der");

/// A verifier that takes these roots for AMD's.
pub fn verifier(store: CertificateStore) -> SnpVerifier {
    let milan = include_str!("../../testdata/snp/roots_milan.pem");
    let turin = include_str!("../../testdata/snp/roots_turin.pem");
    SnpVerifier::with_roots(Roots::from_pem(&[(Generation::Milan, milan), (Generation::Turin, turin)]).unwrap(), store)
}

/// An unsigned report of version 3.
pub fn milan() -> Report {
    let tcb = Tcb { fmc: None, bootloader: 4, tee: 0, snp: 0x17, microcode: 0x50 };
    let firmware = Version { major: 1, minor: 55, build: 29 };
    Report {
        version: 3,
        guest_svn: 2,
        policy: 0x3_0000 | 1 << 8 | 51,
        family_id: [1; 16],
        image_id: [2; 16],
        vmpl: 0,
        sig_algo: 1,
        current_tcb: tcb,
        plat_info: 0x25,
        key_info: 0,
        report_data: [0; 64],
        measurement: [0x5a; 48],
        host_data: [0x33; 32],
        id_key_digest: [3; 48],
        author_key_digest: [4; 48],
        report_id: [5; 32],
        report_id_ma: [0xff; 32],
        reported_tcb: tcb,
        cpuid_fam_id: Some(0x19),
        cpuid_mod_id: Some(1),
        cpuid_step: Some(1),
        chip_id: [0x11; 64],
        committed_tcb: tcb,
        current: firmware,
        committed: firmware,
        launch_tcb: tcb,
        launch_mit_vector: None,
        current_mit_vector: None,
        signature: Signature { r: [0; 72], s: [0; 72] },
    }
}

/// An unsigned report of version 5.
pub fn turin() -> Report {
    let tcb = Tcb { fmc: Some(0), bootloader: 1, tee: 0, snp: 2, microcode: 0x47 };
    let mut chip_id = [0; 64];
    chip_id[..8].fill(0x22);
    Report {
        version: 5,
        cpuid_fam_id: Some(0x1a),
        cpuid_mod_id: Some(2),
        chip_id,
        current_tcb: tcb,
        reported_tcb: tcb,
        committed_tcb: tcb,
        launch_tcb: tcb,
        launch_mit_vector: Some(1),
        current_mit_vector: Some(3),
        ..milan()
    }
}

/// The report with its signature.
pub fn signed(report: Report) -> Report {
    let random = SystemRandom::new();
    let key = include_bytes!("../../testdata/snp/vek.pk8");
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, key, &random).unwrap();
    let signature = key.sign(&random, &report.to_bytes().unwrap()[..SIGNED]).unwrap();
    let number = |bytes: &[u8]| {
        let mut out = [0; 72];
        bytes.iter().rev().zip(&mut out).for_each(|(byte, place)| *place = *byte);
        out
    };
    let (r, s) = signature.as_ref().split_at(48);
    Report { signature: Signature { r: number(r), s: number(s) }, ..report }
}

/// A certificate as evidence carries it.
pub fn certificate(kind: KnownCert, data: &[u8]) -> Certificate {
    Certificate { cert_type: CertType::Known(kind), data: data.to_vec() }
}

/// The evidence of a report with certificates.
pub fn evidence(report: Report, certificates: Vec<Certificate>) -> Value {
    serde_json::to_value(SnpEvidence { attestation_report: report, cert_chain: Some(certificates) }).unwrap()
}
