//! Sealed secrets of Confidential Containers: a text in an environment variable or file that the host may see and carry, and that only an
//! attested guest can turn into the secret.
//!
//! ```text
//! sealed.<header>.<payload>.<signature>      each base64url without padding
//! header    {"alg":"ES256","kid":"kbs:///repository/type/tag"}      the resource is the public key, as JWK or PEM
//! payload   {"version":"0.1.0","type":"vault","provider":"kbs","name":"kbs:///…","provider_settings":{},"annotations":{}}
//!           {"version":"0.1.0","type":"envelope","provider":"kbs","key_id":"kbs:///…","encrypted_key":"<base64>",
//!            "encrypted_data":"<base64>","wrap_type":"A256GCM","iv":"<base64>","annotations":{"iv":"<base64>"}, …}
//! ```
//! The signature is over `header.payload` as they stand, by ECDSA on P-256 (RFC 7515). It is always checked: there is no switch that turns
//! it off, and the form without one is refused. Without it a host could write a text that names any resource that the guest may have, and so
//! put one secret where another is expected.
//!
//! Of an envelope the data are encrypted (AES-256-GCM) to a key that travels with them, wrapped (AES-256-GCM, IV in the annotations) by the
//! key `key_id`.
//!
//! [`unseal`] is the guest's side, [`Owner`] the owner's.

mod seal;

pub use seal::{Owner, SealError};

use crate::{
    encoding::{from_standard, from_url},
    jwks,
    resource::ResourceUri,
};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, aead::Aead};
use p256::{
    PublicKey,
    ecdsa::{Signature, VerifyingKey, signature::Verifier},
    pkcs8::DecodePublicKey,
};
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;
use zeroize::Zeroizing;

/// What every sealed secret begins with.
pub const PREFIX: &str = "sealed.";

/// Longest sealed secret, in bytes.
pub const MAX_SEALED: usize = 256 * 1024;

const VERSION: &str = "0.1.0";
const WRAP: &str = "A256GCM";
const KEY_LEN: usize = 32;
const IV_LEN: usize = 12;

/// Why it stays sealed. Never a part of the secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SealedError {
    /// It is not such a text.
    #[error("sealed secret: {0}")]
    Malformed(String),
    /// The signature.
    #[error("sealed secret: not signed by the key {0}")]
    Signature(ResourceUri),
    /// The broker gave no key or no secret.
    #[error("sealed secret: {resource}: {reason}")]
    Resource {
        /// What was asked for.
        resource: ResourceUri,
        /// Why it did not come, or cannot be used.
        reason: String,
    },
    /// The envelope.
    #[error("sealed secret: {0}: not encrypted to the key {1}, or changed")]
    Decrypt(&'static str, ResourceUri),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Payload {
    Vault(Vault),
    Envelope(Envelope),
}

#[derive(Deserialize)]
struct Vault {
    version: String,
    provider: String,
    name: String,
}

#[derive(Deserialize)]
struct Envelope {
    version: String,
    provider: String,
    key_id: String,
    encrypted_key: String,
    encrypted_data: String,
    wrap_type: String,
    iv: String,
    #[serde(default)]
    annotations: BTreeMap<String, serde_json::Value>,
}

