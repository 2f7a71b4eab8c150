//! One trait for each side of evidence, so that a TEE is one file: an [`Attester`] in the guest, a [`Verifier`] at the broker.

use crate::{images::Manifest, kbs::Tee, report_data::ReportData, snp::SnpClaims, tdx::TdxClaims, tpm::TpmClaims};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{future, pin::Pin};
use thiserror::Error;

/// Why there is no evidence, or none that counts. One line each.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EvidenceError {
    /// The TEE does not give any.
    #[error("{tee} evidence: cannot be collected: {reason}")]
    Collect {
        /// Which.
        tee: Tee,
        /// Why.
        reason: String,
    },
    /// An image cannot be measured.
    #[error("{tee}: the image cannot be measured, and so does not run: {reason}")]
    Measure {
        /// Which.
        tee: Tee,
        /// Why.
        reason: String,
    },
    /// It does not have its form.
    #[error("{tee} evidence: {reason}")]
    Malformed {
        /// Which.
        tee: Tee,
        /// What is wrong.
        reason: String,
    },
    /// It was made for another challenge or another key: a replay.
    #[error("{tee} evidence: made for another challenge or key: its report data is {found}, this handshake wants {wanted}")]
    Binding {
        /// Which.
        tee: Tee,
        /// Hex.
        found: String,
        /// Hex.
        wanted: String,
    },
    /// The hardware's maker does not vouch for it: a signature, a certificate, or what must agree with it.
    #[error("{tee} evidence: not genuine: {reason}")]
    Untrusted {
        /// Which.
        tee: Tee,
        /// What does not hold.
        reason: String,
    },
    /// What is needed to verify it, and does not travel with it, is not at hand.
    #[error("{tee} evidence: cannot be verified: {reason}")]
    Endorsement {
        /// Which.
        tee: Tee,
        /// What is missing, and where it was looked for.
        reason: String,
    },
}

/// The guest's side.
pub trait Attester: Send + Sync {
    /// What kind of evidence it collects.
    fn tee(&self) -> Tee;

    /// Evidence bound to `report_data`, in the JSON form of its kind. May block for as long as the hardware takes.
    fn evidence(&self, report_data: &ReportData) -> Result<Value, EvidenceError>;

    /// Has later evidence say that this image runs, where the TEE has a register for it; see [`crate::images`]. Where it has none, nothing is
    /// done. To be called before the image's container exists, which must not where this fails. May block.
    fn measure(&self, image: &Manifest) -> Result<(), EvidenceError> {
        let _ = image;
        Ok(())
    }
}

/// What [`Verifier::prepare`] gives.
pub type Preparation<'a> = Pin<Box<dyn Future<Output = Result<(), EvidenceError>> + Send + 'a>>;

/// The broker's side.
pub trait Verifier: Send + Sync {
    /// What kind of evidence it verifies.
    fn tee(&self) -> Tee;

    /// Fetches the endorsements (certificates, collateral) that this evidence needs and that are neither in it nor at hand. Called before
    /// [`Verifier::verify`], which asks nobody; most evidence needs none. It proves nothing: what was fetched is verified with the rest.
    fn prepare<'a>(&'a self, evidence: &'a Value, now: u64) -> Preparation<'a> {
        let _ = (evidence, now);
        Box::pin(future::ready(Ok(())))
    }

    /// What `evidence` proves, if it is genuine at the time `now` (seconds since 1970) and bound to `report_data`.
    fn verify(&self, evidence: &Value, report_data: &ReportData, now: u64) -> Result<Claims, EvidenceError>;
}

/// What evidence proves; for [`Tee::Sample`], what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The TEE.
    pub tee: Tee,
    /// Digest of what was launched; empty where the evidence has none.
    #[serde(with = "hex::serde")]
    pub launch_measurement: Vec<u8>,
    /// The field that the owner's initdata is bound to, in the TEE's own length; empty where the evidence has none.
    #[serde(with = "hex::serde")]
    pub init_data: Vec<u8>,
    /// What it is bound to.
    #[serde(with = "hex::serde")]
    pub report_data: Vec<u8>,
    /// What only this kind of hardware says.
    #[serde(default, skip_serializing_if = "Details::is_none")]
    pub details: Details,
}

/// Claims that only one kind of hardware makes, for the table of that name in a release rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Details {
    /// Nothing more.
    #[default]
    None,
    /// AMD SEV-SNP.
    Snp(Box<SnpClaims>),
    /// Intel TDX.
    Tdx(Box<TdxClaims>),
    /// A TPM.
    Tpm(TpmClaims),
}

impl Details {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Claims {
    /// Whether the host may read the memory of what it claims to keep from it.
    pub fn is_debug(&self) -> bool {
        match &self.details {
            Details::None | Details::Tpm(_) => false,
            Details::Snp(claims) => claims.is_debug(),
            Details::Tdx(claims) => claims.is_debug(),
        }
    }

    /// Whether the VM was started with the initdata of this digest. Fields have the TEE's length: a digest that is longer was cut,
    /// one that is shorter padded with zeros. No field, an all-zero one, and an empty digest equal nothing.
    pub fn has_init_data(&self, digest: &[u8]) -> bool {
        is_init_data(&self.init_data, digest)
    }
}

/// Whether a TEE's field for it holds this digest of initdata, as [`Claims::has_init_data`] compares them.
pub fn is_init_data(field: &[u8], digest: &[u8]) -> bool {
    let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    if zero(field) || zero(digest) {
        return false;
    }
    let common = field.len().min(digest.len());
    // A cut to less than SHA-256 would no longer bind anything.
    common >= 32 && field[..common] == digest[..common] && zero(&field[common..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(init_data: Vec<u8>) -> Claims {
        Claims { tee: Tee::Snp, launch_measurement: vec![1; 48], init_data, report_data: vec![0; 64], details: Details::None }
    }

    #[test]
    fn digests_are_compared_in_the_length_of_the_field() {
        let digest = [7; 48];
        assert!(claims(vec![7; 48]).has_init_data(&digest));
        assert!(claims(vec![7; 32]).has_init_data(&digest), "SNP cuts to 32 bytes");
        assert!(claims([vec![7; 32], vec![0; 16]].concat()).has_init_data(&[7; 32]), "TDX pads to 48 bytes");
        assert!(!claims(vec![7; 48]).has_init_data(&[7; 32]), "what follows the digest must be padding");
        assert!(!claims(vec![8; 32]).has_init_data(&digest));
    }

    #[test]
    fn nothing_equals_nothing() {
        assert!(!claims(Vec::new()).has_init_data(&[]));
        assert!(!claims(vec![0; 32]).has_init_data(&[0; 32]), "a VM without initdata");
        assert!(!claims(vec![0; 32]).has_init_data(&[]));
        assert!(!claims(Vec::new()).has_init_data(&[7; 32]));
        assert!(!claims(vec![7; 16]).has_init_data(&[7; 32]), "a field too short to bind anything");
        assert!(!claims(vec![7; 32]).has_init_data(&[7; 16]));
    }
}
