//! A secret on its way to one guest: a flattened JWE (RFC 7516), ECDH-ES+A256KW on P-256 (RFC 7518 §4.6) and A256GCM.
//!
//! The authenticated header is a trap between implementations: the guest-side ones of Confidential Containers do not use the string
//! they received but write the parsed header again. So [`encrypt`] writes exactly the form that comes out of that, and [`TeeKey::decrypt`]
//! uses the received string, which is right for every sender.

use crate::{
    encoding::{from_url, url},
    kbs::TeePublicKey,
};
use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use aes_kw::KwAes256;
use p256::{PublicKey, SecretKey, elliptic_curve::Generate, elliptic_curve::sec1::ToSec1Point};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// Key agreement.
pub const ALGORITHM: &str = "ECDH-ES+A256KW";

/// Content encryption.
const ENCRYPTION: &str = "A256GCM";

const KEY_LEN: usize = 32;
const WRAPPED_LEN: usize = KEY_LEN + 8;
const IV_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Longest header that is read, in characters.
const MAX_HEADER: usize = 4096;

/// Why a secret cannot be encrypted or decrypted.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum JweError {
    /// The receiver's or the ephemeral key.
    #[error("key of the JWE: {0}")]
    Key(&'static str),
    /// The header.
    #[error("header of the JWE: {0}")]
    Header(String),
    /// A member that is not base64url of its length.
    #[error("JWE: {0}: not base64url of the right length")]
    Member(&'static str),
    /// It is for another key, or was changed.
    #[error("JWE: not encrypted to this guest's key, or changed on the way")]
    Decrypt,
    /// The kernel gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
}

/// The flattened form; every member base64url without padding. There is no member `aad`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwe {
    /// The header.
    pub protected: String,
    /// The content key, wrapped: 40 bytes.
    pub encrypted_key: String,
    /// 12 bytes.
    pub iv: String,
    /// The secret.
    pub ciphertext: String,
    /// 16 bytes.
    pub tag: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
    epk: EphemeralKey,
}

#[derive(Deserialize)]
struct EphemeralKey {
    kty: String,
    crv: String,
    x: String,
    y: String,
}

/// The guest's key of one handshake; wiped when dropped.
pub struct TeeKey(SecretKey);

impl std::fmt::Debug for TeeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TeeKey").finish_non_exhaustive()
    }
}

impl TeeKey {
    /// A new key.
    pub fn generate() -> Result<Self, JweError> {
        SecretKey::try_generate().map(Self).map_err(|e| JweError::Random(e.to_string()))
    }

    /// The public half as it goes to the broker.
    pub fn public(&self) -> TeePublicKey {
        let (x, y) = coordinates(&self.0.public_key());
        TeePublicKey { kty: "EC".into(), crv: "P-256".into(), alg: ALGORITHM.into(), x, y }
    }

    /// Opens a secret that was encrypted to this key.
    pub fn decrypt(&self, jwe: &Jwe) -> Result<Zeroizing<Vec<u8>>, JweError> {
        if jwe.protected.len() > MAX_HEADER {
            return Err(JweError::Header("too long".into()));
        }
        let header = from_url(&jwe.protected).ok_or(JweError::Member("protected"))?;
        let header: Header = serde_json::from_slice(&header).map_err(|e| JweError::Header(e.to_string()))?;
        if header.alg != ALGORITHM || header.enc != ENCRYPTION || header.epk.kty != "EC" || header.epk.crv != "P-256" {
            return Err(JweError::Header(format!("only {ALGORITHM} on P-256 with {ENCRYPTION} is known")));
        }
        let ephemeral = public_key(&header.epk.x, &header.epk.y)?;
        let wrapped: [u8; WRAPPED_LEN] = member(&jwe.encrypted_key, "encrypted_key")?;
        let iv: [u8; IV_LEN] = member(&jwe.iv, "iv")?;
        let tag: [u8; TAG_LEN] = member(&jwe.tag, "tag")?;
        let mut sealed = from_url(&jwe.ciphertext).ok_or(JweError::Member("ciphertext"))?;
        sealed.extend_from_slice(&tag);

        let kek = key_encryption_key(&self.0, &ephemeral);
        let mut content_key = Zeroizing::new([0; KEY_LEN]);
        KwAes256::new((&*kek).into()).unwrap_key(&wrapped, &mut *content_key).map_err(|_| JweError::Decrypt)?;
        let payload = Payload { msg: &sealed, aad: jwe.protected.as_bytes() };
        let opened = Aes256Gcm::new((&*content_key).into()).decrypt(&Nonce::from(iv), payload);
        opened.map(Zeroizing::new).map_err(|_| JweError::Decrypt)
    }
}

/// Whether a secret can be encrypted to this key.
pub fn check_key(key: &TeePublicKey) -> Result<(), JweError> {
    receiver(key).map(drop)
}

