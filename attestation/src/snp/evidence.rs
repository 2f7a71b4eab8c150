//! Report and certificates as a guest sends them, in Trustee's form:
//!
//! ```json
//! {"attestation_report": {"version": 3, …}, "cert_chain": [{"cert_type": "VCEK", "data": [48, 130, …]}]}
//! ```

use crate::{
    encoding::one_line,
    evidence::EvidenceError,
    kbs::Tee,
    snp::{Report, cert_table},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most certificates that evidence may bring.
pub const MAX_CERTIFICATES: usize = 16;

/// Longest certificate, in bytes; AMD's have less than 2048.
pub const MAX_CERTIFICATE: usize = 8192;

/// What a certificate is said to be; that it is so is for the verifier to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum KnownCert {
    /// The root.
    Ark,
    /// Signs VCEKs.
    Ask,
    /// Of one chip.
    Vcek,
    /// Of a provider.
    Vlek,
    /// Not a certificate but what the root has revoked.
    Crl,
}

/// Kind of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CertType {
    /// One of AMD's.
    Known(KnownCert),
    /// Ignored.
    Other(Value),
}

/// A certificate in DER, or in PEM, as the host gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// What it is said to be.
    pub cert_type: CertType,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// The evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnpEvidence {
    /// The report.
    pub attestation_report: Report,
    /// What the host handed over beside it.
    #[serde(default)]
    pub cert_chain: Option<Vec<Certificate>>,
}

impl SnpEvidence {
    /// Out of what a kernel gives: the report, and the host's certificate table (empty where there is none).
    pub fn collected(report: &[u8], table: &[u8]) -> Result<Self, EvidenceError> {
        let failed = |reason: String| EvidenceError::Collect { tee: Tee::Snp, reason };
        let attestation_report = Report::parse(report).map_err(|e| failed(e.to_string()))?;
        // A broken table is the host's doing, and the verifier may have the certificate anyway.
        let certificates = cert_table::parse(table).unwrap_or_else(|error| {
            log::warn!(tee = "snp"; "the host's certificates are left out: {error}");
            Vec::new()
        });
        Ok(Self { attestation_report, cert_chain: (!certificates.is_empty()).then_some(certificates) })
    }

    /// Reads the JSON form within its bounds.
    pub fn from_json(evidence: &Value) -> Result<Self, EvidenceError> {
        let malformed = |reason: String| EvidenceError::Malformed { tee: Tee::Snp, reason };
        let evidence = Self::deserialize(evidence).map_err(|e| malformed(one_line(&e.to_string(), 256)))?;
        let certificates = evidence.certificates();
        if certificates.len() > MAX_CERTIFICATES || certificates.iter().any(|c| c.data.len() > MAX_CERTIFICATE) {
            let reason = format!("cert_chain: at most {MAX_CERTIFICATES} certificates of {MAX_CERTIFICATE} bytes are read");
            return Err(malformed(reason));
        }
        Ok(evidence)
    }

    /// What the host handed over.
    pub fn certificates(&self) -> &[Certificate] {
        self.cert_chain.as_deref().unwrap_or_default()
    }
}
