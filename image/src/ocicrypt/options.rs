//! The two option documents of a layer (ocicrypt, `blockcipher/blockcipher.go`): the public one in the clear, the private one
//! inside the key packet.

use super::{OcicryptError, malformed};
use crate::{digest::Digest, strict_json};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// The one cipher that ocicrypt has.
const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";

const PUBLIC: &str = "annotation pubopts";
const PRIVATE: &str = "wrapped layer key";

#[derive(Serialize, Deserialize, Default)]
struct CipherOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct PublicJson {
    cipher: String,
    hmac: String,
    // Go writes `null` for an empty map.
    #[serde(default)]
    cipheroptions: Option<CipherOptions>,
}

#[derive(Serialize, Deserialize)]
struct PrivateJson {
    symkey: String,
    digest: Digest,
    #[serde(default)]
    cipheroptions: Option<CipherOptions>,
    /// Ours: other tools write none, and read past it.
    #[serde(rename = "dev.cloister.config", default)]
    config: Option<Digest>,
}

impl Drop for PrivateJson {
    fn drop(&mut self) {
        self.symkey.zeroize();
    }
}

/// What everybody may know of a layer's encryption.
#[derive(Debug, Clone)]
pub(super) struct PublicOptions {
    /// Over the ciphertext.
    pub(super) hmac: [u8; 32],
    /// Not where our encryptor puts it; other tools might.
    pub(super) nonce: Option<[u8; 16]>,
}

impl PublicOptions {
    pub(super) fn from_base64(text: &str) -> Result<Self, OcicryptError> {
        let json = STANDARD.decode(text).map_err(|e| malformed(PUBLIC, e))?;
        let json: PublicJson = strict_json::parse(&json).map_err(|e| malformed(PUBLIC, e))?;
        if json.cipher != CIPHER {
            return Err(malformed(PUBLIC, format!("cipher {:?}, want {CIPHER}", crate::manifest::clip(&json.cipher))));
        }
        let nonce = json.cipheroptions.and_then(|o| o.nonce).map(|nonce| fixed(PUBLIC, "nonce", &nonce)).transpose()?;
        Ok(Self { hmac: fixed(PUBLIC, "hmac", &json.hmac)?, nonce })
    }

    pub(super) fn to_base64(&self) -> String {
        let nonce = self.nonce.map(|nonce| STANDARD.encode(nonce));
        let json = PublicJson { cipher: CIPHER.into(), hmac: STANDARD.encode(self.hmac), cipheroptions: Some(CipherOptions { nonce }) };
        STANDARD.encode(serde_json::json!(json).to_string())
    }
}

/// What only the recipients may know.
pub(crate) struct PrivateOptions {
    pub(super) key: Zeroizing<[u8; 32]>,
    pub(super) nonce: [u8; 16],
    /// Of the blob before encryption.
    pub(super) digest: Digest,
    /// Of the config of the image that the layer is part of; nothing where another tool encrypted it.
    pub(super) config: Option<Digest>,
}

impl PrivateOptions {
    /// `json` came out of an authenticated packet; its errors say nothing of its values.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, OcicryptError> {
        let json: PrivateJson = serde_json::from_slice(json).map_err(|_| malformed(PRIVATE, "not the JSON of a layer key"))?;
        let nonce = json.cipheroptions.as_ref().and_then(|o| o.nonce.as_ref()).ok_or_else(|| malformed(PRIVATE, "has no nonce"))?;
        let nonce = fixed(PRIVATE, "nonce", nonce)?;
        Ok(Self { key: Zeroizing::new(fixed(PRIVATE, "symkey", &json.symkey)?), nonce, digest: json.digest, config: json.config })
    }

    pub(super) fn to_json(&self) -> Zeroizing<Vec<u8>> {
        // Written by hand so that the key passes through no buffer that is not wiped. Base64 and digests need no escaping.
        let key = Zeroizing::new(STANDARD.encode(self.key.as_slice()));
        let nonce = STANDARD.encode(self.nonce);
        let config = self.config.map(|config| format!(r#","dev.cloister.config":"{config}""#)).unwrap_or_default();
        let digest = self.digest.to_string();
        let mut json = Zeroizing::new(Vec::with_capacity(384));
        for part in [r#"{"symkey":""#, &key, r#"","digest":""#, &digest, r#"","cipheroptions":{"nonce":""#, &nonce, r#""}"#, &config, "}"] {
            json.extend_from_slice(part.as_bytes());
        }
        json
    }
}

/// Base64 of exactly `N` bytes.
fn fixed<const N: usize>(what: &'static str, field: &str, text: &str) -> Result<[u8; N], OcicryptError> {
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| malformed(what, format!("{field} is not base64")))?);
    bytes.as_slice().try_into().map_err(|_| malformed(what, format!("{field} has {} bytes, want {N}", bytes.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(json: serde_json::Value) -> Result<PublicOptions, OcicryptError> {
        PublicOptions::from_base64(&STANDARD.encode(json.to_string()))
    }

    #[test]
    fn public_options_are_strict() {
        let hmac = STANDARD.encode([1; 32]);
        let good = serde_json::json!({"cipher": CIPHER, "hmac": hmac, "cipheroptions": null});
        assert_eq!(public(good.clone()).unwrap().hmac, [1; 32]);
        for (field, value) in [("cipher", "AES_256_CTR"), ("hmac", "AAAA"), ("hmac", "?"), ("cipheroptions", "x")] {
            let mut bad = good.clone();
            bad[field] = value.into();
            assert!(public(bad).is_err(), "{field} {value}");
        }
        assert!(PublicOptions::from_base64("e30").is_err());
        let again = PublicOptions::from_base64(&PublicOptions { hmac: [3; 32], nonce: Some([4; 16]) }.to_base64()).unwrap();
        assert_eq!((again.hmac, again.nonce), ([3; 32], Some([4; 16])));
    }

    #[test]
    fn private_options_round_trip_and_errors_hold_no_key() {
        let private = PrivateOptions { key: Zeroizing::new([5; 32]), nonce: [6; 16], digest: Digest::of(b"blob"), config: None };
        for config in [None, Some(Digest::of(b"config"))] {
            let private = PrivateOptions { key: private.key.clone(), config, ..private };
            let again = PrivateOptions::from_json(&private.to_json()).unwrap();
            assert_eq!((again.key, again.nonce, again.digest, again.config), (private.key, private.nonce, private.digest, config));
        }
        let key = STANDARD.encode([5; 33]);
        let long = format!(r#"{{"symkey":"{key}","digest":"{}","cipheroptions":{{"nonce":"AA=="}}}}"#, private.digest);
        let no_nonce = format!(r#"{{"symkey":"{key}","digest":"{}","cipheroptions":null}}"#, private.digest);
        let odd = format!(r#"{{"symkey":"{key}","digest":"{key}"}}"#);
        for bad in [&long, &no_nonce, &odd, "{}", ""] {
            let error = PrivateOptions::from_json(bad.as_bytes()).err().unwrap().to_string();
            assert!(!error.contains(&key), "{error}");
        }
    }
}
