//! ocicrypt: how the layers of an image are encrypted (containers/ocicrypt, `docs/`), with the key-provider packets of Confidential
//! Containers around each layer's key.
//!
//! A layer's blob (the packed tar) is encrypted with AES-256-CTR under a key of its own and authenticated with HMAC-SHA-256 over the
//! ciphertext. The key, wrapped with a key-encryption key ([`Kek`]) that the broker keeps, stands in an annotation of the layer's
//! descriptor, or in a JWE for the holder of a private key ([`jwe`]); the HMAC stands in another annotation, in the clear.

mod cipher;
pub mod jwe;
mod key_ring;
mod options;
mod packet;

pub use cipher::{LayerKey, LayerMac, open_reader};
pub(crate) use cipher::{SealError, SealedLayer, seal};
pub use key_ring::KeyRing;
pub use packet::{Kek, Packet};

use crate::digest::Digest;
use jwe::{Jwe, PrivateKey, PublicKey};
use options::{PrivateOptions, PublicOptions};
use std::collections::BTreeMap;
use thiserror::Error;

/// The annotation with the wrapped keys: comma-separated base64 of one packet per recipient.
pub const KEYS_ANNOTATION: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";
/// The same for holders of a private key: comma-separated base64 of one JWE each.
pub const JWE_ANNOTATION: &str = "org.opencontainers.image.enc.keys.jwe";
/// The annotation with the cipher's name and the HMAC: base64 of JSON.
pub const PUBOPTS_ANNOTATION: &str = "org.opencontainers.image.enc.pubopts";
/// What the names of all of ocicrypt's annotations begin with.
pub const ANNOTATION_PREFIX: &str = "org.opencontainers.image.enc.";
const ANY_KEYS_PREFIX: &str = "org.opencontainers.image.enc.keys.";

/// Longest annotation value taken, in bytes.
const MAX_ANNOTATION: usize = 64 << 10;
/// Most packets (recipients) of a layer.
const MAX_PACKETS: usize = 16;

/// Why a layer cannot be opened. No variant holds anything secret.
#[derive(Debug, Error)]
pub enum OcicryptError {
    /// Not there.
    #[error("encrypted, but annotation {0} is missing: encrypt the image anew")]
    Missing(&'static str),
    /// Encrypted for somebody else.
    #[error(
        "encrypted, but with keys of kind {0}: want provider.attestation-agent (a key broker) or jwe; encrypt it with `cloister image encrypt`"
    )]
    OtherRecipients(String),
    /// There, but not to be read.
    #[error("{what}: {why}")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A wrap that is not used.
    #[error("key {kid}: wrap type {wrap_type:?}: want A256GCM, which authenticates what it wraps")]
    WrapType {
        /// The key's name.
        kid: String,
        /// What was found.
        wrap_type: String,
    },
    /// A key management service.
    #[error("key {kid}: wrapped by provider {provider:?}: want kbs")]
    Provider {
        /// The key's name.
        kid: String,
        /// What was found.
        provider: String,
    },
    /// GCM's verdict.
    #[error("key {kid} does not open this layer's packet: the image was encrypted with another key, or the packet was tampered with")]
    WrongKey {
        /// The key's name.
        kid: String,
    },
    /// None of the keys at hand.
    #[error("encrypted for {0}, and none of the keys at hand is that")]
    NoKey(String),
    /// A JWE's verdict.
    #[error("a private key does not open this layer's JWE: the image was encrypted for another one, or the JWE was tampered with")]
    WrongPrivateKey,
    /// A JWE for another kind of key.
    #[error("a JWE of kind {0:?}: want RSA-OAEP, RSA-OAEP-256, or ECDH-ES with A128KW, A192KW or A256KW on P-256, and a key of that kind")]
    KeyKind(String),
    /// A key file.
    #[error("not a usable key file: want {0}")]
    KeyFile(&'static str),
    /// Not 32 bytes.
    #[error("a key-encryption key is 32 bytes, this one {0}: store exactly the raw key in the broker")]
    KekLength(usize),
    /// Layers of one image under the config of another.
    #[error(
        "encrypted as a layer of the image with config {bound}, and this image has config {found}: whoever holds the registry could have \
         written that; run the image as its owner encrypted it"
    )]
    OtherConfig {
        /// That of the image that was encrypted.
        bound: Digest,
        /// This image's.
        found: Digest,
    },
    /// The ciphertext's HMAC.
    #[error("HMAC mismatch: the encrypted layer was tampered with, or belongs to another key")]
    Hmac,
}

