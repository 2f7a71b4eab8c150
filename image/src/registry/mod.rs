//! The registry client (OCI distribution-spec 1.1, "Pull"): manifests and blobs, with tokens, basic authentication and redirects.
//!
//! A registry is as untrusted as the network to it. Everything that is fetched by digest is compared with it; what a tag means is
//! the registry's word, and the caller's policy says whether that is enough.

mod auth;
mod blob;
mod error;
mod request;

pub use auth::Credentials;
pub use blob::BlobReader;
pub use error::RegistryError;

use crate::{
    digest::Digest,
    manifest::Descriptor,
    media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
    reference::Reference,
    strict_json::MAX_DOCUMENT,
};
use bytes::Bytes;
use http::{HeaderMap, Method, header};
use std::{collections::HashMap, sync::Mutex};
use transport::{HttpClient, read_body};

/// A client for any registry; what it was told about tokens it keeps per repository.
pub struct Registry {
    client: HttpClient,
    plain_http: Vec<String>,
    credentials: Option<Credentials>,
    /// Authorization headers by registry and repository.
    tokens: Mutex<HashMap<String, auth::Authorization>>,
}

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The document, to be parsed as it is.
    pub bytes: Bytes,
    /// The registry's content type.
    pub media_type: Option<String>,
    /// Of `bytes`.
    pub digest: Digest,
}

impl Registry {
    /// `plain_http` lists the registries (`host[:port]`, as in references) that are spoken to without TLS; all others get TLS only.
    /// `credentials` go to the reference's registry and to the token server that it names.
    pub fn new(client: HttpClient, plain_http: Vec<String>, credentials: Option<Credentials>) -> Self {
        let plain_http = plain_http.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { client, plain_http, credentials, tokens: Mutex::default() }
    }

    /// The manifest or index that the reference names. Where it has a digest, the document was compared with it.
    pub async fn manifest(&self, reference: &Reference) -> Result<Fetched, RegistryError> {
        let response = self.get(reference, &manifest_path(reference, &reference.selector())).await?;
        let media_type = header_text(response.headers(), header::CONTENT_TYPE.as_str());
        let stated = header_text(response.headers(), "docker-content-digest");
        let bytes = self.body(reference, response).await?;
        let digest = Digest::of(&bytes);
        // The header costs nothing to compare and tells damage on the way from a moved tag.
        let stated = stated.and_then(|text| text.parse().ok());
        if let Some(expected) = reference.digest().or(stated).filter(|expected| *expected != digest) {
            return Err(RegistryError::digest(reference, crate::digest::DigestError::Mismatch { expected, actual: digest }));
        }
        Ok(Fetched { bytes, media_type, digest })
    }

    /// The digest that the reference has now: its own, else what the registry says of its tag.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, RegistryError> {
        if let Some(digest) = reference.digest() {
            return Ok(digest);
        }
        let path = manifest_path(reference, &reference.selector());
        let response = self.request(reference, Method::HEAD, &path, &manifest_types()).await?;
        match header_text(response.headers(), "docker-content-digest").and_then(|text| text.parse().ok()) {
            Some(digest) => Ok(digest),
            None => self.manifest(reference).await.map(|fetched| fetched.digest),
        }
    }

    /// A manifest that an index names, compared with its descriptor.
    pub async fn document(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let response = self.get(reference, &manifest_path(reference, &descriptor.digest.to_string())).await?;
        self.verified(reference, descriptor, response).await
    }

    /// A small blob, such as an image config, compared with its descriptor; at most 4 MiB.
    pub async fn blob_bytes(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let response = self.get(reference, &blob_path(reference, descriptor)).await?;
        self.verified(reference, descriptor, response).await
    }

    /// A blob on its way, not compared with anything: that is [`crate::spool::spool`]'s part.
    pub async fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> Result<BlobReader, RegistryError> {
        let (length, body) = self.blob_by_digest(reference, descriptor.digest).await?;
        if let Some(actual) = length.filter(|length| *length != descriptor.size) {
            let error = crate::digest::DigestError::Size { digest: descriptor.digest, expected: descriptor.size, actual };
            return Err(RegistryError::digest(reference, error));
        }
        Ok(body)
    }

    /// A blob on its way of which nothing but the digest is known, and its size if the registry says it. For whoever passes blobs on.
    pub async fn blob_by_digest(&self, reference: &Reference, digest: Digest) -> Result<(Option<u64>, BlobReader), RegistryError> {
        let response = self.get(reference, &format!("/v2/{}/blobs/{digest}", reference.repository())).await?;
        let length = header_text(response.headers(), header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
        Ok((length, BlobReader::new(response.into_body())))
    }

    async fn get(&self, reference: &Reference, path: &str) -> Result<http::Response<transport::Body>, RegistryError> {
        self.request(reference, Method::GET, path, &manifest_types()).await
    }

    async fn verified(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        response: http::Response<transport::Body>,
    ) -> Result<Bytes, RegistryError> {
        let bytes = self.body(reference, response).await?;
        descriptor.verify(&bytes).map_err(|e| RegistryError::digest(reference, e))?;
        Ok(bytes)
    }

    async fn body(&self, reference: &Reference, response: http::Response<transport::Body>) -> Result<Bytes, RegistryError> {
        read_body(response.into_body(), MAX_DOCUMENT).await.map_err(|e| RegistryError::http(reference, e))
    }
}

/// What we can read. Blobs have no type of their own; registries ignore the header there.
fn manifest_types() -> String {
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ")
}

fn manifest_path(reference: &Reference, selector: &str) -> String {
    format!("/v2/{}/manifests/{selector}", reference.repository())
}

fn blob_path(reference: &Reference, descriptor: &Descriptor) -> String {
    format!("/v2/{}/blobs/{}", reference.repository(), descriptor.digest)
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests;
