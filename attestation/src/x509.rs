//! As much of X.509 as hardware makers use: who signed, with what, for how long, and extensions by number.
//!
//! A path library for the web does not fit: AMD's certificates have the serial number 0 and none of the extensions that such a library
//! insists on, and what matters here is in extensions that it does not know.

use ring::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use thiserror::Error;
use x509_cert::{
    Certificate,
    crl::CertificateList,
    der::{Decode, Encode, Reader, SliceReader, asn1::ObjectIdentifier},
    name::Name,
    time::Validity,
};

/// RSASSA-PSS.
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// Why a certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum X509Error {
    /// Not a certificate.
    #[error("not a certificate: {0}")]
    Malformed(String),
    /// Signed in another way.
    #[error("certificate {subject}: signed with algorithm {algorithm}, only RSASSA-PSS is known")]
    Algorithm {
        /// Whose.
        subject: String,
        /// As a number.
        algorithm: String,
    },
    /// Signed by somebody else, or changed.
    #[error("certificate {subject}: not signed by {issuer}")]
    Signature {
        /// Whose.
        subject: String,
        /// Who should have.
        issuer: String,
    },
    /// A list of revoked certificates that says nothing, or nothing any more.
    #[error("list of what {issuer} revoked: {reason}")]
    Revocations {
        /// Whose.
        issuer: String,
        /// Why.
        reason: String,
    },
    /// Taken back by who signed it.
    #[error("certificate {subject}: revoked by {issuer}")]
    Revoked {
        /// Whose.
        subject: String,
        /// By whom.
        issuer: String,
    },
    /// Too early or too late.
    #[error("certificate {subject}: valid from {from} to {to} (seconds since 1970), and it is {now}")]
    Validity {
        /// Whose.
        subject: String,
        /// Seconds since 1970.
        from: u64,
        /// Seconds since 1970.
        to: u64,
        /// Seconds since 1970.
        now: u64,
    },
}

/// A certificate, taken apart.
#[derive(Debug, Clone)]
pub struct X509 {
    /// What is signed, byte for byte.
    signed: Vec<u8>,
    inner: Certificate,
    subject: String,
}

impl X509 {
    /// Reads DER, or the first certificate of a PEM file.
    pub fn parse(bytes: &[u8]) -> Result<Self, X509Error> {
        // DER begins with a SEQUENCE; PEM may begin with any text.
        if bytes.first() != Some(&0x30) {
            return Self::parse_pem(bytes)?.into_iter().next().ok_or_else(|| X509Error::Malformed("empty PEM".into()));
        }
        let malformed = |e: x509_cert::der::Error| X509Error::Malformed(e.to_string());
        let inner = Certificate::from_der(bytes).map_err(malformed)?;
        let subject = common_name(inner.tbs_certificate().subject());
        Ok(Self { signed: signed_part(bytes).map_err(malformed)?, inner, subject })
    }

    /// Reads all certificates of a PEM file; text around them is ignored.
    pub fn parse_pem(text: &[u8]) -> Result<Vec<Self>, X509Error> {
        let malformed = |e: x509_cert::der::Error| X509Error::Malformed(e.to_string());
        let certificates = Certificate::load_pem_chain(text).map_err(malformed)?;
        certificates.iter().map(|c| c.to_der().map_err(malformed).and_then(|der| Self::parse(&der))).collect()
    }

    /// The whole certificate.
    pub fn der(&self) -> Result<Vec<u8>, X509Error> {
        self.inner.to_der().map_err(|e| X509Error::Malformed(e.to_string()))
    }

    /// The common name.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The issuer's common name.
    pub fn issuer(&self) -> String {
        common_name(self.inner.tbs_certificate().issuer())
    }