fn malformed(what: &'static str, why: impl ToString) -> OcicryptError {
    OcicryptError::Malformed { what, why: why.to_string() }
}

/// For whom a layer's key is wrapped.
#[derive(Debug, Clone, Copy)]
pub enum Recipient<'a> {
    /// The broker, which keeps the key-encryption key under this name.
    Broker(&'a str, &'a Kek),
    /// The holder of a private key.
    Jwe(&'a PublicKey),
}

/// What a descriptor's annotations say about its layer's encryption; parsed and bounded, not yet opened.
#[derive(Debug, Clone)]
pub struct Envelope {
    packets: Vec<Packet>,
    jwes: Vec<Jwe>,
    public: PublicOptions,
    /// Of the image's config, where it is known which image this is.
    config: Option<Digest>,
}

impl Envelope {
    /// Reads the annotations of an encrypted layer's descriptor.
    pub fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, OcicryptError> {
        let (keys, jwes) = (annotations.get(KEYS_ANNOTATION), annotations.get(JWE_ANNOTATION));
        if keys.is_none() && jwes.is_none() {
            let others: Vec<&str> = annotations.keys().filter_map(|name| name.strip_prefix(ANY_KEYS_PREFIX)).take(4).collect();
            return Err(match others.is_empty() {
                true => OcicryptError::Missing(KEYS_ANNOTATION),
                false => OcicryptError::OtherRecipients(others.join(", ")),
            });
        }
        let public = annotations.get(PUBOPTS_ANNOTATION).ok_or(OcicryptError::Missing(PUBOPTS_ANNOTATION))?;
        if [keys, jwes, Some(public)].into_iter().flatten().any(|value| value.len() > MAX_ANNOTATION) {
            return Err(malformed("annotations", format!("longer than {MAX_ANNOTATION} bytes")));
        }
        let public = PublicOptions::from_base64(public)?;
        Ok(Self { packets: each(keys, Packet::from_base64)?, jwes: each(jwes, Jwe::from_base64)?, public, config: None })
    }

    /// The same of a layer of the image with this config. What the layers hold is encrypted, and what the config makes of it is not: a layer
    /// that was bound to a config when it was encrypted does not open under another, which could print what is in it.
    pub fn under(self, config: Digest) -> Self {
        Self { config: Some(config), ..self }
    }

    /// The keys wrapped for a broker, each of which opens the layer; there may be none. The key's name in it comes from whoever made the
    /// image.
    pub fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// Whether a private key may open it.
    pub fn has_jwe(&self) -> bool {
        !self.jwes.is_empty()
    }

    /// Unwraps the layer's key from one of [`Self::packets`].
    pub fn open(&self, packet: &Packet, kek: &Kek) -> Result<LayerKey, OcicryptError> {
        self.layer_key(&packet.unwrap(kek)?)
    }

    /// Unwraps the layer's key with a recipient's private key.
    pub fn open_jwe(&self, key: &PrivateKey) -> Result<LayerKey, OcicryptError> {
        let mut fault = OcicryptError::WrongPrivateKey;
        for jwe in &self.jwes {
            match jwe.open(key) {
                Ok(plain) => return self.layer_key(&plain),
                Err(e) => fault = e,
            }
        }
        Err(fault)
    }