/// Encrypts `secret` to the guest's key.
pub fn encrypt(secret: &[u8], to: &TeePublicKey) -> Result<Jwe, JweError> {
    let receiver = receiver(to)?;
    let ephemeral = SecretKey::try_generate().map_err(|e| JweError::Random(e.to_string()))?;
    let (mut content_key, mut iv) = (Zeroizing::new([0; KEY_LEN]), [0; IV_LEN]);
    getrandom::fill(&mut *content_key).map_err(|e| JweError::Random(e.to_string()))?;
    getrandom::fill(&mut iv).map_err(|e| JweError::Random(e.to_string()))?;

    let kek = key_encryption_key(&ephemeral, &receiver);
    let mut wrapped = [0; WRAPPED_LEN];
    KwAes256::new((&*kek).into()).wrap_key(&*content_key, &mut wrapped).map_err(|_| JweError::Decrypt)?;
    let protected = url(header(&ephemeral.public_key()).as_bytes());
    let payload = Payload { msg: secret, aad: protected.as_bytes() };
    let mut sealed = Aes256Gcm::new((&*content_key).into()).encrypt(&Nonce::from(iv), payload).map_err(|_| JweError::Decrypt)?;
    let tag = sealed.split_off(secret.len());
    Ok(Jwe { protected, encrypted_key: url(&wrapped), iv: url(&iv), ciphertext: url(&sealed), tag: url(&tag) })
}

