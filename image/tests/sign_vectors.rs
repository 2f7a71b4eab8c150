//! Signatures that others made, good and bad.
#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use image::{
    digest::Digest,
    manifest::Descriptor,
    reference::Reference,
    signature::{
        Document, KeyStore, SignaturePolicy, Subject,
        attached::{BUNDLE_TYPE, Repository, SIMPLE_TYPE, referrers_tag, signature_tag},
        check,
        key::PublicKey,
    },
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn vector(name: &str) -> Option<Vec<u8>> {
    vectors::folder().map(|folder| vectors::read(&folder.join("sign"), name))
}

/// What is attached to one manifest.
#[derive(Default)]
struct Recorded {
    tags: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Recorded {
    /// From the form in which skopeo's `dir:` keeps a signature: a zero byte, a word, and JSON.
    fn simple(digest: &Digest, file: &[u8]) -> Self {
        let json: Value = serde_json::from_slice(file.strip_prefix(b"\0sigstore-json\n").unwrap()).unwrap();
        let payload = STANDARD.decode(json["payload"].as_str().unwrap()).unwrap();
        let mut layer = Descriptor::of(SIMPLE_TYPE, &payload);
        assert_eq!(json["mimeType"], SIMPLE_TYPE);
        layer.annotations = serde_json::from_value(json["annotations"].clone()).unwrap();
        let config = Descriptor::of("application/vnd.oci.image.config.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
        Self { tags: [(signature_tag(digest), manifest.into_bytes())].into(), blobs: [(layer.digest, payload)].into() }
    }

    fn bundle(digest: &Digest, bundle: Vec<u8>) -> Self {
        let layer = Descriptor::of(BUNDLE_TYPE, &bundle);
        let config = Descriptor::of("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string().into_bytes();
        let listed = Descriptor::of("application/vnd.oci.image.manifest.v1+json", &manifest);
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string();
        let blobs = [(layer.digest, bundle), (listed.digest, manifest)].into();
        Self { tags: [(referrers_tag(digest), index.into_bytes())].into(), blobs }
    }
}

#[async_trait]
impl Repository for Recorded {
    async fn tagged(&self, tag: &str) -> Result<Option<(Vec<u8>, Option<String>)>, String> {
        Ok(self.tags.get(tag).map(|bytes| (bytes.clone(), None)))
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        Ok(self.tags.get(&referrers_tag(digest)).cloned())
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.small_blob(descriptor).await
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.blobs.get(&descriptor.digest).cloned().ok_or_else(|| "no such blob".into())
    }
}

struct Files;

#[async_trait]
impl KeyStore for Files {
    async fn key(&self, path: &str) -> Result<Vec<u8>, String> {
        vector(path).ok_or_else(|| "no vectors".into())
    }
}

async fn verdict(requirement: &Value, reference: &str, manifest: &[u8], recorded: &Recorded) -> Result<(), String> {
    let policy = SignaturePolicy::parse(json!({"default": [requirement]}).to_string().as_bytes()).unwrap();
    let reference: Reference = reference.parse().unwrap();
    let subject = Subject { reference: &reference, manifest: Document { digest: Digest::of(manifest), bytes: manifest }, index: None };
    check(&policy, &subject, recorded, &Files).await.map_err(|e| e.to_string())
}

fn key(file: &str) -> Value {
    json!({"type": "sigstoreSigned", "keyPath": file, "signedIdentity": {"type": "matchRepository"}})
}

#[tokio::test]
async fn cosigns_signature_is_right_with_its_key_only() {
    let (Some(manifest), Some(signature)) =
        (vector("cimage_dir-img-cosign-valid_manifest.json"), vector("cimage_dir-img-cosign-valid_signature-1"))
    else {
        return;
    };
    let recorded = Recorded::simple(&Digest::of(&manifest), &signature);
    let name = "192.168.64.2:5000/cosign-signed-single-sample:1";
    verdict(&key("cimage_cosign.pub"), name, &manifest, &recorded).await.unwrap();
    let error = verdict(&key("cimage_cosign2.pub"), name, &manifest, &recorded).await.unwrap_err();
    assert!(error.contains("not made with a key of the policy"), "{error}");
    let error = verdict(&key("cimage_cosign.pub"), "192.168.64.2:5000/other:1", &manifest, &recorded).await.unwrap_err();
    assert!(error.contains("another name"), "{error}");
    let exact = json!({"type": "sigstoreSigned", "keyPath": "cimage_cosign.pub"});
    let error = verdict(&exact, name, &manifest, &recorded).await.unwrap_err();
    assert!(error.contains("without a tag"), "cosign signs no tag, and the default wants one: {error}");
}

#[tokio::test]
async fn a_modified_manifest_has_no_signature_of_its_own() {
    let (Some(manifest), Some(signature)) =
        (vector("cimage_dir-img-cosign-modified-manifest_manifest.json"), vector("cimage_dir-img-cosign-valid_signature-1"))
    else {
        return;
    };
    let recorded = Recorded::simple(&Digest::of(&manifest), &signature);
    let name = "192.168.64.2:5000/cosign-signed-single-sample:1";
    let error = verdict(&key("cimage_cosign.pub"), name, &manifest, &recorded).await.unwrap_err();
    assert!(error.contains("of another image"), "{error}");
}

#[tokio::test]
async fn the_transparency_logs_promise_is_checked() {
    let (Some(manifest), Some(signature)) =
        (vector("cimage_dir-img-cosign-key-rekor-valid_manifest.json"), vector("cimage_dir-img-cosign-key-rekor-valid_signature-1"))
    else {
        return;
    };
    let recorded = Recorded::simple(&Digest::of(&manifest), &signature);
    let name = "192.168.64.2:5000/cosign-signed/key-1:1";
    let mut requirement = key("cimage_cosign2.pub");
    requirement["rekorPublicKeyPath"] = json!("cimage_rekor.pub");
    verdict(&requirement, name, &manifest, &recorded).await.unwrap();
    requirement["rekorPublicKeyPath"] = json!("cimage_cosign.pub");
    let error = verdict(&requirement, name, &manifest, &recorded).await.unwrap_err();
    assert!(error.contains("promised"), "{error}");
    // The one without an entry.
    let (Some(manifest), Some(signature)) =
        (vector("cimage_dir-img-cosign-valid_manifest.json"), vector("cimage_dir-img-cosign-valid_signature-1"))
    else {
        return;
    };
    let mut requirement = key("cimage_cosign.pub");
    requirement["rekorPublicKeyPath"] = json!("cimage_rekor.pub");
    let recorded = Recorded::simple(&Digest::of(&manifest), &signature);
    let error = verdict(&requirement, "192.168.64.2:5000/cosign-signed-single-sample:1", &manifest, &recorded).await.unwrap_err();
    assert!(error.contains("no entry of the transparency log"), "{error}");
}

#[tokio::test]
async fn certificates_and_gpg_are_refused_with_the_way_out() {
    for (what, name) in [("fulcio-rekor-valid", "192.168.64.2:5000/cosign-signed/fulcio-rekor-1:1"), ("pki-valid", "localhost:5000/test:1")]
    {
        let (Some(manifest), Some(signature)) =
            (vector(&format!("cimage_dir-img-cosign-{what}_manifest.json")), vector(&format!("cimage_dir-img-cosign-{what}_signature-1")))
        else {
            return;
        };
        let recorded = Recorded::simple(&Digest::of(&manifest), &signature);
        let error = verdict(&key("cimage_cosign.pub"), name, &manifest, &recorded).await.unwrap_err();
        assert!(error.contains("not made with a key"), "{error}");
        let fulcio =
            json!({"type": "sigstoreSigned", "fulcio": {"caPath": "cimage_fulcio_v1.crt.pem", "oidcIssuer": "x", "subjectEmail": "x"}});
        let error = verdict(&fulcio, name, &manifest, &recorded).await.unwrap_err();
        assert!(error.contains("not supported here") && error.contains("keyPath"), "{error}");
        let gpg = json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "cimage_public-key-1.gpg"});
        let error = verdict(&gpg, name, &manifest, &recorded).await.unwrap_err();
        assert!(error.contains("GPG") && error.contains("sigstoreSigned"), "{error}");
    }
}

/// sigstore-go's bundle of a signature with a key over the text "test content".
#[tokio::test]
async fn a_bundle_that_signs_its_subject_itself() {
    let Some(bundle) = vector("sigstore-go_public-key-validity.sigstore.json") else { return };
    let subject = b"test content".as_slice();
    let recorded = Recorded::bundle(&Digest::of(subject), bundle.clone());
    let mut requirement = key("sigstore-go_public-key-validity.pem");
    let error = verdict(&requirement, "x.io/a:1", subject, &recorded).await.unwrap_err();
    assert!(error.contains("matchDigest"), "{error}");
    requirement["signedIdentity"] = json!({"type": "matchDigest"});
    verdict(&requirement, "x.io/a:1", subject, &recorded).await.unwrap();
    let other = b"test content!".as_slice();
    assert!(verdict(&requirement, "x.io/a:1", other, &Recorded::bundle(&Digest::of(other), bundle)).await.is_err());
}

/// Bundles with certificates: read, and not taken for signatures of a key.
#[tokio::test]
async fn bundles_of_certificates_are_nobodys() {
    for name in [
        "cosign_oci-attestation.sigstore.json",
        "sigstore-go_dsse.sigstore.json",
        "sigstore-go_dsse-2sigs.sigstore.json",
        "sigstore-go_othername.sigstore.json",
        "sigstore-go_sigstore.js@2.0.0-provenance.sigstore.json",
        "protobuf-specs_a.txt.sigstore",
    ] {
        let Some(bundle) = vector(name) else { return };
        let subject = b"manifest".as_slice();
        let mut requirement = key("cimage_cosign.pub");
        requirement["signedIdentity"] = json!({"type": "matchDigest"});
        let error = verdict(&requirement, "x.io/a:1", subject, &Recorded::bundle(&Digest::of(subject), bundle)).await.unwrap_err();
        assert!(error.contains("not made with a key of the policy"), "{name}: {error}");
    }
}

#[test]
fn every_public_key_of_the_collection_is_read() {
    for name in [
        "cimage_cosign.pub",
        "cimage_cosign2.pub",
        "cimage_rekor.pub",
        "cosign_release-cosign.pub",
        "image-rs_cosign_cosign1.pub",
        "image-rs_cosign_cosign2.pub",
        "image-rs_cosign_cosign3.pub",
        "image-rs_cosign_nv.pub",
        "sigstore-go_public-key-validity.pem",
    ] {
        let Some(pem) = vector(name) else { return };
        PublicKey::from_pem(&pem).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let Some(gpg) = vector("cimage_public-key-1.gpg") else { return };
    assert!(PublicKey::from_pem(&gpg).is_err());
}

/// Policies of other projects; what they want of GPG is refused only where it applies.
#[test]
fn policies_of_others_are_read() {
    let Some(policy) = vector("image-rs_ss_security_policy.json") else { return };
    let policy = SignaturePolicy::parse(&policy).unwrap();
    let scope = |name: &str| policy.requirements(&name.parse().unwrap()).0;
    let repository = "quay.io/kata-containers/confidential-containers";
    assert_eq!(scope(&format!("{repository}:cosign-signed")), format!("transports.docker.{:?}", format!("{repository}:cosign-signed")));
    assert_eq!(scope(&format!("{repository}:other")), format!("transports.docker.{repository:?}"));
    assert_eq!(scope("busybox"), "default");
    for (name, hardened) in [("cimage_policy.json", 3), ("image-rs_policy.json", 2)] {
        let Some(policy) = vector(name) else { return };
        let policy = SignaturePolicy::parse(&policy).unwrap();
        assert_eq!(policy.requirements(&"example.com/hardened/x:1".parse().unwrap()).1.len(), hardened, "{name}");
    }
}
