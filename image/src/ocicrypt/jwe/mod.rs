//! A layer's key for the holder of a private key: a JWE (RFC 7516), in which skopeo, podman and nerdctl put it for a recipient
//! `jwe:public.pem` (ocicrypt, `keywrap/jwe`).
//!
//! For an RSA key that is RSA-OAEP with SHA-1, which ocicrypt's library takes by default and whose use here is sound (RFC 8017 needs no
//! collision resistance of it); for an EC key, ECDH-ES+A256KW. The content is A256GCM in both. A document may have several recipients.

mod content;
mod keys;

pub use keys::{PrivateKey, PublicKey};

use super::{OcicryptError, malformed};
use crate::{manifest::clip, strict_json};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use content::{CEK_LEN, Sealed};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

const JWE: &str = "jwe";
/// The one content encryption that ocicrypt writes.
const ENCRYPTION: &str = "A256GCM";
/// Most recipients of one document.
const MAX_RECIPIENTS: usize = 16;
/// Longest wrapped key: RSA of 8192 bits, in bytes.
const MAX_WRAPPED: usize = 1024;

/// A JWE as it stands in an annotation; parsed and bounded, not opened.
#[derive(Debug, Clone)]
pub struct Jwe {
    recipients: Vec<Recipient>,
    sealed: Sealed,
}

#[derive(Debug, Clone)]
struct Recipient {
    /// All headers that concern this recipient; no name is in two of them.
    header: Map<String, Value>,
    wrapped: Vec<u8>,
}

/// The general and the flattened serialisation (RFC 7516 §7.2) in one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JweJson {
    protected: Option<String>,
    unprotected: Option<Map<String, Value>>,
    recipients: Option<Vec<RecipientJson>>,
    header: Option<Map<String, Value>>,
    encrypted_key: Option<String>,
    aad: Option<String>,
    iv: String,
    ciphertext: String,
    tag: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipientJson {
    header: Option<Map<String, Value>>,
    encrypted_key: Option<String>,
}

impl Jwe {
    /// One document of the annotation's value.
    pub(super) fn from_base64(text: &str) -> Result<Self, OcicryptError> {
        let json = STANDARD.decode(text.trim()).map_err(|e| malformed(JWE, e))?;
        let json: JweJson = strict_json::parse(&json).map_err(|e| malformed(JWE, e))?;
        let protected = json.protected.unwrap_or_default();
        let header: Map<String, Value> = match protected.as_str() {
            "" => Map::new(),
            text => strict_json::parse(&url(text, "protected")?).map_err(|e| malformed(JWE, e))?,
        };
        let shared = merged(header, json.unprotected)?;
        // "zip" would have us decompress, "crit" names what we must understand; nothing has either here.
        if shared.contains_key("zip") || shared.contains_key("crit") {
            return Err(malformed(JWE, "has a header zip or crit, which no layer key has"));
        }
        if shared.get("enc").and_then(Value::as_str) != Some(ENCRYPTION) {
            return Err(malformed(JWE, format!("content encryption {}, want {ENCRYPTION}", shared.get("enc").unwrap_or(&Value::Null))));
        }
        let recipients = match (json.recipients, json.encrypted_key) {
            (Some(recipients), None) if json.header.is_none() => recipients,
            (None, encrypted_key) => vec![RecipientJson { header: json.header, encrypted_key }],
            _ => return Err(malformed(JWE, "has recipients in two places")),
        };
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            return Err(malformed(JWE, format!("{} recipients, want 1 to {MAX_RECIPIENTS}", recipients.len())));
        }
        let recipient = |one: RecipientJson| {
            let wrapped = url(&one.encrypted_key.unwrap_or_default(), "encrypted_key")?;
            if wrapped.len() > MAX_WRAPPED {
                return Err(malformed(JWE, format!("a wrapped key is longer than {MAX_WRAPPED} bytes")));
            }
            Ok(Recipient { header: merged(shared.clone(), one.header)?, wrapped })
        };
        let recipients = recipients.into_iter().map(recipient).collect::<Result<_, _>>()?;
        let aad = json.aad.map_or_else(|| protected.clone(), |aad| format!("{protected}.{aad}"));
        let sealed = Sealed::new(aad, &url(&json.iv, "iv")?, url(&json.ciphertext, "ciphertext")?, &url(&json.tag, "tag")?)?;
        Ok(Self { recipients, sealed })
    }

    /// What was wrapped, if `key` is one of the recipients' and no bit was changed.
    pub(super) fn open(&self, key: &PrivateKey) -> Result<Zeroizing<Vec<u8>>, OcicryptError> {
        let mut fault = None;
        for recipient in &self.recipients {
            match key.unwrap(&recipient.header, &recipient.wrapped) {
                Ok(content_key) => match self.sealed.open(&content_key) {
                    Ok(plain) => return Ok(plain),
                    Err(e) => fault = Some(e),
                },
                Err(e) => fault = Some(e),
            }
        }
        Err(fault.unwrap_or(OcicryptError::WrongPrivateKey))
    }

    /// Wraps `plain` once for all of `recipients`, as ocicrypt does: flattened for one, general for several.
    pub(super) fn seal(recipients: &[&PublicKey], plain: &[u8]) -> Result<String, OcicryptError> {
        let mut content_key = Zeroizing::new([0; CEK_LEN]);
        getrandom::fill(content_key.as_mut_slice()).map_err(|e| malformed("random source", e))?;
        let wrap = |recipient: &&PublicKey| recipient.wrap(&content_key);
        let wrapped: Vec<(Map<String, Value>, Vec<u8>)> = recipients.iter().map(wrap).collect::<Result<_, _>>()?;
        let mut protected = Map::from_iter([("enc".to_owned(), json!(ENCRYPTION))]);
        if let [(header, _)] = wrapped.as_slice() {
            protected.extend(header.clone());
        }
        let protected = URL_SAFE_NO_PAD.encode(Value::Object(protected).to_string());
        let sealed = Sealed::seal(protected.clone(), &content_key, plain)?;
        let mut json = json!({"protected": protected, "iv": encode(&sealed.iv), "ciphertext": encode(sealed.ciphertext()), "tag": encode(sealed.tag())});
        match wrapped.as_slice() {
            [(_, key)] => json["encrypted_key"] = encode(key).into(),
            several => {
                let recipients = several.iter().map(|(header, key)| json!({"header": header, "encrypted_key": encode(key)}));
                json["recipients"] = recipients.collect::<Vec<_>>().into();
            }
        }
        Ok(STANDARD.encode(json.to_string()))
    }
}

