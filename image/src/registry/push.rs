//! The owner's side of a registry: storing blobs and manifests (OCI distribution-spec 1.1, "Push"). The guest never pushes.

use super::{Registry, RegistryError, endpoint::At, header_text, request::Ask};
use crate::{digest::Digest, manifest::Descriptor, reference::Reference};
use bytes::Bytes;
use http::{Method, Request, header};
use std::fs::File;
use transport::{Upload, read_body};

/// What a token for pushing has to allow.
const PUSH: &str = "pull,push";

impl Registry {
    /// Stores a blob, unless it is there already. `progress` gets the number of bytes of each step.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        file: File,
        progress: impl FnMut(u64) + Send + 'static,
    ) -> Result<(), RegistryError> {
        let at = self.own_place(reference)?;
        if at.has_blob(&descriptor.digest).await? {
            return Ok(());
        }
        let body = Upload::read(file, descriptor.size, progress);
        at.upload(&descriptor.digest, body).await
    }

    /// Stores a small blob that is in memory, unless it is there already.
    pub async fn push_bytes(&self, reference: &Reference, bytes: &[u8]) -> Result<(), RegistryError> {
        let (at, digest) = (self.own_place(reference)?, Digest::of(bytes));
        if at.has_blob(&digest).await? {
            return Ok(());
        }
        at.upload(&digest, Upload::of(Bytes::copy_from_slice(bytes))).await
    }

    /// Stores a manifest or an index under `selector`: a tag, or its own digest. Says whether the registry lists it among the referrers of
    /// its subject; where it does not, that is the pusher's part.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        selector: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<bool, RegistryError> {
        let at = self.own_place(reference)?;
        let path = at.manifest_path(selector);
        let content = Some((media_type, Bytes::copy_from_slice(bytes)));
        let answer = at.request(&Ask { scope: PUSH, content, ..Ask::new(Method::PUT, &path) }).await?;
        Ok(header_text(answer.headers(), "oci-subject").is_some())
    }

    /// Mirrors are for pulling.
    fn own_place(&self, reference: &Reference) -> Result<At, RegistryError> {
        let own = self.0.options.registries.endpoints(reference)?.pop();
        own.map(|endpoint| At::new(self, reference, endpoint)).ok_or_else(|| RegistryError::all(Vec::new()))
    }
}

impl At {
    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let path = format!("/v2/{}/blobs/{digest}", self.endpoint.reference.repository());
        match self.request(&Ask { scope: PUSH, ..Ask::new(Method::HEAD, &path) }).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// "POST then PUT". The registry says where the bytes go; they go there in one piece, with the authorization of the registry only if
    /// it is the registry itself.
    async fn upload(&self, digest: &Digest, body: Upload) -> Result<(), RegistryError> {
        let start = format!("/v2/{}/blobs/uploads/", self.endpoint.reference.repository());
        let begun = self
            .request(&Ask { scope: PUSH, content: Some(("application/octet-stream", Bytes::new())), ..Ask::new(Method::POST, &start) })
            .await?;
        let location = header_text(begun.headers(), header::LOCATION.as_str()).unwrap_or_default();
        let target = format!("{location}{}digest={digest}", if location.contains('?') { '&' } else { '?' });
        let uri = self.uri(&target)?;
        let mut request = Request::put(&uri).header(header::CONTENT_TYPE, "application/octet-stream");
        if uri.authority().map(http::uri::Authority::as_str) == self.uri("/")?.authority().map(http::uri::Authority::as_str)
            && let Some(authorization) = self.known(PUSH)
        {
            request = request.header(header::AUTHORIZATION, authorization.header());
        }
        let request = request.body(body).map_err(|e| RegistryError::protocol(self, e.to_string()))?;
        let answer = self.registry.0.client.upload(request).await.map_err(|e| RegistryError::http(&self.asked, e))?;
        let answer = self.success(self.host(), answer).await?;
        // To its end, so that the connection's other side is done too.
        read_body(answer.into_body(), 1 << 10).await.map(drop).map_err(|e| RegistryError::http(&self.asked, e))
    }
}