    /// Whether `issuer` is who this certificate names as its issuer, and has signed it (RSASSA-PSS with SHA-384 and a salt of 48 bytes).
    pub fn verify_issued_by(&self, issuer: &Self) -> Result<(), X509Error> {
        let algorithm = self.inner.signature_algorithm().oid;
        if algorithm != RSA_PSS || self.inner.tbs_certificate().signature() != self.inner.signature_algorithm() {
            return Err(X509Error::Algorithm { subject: self.subject.clone(), algorithm: algorithm.to_string() });
        }
        let named = self.inner.tbs_certificate().issuer() == issuer.inner.tbs_certificate().subject();
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, issuer.public_key());
        if named && key.verify(&self.signed, self.inner.signature().raw_bytes()).is_ok() {
            return Ok(());
        }
        Err(X509Error::Signature { subject: self.subject.clone(), issuer: issuer.subject.clone() })
    }

    /// Whether it is valid at `now` (seconds since 1970).
    pub fn verify_time(&self, now: u64) -> Result<(), X509Error> {
        let Validity { not_before, not_after, .. } = self.inner.tbs_certificate().validity();
        let (from, to) = (not_before.to_unix_duration().as_secs(), not_after.to_unix_duration().as_secs());
        if (from..=to).contains(&now) { Ok(()) } else { Err(X509Error::Validity { subject: self.subject.clone(), from, to, now }) }
    }

    /// The public key as the certificate has it: a PKCS#1 key for RSA, a point for a curve.
    pub fn public_key(&self) -> &[u8] {
        self.inner.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes()
    }

    /// The value of an extension. One that is there twice is as good as none.
    pub fn extension(&self, number: &ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.inner.tbs_certificate().extensions()?;
        let mut found = extensions.iter().filter(|e| e.extn_id == *number);
        let first = found.next()?;
        found.next().is_none().then(|| first.extn_value.as_bytes())
    }

    /// The value of an extension that is an INTEGER of one byte.
    pub fn small_number(&self, number: &ObjectIdentifier) -> Option<u8> {
        u8::from_der(self.extension(number)?).ok()
    }
}

/// What an issuer has taken back (RFC 5280, section 5).
#[derive(Debug)]
pub struct Crl {
    signed: Vec<u8>,
    inner: CertificateList,
}

impl Crl {
    /// Reads DER.
    pub fn parse(bytes: &[u8]) -> Result<Self, X509Error> {
        let malformed = |e: x509_cert::der::Error| X509Error::Malformed(format!("nor a list of revoked ones: {e}"));
        let inner = CertificateList::from_der(bytes).map_err(malformed)?;
        Ok(Self { signed: signed_part(bytes).map_err(malformed)?, inner })
    }

    /// Whether this certificate still stands, by a list that its `issuer` signed (as [`X509::verify_issued_by`]) and that holds at `now`. A list
    /// of somebody else's, a changed one and one that has run out are errors: they say nothing.
    pub fn verify_stands(&self, certificate: &X509, issuer: &X509, now: u64) -> Result<(), X509Error> {
        let refused = |reason: &str| Err(X509Error::Revocations { issuer: issuer.subject.clone(), reason: reason.to_owned() });
        let CertificateList { tbs_cert_list: list, signature_algorithm, signature } = &self.inner;
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, issuer.public_key());
        let signed = signature_algorithm.oid == RSA_PSS && key.verify(&self.signed, signature.raw_bytes()).is_ok();
        if list.issuer != *issuer.inner.tbs_certificate().subject() || !signed {
            return refused("it did not sign this list");
        }
        let until = list.next_update.as_ref().map_or(0, |time| time.to_unix_duration().as_secs());
        if !(list.this_update.to_unix_duration().as_secs()..=until).contains(&now) {
            return refused("it holds at another time; fetch a new one");
        }
        let serial = certificate.inner.tbs_certificate().serial_number();
        if list.revoked_certificates.iter().flatten().any(|revoked| revoked.serial_number == *serial) {
            return Err(X509Error::Revoked { subject: certificate.subject.clone(), issuer: issuer.subject.clone() });
        }
        Ok(())
    }
}

/// The first of the three parts of what is signed. Not encoded anew: the signature is over these bytes, whatever a parser would make of them.
fn signed_part(bytes: &[u8]) -> Result<Vec<u8>, x509_cert::der::Error> {
    SliceReader::new(bytes)?.sequence(|r| {
        let signed = r.tlv_bytes()?.to_vec();
        r.tlv_bytes()?;
        r.tlv_bytes()?;
        Ok(signed)
    })
}

/// For error texts and for finding an issuer, whose whole name is compared afterwards.
fn common_name(name: &Name) -> String {
    let text = name.common_name().ok().flatten().map_or_else(String::new, |n| n.value().into_owned());
    crate::encoding::one_line(&text, 64)
}
