//! Manifests and indices of OCI image-spec 1.1 and Docker schema 2 (version 2).
//!
//! A document that could be read as both a manifest and an index is refused (GHSA-mc8v-mgrf-8f4m), and a media type that is
//! stated must be the one that was announced.

use crate::{
    digest::{Digest, DigestError, Verifier},
    media_type::MediaType,
    strict_json,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use thiserror::Error;

/// Most layers of an image: what overlayfs and containerd take, and then nobody needs more.
pub const MAX_LAYERS: usize = 127;
/// Most manifests of an index.
pub const MAX_MANIFESTS: usize = 1024;
/// Largest blob, in bytes.
pub const MAX_BLOB: u64 = 1 << 40;
/// The platform that our guests have.
pub const PLATFORM: (&str, &str) = ("linux", "amd64");

/// Why a document is not taken.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not the JSON that it should be.
    #[error("manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Two documents in one.
    #[error("manifest has both `manifests` and `layers`: refused, as readers would disagree on what it is")]
    Ambiguous,
    /// Neither a manifest nor an index.
    #[error(
        "manifest of media type {0:?}: want an OCI image manifest or index, or a Docker schema 2 one; push the image anew with a current tool"
    )]
    MediaType(String),
    /// Announced as one thing, being another.
    #[error("manifest says that it is {stated:?} but was announced as {announced:?}")]
    Mislabelled {
        /// In the document.
        stated: String,
        /// By the registry or the index.
        announced: String,
    },
    /// Other than 2.
    #[error("manifest schemaVersion {0}: want 2; push the image anew with a current tool")]
    Schema(u64),
    /// Past a bound.
    #[error("manifest: {0}")]
    Bound(String),
    /// Not for us.
    #[error("the image has no {}/{} manifest; it has {have}", PLATFORM.0, PLATFORM.1)]
    Platform {
        /// The platforms that it has.
        have: String,
    },
}

/// Points to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Free text, among it ocicrypt's; empty for most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// In an index, what the manifest is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// In an index, the kind of a manifest that is no image, such as a signature's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }

    /// Whether `bytes` are the blob: length and digest.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), DigestError> {
        let mut verifier = self.verifier();
        verifier.update(bytes)?;
        verifier.finish()
    }

    /// For a blob that comes as a stream.
    pub fn verifier(&self) -> Verifier {
        Verifier::new(self.digest, self.size)
    }

    fn bounded(&self) -> Result<(), ManifestError> {
        if self.size > MAX_BLOB {
            return Err(ManifestError::Bound(format!("{}: {} bytes are more than {MAX_BLOB}", self.digest, self.size)));
        }
        Ok(())
    }
}

/// An operating system and architecture, in Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64`.
    pub architecture: String,
    /// Such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u64,
    /// What it says that it is; older tools leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// Lowest first; at most [`MAX_LAYERS`].
    pub layers: Vec<Descriptor>,
    /// Free text.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Manifests for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u64,
    /// What it says that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// At most [`MAX_MANIFESTS`].
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// The manifest for linux/amd64; the first one where several are.
    pub fn select(&self) -> Result<&Descriptor, ManifestError> {
        let ours = |p: &Platform| p.os == PLATFORM.0 && p.architecture == PLATFORM.1;
        let is_manifest = |d: &&Descriptor| MediaType::parse(&d.media_type) == Some(MediaType::Manifest);
        let found = self.manifests.iter().filter(is_manifest).find(|d| d.platform.as_ref().is_some_and(ours));
        found.ok_or_else(|| {
            let names = self.manifests.iter().filter_map(|d| d.platform.as_ref()).map(|p| format!("{}/{}", p.os, p.architecture));
            let names: Vec<_> = names.take(20).collect();
            let have = if names.is_empty() { "none that names a platform".into() } else { clip(&names.join(", ")) };
            ManifestError::Platform { have }
        })
    }
}

/// What a registry may answer to a reference.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One platform.
    Manifest(Manifest),
    /// Several.
    Index(Index),
}

/// Parses a manifest or an index. `announced` is the registry's content type or the index's media type; the document must agree.
/// The caller has compared `bytes` with their digest.
pub fn parse_document(bytes: &[u8], announced: Option<&str>) -> Result<Document, ManifestError> {
    let value: Value = strict_json::parse_value(bytes)?;
    let (has_manifests, has_layers) = (value.get("manifests").is_some(), value.get("layers").is_some());
    if has_manifests && has_layers {
        return Err(ManifestError::Ambiguous);
    }
    let schema = value.get("schemaVersion").and_then(Value::as_u64).unwrap_or(0);
    if schema != 2 {
        return Err(ManifestError::Schema(schema));
    }
    let announced = announced.map(|text| text.split(';').next().unwrap_or_default().trim());
    let stated = value.get("mediaType").and_then(Value::as_str);
    if let (Some(stated), Some(announced)) = (stated, announced)
        && stated != announced
    {
        return Err(ManifestError::Mislabelled { stated: clip(stated), announced: clip(announced) });
    }
    // OCI 1.0 made `mediaType` optional: then what is in the document says which it is, and the announcement must not contradict.
    let media_type = stated.or(announced);
    let kind = media_type.map(|text| MediaType::parse(text).ok_or_else(|| ManifestError::MediaType(clip(text)))).transpose()?;
    match (kind, has_manifests, has_layers) {
        (None | Some(MediaType::Index), true, false) => {
            let index: Index = serde_json::from_value(value)?;
            if index.manifests.len() > MAX_MANIFESTS {
                return Err(ManifestError::Bound(format!("{} entries are more than {MAX_MANIFESTS}", index.manifests.len())));
            }
            index.manifests.iter().try_for_each(Descriptor::bounded)?;
            Ok(Document::Index(index))
        }
        (None | Some(MediaType::Manifest), false, true) => {
            let manifest: Manifest = serde_json::from_value(value)?;
            if manifest.layers.len() > MAX_LAYERS {
                return Err(ManifestError::Bound(format!("{} layers are more than {MAX_LAYERS}", manifest.layers.len())));
            }
            manifest.layers.iter().chain([&manifest.config]).try_for_each(Descriptor::bounded)?;
            Ok(Document::Manifest(manifest))
        }
        _ => Err(ManifestError::MediaType(clip(media_type.unwrap_or("(none)")))),
    }
}

