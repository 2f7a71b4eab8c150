//! The key that signs reports: a chip's (VCEK) or a provider's (VLEK), as its certificate has it.

use crate::{
    evidence::EvidenceError,
    kbs::Tee,
    snp::{
        Generation, Report, SigningKey, Tcb,
        report::{LENGTH, SIGNED},
        roots::{Issuer, Roots},
    },
    x509::{Crl, X509, X509Error},
};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use thiserror::Error;
use x509_cert::der::asn1::ObjectIdentifier;

/// Extensions of publication 57230, table 8: the security versions that the key belongs to, and the chip.
mod extension {
    use super::ObjectIdentifier;

    pub(super) const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
    pub(super) const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
    pub(super) const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
    pub(super) const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
    pub(super) const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
    pub(super) const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
}

/// Why a certificate is no key for a report.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VekError {
    /// The certificate itself.
    #[error("{0}")]
    Certificate(#[from] X509Error),
    /// Signed by nobody whom AMD's roots vouch for.
    #[error("certificate {subject}: its issuer {issuer:?} is none of AMD's")]
    Issuer {
        /// Whose.
        subject: String,
        /// As stated.
        issuer: String,
    },
    /// Genuine, but without what makes it a key for reports.
    #[error("certificate {subject}: has no {what}")]
    Content {
        /// Whose.
        subject: String,
        /// What is missing.
        what: &'static str,
    },
    /// Genuine, but another key than the one that the report says it was signed with.
    #[error("the report says {what} {report}, the certificate is for {certificate}")]
    Other {
        /// What differs.
        what: &'static str,
        /// In the report.
        report: String,
        /// In the certificate.
        certificate: String,
    },
}

impl From<VekError> for EvidenceError {
    fn from(error: VekError) -> Self {
        Self::Untrusted { tee: Tee::Snp, reason: error.to_string() }
    }
}

/// A key whose certificate holds, up to AMD's root.
#[derive(Debug)]
pub struct Vek {
    /// Of the processor.
    pub generation: Generation,
    /// Which kind.
    pub kind: SigningKey,
    /// The versions that it belongs to.
    pub tcb: Tcb,
    /// Of the chip; a provider's key has none.
    hwid: Option<Vec<u8>>,
    certificate: X509,
}

impl Vek {
    /// The key of a certificate, if AMD vouches for it. Whether it still does at some time is for [`Vek::verify_time`].
    pub fn verify(certificate: X509, roots: &Roots) -> Result<Self, VekError> {
        let subject = || certificate.subject().to_owned();
        let issuer = roots.issuer(&certificate).ok_or_else(|| VekError::Issuer { subject: subject(), issuer: certificate.issuer() })?;
        certificate.verify_issued_by(&issuer.certificate)?;
        let &Issuer { generation, signs: kind, .. } = issuer;
        let missing = |what| VekError::Content { subject: subject(), what };
        let part = |number: &ObjectIdentifier, what| certificate.small_number(number).ok_or_else(|| missing(what));
        let tcb = Tcb {
            fmc: match generation {
                Generation::Milan | Generation::Genoa => None,
                Generation::Turin => Some(part(&extension::FMC, "security version of the FMC")?),
            },
            bootloader: part(&extension::BOOTLOADER, "security version of the boot loader")?,
            tee: part(&extension::TEE, "security version of the TEE")?,
            snp: part(&extension::SNP, "security version of the SNP firmware")?,
            microcode: part(&extension::MICROCODE, "security version of the microcode")?,
        };
        let hwid = match kind {
            SigningKey::Vcek => Some(certificate.extension(&extension::HWID).ok_or_else(|| missing("chip id"))?.to_vec()),
            SigningKey::Vlek => None,
        };
        // An uncompressed point of P-384.
        if certificate.public_key().len() != 97 {
            return Err(missing("key on P-384"));
        }
        Ok(Self { generation, kind, tcb, hwid, certificate })
    }

    /// Whether its whole chain is valid at `now`.
    pub fn verify_time(&self, roots: &Roots, now: u64) -> Result<(), VekError> {
        self.certificate.verify_time(now)?;
        if let Some(issuer) = roots.issuer(&self.certificate) {
            issuer.verify_time(now)?;
        }
        Ok(())
    }

    /// Whether its issuer stands, by a list of the root's. Of chips' keys themselves nothing can be revoked: all have the serial number 0.
    pub fn verify_stands(&self, roots: &Roots, revocations: &Crl, now: u64) -> Result<(), VekError> {
        roots.issuer(&self.certificate).map_or(Ok(()), |issuer| Ok(issuer.verify_stands(revocations, now)?))
    }

    /// Whether this is the key that the report says it was signed with: kind, processor, security versions and chip.
    pub fn belongs_to(&self, report: &Report, kind: SigningKey) -> Result<(), VekError> {
        let other = |what, report: String, certificate: String| VekError::Other { what, report, certificate };
        if self.kind != kind {
            return Err(other("signing key", kind.to_string(), self.kind.to_string()));
        }
        // Version 2 does not say which processor it is.
        if report.version >= 3 && report.generation() != Some(self.generation) {
            let [family, model] = [report.cpuid_fam_id, report.cpuid_mod_id].map(Option::unwrap_or_default);
            let stated = report.generation().map_or_else(|| format!("{family:#x}/{model:#x}"), |g| g.to_string());
            return Err(other("processor", stated, self.generation.to_string()));
        }
        if report.reported_tcb != self.tcb {
            return Err(other("reported TCB", report.reported_tcb.to_string(), self.tcb.to_string()));
        }
        if let Some(hwid) = &self.hwid {
            // Turin's ids have 8 bytes, followed by zeros in the report.
            let (id, rest) = report.chip_id.split_at(hwid.len().min(report.chip_id.len()));
            if id != hwid || rest.iter().any(|b| *b != 0) || hwid.len() < 8 {
                return Err(other("chip", hex::encode(report.chip_id), hex::encode(hwid)));
            }
        }
        Ok(())
    }

    /// Whether it signed these bytes of a report.
    pub fn has_signed(&self, report: &[u8; LENGTH]) -> bool {
        // The numbers are little-endian in 72 bytes, of which 48 count; the others must be zero, or two reports would have one signature.
        let (r, s) = (&report[SIGNED..SIGNED + 72], &report[SIGNED + 72..SIGNED + 144]);
        if r[48..].iter().chain(&s[48..]).any(|b| *b != 0) {
            return false;
        }
        let signature: Vec<u8> = r[..48].iter().rev().chain(s[..48].iter().rev()).copied().collect();
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, self.certificate.public_key());
        key.verify(&report[..SIGNED], &signature).is_ok()
    }
}
