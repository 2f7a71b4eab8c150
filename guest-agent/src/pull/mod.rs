//! From an image reference to unpacked layers. The host is asked first (its courier has what containerd has), the registry next; neither
//! is believed: every byte is checked by digest before it is parsed, and for an encrypted layer by its HMAC before it is decrypted.

mod access;
mod error;
mod keys;
mod layers;
mod pace;
mod source;

pub use access::Access;
pub use error::PullError;

use crate::{containers::derive::ImageProcess, scratch::Scratch, stages::Stages, vsock::Courier};
use image::{
    config::ImageConfig,
    digest::Digest,
    manifest::{self, Document, Manifest},
    plan::{self, LayerPlan, Mixed},
    reference::Reference,
    signature::{Document as Signed, Subject},
};
use layers::LayerStore;
use log::info;
use policy::{Denial, Policy};
use protocol::api;
use source::Source;
use std::{path::PathBuf, sync::Arc};

/// An image that is ready to be run.
#[derive(Debug, Clone)]
pub struct PulledImage {
    /// What it is called, and the digests of its manifest and of the index above it.
    pub identity: policy::Image,
    /// Of the manifest that led to the layers.
    pub manifest: Digest,
    /// Whether the owner demands that it be signed; then it is.
    pub signed: bool,
    /// Directories of its layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// What its config says about the process.
    pub process: ImageProcess,
}

/// An image whose manifest and config are verified; no layer has been touched.
pub struct Resolved {
    reference: String,
    source: Arc<Source>,
    digest: Digest,
    signed: bool,
    /// Of the index that led to the manifest, if one did.
    index: Option<String>,
    plans: Vec<LayerPlan>,
    process: ImageProcess,
}

impl Resolved {
    /// May it run? A policy may name the manifest or the index above it.
    pub fn admit(&self, policy: &Policy) -> Result<(), Denial> {
        policy.image(&self.identity())?;
        policy.image_with_secrets(&self.identity(), self.signed)
    }

    fn identity(&self) -> policy::Image {
        let digests = [Some(self.digest.to_string()), self.index.clone()];
        policy::Image { reference: self.reference.clone(), digests: digests.into_iter().flatten().collect() }
    }
}

/// Pulls images for the machine's containers.
pub struct Puller {
    courier: Courier,
    access: Access,
    store: LayerStore,
}

impl Puller {
    /// A puller that reaches registries through the courier, as `access` says.
    pub fn new(courier: Courier, access: Access) -> Self {
        Self { courier, access, store: LayerStore::default() }
    }

    /// Finds out what the reference means, whether it is signed as the owner wants it, and reads manifest and config.
    pub async fn resolve(
        &self,
        request: &api::CreateContainerRequest,
        policy: &Policy,
        stages: &mut Stages,
    ) -> Result<Resolved, PullError> {
        let bad = |e: image::reference::ReferenceError| PullError::Reference {
            reference: request.image_reference.clone(),
            reason: e.to_string(),
        };
        let reference: Reference = request.image_reference.parse().map_err(bad)?;
        let registry = self.access.registry(request.plain_http_registries.clone()).await?;
        let source = Source::new(Arc::new(self.courier), registry, reference);
        // Beside each other: the policy may be the broker's, and then waits for the handshake.
        let (top, signatures) = tokio::join!(source.top(&request.image_digest_hint), self.access.signature_policy());
        let top = top?;
        signatures?;
        stages.end("resolve");
        let document = manifest::parse_document(&top.bytes, top.media_type.as_deref());
        let (manifest, digest, lower) = match document.map_err(|e| source.invalid("manifest", top.digest, e))? {
            Document::Manifest(manifest) => (manifest, top.digest, None),
            Document::Index(document) => {
                let descriptor = document.select().map_err(|e| source.invalid("index", top.digest, e))?;
                let bytes = source.document(descriptor).await?;
                let manifest = manifest::parse_manifest(&bytes, Some(&descriptor.media_type));
                let digest = descriptor.digest;
                (manifest.map_err(|e| source.invalid("manifest", digest, e))?, digest, Some(bytes))
            }
        };
        let top = Signed { digest: top.digest, bytes: &top.bytes };
        let (registry, asked) = source.registry();
        let subject = match &lower {
            None => Subject { reference: asked, manifest: top, index: None },
            Some(bytes) => Subject { reference: asked, manifest: Signed { digest, bytes }, index: Some(top) },
        };
        // Before the config is read, and for each container anew: that the layers are here says nothing about the image.
        let signed = self.access.check_signature(&subject, registry, asked).await?;
        let index = lower.is_some().then(|| top.digest.to_string());
        let pins = [Some(digest.to_string()), index.clone()];
        let pins: Vec<&str> = pins.iter().flatten().map(String::as_str).collect();
        let mixed = if policy.mixed(&pins) { Mixed::Allowed } else { Mixed::Refused };
        let (plans, process) = read_config(&source, &manifest, mixed).await?;
        stages.end("manifest");
        info!(image = request.image_reference, digest:% = digest, layers = plans.len(); "image resolved");
        let reference = request.image_reference.clone();
        Ok(Resolved { reference, source: Arc::new(source), digest, signed, index, plans, process })
    }

    /// Fetches, decrypts and unpacks the layers that are not here yet.
    pub async fn fetch(&self, image: Resolved, scratch: &Scratch, stages: &mut Stages) -> Result<PulledImage, PullError> {
        let (identity, manifest, signed) = (image.identity(), image.digest, image.signed);
        let keys = keys::layer_keys(&image.plans, &self.access, stages).await?;
        let layers = self.store.unpack(&image.source, image.plans, keys, scratch, stages).await?;
        Ok(PulledImage { identity, manifest, signed, layers, process: image.process })
    }
}

async fn read_config(source: &Source, manifest: &Manifest, mixed: Mixed) -> Result<(Vec<LayerPlan>, ImageProcess), PullError> {
    let bytes = source.blob_bytes(&manifest.config).await?;
    let invalid = |e: &dyn std::fmt::Display| source.invalid("config", manifest.config.digest, e);
    let config = ImageConfig::parse(&bytes).map_err(|e| invalid(&e))?;
    let plans = plan::plan_layers(manifest, &config, mixed).map_err(|e| invalid(&e))?;
    let process = ImageProcess {
        args: config.arguments(),
        env: config.config.env.clone(),
        cwd: config.config.working_dir.clone(),
        user: config.config.user.clone(),
        volumes: config.config.volumes.keys().cloned().collect(),
    };
    Ok((plans, process))
}