/// Parses a document that must be a manifest.
pub fn parse_manifest(bytes: &[u8], announced: Option<&str>) -> Result<Manifest, ManifestError> {
    match parse_document(bytes, announced)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(ManifestError::MediaType("an index, where a manifest was asked for".into())),
    }
}

/// Parses a document that must be an index.
pub fn parse_index(bytes: &[u8], announced: Option<&str>) -> Result<Index, ManifestError> {
    match parse_document(bytes, announced)? {
        Document::Index(index) => Ok(index),
        Document::Manifest(_) => Err(ManifestError::MediaType("a manifest, where an index was asked for".into())),
    }
}

/// Go's encoders write `null` for an empty map or list.
pub(crate) fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// For an error's text: what a stranger wrote, cut to a line's length.
pub(crate) fn clip(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media_type::{DOCKER_LIST, OCI_INDEX, OCI_MANIFEST};
    use serde_json::json;

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"x").to_string(), "size": 1})
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor("application/vnd.oci.image.config.v1+json"),
               "layers": [descriptor("application/vnd.oci.image.layer.v1.tar")], "annotations": null})
    }

    fn parse(value: &Value, announced: Option<&str>) -> Result<Document, ManifestError> {
        parse_document(value.to_string().as_bytes(), announced)
    }

    #[test]
    fn a_manifest_is_read() {
        let Document::Manifest(read) = parse(&manifest(), Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8")).unwrap()
        else {
            panic!("not a manifest")
        };
        assert_eq!((read.layers.len(), read.layers[0].size), (1, 1));
        let mut bare = manifest();
        bare.as_object_mut().unwrap().remove("mediaType");
        assert!(matches!(parse(&bare, None), Ok(Document::Manifest(_))));
        assert!(matches!(parse(&bare, Some(OCI_INDEX)), Err(ManifestError::MediaType(_))));
    }

    #[test]
    fn a_document_is_one_thing() {
        let mut both = manifest();
        both["manifests"] = json!([]);
        assert!(matches!(parse(&both, None), Err(ManifestError::Ambiguous)));
        assert!(matches!(parse(&manifest(), Some(OCI_INDEX)), Err(ManifestError::Mislabelled { .. })));
        let mut lying = manifest();
        lying["mediaType"] = json!(OCI_INDEX);
        assert!(matches!(parse(&lying, None), Err(ManifestError::MediaType(_))));
        assert!(matches!(parse_index(manifest().to_string().as_bytes(), None), Err(ManifestError::MediaType(_))));
    }

    #[test]
    fn bounds_and_versions_are_checked() {
        let mut many = manifest();
        many["layers"] = json!(vec![descriptor("application/vnd.oci.image.layer.v1.tar"); MAX_LAYERS + 1]);
        assert!(matches!(parse(&many, None), Err(ManifestError::Bound(_))));
        let mut huge = manifest();
        huge["layers"][0]["size"] = json!(MAX_BLOB + 1);
        assert!(matches!(parse(&huge, None), Err(ManifestError::Bound(_))));
        let mut negative = manifest();
        negative["layers"][0]["size"] = json!(-1);
        assert!(matches!(parse(&negative, None), Err(ManifestError::Json(_))));
        let mut old = manifest();
        old["schemaVersion"] = json!(1);
        assert!(matches!(parse(&old, None), Err(ManifestError::Schema(1))));
        let mut path = manifest();
        path["config"]["digest"] = json!("sha256:../../../etc/passwd");
        assert!(matches!(parse(&path, None), Err(ManifestError::Json(_))));
    }

    #[test]
    fn our_platform_is_chosen() {
        let mut entries = vec![];
        for (os, architecture) in [("unknown", "unknown"), ("linux", "arm64"), ("linux", "amd64")] {
            let mut entry = descriptor(OCI_MANIFEST);
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entry["size"] = json!(entries.len());
            entries.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries});
        assert_eq!(parse_index(index.to_string().as_bytes(), None).unwrap().select().unwrap().size, 2);
        let none = json!({"schemaVersion": 2, "manifests": entries[..2]});
        let error = parse_index(none.to_string().as_bytes(), None).unwrap().select().unwrap_err().to_string();
        assert_eq!(error, "the image has no linux/amd64 manifest; it has unknown/unknown, linux/arm64");
    }
}
