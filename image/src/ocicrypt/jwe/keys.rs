//! The keys of JWE recipients: RSA (RSA-OAEP, RSA-OAEP-256) and EC on P-256 (ECDH-ES with A128KW, A192KW or A256KW).

use super::{JWE, OcicryptError, content::CEK_LEN, encode, malformed, url};
use crate::manifest::clip;
use aes_gcm::KeyInit;
use aes_kw::{KwAes128, KwAes192, KwAes256};
use p256::elliptic_curve::{Generate, sec1::ToSec1Point};
use rsa::{
    pkcs1::{DecodeRsaPrivateKey, DecodeRsaPublicKey},
    pkcs8::{DecodePrivateKey, DecodePublicKey},
};
use serde_json::{Map, Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Longest key file, in bytes.
const MAX_PEM: usize = 16 << 10;
const RSA_OAEP: &str = "RSA-OAEP";
const RSA_OAEP_256: &str = "RSA-OAEP-256";
const ECDH_A256KW: &str = "ECDH-ES+A256KW";

/// A recipient's public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// RSA.
    Rsa(Box<rsa::PublicKey>),
    /// EC on P-256.
    P256(p256::PublicKey),
}

/// A recipient's private key; wiped when dropped.
#[derive(Clone)]
pub enum PrivateKey {
    /// RSA.
    Rsa(Box<rsa::PrivateKey>),
    /// EC on P-256.
    P256(p256::SecretKey),
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rsa(_) => "PrivateKey(RSA, ..)",
            Self::P256(_) => "PrivateKey(P-256, ..)",
        })
    }
}

fn text(pem: &[u8]) -> Result<&str, OcicryptError> {
    let text = std::str::from_utf8(pem).ok().filter(|text| text.len() <= MAX_PEM);
    text.map(str::trim).ok_or(OcicryptError::KeyFile("a PEM file"))
}

impl PublicKey {
    /// Reads PEM: a SubjectPublicKeyInfo ("PUBLIC KEY"), or PKCS#1 ("RSA PUBLIC KEY").
    pub fn from_pem(pem: &[u8]) -> Result<Self, OcicryptError> {
        let text = text(pem)?;
        let rsa = rsa::PublicKey::from_public_key_pem(text).or_else(|_| rsa::PublicKey::from_pkcs1_pem(text));
        if let Ok(key) = rsa {
            return Ok(Self::Rsa(Box::new(key)));
        }
        let key: Result<p256::PublicKey, _> = text.parse();
        key.map(Self::P256).map_err(|_| OcicryptError::KeyFile("a public key (PUBLIC KEY or RSA PUBLIC KEY): RSA, or EC on P-256"))
    }

    /// The headers and the wrapped key for this recipient, with the algorithm that ocicrypt takes for it.
    pub(super) fn wrap(&self, content_key: &[u8; CEK_LEN]) -> Result<(Map<String, Value>, Vec<u8>), OcicryptError> {
        match self {
            Self::Rsa(key) => {
                let wrapped = key.oaep_encrypt::<Sha1>(content_key).map_err(|e| malformed(JWE, e))?;
                Ok((header(json!({"alg": RSA_OAEP})), wrapped))
            }
            Self::P256(key) => {
                let ephemeral = p256::SecretKey::try_generate().map_err(|e| malformed("random source", e))?;
                let kek = key_encryption_key(&ephemeral, key, ECDH_A256KW, 32, [&[], &[]]);
                let mut wrapped = vec![0; CEK_LEN + 8];
                let key: &[u8; 32] = kek.as_slice().try_into().map_err(|_| OcicryptError::WrongPrivateKey)?;
                KwAes256::new(key.into()).wrap_key(content_key, &mut wrapped).map_err(|e| malformed(JWE, e))?;
                let point = ephemeral.public_key().to_sec1_point(false);
                let point = point.as_bytes();
                let epk = json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..65])});
                Ok((header(json!({"alg": ECDH_A256KW, "epk": epk})), wrapped))
            }
        }
    }
}

fn header(json: Value) -> Map<String, Value> {
    json.as_object().cloned().unwrap_or_default()
}

