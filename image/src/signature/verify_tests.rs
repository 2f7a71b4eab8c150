//! Against a repository in memory, so that it can hold anything.

use super::*;
use crate::{
    manifest::{Descriptor, Index},
    media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST},
    signature::{
        attached::{ArtifactManifest, referrers_tag, signature_tag},
        sign::{self, SignedBlob, SigningKey},
    },
};
use serde_json::json;
use std::{collections::BTreeMap, sync::Mutex};

const MANIFEST: &[u8] = b"the manifest";

#[derive(Default)]
struct Memory {
    blobs: BTreeMap<Digest, Vec<u8>>,
    tags: BTreeMap<String, Vec<u8>>,
    asked: Mutex<usize>,
    broken: bool,
}

impl Memory {
    fn put(&mut self, blob: SignedBlob) -> Descriptor {
        self.blobs.insert(blob.descriptor.digest, blob.bytes);
        blob.descriptor
    }

    /// cosign's older format.
    fn simple(&mut self, digest: &Digest, layers: Vec<SignedBlob>) {
        let layers: Vec<Descriptor> = layers.into_iter().map(|layer| self.put(layer)).collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": Descriptor::of(OCI_CONFIG, b"{}"), "layers": layers});
        self.tags.insert(signature_tag(digest), manifest.to_string().into_bytes());
    }

    /// cosign's newer format.
    fn bundle(&mut self, digest: &Digest, bundle: SignedBlob) {
        let manifest: ArtifactManifest = sign::bundle_manifest(&bundle, Descriptor::of(OCI_MANIFEST, MANIFEST));
        self.put(bundle);
        let bytes = json!(manifest).to_string().into_bytes();
        let listed = manifest.listed(&bytes);
        self.blobs.insert(listed.digest, bytes);
        let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests: vec![listed] };
        self.tags.insert(referrers_tag(digest), json!(index).to_string().into_bytes());
    }
}

#[async_trait]
impl Repository for Memory {
    async fn tagged(&self, tag: &str) -> Result<Option<(Vec<u8>, Option<String>)>, String> {
        *self.asked.lock().unwrap() += 1;
        if self.broken {
            return Err("the registry is away".into());
        }
        Ok(self.tags.get(tag).map(|bytes| (bytes.clone(), None)))
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        Ok(self.tagged(&referrers_tag(digest)).await?.map(|(bytes, _)| bytes))
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.small_blob(descriptor).await
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.blobs.get(&descriptor.digest).cloned().ok_or_else(|| "no such blob".into())
    }
}

struct Keys(BTreeMap<String, Vec<u8>>);

#[async_trait]
impl KeyStore for Keys {
    async fn key(&self, path: &str) -> Result<Vec<u8>, String> {
        self.0.get(path).cloned().ok_or_else(|| "no such resource".into())
    }
}

fn keys(key: &SigningKey) -> Keys {
    Keys(BTreeMap::from([("kbs:///a/key/1".to_owned(), key.public_pem().unwrap().into_bytes())]))
}

fn policy(identity: &str) -> SignaturePolicy {
    let identity = if identity.is_empty() { String::new() } else { format!(r#","signedIdentity":{{"type":"{identity}"}}"#) };
    let json = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{
            "x.io":[{{"type":"sigstoreSigned","keyPath":"kbs:///a/key/1"{identity}}}],
            "x.io/open":[{{"type":"insecureAcceptAnything"}}], "x.io/gpg":[{{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}}],
            "x.io/fulcio":[{{"type":"sigstoreSigned","fulcio":{{"caPath":"/ca"}}}}],
            "x.io/missing":[{{"type":"sigstoreSigned","keyPath":"kbs:///a/key/2"}}],
            "x.io/both":[{{"type":"sigstoreSigned","keyPath":"kbs:///a/key/1"}},{{"type":"reject"}}]}}}}}}"#
    );
    SignaturePolicy::parse(json.as_bytes()).unwrap()
}