    fn layer_key(&self, plain: &[u8]) -> Result<LayerKey, OcicryptError> {
        let private = PrivateOptions::from_json(plain)?;
        // The nonce counts only where GCM vouches for it: the HMAC covers the ciphertext alone, so that a nonce of the clear options
        // would let the registry choose what the layer decrypts to.
        if self.public.nonce.is_some_and(|public| public != private.nonce) {
            return Err(malformed("annotation pubopts", "a nonce that contradicts the wrapped one"));
        }
        if let (Some(bound), Some(found)) = (private.config, self.config)
            && bound != found
        {
            return Err(OcicryptError::OtherConfig { bound, found });
        }
        Ok(LayerKey::new(private, self.public.hmac))
    }

    /// For whom it was encrypted, for people.
    pub fn recipients(&self) -> Vec<String> {
        let keys = self.packets.iter().map(|packet| packet.key_id().to_owned());
        keys.chain(self.has_jwe().then(|| "jwe".to_owned())).collect()
    }

    /// The annotations of a layer that was sealed with `layer`, its key wrapped for each of `recipients`.
    pub(crate) fn annotations(layer: &SealedLayer, recipients: &[Recipient<'_>]) -> Result<BTreeMap<String, String>, OcicryptError> {
        let private = layer.private.to_json();
        let (mut packets, mut public_keys) = (Vec::new(), Vec::new());
        for recipient in recipients {
            match recipient {
                Recipient::Broker(kid, kek) => packets.push(Packet::wrap(kid, kek, &private)?.to_base64()),
                Recipient::Jwe(key) => public_keys.push(*key),
            }
        }
        let public = PublicOptions { hmac: layer.hmac, nonce: None };
        let mut annotations = BTreeMap::from([(PUBOPTS_ANNOTATION.to_owned(), public.to_base64())]);
        if !packets.is_empty() {
            annotations.insert(KEYS_ANNOTATION.to_owned(), packets.join(","));
        }
        if !public_keys.is_empty() {
            annotations.insert(JWE_ANNOTATION.to_owned(), Jwe::seal(&public_keys, &private)?);
        }
        Ok(annotations)
    }
}

fn each<T>(value: Option<&String>, parse: fn(&str) -> Result<T, OcicryptError>) -> Result<Vec<T>, OcicryptError> {
    let parts = value.into_iter().flat_map(|text| text.split(',')).take(MAX_PACKETS + 1);
    let parsed: Vec<T> = parts.map(parse).collect::<Result<_, _>>()?;
    if parsed.len() > MAX_PACKETS {
        return Err(malformed("wrapped keys", format!("more than {MAX_PACKETS}")));
    }
    Ok(parsed)
}

/// Whether ocicrypt owns the annotation of this name.
pub fn is_ocicrypt_annotation(name: &str) -> bool {
    name.starts_with(ANNOTATION_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use base64::{Engine, engine::general_purpose::STANDARD};

    #[test]
    fn the_annotations_of_a_sealed_layer_open_it() {
        let annotations = testing::sealed_annotations();
        let envelope = Envelope::parse(&annotations).unwrap();
        assert_eq!(envelope.packets()[0].key_id(), testing::KID);
        assert!(envelope.open(&envelope.packets()[0], &testing::kek()).is_ok());
        let wrong = Kek::from_bytes(&[9; 32]).unwrap();
        assert!(matches!(envelope.open(&envelope.packets()[0], &wrong), Err(OcicryptError::WrongKey { .. })));
    }

    #[test]
    fn missing_and_foreign_recipients_are_told_apart() {
        let mut annotations = testing::sealed_annotations();
        annotations.remove(PUBOPTS_ANNOTATION);
        assert!(matches!(Envelope::parse(&annotations), Err(OcicryptError::Missing(PUBOPTS_ANNOTATION))));
        annotations.clear();
        assert!(matches!(Envelope::parse(&annotations), Err(OcicryptError::Missing(KEYS_ANNOTATION))));
        annotations.insert(format!("{ANY_KEYS_PREFIX}pkcs7"), "e30=".into());
        let error = Envelope::parse(&annotations).unwrap_err().to_string();
        assert!(error.contains("keys of kind pkcs7"), "{error}");
    }

    #[test]
    fn one_of_several_recipients_is_enough() {
        let mut annotations = testing::sealed_annotations();
        let ours = annotations[KEYS_ANNOTATION].clone();
        let other = Packet::wrap("kbs:///other/key/1", &Kek::from_bytes(&[9; 32]).unwrap(), b"{}").unwrap().to_base64();
        annotations.insert(KEYS_ANNOTATION.into(), format!("{other},{ours}"));
        let envelope = Envelope::parse(&annotations).unwrap();
        assert_eq!(envelope.packets().len(), 2);
        assert!(envelope.open(&envelope.packets()[1], &testing::kek()).is_ok());
        annotations.insert(KEYS_ANNOTATION.into(), vec![ours; MAX_PACKETS + 1].join(","));
        assert!(Envelope::parse(&annotations).is_err());
    }

    #[test]
    fn a_layer_may_be_for_the_broker_and_for_private_keys_at_once() {
        let (rsa, ec) = (PrivateKey::from_pem(testing::RSA_PRIVATE).unwrap(), PrivateKey::from_pem(testing::EC_PRIVATE).unwrap());
        let (kek, publics) = (testing::kek(), [rsa.public(), ec.public()]);
        let layer = seal(b"layer".as_slice(), &mut Vec::new(), |_| ()).unwrap();
        let recipients = [Recipient::Broker(testing::KID, &kek), Recipient::Jwe(&publics[0]), Recipient::Jwe(&publics[1])];
        let envelope = Envelope::parse(&Envelope::annotations(&layer, &recipients).unwrap()).unwrap();
        assert_eq!(envelope.recipients(), [testing::KID, "jwe"]);
        let expected = layer.plain_digest();
        let mut ring = KeyRing::default();
        assert!(matches!(ring.open(&envelope), Err(OcicryptError::NoKey(_))));
        ring.add_private(ec.clone());
        assert_eq!(ring.open(&envelope).unwrap().plain_digest(), expected);
        for key in [rsa, ec] {
            assert_eq!(envelope.open_jwe(&key).unwrap().plain_digest(), expected);
        }
        let mut ring = KeyRing::default();
        ring.add_kek(testing::KID, kek);
        assert_eq!(ring.open(&envelope).unwrap().plain_digest(), expected);
    }

    #[test]
    fn a_layer_that_is_bound_to_a_config_opens_under_no_other() {
        let (kek, own, other) = (testing::kek(), Digest::of(b"own"), Digest::of(b"cat /srv/secret"));
        let mut layer = seal(b"layer".as_slice(), &mut Vec::new(), |_| ()).unwrap();
        let opens = |layer: &SealedLayer, config| {
            let annotations = Envelope::annotations(layer, &[Recipient::Broker(testing::KID, &kek)]).unwrap();
            let envelope = Envelope::parse(&annotations).unwrap().under(config);
            envelope.open(&envelope.packets()[0], &kek)
        };
        // The pair: what nobody has bound, as other tools encrypt, opens under any config.
        assert!(opens(&layer, own).is_ok() && opens(&layer, other).is_ok());
        layer.bind(own);
        assert!(opens(&layer, own).is_ok());
        let error = opens(&layer, other).unwrap_err();
        assert!(matches!(error, OcicryptError::OtherConfig { .. }) && !error.to_string().contains('\n'), "{error}");
    }

    #[test]
    fn a_clear_nonce_cannot_replace_the_wrapped_one() {
        let mut annotations = testing::sealed_annotations();
        let clear = STANDARD.decode(&annotations[PUBOPTS_ANNOTATION]).unwrap();
        let mut clear: serde_json::Value = serde_json::from_slice(&clear).unwrap();
        clear["cipheroptions"]["nonce"] = STANDARD.encode([7; 16]).into();
        annotations.insert(PUBOPTS_ANNOTATION.into(), STANDARD.encode(clear.to_string()));
        let envelope = Envelope::parse(&annotations).unwrap();
        let error = envelope.open(&envelope.packets()[0], &testing::kek()).unwrap_err().to_string();
        assert!(error.contains("contradicts"), "{error}");
    }
}
