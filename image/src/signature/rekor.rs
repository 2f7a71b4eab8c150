//! The transparency log's promise that it has logged a signature (Rekor's SignedEntryTimestamp), checked without asking the log.
//!
//! A policy that names a log's key wants to know that the signature was made in public, so that one made with a stolen key is noticed.

use super::key::PublicKey;
use crate::{digest::Digest, strict_json};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// An entry with its promise, in either of its spellings.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Base64 of the logged document, as it is signed.
    body: String,
    integrated_time: i64,
    log_index: i64,
    /// Hex of the digest of the log's key.
    log_id: String,
    /// The promise.
    timestamp: Vec<u8>,
}

/// The annotation `dev.sigstore.cosign/bundle`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Annotation {
    signed_entry_timestamp: String,
    payload: AnnotationPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnnotationPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

/// `tlogEntries[]` of a sigstore bundle; protobuf's JSON writes 64-bit numbers as strings.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TlogEntry {
    #[serde(deserialize_with = "number")]
    log_index: i64,
    log_id: LogId,
    #[serde(deserialize_with = "number")]
    integrated_time: i64,
    inclusion_promise: Option<Promise>,
    canonicalized_body: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogId {
    key_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: String,
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => text.parse().map_err(serde::de::Error::custom),
        Value::Number(number) => number.as_i64().ok_or_else(|| serde::de::Error::custom("not a whole number")),
        _ => Err(serde::de::Error::custom("not a number")),
    }
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|_| format!("the log's {what} is not base64"))
}

impl Entry {
    /// From the annotation of a simple-signing layer.
    pub(super) fn from_annotation(json: &str) -> Result<Self, String> {
        let annotation: Annotation = strict_json::parse(json.as_bytes()).map_err(|e| format!("the log's entry: {e}"))?;
        let payload = annotation.payload;
        let timestamp = decode("promise", &annotation.signed_entry_timestamp)?;
        let (integrated_time, log_index) = (payload.integrated_time, payload.log_index);
        Ok(Self { body: payload.body, integrated_time, log_index, log_id: payload.log_id, timestamp })
    }

    /// From a bundle; nothing where it has a proof of inclusion only.
    pub(super) fn from_bundle(entry: &TlogEntry) -> Result<Option<Self>, String> {
        let Some(promise) = &entry.inclusion_promise else { return Ok(None) };
        Ok(Some(Self {
            body: entry.canonicalized_body.clone(),
            integrated_time: entry.integrated_time,
            log_index: entry.log_index,
            log_id: hex::encode(decode("id", &entry.log_id.key_id)?),
            timestamp: decode("promise", &promise.signed_entry_timestamp)?,
        }))
    }

    /// Whether one of the `logs` promises that it holds `signature` of `signer` over `message`.
    pub(super) fn check(&self, logs: &[PublicKey], signer: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), String> {
        // The names in alphabetical order, as RFC 8785 wants them; serde_json's map keeps that order, and nothing here needs escaping.
        let signed = json!({"body": self.body, "integratedTime": self.integrated_time, "logID": self.log_id, "logIndex": self.log_index});
        let ours = |log: &&PublicKey| Digest::of(log.spki()).hex() == self.log_id;
        let promised = logs.iter().filter(ours).any(|log| log.verifies(signed.to_string().as_bytes(), &self.timestamp));
        if !promised {
            return Err("its entry in the transparency log is not one that the log of rekorPublicKey… promised".into());
        }
        let body = strict_json::parse_value(&decode("document", &self.body)?).map_err(|e| format!("the log's document: {e}"))?;
        match logs_this(&body, signer, message, signature) {
            Some(true) => Ok(()),
            _ => Err("its entry in the transparency log is of another signature".into()),
        }
    }
}

/// The two kinds that `cosign sign` makes: `hashedrekord` for simple signing, `dsse` for bundles.
fn logs_this(body: &Value, signer: &PublicKey, message: &[u8], signature: &[u8]) -> Option<bool> {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
    let bytes = |text: &str| STANDARD.decode(text).ok();
    let is_signers = |pem: Vec<u8>| PublicKey::from_pem(&pem).is_ok_and(|key| key.spki() == signer.spki());
    Some(match text("/kind")? {
        "hashedrekord" => {
            text("/spec/data/hash/algorithm")? == "sha256"
                && text("/spec/data/hash/value")? == Digest::of(message).hex()
                && bytes(text("/spec/signature/content")?)? == signature
                && is_signers(bytes(text("/spec/signature/publicKey/content")?)?)
        }
        // What is signed is the payload in its encoding; the log has the payload's own hash, which the signature covers, and the
        // signature itself.
        "dsse" => body.pointer("/spec/signatures")?.as_array()?.iter().any(|one| {
            let member = |name: &str| one.get(name).and_then(Value::as_str).and_then(bytes);
            member("signature").is_some_and(|logged| logged == signature) && member("verifier").is_some_and(is_signers)
        }),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::sign::SigningKey;

    /// An entry as a log writes it, so that each part of it can be changed.
    fn entry(log: &SigningKey, body: &Value) -> Entry {
        let body = STANDARD.encode(body.to_string());
        let log_id = Digest::of(log.public().unwrap().spki()).hex();
        let signed = format!(r#"{{"body":"{body}","integratedTime":5,"logID":"{log_id}","logIndex":7}}"#);
        Entry { body, integrated_time: 5, log_index: 7, log_id, timestamp: log.sign(signed.as_bytes()) }
    }

    #[test]
    fn a_promise_is_of_one_signature_by_one_log() {
        let (log, signer, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let signature = signer.sign(b"message");
        let pem = STANDARD.encode(signer.public_pem().unwrap());
        let body = json!({"kind": "hashedrekord", "spec": {"data": {"hash": {"algorithm": "sha256", "value": Digest::of(b"message").hex()}},
            "signature": {"content": STANDARD.encode(&signature), "publicKey": {"content": pem}}}});
        let good = entry(&log, &body);
        let keys = [log.public().unwrap()];
        let signer_key = signer.public().unwrap();
        good.check(&keys, &signer_key, b"message", &signature).unwrap();
        assert!(good.check(&[other.public().unwrap()], &signer_key, b"message", &signature).unwrap_err().contains("promised"));
        assert!(good.check(&keys, &signer_key, b"another", &signature).unwrap_err().contains("another signature"));
        assert!(good.check(&keys, &other.public().unwrap(), b"message", &signature).is_err());
        assert!(good.check(&keys, &signer_key, b"message", &signer.sign(b"message!")).is_err());
        assert!(Entry { log_index: 8, ..good.clone() }.check(&keys, &signer_key, b"message", &signature).is_err());
        let dsse = json!({"kind": "dsse", "spec": {"signatures": [{"signature": STANDARD.encode(&signature), "verifier": pem}]}});
        entry(&log, &dsse).check(&keys, &signer_key, b"message", &signature).unwrap();
        let unknown = entry(&log, &json!({"kind": "rpm"}));
        assert!(unknown.check(&keys, &signer_key, b"message", &signature).is_err());
    }
}