/// The header in the only form that every known receiver computes again: no spaces, this order, `epk` alphabetical.
fn header(ephemeral: &PublicKey) -> String {
    let (x, y) = coordinates(ephemeral);
    format!(r#"{{"alg":"{ALGORITHM}","enc":"{ENCRYPTION}","epk":{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}}}"#)
}

/// Concat KDF (NIST SP 800-56A §5.8.1, RFC 7518 §4.6.2) for one block of SHA-256.
fn key_encryption_key(own: &SecretKey, theirs: &PublicKey) -> Zeroizing<[u8; KEY_LEN]> {
    let shared = own.diffie_hellman(theirs);
    let mut hash = Sha256::new();
    hash.update(1u32.to_be_bytes());
    hash.update(shared.raw_secret_bytes());
    hash.update((ALGORITHM.len() as u32).to_be_bytes());
    hash.update(ALGORITHM);
    hash.update(0u32.to_be_bytes()); // PartyUInfo
    hash.update(0u32.to_be_bytes()); // PartyVInfo
    hash.update(256u32.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}

fn coordinates(key: &PublicKey) -> (String, String) {
    let point = key.to_sec1_point(false);
    // Uncompressed: 0x04, x, y.
    let bytes = point.as_bytes();
    (url(&bytes[1..33]), url(&bytes[33..65]))
}

fn receiver(key: &TeePublicKey) -> Result<PublicKey, JweError> {
    if key.kty != "EC" || key.crv != "P-256" || key.alg != ALGORITHM {
        return Err(JweError::Key("only EC P-256 with ECDH-ES+A256KW is known"));
    }
    public_key(&key.x, &key.y)
}

/// The point must be on the curve: a crafted one would leak bits of the private key.
fn public_key(x: &str, y: &str) -> Result<PublicKey, JweError> {
    let (x, y): ([u8; 32], [u8; 32]) = (member(x, "x")?, member(y, "y")?);
    let sec1 = [&[4], x.as_slice(), y.as_slice()].concat();
    PublicKey::from_sec1_bytes(&sec1).map_err(|_| JweError::Key("not a point of P-256"))
}

fn member<const N: usize>(text: &str, name: &'static str) -> Result<[u8; N], JweError> {
    // Checked first, so that nothing large is decoded for a fixed field.
    if text.len() > 2 * N {
        return Err(JweError::Member(name));
    }
    from_url(text).and_then(|bytes| bytes.try_into().ok()).ok_or(JweError::Member(name))
}

/// The deterministic example of binding and JWE that the tests prove themselves against.
#[cfg(test)]
pub(crate) fn vector() -> serde_json::Value {
    serde_json::from_str(include_str!("../testdata/kbs_binding_and_jwe.json")).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector_key() -> TeeKey {
        let d = hex::decode(vector()["tee_private_d_hex"].as_str().unwrap()).unwrap();
        TeeKey(SecretKey::from_slice(&d).unwrap())
    }

    fn vector_jwe() -> Jwe {
        serde_json::from_value(vector()["response"].clone()).unwrap()
    }

    #[test]
    fn the_vector_opens_with_its_intermediates() {
        let (vector, key, jwe) = (vector(), vector_key(), vector_jwe());
        assert_eq!(serde_json::json!(key.public()), vector["tee_pubkey_jwk"]);
        let parsed: Header = serde_json::from_slice(&from_url(&jwe.protected).unwrap()).unwrap();
        let ephemeral = public_key(&parsed.epk.x, &parsed.epk.y).unwrap();
        assert_eq!(url(header(&ephemeral).as_bytes()), jwe.protected, "our header has the exact form");
        assert_eq!(hex::encode(key.0.diffie_hellman(&ephemeral).raw_secret_bytes()), vector["ecdh_z_hex"].as_str().unwrap());
        assert_eq!(hex::encode(*key_encryption_key(&key.0, &ephemeral)), vector["concat_kdf_kek_hex"].as_str().unwrap());
        assert_eq!(key.decrypt(&jwe).unwrap().as_slice(), vector["plaintext"].as_str().unwrap().as_bytes());
    }

    #[test]
    fn what_is_encrypted_opens_for_its_key_only() {
        let key = TeeKey::generate().unwrap();
        for secret in [b"".as_slice(), b"x", &[7; 100_000]] {
            let jwe = encrypt(secret, &key.public()).unwrap();
            assert_eq!(key.decrypt(&jwe).unwrap().as_slice(), secret);
            assert_eq!(TeeKey::generate().unwrap().decrypt(&jwe), Err(JweError::Decrypt));
        }
        let (one, two) = (encrypt(b"x", &key.public()).unwrap(), encrypt(b"x", &key.public()).unwrap());
        assert_ne!((one.protected, one.iv), (two.protected, two.iv), "nothing is used twice");
    }

    #[test]
    fn every_changed_part_is_noticed() {
        let (key, good) = (vector_key(), vector_jwe());
        let flip = |text: &str, length: usize| {
            let mut bytes = from_url(text).unwrap();
            assert!(bytes.len() >= length);
            bytes[length / 2] ^= 1;
            url(&bytes)
        };
        let changed = [
            Jwe { encrypted_key: flip(&good.encrypted_key, 40), ..good.clone() },
            Jwe { iv: flip(&good.iv, 12), ..good.clone() },
            Jwe { ciphertext: flip(&good.ciphertext, 33), ..good.clone() },
            Jwe { tag: flip(&good.tag, 16), ..good.clone() },
        ];
        for jwe in changed {
            assert_eq!(key.decrypt(&jwe), Err(JweError::Decrypt), "{jwe:?}");
        }
        // The same header with a space: equal when parsed, but not what was authenticated.
        let spaced = String::from_utf8(from_url(&good.protected).unwrap()).unwrap().replace(",\"enc\"", ", \"enc\"");
        assert_eq!(key.decrypt(&Jwe { protected: url(spaced.as_bytes()), ..good }), Err(JweError::Decrypt));
    }

    #[test]
    fn malformed_members_are_refused_before_any_arithmetic() {
        let (key, good) = (vector_key(), vector_jwe());
        let text = String::from_utf8(from_url(&good.protected).unwrap()).unwrap();
        let with = |from: &str, to: &str| Jwe { protected: url(text.replace(from, to).as_bytes()), ..good.clone() };
        assert!(matches!(key.decrypt(&with("A256GCM", "A128GCM")), Err(JweError::Header(_))));
        assert!(matches!(key.decrypt(&with("ECDH-ES+A256KW", "dir")), Err(JweError::Header(_))));
        assert!(matches!(key.decrypt(&with("P-256", "P-521")), Err(JweError::Header(_))));
        assert!(matches!(key.decrypt(&with("{", "")), Err(JweError::Header(_))));
        assert!(matches!(key.decrypt(&Jwe { protected: "A".repeat(MAX_HEADER + 1), ..good.clone() }), Err(JweError::Header(_))));
        assert_eq!(key.decrypt(&Jwe { tag: String::new(), ..good.clone() }), Err(JweError::Member("tag")));
        assert_eq!(key.decrypt(&Jwe { iv: "A".repeat(1 << 20), ..good.clone() }), Err(JweError::Member("iv")));
        assert_eq!(key.decrypt(&Jwe { ciphertext: "***".into(), ..good.clone() }), Err(JweError::Member("ciphertext")));
        // A point off the curve.
        let x = &key.public().x;
        let off = format!(r#"{{"alg":"{ALGORITHM}","enc":"{ENCRYPTION}","epk":{{"crv":"P-256","kty":"EC","x":"{x}","y":"{x}"}}}}"#);
        assert!(matches!(key.decrypt(&Jwe { protected: url(off.as_bytes()), ..good }), Err(JweError::Key(_))));
        let wrong = TeePublicKey { crv: "P-521".into(), ..key.public() };
        assert!(matches!(encrypt(b"", &wrong), Err(JweError::Key(_))));
        let wrong = TeePublicKey { y: key.public().x, ..key.public() };
        assert!(matches!(encrypt(b"", &wrong), Err(JweError::Key(_))));
    }
}
