//! The content of a JWE: A256GCM (RFC 7518 §5.3).

use super::{JWE, OcicryptError, malformed};
use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use zeroize::Zeroizing;

/// Content-encryption key, in bytes.
pub(super) const CEK_LEN: usize = 32;
const IV_LEN: usize = 12;
const TAG_LEN: usize = 16;

#[derive(Debug, Clone)]
pub(super) struct Sealed {
    /// What is authenticated beside the content: the protected header as it was received.
    aad: String,
    pub(super) iv: [u8; IV_LEN],
    /// With the tag behind it.
    sealed: Vec<u8>,
}

impl Sealed {
    pub(super) fn new(aad: String, iv: &[u8], mut ciphertext: Vec<u8>, tag: &[u8]) -> Result<Self, OcicryptError> {
        let iv = iv.try_into().map_err(|_| malformed(JWE, format!("iv has {} bytes, want {IV_LEN}", iv.len())))?;
        if tag.len() != TAG_LEN {
            return Err(malformed(JWE, format!("tag has {} bytes, want {TAG_LEN}", tag.len())));
        }
        ciphertext.extend_from_slice(tag);
        Ok(Self { aad, iv, sealed: ciphertext })
    }

    pub(super) fn seal(aad: String, key: &[u8; CEK_LEN], plain: &[u8]) -> Result<Self, OcicryptError> {
        let mut iv = [0; IV_LEN];
        getrandom::fill(&mut iv).map_err(|e| malformed("random source", e))?;
        let payload = Payload { msg: plain, aad: aad.as_bytes() };
        let sealed = Aes256Gcm::new(key.into()).encrypt(&Nonce::from(iv), payload).map_err(|_| malformed(JWE, "too long to wrap"))?;
        Ok(Self { aad, iv, sealed })
    }

    pub(super) fn open(&self, key: &[u8; CEK_LEN]) -> Result<Zeroizing<Vec<u8>>, OcicryptError> {
        let payload = Payload { msg: &self.sealed, aad: self.aad.as_bytes() };
        let plain = Aes256Gcm::new(key.into()).decrypt(&Nonce::from(self.iv), payload);
        plain.map(Zeroizing::new).map_err(|_| OcicryptError::WrongPrivateKey)
    }

    pub(super) fn ciphertext(&self) -> &[u8] {
        &self.sealed[..self.sealed.len().saturating_sub(TAG_LEN)]
    }

    pub(super) fn tag(&self) -> &[u8] {
        &self.sealed[self.sealed.len().saturating_sub(TAG_LEN)..]
    }
}
