//! Signatures in a registry's repository.

use super::{Asking, Fetched, Registry, endpoint::At};
use crate::{
    digest::Digest,
    manifest::Descriptor,
    reference::Reference,
    signature::attached::{Repository, referrers_tag},
};
use async_trait::async_trait;

/// The repository of one reference.
#[derive(Clone, Copy)]
pub struct RegistryRepository<'a> {
    /// The client.
    pub registry: &'a Registry,
    /// Whose repository; tag and digest do not count.
    pub reference: &'a Reference,
}

impl RegistryRepository<'_> {
    async fn optional<'a>(&self, ask: impl Fn(At) -> Asking<'a, Fetched> + Send) -> Result<Option<Fetched>, String> {
        match self.registry.each(self.reference, ask).await {
            Ok(fetched) => Ok(Some(fetched)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

#[async_trait]
impl Repository for RegistryRepository<'_> {
    async fn tagged(&self, tag: &str) -> Result<Option<(Vec<u8>, Option<String>)>, String> {
        let found = self.optional(|at| Box::pin(async move { at.manifest_as(tag, None).await })).await?;
        Ok(found.map(|fetched| (fetched.bytes.to_vec(), fetched.media_type)))
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        // A registry that does not know the path answers what it likes; it may still have the tag.
        if let Ok(Some(fetched)) = self.optional(|at| Box::pin(async move { at.referrers(digest).await })).await {
            return Ok(Some(fetched.bytes.to_vec()));
        }
        Ok(self.tagged(&referrers_tag(digest)).await?.map(|(bytes, _)| bytes))
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.registry.document(self.reference, descriptor).await.map(|bytes| bytes.to_vec()).map_err(|e| e.to_string())
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.registry.blob_bytes(self.reference, descriptor).await.map(|bytes| bytes.to_vec()).map_err(|e| e.to_string())
    }
}
