//! The key-provider packet of Confidential Containers (guest-components, `annotation_packet/{v1,v2}.rs`): a layer's key, wrapped with
//! a key that the broker keeps.
//!
//! Version 1 is `{kid, wrapped_data, iv, wrap_type}`; version 2 adds `version`, `provider`, `provider_settings` and `annotations`.
//! Both are read; version 1 is written, which every reader takes.

use super::{OcicryptError, malformed};
use crate::{manifest::clip, strict_json};
use aes_gcm::{
    Aes256Gcm, Key, Nonce,
    aead::{Aead, KeyInit},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const PACKET: &str = "key packet";
const WRAP_TYPE: &str = "A256GCM";
/// Version 2 as its authors number it.
const VERSION_2: &str = "0.1.0";
/// GCM's nonce, in bytes.
const IV_LEN: usize = 12;
/// GCM's tag, in bytes.
const TAG_LEN: usize = 16;
/// Longest key name, in bytes.
const MAX_KID: usize = 1024;

/// A key-encryption key: 32 bytes, the broker's resource. Wiped when dropped.
pub struct Kek(Zeroizing<[u8; 32]>);

impl Kek {
    /// From the raw resource.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OcicryptError> {
        let mut key = Zeroizing::new([0; 32]);
        if bytes.len() != key.len() {
            return Err(OcicryptError::KekLength(bytes.len()));
        }
        key.copy_from_slice(bytes);
        Ok(Self(key))
    }

    /// A new key from the kernel's random source.
    pub fn generate() -> Result<Self, OcicryptError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice()).map_err(|e| malformed("random source", e))?;
        Ok(Self(key))
    }

    /// The raw key, to be stored with the broker.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn cipher(&self) -> Aes256Gcm {
        let key: &Key<Aes256Gcm> = self.as_bytes().into();
        Aes256Gcm::new(key)
    }
}

impl std::fmt::Debug for Kek {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kek(..)")
    }
}

#[derive(Serialize, Deserialize)]
struct PacketJson {
    kid: String,
    wrapped_data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrap_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
}

/// A wrapped layer key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    kid: String,
    wrapped: Vec<u8>,
    iv: [u8; IV_LEN],
}

impl Packet {
    /// The name of the key that opens it, such as `kbs:///default/key/1`. Whoever made the image chose it: the caller takes the
    /// path from it and keeps to its own broker, whatever host it names.
    pub fn key_id(&self) -> &str {
        &self.kid
    }

    /// One packet of the annotation's value.
    pub(super) fn from_base64(text: &str) -> Result<Self, OcicryptError> {
        Self::from_json(&STANDARD.decode(text.trim()).map_err(|e| malformed(PACKET, e))?)
    }