/// Opens a sealed secret. `fetch` gets resources from the broker, or says why not.
pub async fn unseal<F, R>(text: &str, fetch: F) -> Result<Zeroizing<Vec<u8>>, SealedError>
where
    F: Fn(ResourceUri) -> R,
    R: Future<Output = Result<Zeroizing<Vec<u8>>, String>>,
{
    let malformed = |what: &str| SealedError::Malformed(what.to_owned());
    if text.len() > MAX_SEALED {
        return Err(SealedError::Malformed(format!("longer than {MAX_SEALED} bytes")));
    }
    let rest = text.strip_prefix(PREFIX).ok_or_else(|| malformed("does not begin with sealed."))?;
    let (signed, signature) = rest.rsplit_once('.').ok_or_else(|| malformed("has not four parts"))?;
    let (header, payload) = signed.split_once('.').ok_or_else(|| malformed("has not four parts"))?;
    let part = |name: &str, text: &str| from_url(text).ok_or_else(|| malformed(&format!("{name} is not base64url")));
    let header: Header = serde_json::from_slice(&part("header", header)?).map_err(|e| SealedError::Malformed(format!("header: {e}")))?;
    if header.alg != "ES256" {
        return Err(malformed("signed by something else than ES256"));
    }
    let kid = uri("kid", &header.kid)?;
    let signature = Signature::from_slice(&part("signature", signature)?).map_err(|_| SealedError::Signature(kid.clone()))?;
    let key = verifying_key(&get(&fetch, &kid).await?).ok_or_else(|| SealedError::Resource {
        resource: kid.clone(),
        reason: "neither a P-256 key as JWK nor a public key as PEM".into(),
    })?;
    key.verify(signed.as_bytes(), &signature).map_err(|_| SealedError::Signature(kid))?;

    // From here on it is the owner's text.
    let payload = Zeroizing::new(part("payload", payload)?);
    let payload: Payload = serde_json::from_slice(&payload).map_err(|e| SealedError::Malformed(format!("payload: {e}")))?;
    match payload {
        Payload::Vault(vault) => {
            check(&vault.version, &vault.provider)?;
            get(&fetch, &uri("name", &vault.name)?).await
        }
        Payload::Envelope(envelope) => {
            check(&envelope.version, &envelope.provider)?;
            if envelope.wrap_type != WRAP {
                return Err(malformed("wrap_type: only A256GCM is known"));
            }
            let key_id = uri("key_id", &envelope.key_id)?;
            let key = get(&fetch, &key_id).await?;
            let iv =
                envelope.annotations.get("iv").and_then(serde_json::Value::as_str).ok_or_else(|| malformed("annotations.iv is missing"))?;
            let decrypt =
                |what, key: &[u8], iv: &str, data: &str| open(key, iv, data).ok_or_else(|| SealedError::Decrypt(what, key_id.clone()));
            let data_key = decrypt("encrypted_key", &key, iv, &envelope.encrypted_key)?;
            decrypt("encrypted_data", &data_key, &envelope.iv, &envelope.encrypted_data)
        }
    }
}

