//! A quote: what a TPM signs about its registers (TCG TPM 2.0 Library, Part 2, TPMS_ATTEST), and the key that signed it.

use super::{PCRS, Pcr, wire::Reader};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// A 2048-bit modulus, in bytes.
pub const RSA_KEY_LEN: usize = 256;

/// `TPM_GENERATED_VALUE`: a restricted key signs it only when the TPM itself wrote the structure.
const MAGIC: u32 = 0xff54_4347;
const TYPE_QUOTE: u16 = 0x8018;
const SHA256: u16 = 0x000b;
const RSASSA: u16 = 0x0014;
/// A SubjectPublicKeyInfo of an RSA key with 2048 bits: everything before the modulus, and the exponent 65537 after it (RFC 8017, A.1.1).
const SPKI_BEGIN: [u8; 33] = [
    0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00, 0x03, 0x82, 0x01,
    0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00,
];
const SPKI_END: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];

/// Why a quote cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuoteError {
    /// Not a TPMS_ATTEST of a quote.
    #[error("the quote is malformed: {0}")]
    Malformed(&'static str),
    /// Not an RSASSA signature with SHA-256 by a key of 2048 bits.
    #[error("only RSASSA with SHA-256 and a key of 2048 bits is known: {0}")]
    Algorithm(&'static str),
    /// The signature.
    #[error("the signature is not the attestation key's")]
    Signature,
    /// The registers.
    #[error("the quote is over other registers than were sent")]
    Registers,
}

/// A parsed quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// What the caller had signed with it.
    pub binding: Vec<u8>,
    /// Which registers of the SHA-256 bank; the only bank.
    pub selected: [bool; PCRS],
    /// SHA-256 over their concatenation, in order.
    pub digest: Pcr,
}

impl Quote {
    /// Reads a message to its last byte.
    pub fn parse(message: &[u8]) -> Result<Self, QuoteError> {
        let short = || QuoteError::Malformed("it ends early");
        let mut reader = Reader(message);
        if reader.u32().ok_or_else(short)? != MAGIC {
            return Err(QuoteError::Malformed("it was not written by a TPM"));
        }
        if reader.u16().ok_or_else(short)? != TYPE_QUOTE {
            return Err(QuoteError::Malformed("it is no quote"));
        }
        let _qualified_signer = reader.sized().ok_or_else(short)?;
        let binding = reader.sized().ok_or_else(short)?.to_vec();
        // Clock, reset count, restart count, safe; then the firmware's version.
        let _clock = reader.take(17 + 8).ok_or_else(short)?;
        if reader.u32().ok_or_else(short)? != 1 || reader.u16().ok_or_else(short)? != SHA256 {
            return Err(QuoteError::Malformed("it is not over the SHA-256 bank alone"));
        }
        let length = usize::from(reader.u8().ok_or_else(short)?);
        let bitmap = reader.take(length).ok_or_else(short)?;
        if length > PCRS / 8 {
            return Err(QuoteError::Malformed("it selects registers that are none"));
        }
        let mut selected = [false; PCRS];
        for (index, selected) in selected.iter_mut().enumerate() {
            *selected = bitmap.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        }
        let digest = reader.sized().ok_or_else(short)?;
        let digest = digest.try_into().map_err(|_| QuoteError::Malformed("its digest is not of SHA-256"))?;
        if !reader.at_end() {
            return Err(QuoteError::Malformed("bytes follow it"));
        }
        Ok(Self { binding, selected, digest })
    }

    /// Whether the quote is over these registers.
    pub fn check_registers(&self, pcrs: &[Pcr; PCRS]) -> Result<(), QuoteError> {
        let mut digest = Sha256::new();
        for (pcr, _) in pcrs.iter().zip(self.selected).filter(|(_, selected)| *selected) {
            digest.update(pcr);
        }
        if digest.finalize()[..] == self.digest { Ok(()) } else { Err(QuoteError::Registers) }
    }
}

/// The signature inside a TPMT_SIGNATURE.
pub fn signature(tpmt: &[u8]) -> Result<&[u8], QuoteError> {
    let mut reader = Reader(tpmt);
    if (reader.u16(), reader.u16()) != (Some(RSASSA), Some(SHA256)) {
        return Err(QuoteError::Algorithm("the signature is of another scheme"));
    }
    let signature = reader.sized().filter(|_| reader.at_end());
    signature.ok_or(QuoteError::Malformed("the signature's length"))
}

/// The attestation key as SubjectPublicKeyInfo, DER.
pub fn spki(modulus: &[u8]) -> Vec<u8> {
    [&SPKI_BEGIN, modulus, &SPKI_END].concat()
}

/// The modulus in a SubjectPublicKeyInfo.
pub fn modulus(spki: &[u8]) -> Result<&[u8], QuoteError> {
    let inner = spki.strip_prefix(&SPKI_BEGIN).and_then(|rest| rest.strip_suffix(&SPKI_END));
    inner.filter(|modulus| modulus.len() == RSA_KEY_LEN && modulus[0] >= 0x80).ok_or(QuoteError::Algorithm("the key is of another kind"))
}

/// Verifies a signature (PKCS #1 v1.5) by the key with this modulus.
#[cfg(feature = "verify")]
pub fn verify(modulus: &[u8], message: &[u8], signature: &[u8]) -> Result<(), QuoteError> {
    let key = ring::signature::RsaPublicKeyComponents { n: modulus, e: &[1, 0, 1] };
    key.verify(&ring::signature::RSA_PKCS1_2048_8192_SHA256, message, signature).map_err(|_| QuoteError::Signature)
}
