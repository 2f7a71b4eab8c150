//! What the images of a draft are: the digest to pin, and the command that an image has of its own.

use super::wish::{ImageFacts, Wish};
use anyhow::{Context, Result, bail};
use image::{
    config::ImageConfig,
    manifest::{self, Document},
    reference::Reference,
    registry::Registry,
};
use std::sync::Arc;
use transport::{HttpClient, TcpDialer};

/// Asks registries; `offline`, only references with a digest will do.
pub(super) struct Images {
    registry: Registry,
    offline: bool,
}

impl Images {
    pub(super) fn new(plain_http: &[String], offline: bool) -> Result<Self> {
        let http = HttpClient::new(Arc::new(TcpDialer), None)?;
        Ok(Self { registry: Registry::new(http, plain_http.to_vec(), None), offline })
    }

    /// The facts about a container's image.
    pub(super) async fn facts(&self, wish: &Wish) -> Result<ImageFacts> {
        let reference: Reference = wish.image.parse().with_context(|| format!("image {:?}", wish.image))?;
        if let Some(digest) = reference.digest()
            && !wish.needs_entrypoint()
        {
            return Ok(ImageFacts { digest: digest.to_string(), ..ImageFacts::default() });
        }
        if self.offline {
            bail!("image {:?}: needs its registry; write it with its digest, and the whole command, or leave out --offline", wish.image);
        }
        self.ask(&reference).await.with_context(|| format!("image {:?}", wish.image))
    }

    async fn ask(&self, reference: &Reference) -> Result<ImageFacts> {
        let top = self.registry.manifest(reference).await?;
        let manifest = match manifest::parse_document(&top.bytes, top.media_type.as_deref())? {
            Document::Manifest(manifest) => manifest,
            Document::Index(index) => {
                let descriptor = index.select()?;
                let bytes = self.registry.document(reference, descriptor).await?;
                manifest::parse_manifest(&bytes, Some(&descriptor.media_type))?
            }
        };
        let config = ImageConfig::parse(&self.registry.blob_bytes(reference, &manifest.config).await?)?.config;
        Ok(ImageFacts { digest: top.digest.to_string(), entrypoint: config.entrypoint, command: config.cmd, user: config.user })
    }
}
