//! What has to be done for each layer of an image, decided from its manifest and config before a layer is fetched.

use crate::{
    config::ImageConfig,
    digest::Digest,
    manifest::{Descriptor, Manifest, clip},
    media_type::{Compression, MediaType, is_foreign},
    ocicrypt::{Envelope, OcicryptError},
};
use thiserror::Error;

/// Why an image cannot be unpacked.
#[derive(Debug, Error)]
pub enum PlanError {
    /// An artifact rather than an image.
    #[error("config of media type {0:?}: not a container image")]
    ConfigType(String),
    /// Nothing in it.
    #[error("the image has no layers: there is nothing to run")]
    NoLayers,
    /// Manifest and config disagree.
    #[error("the manifest has {layers} layers and the config {diff_ids} diff_ids: the image is damaged, push it anew")]
    Count {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
    /// A layer that is not in the registry by design.
    #[error(
        "layer {digest} of media type {media_type:?} is a foreign layer, which its registry does not have: push the image with its layers"
    )]
    Foreign {
        /// Which layer.
        digest: Digest,
        /// What it says that it is.
        media_type: String,
    },
    /// A layer of another kind.
    #[error("layer {digest} of media type {media_type:?}: want a tar layer, plain, gzip or zstd")]
    LayerType {
        /// Which layer.
        digest: Digest,
        /// What it says that it is.
        media_type: String,
    },
    /// Some layers are encrypted and some are not.
    #[error(
        "layer {plain} is plain while {encrypted} is encrypted: whoever holds the registry could have put it there; encrypt every layer, or \
         pin the image in policy.toml ([[image]] with its digest and mixed = true)"
    )]
    Mixed {
        /// A plain layer.
        plain: Digest,
        /// An encrypted one.
        encrypted: Digest,
    },
    /// A layer's encryption.
    #[error("layer {digest}: {source}")]
    Envelope {
        /// Which layer.
        digest: Digest,
        /// What is wrong.
        source: OcicryptError,
    },
}

/// One layer: where it is, how it is packed, what comes out.
#[derive(Debug, Clone)]
pub struct LayerPlan {
    /// The blob.
    pub descriptor: Descriptor,
    /// How the tar is packed, below the encryption.
    pub compression: Compression,
    /// How it is encrypted; nothing for a plain layer.
    pub envelope: Option<Envelope>,
    /// Digest of the tar.
    pub diff_id: Digest,
}

/// Whether some layers of an image may be plain while others are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mixed {
    /// No: whoever holds the registry could put a layer over the encrypted ones.
    Refused,
    /// Yes: for tools, and for an image whose every layer the owner pinned by the manifest's digest.
    Allowed,
}

/// The layers of an image, lowest first.
pub fn plan_layers(manifest: &Manifest, config: &ImageConfig, mixed: Mixed) -> Result<Vec<LayerPlan>, PlanError> {
    if MediaType::parse(&manifest.config.media_type) != Some(MediaType::Config) {
        return Err(PlanError::ConfigType(clip(&manifest.config.media_type)));
    }
    let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if layers == 0 {
        return Err(PlanError::NoLayers);
    }
    if layers != diff_ids {
        return Err(PlanError::Count { layers, diff_ids });
    }
    let plans = manifest.layers.iter().zip(&config.rootfs.diff_ids).map(|(descriptor, diff_id)| plan_layer(manifest, descriptor, *diff_id));
    let plans: Vec<LayerPlan> = plans.collect::<Result<_, _>>()?;
    let digest_of = |encrypted| plans.iter().find(|p| p.envelope.is_some() == encrypted).map(|p| p.descriptor.digest);
    match (digest_of(false), digest_of(true)) {
        (Some(plain), Some(encrypted)) if mixed == Mixed::Refused => Err(PlanError::Mixed { plain, encrypted }),
        _ => Ok(plans),
    }
}

fn plan_layer(manifest: &Manifest, descriptor: &Descriptor, diff_id: Digest) -> Result<LayerPlan, PlanError> {
    let digest = descriptor.digest;
    let Some(MediaType::Layer { compression, encrypted }) = MediaType::parse(&descriptor.media_type) else {
        let media_type = clip(&descriptor.media_type);
        return Err(match is_foreign(&media_type) {
            true => PlanError::Foreign { digest, media_type },
            false => PlanError::LayerType { digest, media_type },
        });
    };
    let envelope = if encrypted {
        let envelope = Envelope::parse(&descriptor.annotations).map_err(|source| PlanError::Envelope { digest, source })?;
        Some(envelope.under(manifest.config.digest))
    } else {
        None
    };
    Ok(LayerPlan { descriptor: descriptor.clone(), compression, envelope, diff_id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{media_type::OCI_CONFIG, testing};

    fn image(types: &[&str], diff_ids: usize) -> (Manifest, ImageConfig) {
        let layers = types.iter().map(|t| {
            let mut descriptor = Descriptor::of(t, t.as_bytes());
            if t.ends_with("+encrypted") {
                descriptor.annotations = testing::sealed_annotations();
            }
            descriptor
        });
        let manifest = Manifest {
            schema_version: 2,
            media_type: None,
            config: Descriptor::of(OCI_CONFIG, b"{}"),
            layers: layers.collect(),
            annotations: Default::default(),
        };
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = vec![Digest::of(b"tar"); diff_ids];
        (manifest, config)
    }

    fn plan(types: &[&str], diff_ids: usize) -> Result<Vec<LayerPlan>, PlanError> {
        let (manifest, config) = image(types, diff_ids);
        plan_layers(&manifest, &config, Mixed::Refused)
    }

    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const SEALED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";

    #[test]
    fn plain_and_encrypted_images_are_planned() {
        assert!(plan(&[PLAIN, PLAIN], 2).unwrap().iter().all(|p| p.envelope.is_none()));
        let sealed = plan(&[SEALED, SEALED], 2).unwrap();
        assert!(sealed.iter().all(|p| p.envelope.is_some() && p.compression == Compression::Gzip));
    }

    #[test]
    fn odd_images_are_refused() {
        assert!(matches!(plan(&[], 0), Err(PlanError::NoLayers)));
        assert!(matches!(plan(&[PLAIN], 2), Err(PlanError::Count { layers: 1, diff_ids: 2 })));
        assert!(matches!(plan(&["application/wasm"], 1), Err(PlanError::LayerType { .. })));
        for foreign in
            ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"]
        {
            assert!(plan(&[foreign], 1).unwrap_err().to_string().contains("push the image with its layers"));
        }
        assert!(matches!(plan(&[SEALED, PLAIN], 2), Err(PlanError::Mixed { .. })));
        let (manifest, config) = image(&[SEALED, PLAIN], 2);
        assert_eq!(plan_layers(&manifest, &config, Mixed::Allowed).unwrap().len(), 2);
        let (mut manifest, config) = image(&[PLAIN], 1);
        manifest.config.media_type = "application/vnd.oci.empty.v1+json".into();
        assert!(matches!(plan_layers(&manifest, &config, Mixed::Allowed), Err(PlanError::ConfigType(_))));
        let (mut manifest, config) = image(&[SEALED], 1);
        manifest.layers[0].annotations.clear();
        assert!(matches!(plan_layers(&manifest, &config, Mixed::Allowed), Err(PlanError::Envelope { .. })));
    }
}
