//! What the images of a draft are: the digest to pin, and what an image says of its own.

use super::draft::{ImageFacts, Wish};
use anyhow::{Context, Result, bail};
use image::{
    config::ImageConfig,
    manifest::{self, Document},
    reference::Reference,
    registry::Registry,
};

/// Asks registries, or, without one, believes references that have a digest.
pub(super) struct Images<'a>(pub(super) Option<&'a Registry>);

impl Images<'_> {
    /// The facts about a container's image.
    pub(super) async fn facts(&self, wish: &Wish) -> Result<ImageFacts> {
        let of = || format!("image {:?}", wish.image);
        let reference: Reference = wish.image.parse().with_context(of)?;
        if let Some(registry) = self.0 {
            return ask(registry, &reference).await.with_context(of);
        }
        match reference.digest() {
            Some(digest) if !wish.needs_image() => Ok(ImageFacts { digest: digest.to_string(), ..ImageFacts::default() }),
            Some(_) => bail!("{}: without its registry its entrypoint and user are not known; say them, or leave out --offline", of()),
            None => bail!("{}: without its registry its digest is not known; write it with @sha256:…, or leave out --offline", of()),
        }
    }
}

async fn ask(registry: &Registry, reference: &Reference) -> Result<ImageFacts> {
    let top = registry.manifest(reference).await?;
    let manifest = match manifest::parse_document(&top.bytes, top.media_type.as_deref())? {
        Document::Manifest(manifest) => manifest,
        Document::Index(index) => {
            let descriptor = index.select()?;
            let bytes = registry.document(reference, descriptor).await?;
            manifest::parse_manifest(&bytes, Some(&descriptor.media_type))?
        }
    };
    let config = ImageConfig::parse(&registry.blob_bytes(reference, &manifest.config).await?)?.config;
    let (digest, stop_signal) = (top.digest.to_string(), config.stop_signal);
    Ok(ImageFacts { digest, entrypoint: config.entrypoint, command: config.cmd, user: config.user, stop_signal })
}
