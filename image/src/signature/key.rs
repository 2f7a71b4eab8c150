//! Public keys as `cosign.pub` has them: a SubjectPublicKeyInfo in PEM (RFC 7468).

use base64::{Engine, engine::general_purpose::STANDARD};
use der::{Decode, oid::ObjectIdentifier};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use spki::SubjectPublicKeyInfoRef;
use thiserror::Error;

/// Longest key file, in bytes.
pub const MAX_KEY: usize = 16 << 10;

const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EDWARDS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A text that is no usable public key.
#[derive(Debug, Error)]
pub enum KeyError {
    /// Not PEM.
    #[error("not a public key: want PEM that begins with -----BEGIN PUBLIC KEY-----, such as cosign.pub")]
    Pem,
    /// A kind that is not verified here.
    #[error("a public key of a kind that is not supported ({0}): want ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits and more")]
    Kind(String),
}

/// A key that signatures are checked with.
#[derive(Clone)]
pub struct PublicKey {
    /// cosign hashes with SHA-256 whatever the curve; newer signers take the hash that goes with it.
    algorithms: Vec<&'static dyn VerificationAlgorithm>,
    bytes: Vec<u8>,
    /// The whole SubjectPublicKeyInfo.
    spki: Vec<u8>,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublicKey").field("spki", &hex::encode(&self.spki)).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// Reads a PEM file of one public key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(pem).ok().filter(|text| text.len() <= MAX_KEY).ok_or(KeyError::Pem)?;
        // RFC 7468 wants lines of 64 characters, and not everybody's keys have them.
        let body = text.trim().strip_prefix("-----BEGIN PUBLIC KEY-----").and_then(|rest| rest.strip_suffix("-----END PUBLIC KEY-----"));
        let body: String = body.ok_or(KeyError::Pem)?.split_ascii_whitespace().collect();
        Self::from_der(&STANDARD.decode(body).map_err(|_| KeyError::Pem)?)
    }

    /// Reads a SubjectPublicKeyInfo.
    pub fn from_der(spki: &[u8]) -> Result<Self, KeyError> {
        let parsed = SubjectPublicKeyInfoRef::from_der(spki).map_err(|_| KeyError::Pem)?;
        let parameters = parsed.algorithm.parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithms: Vec<&'static dyn VerificationAlgorithm> = match (parsed.algorithm.oid, parameters) {
            (EC, Some(P256)) => vec![&ECDSA_P256_SHA256_ASN1],
            (EC, Some(P384)) => vec![&ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1],
            (EC, Some(curve)) => return Err(KeyError::Kind(format!("curve {curve}"))),
            (EDWARDS, _) => vec![&ED25519],
            (RSA, _) => vec![&RSA_PKCS1_2048_8192_SHA256],
            (other, _) => return Err(KeyError::Kind(format!("algorithm {other}"))),
        };
        let bytes = parsed.subject_public_key.as_bytes().ok_or(KeyError::Pem)?.to_vec();
        Ok(Self { algorithms, bytes, spki: spki.to_vec() })
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.iter().any(|algorithm| UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok())
    }

    /// The whole SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_public_key_is_told() {
        for text in ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(matches!(PublicKey::from_pem(text.as_bytes()), Err(KeyError::Pem)), "{text}");
        }
        let private = super::super::sign::SigningKey::generate().unwrap().to_pem().unwrap();
        let error = PublicKey::from_pem(private.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("BEGIN PUBLIC KEY") && !error.contains(&private[40..80]), "{error}");
    }

    /// `openssl ecparam -name secp521r1 -genkey | openssl ec -pubout`
    #[test]
    fn an_unsupported_curve_is_told() {
        let pem = concat!(
            "-----BEGIN PUBLIC KEY-----\n",
            "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAnGBFUnUvQtuOLE/NdDecdhK2os5v\n",
            "9DEGANEYpVg1bQbvq8vVzzwTkoI9DHHbyikv5a/ps7PpSNyvxbhMx1WdYUIBwFfr\n",
            "heCgjw2XxTHWRxGFR6DrRukRXOn1qHKDxjrT4LxWEqKQ5iTGq1jHhQhOo5D6u/sx\n",
            "IWCXpMN1kNmiIwDlDpM=\n",
            "-----END PUBLIC KEY-----\n",
        );
        let error = PublicKey::from_pem(pem.as_bytes()).unwrap_err();
        assert!(matches!(error, KeyError::Kind(_)) && error.to_string().contains("P-256"), "{error}");
    }
}