async fn get<F, R>(fetch: &F, resource: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, SealedError>
where
    F: Fn(ResourceUri) -> R,
    R: Future<Output = Result<Zeroizing<Vec<u8>>, String>>,
{
    let secret = fetch(resource.clone()).await;
    secret.map_err(|reason| SealedError::Resource { resource: resource.clone(), reason })
}

fn check(version: &str, provider: &str) -> Result<(), SealedError> {
    match (version, provider) {
        (VERSION, "kbs") => Ok(()),
        (VERSION, _) => Err(SealedError::Malformed("provider: only kbs is known".into())),
        _ => Err(SealedError::Malformed(format!("version: only {VERSION} is known"))),
    }
}

fn uri(name: &str, text: &str) -> Result<ResourceUri, SealedError> {
    text.parse().map_err(|e| SealedError::Malformed(format!("{name}: {e}")))
}

fn verifying_key(resource: &[u8]) -> Option<VerifyingKey> {
    let text = std::str::from_utf8(resource).ok()?.trim();
    if text.starts_with('{') {
        return jwks::verifying_key(&serde_json::from_str(text).ok()?);
    }
    Some(VerifyingKey::from(PublicKey::from_public_key_pem(text).ok()?))
}

fn open(key: &[u8], iv: &str, data: &str) -> Option<Zeroizing<Vec<u8>>> {
    let key: [u8; KEY_LEN] = key.try_into().ok()?;
    let key = Zeroizing::new(key);
    let iv: [u8; IV_LEN] = from_standard(iv)?.try_into().ok()?;
    let plain = Aes256Gcm::new((&*key).into()).decrypt(&Nonce::from(iv), from_standard(data)?.as_slice());
    plain.ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encoding::{standard, url},
        token::TokenSigner,
    };
    use p256::ecdsa::{SigningKey, signature::Signer};
    use serde_json::{Value, json};
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    struct Owner {
        signer: TokenSigner,
        store: BTreeMap<&'static str, Vec<u8>>,
    }

    impl Owner {
        fn new() -> Self {
            let signer = TokenSigner::generate().unwrap();
            let store = BTreeMap::from([
                ("kbs:///a/keys/sign", signer.jwk().to_string().into_bytes()),
                ("kbs:///a/secret/db", b"hunter2".to_vec()),
                ("kbs:///a/keys/wrap", vec![7; 32]),
            ]);
            Self { signer, store }
        }

        fn seal(&self, header: &Value, payload: &Value) -> String {
            let signed = format!("{}.{}", url(header.to_string().as_bytes()), url(payload.to_string().as_bytes()));
            let key = SigningKey::from_slice(&self.signer.to_bytes()).unwrap();
            let signature: Signature = key.sign(signed.as_bytes());
            format!("sealed.{signed}.{}", url(&signature.to_bytes()))
        }

        fn open(&self, text: &str) -> Result<Vec<u8>, String> {
            let fetch = |resource: ResourceUri| {
                let found = self.store.get(resource.to_string().as_str()).cloned();
                std::future::ready(found.map(Zeroizing::new).ok_or_else(|| "refused".to_owned()))
            };
            // Nothing in it waits.
            let mut future = pin!(unseal(text, fetch));
            let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) else { panic!("it waits") };
            result.map(|secret| secret.to_vec()).map_err(|e| e.to_string())
        }
    }

    fn header() -> Value {
        json!({"alg": "ES256", "kid": "kbs:///a/keys/sign"})
    }

    fn vault() -> Value {
        json!({"version": "0.1.0", "type": "vault", "provider": "kbs", "name": "kbs:///a/secret/db", "provider_settings": {}, "annotations": {}})
    }

    fn envelope() -> Value {
        let encrypt =
            |key: &[u8; 32], iv: u8, data: &[u8]| standard(&Aes256Gcm::new(key.into()).encrypt(&Nonce::from([iv; 12]), data).unwrap());
        json!({
            "version": "0.1.0", "type": "envelope", "provider": "kbs", "key_id": "kbs:///a/keys/wrap", "wrap_type": "A256GCM",
            "encrypted_key": encrypt(&[7; 32], 1, &[9; 32]), "annotations": {"iv": standard(&[1; 12])},
            "encrypted_data": encrypt(&[9; 32], 2, b"hunter2"), "iv": standard(&[2; 12]), "provider_settings": {},
        })
    }

    #[test]
    fn vault_and_envelope_are_opened() {
        let mut owner = Owner::new();
        for payload in [vault(), envelope()] {
            assert_eq!(owner.open(&owner.seal(&header(), &payload)).unwrap(), b"hunter2");
        }
        // The key as PEM, as openssl writes it.
        let key = SigningKey::from_slice(&owner.signer.to_bytes()).unwrap();
        let point = key.verifying_key().to_sec1_point(false);
        let spki = [&hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap()[..], point.as_bytes()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", standard(&spki));
        let lines = pem.replace(
            &standard(&spki),
            &standard(&spki).as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect::<Vec<_>>().join("\n"),
        );
        owner.store.insert("kbs:///a/keys/sign", lines.into_bytes());
        assert_eq!(owner.open(&owner.seal(&header(), &vault())).unwrap(), b"hunter2");
    }

    #[test]
    fn what_its_owner_did_not_sign_stays_sealed() {
        let (owner, other) = (Owner::new(), Owner::new());
        let good = owner.seal(&header(), &vault());
        assert!(owner.open(&other.seal(&header(), &vault())).unwrap_err().contains("not signed by the key kbs:///a/keys/sign"));
        for at in PREFIX.len()..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let error = owner.open(std::str::from_utf8(&bad).unwrap());
            // The last character of a part holds bits that decoders must refuse or ignore; ignored, the signature still is the same.
            assert!(error.is_err() || at == good.len() - 1, "byte {at}");
        }
        let parts: Vec<&str> = good.split('.').collect();
        for bad in [
            format!("sealed.{}.{}", parts[1], parts[2]),
            format!("sealed.{}.{}.", parts[1], parts[2]),
            format!("sealed.fakejwsheader.{}.fakesignature", parts[2]),
            good.replacen("sealed.", "", 1),
            owner.seal(&json!({"alg": "none", "kid": "kbs:///a/keys/sign"}), &vault()),
            owner.seal(&json!({"alg": "ES256", "kid": "local"}), &vault()),
            owner.seal(&json!({"alg": "ES256", "kid": "kbs:///a/keys/none"}), &vault()),
            owner.seal(&json!({"alg": "ES256", "kid": "kbs:///a/secret/db"}), &vault()),
            "sealed.".to_owned() + &"A".repeat(MAX_SEALED),
        ] {
            let error = owner.open(&bad).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let owner = Owner::new();
        for (payload, key, value) in [
            (vault(), "version", json!("0.2.0")),
            (vault(), "provider", json!("aliyun")),
            (vault(), "name", json!("kbs:///a/../db")),
            (vault(), "name", json!("kbs:///a/secret/other")),
            (vault(), "type", json!("safe")),
            (envelope(), "wrap_type", json!("A256CTR")),
            (envelope(), "key_id", json!("kbs:///a/secret/db")),
            (envelope(), "iv", json!(standard(&[3; 12]))),
            (envelope(), "annotations", json!({})),
            (envelope(), "encrypted_data", json!("AAAA")),
        ] {
            let mut payload = payload;
            payload[key] = value;
            let error = owner.open(&owner.seal(&header(), &payload)).unwrap_err();
            assert!(error.starts_with("sealed secret: "), "{key}: {error}");
        }
    }
}
