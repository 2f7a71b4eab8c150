//! One image at one place: what is asked of it, in the terms of the distribution specification.

use super::{Fetched, Registry, RegistryError, header_text, manifest_types, registries::Endpoint, request::Ask};
use crate::{
    digest::{Digest, DigestError},
    manifest::Descriptor,
    reference::Reference,
    strict_json::MAX_DOCUMENT,
};
use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use std::time::Duration;
use transport::{Body, read_body};

/// An image at a place that may have it.
#[derive(Clone)]
pub(super) struct At {
    pub(super) registry: Registry,
    /// As the user asked for it.
    pub(super) asked: Reference,
    /// Where it is looked for.
    pub(super) endpoint: Endpoint,
}

/// The beginning of a blob's bytes.
pub(super) struct BlobAnswer {
    pub(super) body: Body,
    /// Bytes to be passed over, where the registry began anew instead of where it was asked to.
    pub(super) skip: Option<u64>,
}

impl At {
    pub(super) fn new(registry: &Registry, asked: &Reference, endpoint: Endpoint) -> Self {
        Self { registry: registry.clone(), asked: asked.clone(), endpoint }
    }

    pub(super) fn stall(&self) -> Duration {
        self.registry.0.options.stall
    }

    pub(super) fn host(&self) -> &str {
        self.endpoint.reference.registry()
    }

    pub(super) fn manifest_path(&self, selector: &str) -> String {
        format!("/v2/{}/manifests/{selector}", self.endpoint.reference.repository())
    }

    fn blob_path(&self, digest: &Digest) -> String {
        format!("/v2/{}/blobs/{digest}", self.endpoint.reference.repository())
    }

    pub(super) async fn manifest(&self) -> Result<Fetched, RegistryError> {
        self.manifest_as(&self.asked.selector(), self.asked.digest()).await
    }

    pub(super) async fn manifest_as(&self, selector: &str, pinned: Option<Digest>) -> Result<Fetched, RegistryError> {
        let response = self.get(&self.manifest_path(selector)).await?;
        let media_type = header_text(response.headers(), header::CONTENT_TYPE.as_str());
        let stated = header_text(response.headers(), "docker-content-digest");
        let bytes = self.body(response).await?;
        let digest = Digest::of(&bytes);
        // The header costs nothing to compare and tells damage on the way from a moved tag.
        let stated = stated.and_then(|text| text.parse().ok());
        if let Some(expected) = pinned.or(stated).filter(|expected| *expected != digest) {
            return Err(RegistryError::digest(&self.asked, DigestError::Mismatch { expected, actual: digest }));
        }
        Ok(Fetched { bytes, media_type, digest })
    }

    /// The index of what refers to `digest` (distribution-spec 1.1, "Listing referrers").
    pub(super) async fn referrers(&self, digest: &Digest) -> Result<Fetched, RegistryError> {
        let response = self.get(&format!("/v2/{}/referrers/{digest}", self.endpoint.reference.repository())).await?;
        let bytes = self.body(response).await?;
        Ok(Fetched { digest: Digest::of(&bytes), bytes, media_type: None })
    }

    pub(super) async fn resolve(&self) -> Result<Digest, RegistryError> {
        let path = self.manifest_path(&self.asked.selector());
        let response = self.request(&Ask { accept: &manifest_types(), ..Ask::new(Method::HEAD, &path) }).await?;
        match header_text(response.headers(), "docker-content-digest").and_then(|text| text.parse().ok()) {
            Some(digest) => Ok(digest),
            None => self.manifest().await.map(|fetched| fetched.digest),
        }
    }

    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let response = self.get(&self.manifest_path(&descriptor.digest.to_string())).await?;
        self.verified(descriptor, response).await
    }

    pub(super) async fn blob_bytes(&self, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let response = self.get(&self.blob_path(&descriptor.digest)).await?;
        self.verified(descriptor, response).await
    }

    /// The blob from byte `start` on.
    pub(super) async fn blob_from(&self, descriptor: &Descriptor, start: u64) -> Result<BlobAnswer, RegistryError> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let path = self.blob_path(&descriptor.digest);
        let response = self.request(&Ask { range: range.as_deref(), ..Ask::new(Method::GET, &path) }).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let expected = if partial { descriptor.size.saturating_sub(start) } else { descriptor.size };
        let length = header_text(response.headers(), header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
        if let Some(actual) = length.filter(|length| *length != expected) {
            return Err(RegistryError::digest(&self.asked, DigestError::Size { digest: descriptor.digest, expected, actual }));
        }
        let begins =
            |text: &String| text.strip_prefix("bytes ").and_then(|text| text.split('-').next()).and_then(|at| at.parse::<u64>().ok());
        if partial && header_text(response.headers(), header::CONTENT_RANGE.as_str()).as_ref().and_then(begins) != Some(start) {
            return Err(RegistryError::protocol(self, "answers with another part of the blob than was asked for"));
        }
        let skip = (!partial && start > 0).then_some(start);
        Ok(BlobAnswer { body: response.into_body(), skip })
    }

    /// A blob of which nothing but the digest is known; nothing where the registry does not say its size.
    pub(super) async fn blob_by_digest(&self, digest: Digest) -> Result<Option<(Descriptor, Body)>, RegistryError> {
        let path = self.blob_path(&digest);
        let response = self.request(&Ask::new(Method::GET, &path)).await?;
        let length = header_text(response.headers(), header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        Ok(length.map(|size| (Descriptor { digest, size, ..Descriptor::of("", &[]) }, response.into_body())))
    }

    async fn get(&self, path: &str) -> Result<Response<Body>, RegistryError> {
        self.request(&Ask { accept: &manifest_types(), ..Ask::new(Method::GET, path) }).await
    }

    async fn verified(&self, descriptor: &Descriptor, response: Response<Body>) -> Result<Bytes, RegistryError> {
        let bytes = self.body(response).await?;
        descriptor.verify(&bytes).map_err(|e| RegistryError::digest(&self.asked, e))?;
        Ok(bytes)
    }

    /// A document of at most 4 MiB, within the time that a stall may take.
    async fn body(&self, response: Response<Body>) -> Result<Bytes, RegistryError> {
        let read = read_body(response.into_body(), MAX_DOCUMENT);
        match tokio::time::timeout(self.stall(), read).await {
            Ok(bytes) => bytes.map_err(|e| RegistryError::http(&self.asked, e)),
            Err(_) => Err(RegistryError::protocol(self, format!("has not sent a document within {} s", self.stall().as_secs()))),
        }
    }
}
