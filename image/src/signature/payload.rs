//! What is signed, in both of cosign's formats: the "simple signing" document (containers-signature(5)), and the in-toto statement in
//! a DSSE envelope of a sigstore bundle. Both are looked into only after the signature over them was found to be right.

use crate::{digest::Digest, manifest::clip, strict_json};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The type that cosign, skopeo and podman write.
pub(super) const COSIGN_TYPE: &str = "cosign container image signature";
/// `payloadType` of the envelope (DSSE).
pub(super) const INTOTO: &str = "application/vnd.in-toto+json";
/// `predicateType` of what `cosign sign` makes; others are attestations, which say something about an image, but not that it is signed.
pub(super) const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// What a right signature says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Of the signed manifest or index.
    pub(super) digest: Digest,
    /// The image's name, if it has one.
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Simple {
    critical: Critical,
    // Free for the signer's use.
    #[serde(default, rename = "optional")]
    _optional: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: CriticalImage,
    identity: CriticalIdentity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriticalImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CriticalIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

/// Reads a simple-signing document. Whatever stands under `critical` has to be understood, as its name says.
pub(super) fn simple(json: &[u8]) -> Result<Claim, String> {
    let Simple { critical, .. } = strict_json::parse(json).map_err(|e| format!("its payload is not one of simple signing: {e}"))?;
    if critical.kind != COSIGN_TYPE {
        return Err(format!("its type is {:?}, want {COSIGN_TYPE:?}", clip(&critical.kind)));
    }
    Ok(Claim { digest: critical.image.digest, name: Some(critical.identity.reference) })
}

/// in-toto statement v1 and v0.1; the predicate is the signer's.
#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

/// Reads a statement that says "this image is signed".
pub(super) fn statement(json: &[u8]) -> Result<Claim, String> {
    let statement: Statement = strict_json::parse(json).map_err(|e| format!("its payload is no in-toto statement: {e}"))?;
    if !["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"].contains(&statement.kind.as_str()) {
        return Err(format!("its statement is of type {:?}", clip(&statement.kind)));
    }
    if statement.predicate != SIGN_PREDICATE {
        return Err(format!("it is an attestation ({:?}), not a signature: want {SIGN_PREDICATE:?}", clip(&statement.predicate)));
    }
    // One subject: several under one name could be told apart by nobody.
    let [subject] = statement.subject.as_slice() else {
        return Err(format!("its statement has {} subjects, want one", statement.subject.len()));
    };
    let digest = subject.digest.get("sha256").ok_or("its subject has no sha256 digest")?;
    let digest = format!("sha256:{digest}").parse().map_err(|e| format!("its subject: {e}"))?;
    Ok(Claim { digest, name: Some(subject.name.clone()).filter(|name| !name.is_empty()) })
}

/// DSSE's pre-authentication encoding: what the signature is over.
pub(super) fn pae(kind: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest() -> Digest {
        Digest::of(b"manifest")
    }

    #[test]
    fn both_documents_are_read() {
        let document = json!({"critical": {"identity": {"docker-reference": "x.io/a"}, "image": {"docker-manifest-digest": digest().to_string()},
            "type": COSIGN_TYPE}, "optional": {"creator": "x"}});
        let claim = simple(document.to_string().as_bytes()).unwrap();
        assert_eq!(claim, Claim { digest: digest(), name: Some("x.io/a".into()) });
        for (pointer, value, wanted) in [
            ("/critical/type", json!("atomic container signature"), "want \"cosign"),
            ("/critical/image/docker-manifest-digest", json!("sha256:../x"), "digest"),
            ("/critical/identity", json!({}), "docker-reference"),
            ("/critical", json!({"type": COSIGN_TYPE, "must": 1}), "must"),
        ] {
            let mut bad = document.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let error = simple(bad.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(wanted), "{pointer}: {error}");
        }
        assert!(simple(br#"{"critical":{},"critical":{}}"#).unwrap_err().contains("given twice"));
    }

    #[test]
    fn a_statement_is_a_signature_only_if_it_says_so() {
        let subject = json!({"name": "x.io/a", "digest": {"sha256": digest().hex()}});
        let document =
            json!({"_type": "https://in-toto.io/Statement/v1", "subject": [subject], "predicateType": SIGN_PREDICATE, "predicate": {}});
        assert_eq!(statement(document.to_string().as_bytes()).unwrap().name.as_deref(), Some("x.io/a"));
        for (pointer, value, wanted) in [
            ("/predicateType", json!("https://slsa.dev/provenance/v1"), "attestation"),
            ("/_type", json!("x"), "of type"),
            ("/subject", json!([subject, subject]), "2 subjects"),
            ("/subject/0/digest", json!({"sha512": "00"}), "no sha256"),
            ("/subject/0/digest/sha256", json!("AB"), "lower-case"),
        ] {
            let mut bad = document.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            let error = statement(bad.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(wanted), "{pointer}: {error}");
        }
        let mut nameless = document.clone();
        nameless["subject"][0].as_object_mut().unwrap().remove("name");
        assert_eq!(statement(nameless.to_string().as_bytes()).unwrap().name, None);
    }

    #[test]
    fn the_encoding_is_that_of_dsse() {
        // The example of the DSSE protocol document.
        assert_eq!(pae("http://example.com/HelloWorld", b"hello world"), b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