    /// A packet's JSON, of either version.
    pub fn from_json(json: &[u8]) -> Result<Self, OcicryptError> {
        let json: PacketJson = strict_json::parse(json).map_err(|e| malformed(PACKET, e))?;
        let kid = json.kid;
        if kid.is_empty() || kid.len() > MAX_KID || !kid.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(malformed(PACKET, format!("kid must be 1 to {MAX_KID} printable characters")));
        }
        if let Some(version) = json.version.filter(|v| v != VERSION_2) {
            return Err(malformed(PACKET, format!("version {:?}, want {VERSION_2}", clip(&version))));
        }
        if let Some(provider) = json.provider.filter(|p| p != "kbs") {
            return Err(OcicryptError::Provider { kid, provider: clip(&provider) });
        }
        let wrap_type = json.wrap_type.unwrap_or_default();
        if wrap_type != WRAP_TYPE {
            return Err(OcicryptError::WrapType { kid, wrap_type: clip(&wrap_type) });
        }
        let iv = STANDARD.decode(json.iv.unwrap_or_default()).map_err(|e| malformed(PACKET, format!("iv: {e}")))?;
        let iv = iv.as_slice().try_into().map_err(|_| malformed(PACKET, format!("iv has {} bytes, want {IV_LEN}", iv.len())))?;
        let wrapped = STANDARD.decode(json.wrapped_data).map_err(|e| malformed(PACKET, format!("wrapped_data: {e}")))?;
        if wrapped.len() < TAG_LEN {
            return Err(malformed(PACKET, format!("wrapped_data has {} bytes, less than its tag", wrapped.len())));
        }
        Ok(Self { kid, wrapped, iv })
    }

    pub(super) fn to_base64(&self) -> String {
        let json = PacketJson {
            kid: self.kid.clone(),
            wrapped_data: STANDARD.encode(&self.wrapped),
            iv: Some(STANDARD.encode(self.iv)),
            wrap_type: Some(WRAP_TYPE.to_owned()),
            version: None,
            provider: None,
        };
        STANDARD.encode(serde_json::json!(json).to_string())
    }

    /// Wraps `plain` with a fresh nonce.
    pub(super) fn wrap(kid: &str, kek: &Kek, plain: &[u8]) -> Result<Self, OcicryptError> {
        let mut iv = [0; IV_LEN];
        getrandom::fill(&mut iv).map_err(|e| malformed("random source", e))?;
        let nonce: &Nonce<_> = (&iv).into();
        let wrapped = kek.cipher().encrypt(nonce, plain).map_err(|_| malformed(PACKET, "too long to wrap"))?;
        Ok(Self { kid: kid.to_owned(), wrapped, iv })
    }

    /// What was wrapped, if `kek` is the right key and no bit was changed.
    pub(super) fn unwrap(&self, kek: &Kek) -> Result<Zeroizing<Vec<u8>>, OcicryptError> {
        let nonce: &Nonce<_> = (&self.iv).into();
        let plain = kek.cipher().decrypt(nonce, self.wrapped.as_slice());
        plain.map(Zeroizing::new).map_err(|_| OcicryptError::WrongKey { kid: self.kid.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn kek() -> Kek {
        Kek::from_bytes(&[7; 32]).unwrap()
    }

    fn sample() -> Value {
        let packet = Packet::wrap("kbs:///a/b/c", &kek(), b"secret").unwrap();
        serde_json::from_slice(&STANDARD.decode(packet.to_base64()).unwrap()).unwrap()
    }

    fn read(value: &Value) -> Result<Packet, OcicryptError> {
        Packet::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn both_versions_are_read_and_the_first_is_written() {
        let mut value = sample();
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["iv", "kid", "wrap_type", "wrapped_data"]);
        assert_eq!(read(&value).unwrap().unwrap(&kek()).unwrap().as_slice(), b"secret");
        for (key, more) in
            [("version", json!("0.1.0")), ("provider", json!("kbs")), ("provider_settings", json!({})), ("annotations", json!({}))]
        {
            value[key] = more;
        }
        assert_eq!(read(&value).unwrap().unwrap(&kek()).unwrap().as_slice(), b"secret");
    }

    #[test]
    fn malformed_packets_are_refused() {
        for (key, value) in [
            ("kid", json!("")),
            ("kid", json!("kbs:///a\nb")),
            ("kid", json!("k".repeat(MAX_KID + 1))),
            ("iv", json!(STANDARD.encode([0; 16]))),
            ("iv", Value::Null),
            ("wrapped_data", json!("AAAA")),
            ("wrapped_data", json!("%")),
            ("wrap_type", json!("A256CTR")),
            ("wrap_type", Value::Null),
            ("version", json!("9")),
            ("provider", json!("aliyun")),
        ] {
            let mut bad = sample();
            bad[key] = value;
            assert!(read(&bad).is_err(), "{bad}");
        }
        assert!(Packet::from_json(br#"{"kid":"a","kid":"b"}"#).is_err());
        assert!(Packet::from_base64("e3").is_err());
    }

    #[test]
    fn a_wrong_key_and_a_flipped_bit_look_alike() {
        let packet = Packet::wrap("k", &kek(), b"secret").unwrap();
        assert!(matches!(packet.unwrap(&Kek::from_bytes(&[8; 32]).unwrap()), Err(OcicryptError::WrongKey { .. })));
        for at in 0..packet.wrapped.len() {
            let mut bad = packet.clone();
            bad.wrapped[at] ^= 1;
            assert!(matches!(bad.unwrap(&kek()), Err(OcicryptError::WrongKey { .. })));
        }
        assert!(matches!(Kek::from_bytes(&[0; 16]), Err(OcicryptError::KekLength(16))));
        assert_eq!(format!("{:?}", kek()), "Kek(..)");
    }
}