async fn run(policy: &SignaturePolicy, reference: &str, repository: &Memory, keys: &Keys) -> Result<(), String> {
    let reference: Reference = reference.parse().unwrap();
    let manifest = Document { digest: Digest::of(MANIFEST), bytes: MANIFEST };
    let subject = Subject { reference: &reference, manifest, index: None };
    check(policy, &subject, repository, keys).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn both_formats_are_accepted_and_other_keys_are_not() {
    let (key, other, digest) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap(), Digest::of(MANIFEST));
    let name: Reference = "x.io/app:1".parse().unwrap();
    let (mut simple, mut bundle) = (Memory::default(), Memory::default());
    simple.simple(&digest, vec![sign::simple_layer(&key, &digest, &name)]);
    bundle.bundle(&digest, sign::bundle(&key, &digest, &name).unwrap());
    for memory in [&simple, &bundle] {
        run(&policy(""), "x.io/app:1", memory, &keys(&key)).await.unwrap();
        let error = run(&policy(""), "x.io/app:1", memory, &keys(&other)).await.unwrap_err();
        assert!(error.contains("not made with a key of the policy") && error.contains("transports.docker.\"x.io\""), "{error}");
        let error = run(&policy(""), "x.io/other:1", memory, &keys(&key)).await.unwrap_err();
        assert!(error.contains("for another name") && error.contains("x.io/app:1"), "{error}");
        assert!(run(&policy("matchRepository"), "x.io/app:2", memory, &keys(&key)).await.is_ok());
    }
}

#[tokio::test]
async fn a_signature_of_another_image_is_not_this_ones() {
    let (key, digest) = (SigningKey::generate().unwrap(), Digest::of(MANIFEST));
    let name: Reference = "x.io/app:1".parse().unwrap();
    let moved = sign::simple_layer(&key, &Digest::of(b"another manifest"), &name);
    let mut memory = Memory::default();
    memory.simple(&digest, vec![moved]);
    let error = run(&policy(""), "x.io/app:1", &memory, &keys(&key)).await.unwrap_err();
    assert!(error.contains("of another image"), "{error}");
    let mut memory = Memory::default();
    memory.bundle(&digest, sign::bundle(&key, &Digest::of(b"another manifest"), &name).unwrap());
    let error = run(&policy(""), "x.io/app:1", &memory, &keys(&key)).await.unwrap_err();
    assert!(error.contains("of another image"), "{error}");
}

#[tokio::test]
async fn one_good_signature_is_enough_and_a_flipped_bit_is_none() {
    let (key, other, digest) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap(), Digest::of(MANIFEST));
    let name: Reference = "x.io/app:1".parse().unwrap();
    let mut memory = Memory::default();
    let junk = SignedBlob { descriptor: Descriptor::of(attached::SIMPLE_TYPE, b"junk"), bytes: b"junk".to_vec() };
    memory.simple(&digest, vec![junk, sign::simple_layer(&other, &digest, &name), sign::simple_layer(&key, &digest, &name)]);
    run(&policy(""), "x.io/app:1", &memory, &keys(&key)).await.unwrap();

    let mut changed = sign::simple_layer(&key, &digest, &name);
    changed.bytes = String::from_utf8(changed.bytes).unwrap().replace("x.io/app", "x.io/apq").into_bytes();
    changed.descriptor =
        Descriptor { annotations: changed.descriptor.annotations.clone(), ..Descriptor::of(attached::SIMPLE_TYPE, &changed.bytes) };
    let mut memory = Memory::default();
    memory.simple(&digest, vec![changed]);
    assert!(run(&policy("matchDigest"), "x.io/app:1", &memory, &keys(&key)).await.unwrap_err().contains("tampered"));
}

#[tokio::test]
async fn the_policy_decides_without_asking_where_it_can() {
    let key = SigningKey::generate().unwrap();
    let memory = Memory::default();
    run(&policy(""), "x.io/open/a:1", &memory, &keys(&key)).await.unwrap();
    for (reference, wanted) in
        [("y.io/app:1", "to be rejected"), ("x.io/gpg:1", "GPG"), ("x.io/fulcio:1", "fulcio"), ("x.io/missing:1", "kbs:///a/key/2")]
    {
        let error = run(&policy(""), reference, &memory, &keys(&key)).await.unwrap_err();
        assert!(error.contains(wanted) && error.contains(reference) && !error.contains('\n'), "{reference}: {error}");
    }
    assert_eq!(*memory.asked.lock().unwrap(), 0);
    let error = run(&policy(""), "x.io/app:1", &memory, &keys(&key)).await.unwrap_err();
    assert!(error.contains("no signature in its repository") && error.contains("cosign sign"), "{error}");
    let away = Memory { broken: true, ..Memory::default() };
    let error = run(&policy(""), "x.io/app:1", &away, &keys(&key)).await.unwrap_err();
    assert!(error.contains("the registry is away"), "{error}");
}