/// RFC 7516 §4: the names of the headers are disjoint; else two readers could see different ones.
fn merged(mut one: Map<String, Value>, other: Option<Map<String, Value>>) -> Result<Map<String, Value>, OcicryptError> {
    for (name, value) in other.unwrap_or_default() {
        if one.insert(name.clone(), value).is_some() {
            return Err(malformed(JWE, format!("header {:?} is given twice", clip(&name))));
        }
    }
    Ok(one)
}

fn url(text: &str, member: &str) -> Result<Vec<u8>, OcicryptError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed(JWE, format!("{member} is not base64url")))
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{EC_PRIVATE, RSA_PRIVATE};

    fn keys() -> [PrivateKey; 2] {
        [PrivateKey::from_pem(RSA_PRIVATE).unwrap(), PrivateKey::from_pem(EC_PRIVATE).unwrap()]
    }

    fn json_of(sealed: &str) -> Value {
        serde_json::from_slice(&STANDARD.decode(sealed).unwrap()).unwrap()
    }

    fn parse(json: &Value) -> Result<Jwe, OcicryptError> {
        Jwe::from_base64(&STANDARD.encode(json.to_string()))
    }

    #[test]
    fn each_kind_of_key_opens_what_was_made_for_it() {
        for key in keys() {
            let sealed = Jwe::seal(&[&key.public()], b"secret").unwrap();
            let jwe = Jwe::from_base64(&sealed).unwrap();
            assert_eq!(jwe.open(&key).unwrap().as_slice(), b"secret");
            for other in keys().into_iter().filter(|other| other.public() != key.public()) {
                assert!(jwe.open(&other).is_err());
            }
            assert!(json_of(&sealed).get("recipients").is_none(), "flattened for one");
        }
    }

    #[test]
    fn several_recipients_share_one_document() {
        let [rsa, ec] = keys();
        let sealed = Jwe::seal(&[&rsa.public(), &ec.public()], b"secret").unwrap();
        assert_eq!(json_of(&sealed)["recipients"].as_array().unwrap().len(), 2);
        let jwe = Jwe::from_base64(&sealed).unwrap();
        for key in [rsa, ec] {
            assert_eq!(jwe.open(&key).unwrap().as_slice(), b"secret");
        }
    }

    #[test]
    fn a_changed_document_does_not_open() {
        let [rsa, ec] = keys();
        for key in [rsa, ec] {
            let good = json_of(&Jwe::seal(&[&key.public()], b"secret").unwrap());
            for member in ["protected", "encrypted_key", "iv", "ciphertext", "tag"] {
                let mut bytes = URL_SAFE_NO_PAD.decode(good[member].as_str().unwrap()).unwrap();
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                let mut bad = good.clone();
                bad[member] = encode(&bytes).into();
                assert!(parse(&bad).and_then(|jwe| jwe.open(&key)).is_err(), "{member}");
            }
        }
    }

    #[test]
    fn malformed_documents_are_refused() {
        let [rsa, _] = keys();
        let good = json_of(&Jwe::seal(&[&rsa.public()], b"secret").unwrap());
        let protected = |json: Value| Value::from(encode(json.to_string().as_bytes()));
        for (member, value, wanted) in [
            ("protected", protected(json!({"alg": "RSA-OAEP", "enc": "A128CBC-HS256"})), "A256GCM"),
            ("protected", protected(json!({"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF"})), "zip"),
            ("protected", json!("%"), "base64url"),
            ("unprotected", json!({"enc": "A256GCM"}), "given twice"),
            ("recipients", json!([{"encrypted_key": "AA"}]), "two places"),
            ("iv", json!("AA"), "iv"),
            ("tag", json!(""), "tag"),
            ("encrypted_key", json!(encode(&[0; MAX_WRAPPED + 1])), "longer"),
            ("extra", json!(1), "extra"),
        ] {
            let mut bad = good.clone();
            bad[member] = value;
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.contains(wanted), "{member}: {error}");
        }
        let mut many = good;
        many["recipients"] = json!(vec![json!({"header": {}, "encrypted_key": ""}); MAX_RECIPIENTS + 1]);
        many.as_object_mut().unwrap().remove("encrypted_key");
        assert!(parse(&many).is_err());
    }
}