impl PrivateKey {
    /// Reads PEM: PKCS#8 ("PRIVATE KEY"), PKCS#1 ("RSA PRIVATE KEY") or SEC 1 ("EC PRIVATE KEY"). Nothing of the text is in an error.
    pub fn from_pem(pem: &[u8]) -> Result<Self, OcicryptError> {
        let text = text(pem)?;
        if text.contains("ENCRYPTED") {
            return Err(OcicryptError::KeyFile("a private key that is not under a password; remove it with `openssl pkey`"));
        }
        let rsa = rsa::PrivateKey::from_pkcs8_pem(text).or_else(|_| rsa::PrivateKey::from_pkcs1_pem(text));
        if let Ok(key) = rsa {
            return Ok(Self::Rsa(Box::new(key)));
        }
        let ec = p256::SecretKey::from_pkcs8_pem(text).ok().or_else(|| p256::SecretKey::from_sec1_pem(text).ok());
        ec.map(Self::P256)
            .ok_or(OcicryptError::KeyFile("a private key (PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY): RSA, or EC on P-256"))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Rsa(key) => PublicKey::Rsa(Box::new(key.to_public_key())),
            Self::P256(key) => PublicKey::P256(key.public_key()),
        }
    }

    /// The content key, if it was wrapped for this key.
    pub(super) fn unwrap(&self, header: &Map<String, Value>, wrapped: &[u8]) -> Result<Zeroizing<[u8; CEK_LEN]>, OcicryptError> {
        let algorithm = header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let content_key = match self {
            Self::Rsa(key) => match algorithm {
                RSA_OAEP => key.oaep_decrypt::<Sha1>(wrapped),
                RSA_OAEP_256 => key.oaep_decrypt::<Sha256>(wrapped),
                other => return Err(OcicryptError::KeyKind(clip(other))),
            }
            .map(Zeroizing::new)
            .map_err(|_| OcicryptError::WrongPrivateKey)?,
            Self::P256(key) => {
                let length = match algorithm {
                    "ECDH-ES+A128KW" => 16,
                    "ECDH-ES+A192KW" => 24,
                    ECDH_A256KW => 32,
                    other => return Err(OcicryptError::KeyKind(clip(other))),
                };
                let kek = agree(key, header, algorithm, length)?;
                unwrap_aes(&kek, wrapped)?
            }
        };
        let content_key: &[u8; CEK_LEN] = content_key.as_slice().try_into().map_err(|_| OcicryptError::WrongPrivateKey)?;
        Ok(Zeroizing::new(*content_key))
    }
}

fn agree(own: &p256::SecretKey, header: &Map<String, Value>, algorithm: &str, length: usize) -> Result<Zeroizing<Vec<u8>>, OcicryptError> {
    let epk = header.get("epk").ok_or_else(|| malformed(JWE, "epk is missing"))?;
    let member = |name: &str| epk.get(name).and_then(Value::as_str).unwrap_or_default();
    if (member("kty"), member("crv")) != ("EC", "P-256") {
        return Err(OcicryptError::KeyKind(format!("{algorithm} on curve {:?}", clip(member("crv")))));
    }
    let coordinate = |name: &str| -> Result<[u8; 32], OcicryptError> {
        url(member(name), name)?.try_into().map_err(|_| malformed(JWE, format!("epk.{name} is not 32 bytes")))
    };
    let sec1 = [&[4], coordinate("x")?.as_slice(), coordinate("y")?.as_slice()].concat();
    // A point off the curve would leak bits of the private key.
    let theirs = p256::PublicKey::from_sec1_bytes(&sec1).map_err(|_| malformed(JWE, "epk is not a point of P-256"))?;
    let party = |name: &str| header.get(name).and_then(Value::as_str).map_or_else(|| Ok(Vec::new()), |text| url(text, name));
    Ok(key_encryption_key(own, &theirs, algorithm, length, [&party("apu")?, &party("apv")?]))
}

/// Concat KDF with SHA-256 (RFC 7518 §4.6.2); one round is enough for at most 32 bytes.
fn key_encryption_key(
    own: &p256::SecretKey,
    theirs: &p256::PublicKey,
    algorithm: &str,
    length: usize,
    parties: [&[u8]; 2],
) -> Zeroizing<Vec<u8>> {
    let shared = own.diffie_hellman(theirs);
    let mut hash = Sha256::new();
    hash.update(1u32.to_be_bytes());
    hash.update(shared.raw_secret_bytes());
    for part in [algorithm.as_bytes(), parties[0], parties[1]] {
        hash.update((part.len() as u32).to_be_bytes());
        hash.update(part);
    }
    hash.update((length as u32 * 8).to_be_bytes());
    let mut key = Zeroizing::new(hash.finalize().to_vec());
    key.truncate(length);
    key
}

fn unwrap_aes(kek: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, OcicryptError> {
    let mut out = Zeroizing::new(vec![0; wrapped.len().saturating_sub(8)]);
    let unwrapped = match kek.len() {
        16 => <&[u8; 16]>::try_from(kek).ok().and_then(|kek| KwAes128::new(kek.into()).unwrap_key(wrapped, &mut out).ok()).map(drop),
        24 => <&[u8; 24]>::try_from(kek).ok().and_then(|kek| KwAes192::new(kek.into()).unwrap_key(wrapped, &mut out).ok()).map(drop),
        _ => <&[u8; 32]>::try_from(kek).ok().and_then(|kek| KwAes256::new(kek.into()).unwrap_key(wrapped, &mut out).ok()).map(drop),
    };
    unwrapped.map(|()| out).ok_or(OcicryptError::WrongPrivateKey)
}