#[tokio::test]
async fn every_requirement_counts() {
    let (key, digest) = (SigningKey::generate().unwrap(), Digest::of(MANIFEST));
    let mut memory = Memory::default();
    memory.simple(&digest, vec![sign::simple_layer(&key, &digest, &"x.io/both:1".parse().unwrap())]);
    assert!(run(&policy(""), "x.io/both:1", &memory, &keys(&key)).await.unwrap_err().contains("rejected"));
}

#[tokio::test]
async fn a_signed_index_vouches_for_the_manifest_that_it_led_to() {
    let key = SigningKey::generate().unwrap();
    let index = b"the index".as_slice();
    let reference: Reference = "x.io/app:1".parse().unwrap();
    let mut memory = Memory::default();
    memory.simple(&Digest::of(index), vec![sign::simple_layer(&key, &Digest::of(index), &reference)]);
    let manifest = Document { digest: Digest::of(MANIFEST), bytes: MANIFEST };
    let mut subject = Subject { reference: &reference, manifest, index: Some(Document { digest: Digest::of(index), bytes: index }) };
    check(&policy(""), &subject, &memory, &keys(&key)).await.unwrap();
    subject.index = None;
    assert!(check(&policy(""), &subject, &memory, &keys(&key)).await.is_err());
}

#[tokio::test]
async fn cosigns_nameless_bundle_needs_a_policy_that_says_so() {
    let (key, digest) = (SigningKey::generate().unwrap(), Digest::of(MANIFEST));
    let statement = json!({"_type": "https://in-toto.io/Statement/v1", "subject": [{"digest": {"sha256": digest.hex()}}],
        "predicateType": payload::SIGN_PREDICATE, "predicate": {}})
    .to_string();
    let signature = key.sign(&payload::pae(payload::INTOTO, statement.as_bytes()));
    let bytes = json!({"mediaType": attached::BUNDLE_TYPE, "verificationMaterial": {"publicKey": {"hint": ""}},
        "dsseEnvelope": {"payload": STANDARD.encode(&statement), "payloadType": payload::INTOTO,
                         "signatures": [{"sig": STANDARD.encode(b"another's")}, {"sig": STANDARD.encode(signature)}]}})
    .to_string()
    .into_bytes();
    let mut memory = Memory::default();
    memory.bundle(&digest, SignedBlob { descriptor: Descriptor::of(attached::BUNDLE_TYPE, &bytes), bytes });
    let error = run(&policy("matchRepository"), "x.io/app:1", &memory, &keys(&key)).await.unwrap_err();
    assert!(error.contains("matchDigest"), "{error}");
    run(&policy("matchDigest"), "x.io/app:1", &memory, &keys(&key)).await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_wanted_has_to_have_promised() {
    let (key, digest) = (SigningKey::generate().unwrap(), Digest::of(MANIFEST));
    let name: Reference = "x.io/app:1".parse().unwrap();
    let log = STANDARD.encode(SigningKey::generate().unwrap().public_pem().unwrap());
    let json = format!(r#"{{"default":[{{"type":"sigstoreSigned","keyPath":"kbs:///a/key/1","rekorPublicKeyData":"{log}"}}]}}"#);
    let policy = SignaturePolicy::parse(json.as_bytes()).unwrap();
    let (mut simple, mut bundle) = (Memory::default(), Memory::default());
    simple.simple(&digest, vec![sign::simple_layer(&key, &digest, &name)]);
    bundle.bundle(&digest, sign::bundle(&key, &digest, &name).unwrap());
    for memory in [&simple, &bundle] {
        let error = run(&policy, "x.io/app:1", memory, &keys(&key)).await.unwrap_err();
        assert!(error.contains("rekorPublicKey"), "{error}");
    }
}
