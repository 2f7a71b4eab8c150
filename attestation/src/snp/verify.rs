//! The verification of a report: who signed it, that AMD vouches for who did, and what it is bound to. What the owner demands of a
//! genuine one is for [`crate::snp::Requirements`].

use crate::{
    evidence::{Claims, Details, EvidenceError, Preparation, Verifier},
    kbs::Tee,
    report_data::{self, ReportData},
    snp::{
        Generation, Report, SigningKey, SnpClaims,
        evidence::{CertType, Certificate, KnownCert, SnpEvidence},
        report::ECDSA_P384_SHA384,
        roots::{Roots, RootsError},
        store::{CertificateStore, KeyName, StoreError},
        vek::{Vek, VekError},
    },
    x509::{Crl, X509},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Keys whose chain was verified, by the digest of their certificate: a chip's thousandth handshake need not repeat that arithmetic.
const MAX_VERIFIED: usize = 1024;

/// Verifies reports.
#[derive(Debug)]
pub struct SnpVerifier {
    roots: Roots,
    store: CertificateStore,
    verified: Mutex<HashMap<[u8; 32], Arc<Vek>>>,
}

impl SnpVerifier {
    /// A verifier that looks for certificates in evidence first, then in this store.
    pub fn new(store: CertificateStore) -> Result<Self, RootsError> {
        Ok(Self { roots: Roots::amd()?, store, verified: Mutex::default() })
    }

    /// A verifier that takes these roots for AMD's: for tests.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_roots(roots: Roots, store: CertificateStore) -> Self {
        Self { roots, store, verified: Mutex::default() }
    }

    /// What a report says, if AMD vouches for it at the time `now` (seconds since 1970). `certificates` may hold its key, and may hold
    /// anything: only what leads to AMD's roots counts.
    pub fn verify_report(&self, report: &Report, certificates: &[Certificate], now: u64) -> Result<SnpClaims, EvidenceError> {
        let bytes = report.to_bytes().map_err(|e| EvidenceError::Malformed { tee: Tee::Snp, reason: e.to_string() })?;
        let kind = signing_key(report)?;
        let vek = self.key(report, kind, certificates, now)?;
        if let Some(revocations) = self.store.revocations(vek.generation).map_err(unavailable)? {
            Crl::parse(&revocations).map_err(VekError::from).and_then(|list| vek.verify_stands(&self.roots, &list, now))?;
        }
        if !vek.has_signed(&bytes) {
            return Err(untrusted(format!("its signature is not the one of the {} of this chip: it was changed, or made up", vek.kind)));
        }
        Ok(SnpClaims::new(report, vek.generation, vek.kind))
    }

    /// What evidence proves, whatever it is bound to: whether it is fresh is then not known.
    pub fn appraise(&self, evidence: &Value, now: u64) -> Result<Claims, EvidenceError> {
        let evidence = SnpEvidence::from_json(evidence)?;
        let report = &evidence.attestation_report;
        let details = self.verify_report(report, evidence.certificates(), now)?;
        Ok(Claims {
            tee: Tee::Snp,
            launch_measurement: report.measurement.to_vec(),
            init_data: report.host_data.to_vec(),
            report_data: report.report_data.to_vec(),
            details: Details::Snp(Box::new(details)),
        })
    }

    /// The key that the report says it was signed with: the first certificate that fits, and else why the first that was there does not.
    fn key(&self, report: &Report, kind: SigningKey, certificates: &[Certificate], now: u64) -> Result<Arc<Vek>, EvidenceError> {
        let mut first_error: Option<EvidenceError> = None;
        let given = certificates.iter().filter(|c| is_kind(c, kind)).map(|c| c.data.clone());
        let mut found = given.collect::<Vec<_>>();
        let names: Vec<KeyName> = generations(report).iter().map(|generation| KeyName::of(report, *generation, kind)).collect();
        for name in &names {
            found.extend(self.store.find(name).map_err(unavailable)?);
        }
        for certificate in found {
            match self.vek(&certificate).and_then(|vek| self.fits(&vek, report, kind, now).map(|()| vek)) {
                Ok(vek) => return Ok(vek),
                Err(error) => first_error = first_error.or(Some(error.into())),
            }
        }
        let missing = || EvidenceError::Endorsement { tee: Tee::Snp, reason: format!("the certificate of its {kind} is not at hand") };
        Err(first_error.unwrap_or_else(missing))
    }

    fn fits(&self, vek: &Vek, report: &Report, kind: SigningKey, now: u64) -> Result<(), VekError> {
        vek.belongs_to(report, kind)?;
        vek.verify_time(&self.roots, now)
    }

    /// The key of a certificate in DER or PEM whose chain holds.
    fn vek(&self, certificate: &[u8]) -> Result<Arc<Vek>, VekError> {
        let digest: [u8; 32] = Sha256::digest(certificate).into();
        if let Some(vek) = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Ok(vek.clone());
        }
        let vek = Arc::new(Vek::verify(X509::parse(certificate)?, &self.roots)?);
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(digest, vek.clone());
        Ok(vek)
    }

    /// Asks the service for the key of a report that no certificate at hand fits.
    async fn fetch(&self, report: &Report, kind: SigningKey, now: u64) -> Result<(), EvidenceError> {
        let mut last = None;
        for generation in generations(report) {
            let name = KeyName::of(report, *generation, kind);
            let certificate = match self.store.fetch(&name).await {
                Ok(certificate) => certificate,
                // A report of version 2 does not say which processor made it: the next may be it.
                Err(error) => {
                    last = Some(unavailable(error));
                    continue;
                }
            };
            // Before it is kept: what a mirror makes up must not stay.
            let vek = self.vek(&certificate)?;
            self.fits(&vek, report, kind, now)?;
            self.store.keep(&name, &certificate);
            return Ok(());
        }
        Err(last.unwrap_or_else(|| untrusted("its processor is of no generation that is known".into())))
    }
}

