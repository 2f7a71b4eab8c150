//! Where signatures are: beside the image, in the same repository. cosign's older format is an image under a tag made of the digest;
//! its newer one, and the signatures of other tools, are *referrers* (OCI distribution-spec 1.1).
//!
//! All of it is the registry's word. What is fetched here is bounded and compared with its descriptor; whether it is worth anything,
//! [`super::verify`] says.

use crate::{
    digest::Digest,
    manifest::{self, Descriptor, Index, Manifest, clip},
    media_type::OCI_MANIFEST,
};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use std::collections::BTreeMap;

/// Layer of a signature in cosign's older format.
pub const SIMPLE_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// A sigstore bundle, as it is written; readers take the versions before it too.
pub const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The signature over a layer of [`SIMPLE_TYPE`]: base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// The transparency log's entry for it.
const REKOR_ANNOTATION: &str = "dev.sigstore.cosign/bundle";
const BUNDLE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";
/// What cosign calls a manifest of simple-signing layers among the referrers.
const SIMPLE_ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// The empty configuration of an artifact: `{}`.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// Most signatures looked at for one image: a registry may offer any number.
const MAX_SIGNATURES: usize = 32;
/// Largest payload or bundle, in bytes.
const MAX_SIGNATURE: u64 = 256 << 10;

/// The tag of the signatures of a manifest, in cosign's older format.
pub fn signature_tag(digest: &Digest) -> String {
    format!("sha256-{}.sig", digest.hex())
}

/// The tag of the referrers of a manifest, where the registry has no API for them.
pub fn referrers_tag(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// A repository that signatures are looked for in. Every document that comes by digest was compared with it.
#[async_trait]
pub trait Repository: Send + Sync {
    /// The manifest with this tag, with its media type; nothing where there is none.
    async fn tagged(&self, tag: &str) -> Result<Option<(Vec<u8>, Option<String>)>, String>;
    /// The index of what refers to `digest`; nothing where there is none.
    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String>;
    /// A manifest by its descriptor.
    async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String>;
    /// A small blob by its descriptor.
    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String>;
}

/// Something that claims to be a signature.
#[derive(Debug, Clone)]
pub enum Attached {
    /// cosign's older format.
    Simple {
        /// What is signed.
        payload: Vec<u8>,
        /// Over it.
        signature: Vec<u8>,
        /// The transparency log's entry, as it is.
        rekor: Option<String>,
    },
    /// A sigstore bundle, as it is.
    Bundle(Vec<u8>),
}

/// What is attached to the manifest `digest`, and what could not be read of it.
#[derive(Debug, Default)]
pub struct Found {
    /// Candidates.
    pub signatures: Vec<Attached>,
    /// Why some were left out; for the refusal's text.
    pub faults: Vec<String>,
}

/// Looks in all places. An unreachable place is an error only if nothing is found: one good signature is enough.
pub async fn find(repository: &dyn Repository, digest: &Digest) -> Found {
    let mut found = Found::default();
    match repository.tagged(&signature_tag(digest)).await {
        Ok(None) => (),
        Ok(Some((bytes, media_type))) => match manifest::parse_manifest(&bytes, media_type.as_deref()) {
            Ok(manifest) => found.add(repository, &manifest).await,
            Err(e) => found.faults.push(format!("tag {}: {e}", signature_tag(digest))),
        },
        Err(e) => found.faults.push(e),
    }
    let index = match repository.referrers(digest).await {
        Ok(Some(bytes)) => manifest::parse_index(&bytes, None).map_err(|e| format!("referrers: {e}")),
        Ok(None) => return found,
        Err(e) => Err(e),
    };
    match index {
        Ok(index) => found.add_referrers(repository, &index).await,
        Err(e) => found.faults.push(e),
    }
    found
}

impl Found {
    async fn add_referrers(&mut self, repository: &dyn Repository, index: &Index) {
        let is_signature = |d: &&Descriptor| {
            // An old registry leaves the type out of its list; the manifest says it then.
            d.artifact_type.as_deref().is_none_or(|kind| kind.starts_with(BUNDLE_PREFIX) || kind == SIMPLE_ARTIFACT)
        };
        for descriptor in index.manifests.iter().filter(is_signature).take(MAX_SIGNATURES) {
            let manifest = match repository.manifest(descriptor).await {
                Ok(bytes) => manifest::parse_manifest(&bytes, Some(&descriptor.media_type)).map_err(|e| e.to_string()),
                Err(e) => Err(e),
            };
            match manifest {
                Ok(manifest) => self.add(repository, &manifest).await,
                Err(e) => self.faults.push(format!("referrer {}: {e}", descriptor.digest)),
            }
        }
    }

    async fn add(&mut self, repository: &dyn Repository, manifest: &Manifest) {
        for layer in &manifest.layers {
            if self.signatures.len() >= MAX_SIGNATURES {
                self.faults.push(format!("more than {MAX_SIGNATURES} signatures; the others were not looked at"));
                return;
            }
            if layer.media_type != SIMPLE_TYPE && !layer.media_type.starts_with(BUNDLE_PREFIX) {
                continue;
            }
            match read(repository, layer).await {
                Ok(signature) => self.signatures.push(signature),
                Err(e) => self.faults.push(format!("signature {}: {e}", layer.digest)),
            }
        }
    }
}

async fn read(repository: &dyn Repository, layer: &Descriptor) -> Result<Attached, String> {
    if layer.size > MAX_SIGNATURE {
        return Err(format!("longer than {MAX_SIGNATURE} bytes"));
    }
    if layer.media_type != SIMPLE_TYPE {
        return Ok(Attached::Bundle(repository.small_blob(layer).await?));
    }
    let signature = layer.annotations.get(SIGNATURE_ANNOTATION).ok_or_else(|| format!("annotation {SIGNATURE_ANNOTATION} is missing"))?;
    // Some signers break the lines of their base64.
    let signature: String = signature.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let signature =
        STANDARD.decode(&signature).map_err(|_| format!("annotation {SIGNATURE_ANNOTATION} is not base64: {:?}", clip(&signature)))?;
    let rekor = layer.annotations.get(REKOR_ANNOTATION).cloned();
    Ok(Attached::Simple { payload: repository.small_blob(layer).await?, signature, rekor })
}

/// A manifest that is no image but belongs to one.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactManifest {
    schema_version: u64,
    media_type: &'static str,
    artifact_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
    subject: Descriptor,
    annotations: BTreeMap<String, String>,
}

impl ArtifactManifest {
    /// The bytes of the empty configuration.
    pub const EMPTY: &'static [u8] = b"{}";

    pub(super) fn of_bundle(bundle: Descriptor, subject: Descriptor, predicate: &str) -> Self {
        let annotations = [("dev.sigstore.bundle.content", "dsse-envelope"), ("dev.sigstore.bundle.predicateType", predicate)];
        Self {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            artifact_type: BUNDLE_TYPE,
            config: Descriptor::of(EMPTY_TYPE, Self::EMPTY),
            layers: vec![bundle],
            subject: Descriptor { annotations: BTreeMap::new(), platform: None, ..subject },
            annotations: annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    /// How an index of referrers lists it.
    pub fn listed(&self, bytes: &[u8]) -> Descriptor {
        Descriptor {
            artifact_type: Some(self.artifact_type.to_owned()),
            annotations: self.annotations.clone(),
            ..Descriptor::of(OCI_MANIFEST, bytes)
        }
    }
}
