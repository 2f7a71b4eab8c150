//! Signatures beside an image in an OCI layout: under the same tags as in a registry without an API for referrers.

use super::attached::{Repository, referrers_tag};
use crate::{digest::Digest, layout::Layout, manifest::Descriptor};
use async_trait::async_trait;

#[async_trait]
impl Repository for Layout {
    async fn tagged(&self, tag: &str) -> Result<Option<(Vec<u8>, Option<String>)>, String> {
        let Some(descriptor) = self.tagged_descriptor(tag).map_err(|e| e.to_string())? else { return Ok(None) };
        let bytes = self.document(&descriptor).map_err(|e| e.to_string())?;
        Ok(Some((bytes, Some(descriptor.media_type))))
    }

    async fn referrers(&self, digest: &Digest) -> Result<Option<Vec<u8>>, String> {
        Ok(self.tagged(&referrers_tag(digest)).await?.map(|(bytes, _)| bytes))
    }

    async fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.document(descriptor).map_err(|e| e.to_string())
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, String> {
        self.document(descriptor).map_err(|e| e.to_string())
    }
}