impl Verifier for SnpVerifier {
    fn tee(&self) -> Tee {
        Tee::Snp
    }

    fn prepare<'a>(&'a self, evidence: &'a Value, now: u64) -> Preparation<'a> {
        Box::pin(async move {
            let evidence = SnpEvidence::from_json(evidence)?;
            let report = &evidence.attestation_report;
            let kind = signing_key(report)?;
            match self.key(report, kind, evidence.certificates(), now) {
                Ok(_) => Ok(()),
                // A host that was updated still hands out the certificate of before.
                Err(error) => self.fetch(report, kind, now).await.map_err(|fetch| match error {
                    EvidenceError::Endorsement { .. } => fetch,
                    error => error,
                }),
            }
        })
    }

    fn verify(&self, evidence: &Value, bound: &ReportData, now: u64) -> Result<Claims, EvidenceError> {
        let claims = self.appraise(evidence, now)?;
        if claims.report_data != report_data::padded(bound) {
            let (found, wanted) = (hex::encode(claims.report_data), hex::encode(bound));
            return Err(EvidenceError::Binding { tee: Tee::Snp, found, wanted });
        }
        Ok(claims)
    }
}

/// Which key the report says it was signed with, and that it was with the one algorithm.
fn signing_key(report: &Report) -> Result<SigningKey, EvidenceError> {
    if report.sig_algo != ECDSA_P384_SHA384 {
        return Err(untrusted(format!("signature algorithm {}, only 1 (ECDSA P-384 with SHA-384) is known", report.sig_algo)));
    }
    match report.key_info >> 2 & 7 {
        0 => Ok(SigningKey::Vcek),
        1 => Ok(SigningKey::Vlek),
        7 => Err(untrusted("it is not signed: the host has switched its chip's key off".into())),
        other => Err(untrusted(format!("signed with a key of kind {other}, only 0 (VCEK) and 1 (VLEK) are known"))),
    }
}

/// Which processors may have made the report.
fn generations(report: &Report) -> &'static [Generation] {
    match (report.version, report.generation()) {
        (2, _) => &[Generation::Milan, Generation::Genoa],
        (_, Some(Generation::Milan)) => &[Generation::Milan],
        (_, Some(Generation::Genoa)) => &[Generation::Genoa],
        (_, Some(Generation::Turin)) => &[Generation::Turin],
        (_, None) => &[],
    }
}

fn is_kind(certificate: &Certificate, kind: SigningKey) -> bool {
    let wanted = match kind {
        SigningKey::Vcek => KnownCert::Vcek,
        SigningKey::Vlek => KnownCert::Vlek,
    };
    certificate.cert_type == CertType::Known(wanted)
}

fn untrusted(reason: String) -> EvidenceError {
    EvidenceError::Untrusted { tee: Tee::Snp, reason }
}

fn unavailable(error: StoreError) -> EvidenceError {
    EvidenceError::Endorsement { tee: Tee::Snp, reason: error.to_string() }
}

#[cfg(test)]
mod tests;
