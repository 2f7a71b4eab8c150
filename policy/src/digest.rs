//! The digest of initdata, as rules and evidence name it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A text that is no digest.
#[derive(Debug, Error)]
#[error("initdata digest {0:?}: expected sha256:, sha384: or sha512: and that many bits of lower-case hex")]
pub struct DigestError(String);

/// The hash that the document names for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// SHA-256; the one that fits into SNP's HOST_DATA without a cut.
    #[serde(rename = "sha256", alias = "sha-256")]
    Sha256,
    /// SHA-384.
    #[serde(rename = "sha384", alias = "sha-384")]
    Sha384,
    /// SHA-512.
    #[serde(rename = "sha512", alias = "sha-512")]
    Sha512,
}

impl Algorithm {
    /// As digests write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of a digest in bytes.
    pub fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }
}

/// Digest of a document over its bytes as they are, written `sha256:<hex>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InitdataDigest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl InitdataDigest {
    /// The digest of a document.
    pub fn of(algorithm: Algorithm, text: &str) -> Self {
        Self { algorithm, bytes: algorithm.digest(text.as_bytes()) }
    }

    /// The hash.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// 32, 48 or 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes in lower-case hex.
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl fmt::Display for InitdataDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl FromStr for InitdataDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // A hostile text is not repeated whole in a log.
        let bad = || DigestError(text.chars().take(160).collect());
        let (name, digits) = text.split_once(':').ok_or_else(bad)?;
        let algorithm = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512].into_iter().find(|a| a.name() == name).ok_or_else(bad)?;
        if digits.len() != 2 * algorithm.length() || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(bad());
        }
        Ok(Self { algorithm, bytes: hex::decode(digits).map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_exact() {
        let long = "0".repeat(64);
        assert!(format!("sha256:{long}").parse::<InitdataDigest>().is_ok());
        for bad in ["", "sha256", "sha256:", "sha1:00", &format!("sha384:{long}"), &format!("sha256:{}", "A".repeat(64)), &long] {
            assert!(bad.parse::<InitdataDigest>().is_err(), "{bad}");
        }
    }
}
