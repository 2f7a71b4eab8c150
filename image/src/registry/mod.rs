//! The registry client (OCI distribution-spec 1.1, "Pull"): manifests and blobs, with tokens, basic authentication, redirects, mirrors,
//! rate limits and resumed downloads.
//!
//! A registry is as untrusted as the network to it. Everything that is fetched by digest is compared with it; what a tag means is
//! the registry's word, and the caller's policy says whether that is enough.

mod attached;
mod auth;
mod auth_file;
mod blob;
mod endpoint;
mod error;
mod push;
mod registries;
mod request;
mod retry;

pub use attached::RegistryRepository;
pub use auth::Credentials;
pub use auth_file::{AuthFile, AuthFileError, MAX_AUTH_FILE};
pub use blob::BlobReader;
pub use error::RegistryError;
pub use registries::{MAX_REGISTRIES, Registries, RegistriesError};

use crate::{
    digest::Digest,
    manifest::Descriptor,
    media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
    reference::Reference,
};
use bytes::Bytes;
use endpoint::At;
use http::HeaderMap;
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use transport::HttpClient;

/// A question to one place, on its way.
type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, RegistryError>> + Send + 'a>>;

/// A client for any registry; what it was told about tokens it keeps per repository. Clones share that.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    client: HttpClient,
    options: Options,
    /// Authorization headers by registry and repository.
    tokens: Mutex<HashMap<String, auth::Authorization>>,
}

/// How registries are reached.
#[derive(Debug)]
pub struct Options {
    /// Registries (`host[:port]`, as in references) that are spoken to without TLS, by the word of the node: all others get TLS only.
    /// No credentials go to them.
    pub plain_http: Vec<String>,
    /// Whom to be where. They go to the image's registry and to the token server that it names, and never over plain HTTP unless
    /// [`Self::registries`] says `insecure`.
    pub credentials: Arc<AuthFile>,
    /// Mirrors, other locations and blocked registries, by the owner's word.
    pub registries: Registries,
    /// How long a peer may send next to nothing in the middle of a blob.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { plain_http: Vec::new(), credentials: Arc::default(), registries: Registries::default(), stall: Duration::from_secs(60) }
    }
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
    /// A client.
    pub fn new(client: HttpClient, mut options: Options) -> Self {
        options.plain_http.iter_mut().for_each(|host| host.make_ascii_lowercase());
        Self(Arc::new(Shared { client, options, tokens: Mutex::default() }))
    }

    /// The manifest or index that the reference names. Where it has a digest, the document was compared with it.
    pub async fn manifest(&self, reference: &Reference) -> Result<Fetched, RegistryError> {
        self.each(reference, |at| Box::pin(async move { at.manifest().await })).await
    }

    /// The digest that the reference has now: its own, else what the registry says of its tag.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, RegistryError> {
        match reference.digest() {
            Some(digest) => Ok(digest),
            None => self.each(reference, |at| Box::pin(async move { at.resolve().await })).await,
        }
    }

    /// A manifest that an index names, compared with its descriptor.
    pub async fn document(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        self.each(reference, |at| Box::pin(async move { at.document(descriptor).await })).await
    }

    /// A small blob, such as an image config, compared with its descriptor; at most 4 MiB.
    pub async fn blob_bytes(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        self.each(reference, |at| Box::pin(async move { at.blob_bytes(descriptor).await })).await
    }

    /// A blob on its way, not compared with anything: that is [`crate::spool::spool`]'s part.
    pub async fn blob(&self, reference: &Reference, descriptor: &Descriptor) -> Result<BlobReader, RegistryError> {
        self.each(reference, |at| {
            Box::pin(async move {
                let answer = at.blob_from(descriptor, 0).await?;
                Ok(BlobReader::new(at, descriptor.clone(), answer.body))
            })
        })
        .await
    }

    /// A blob on its way of which nothing but the digest is known, with the size that the registry says; nothing where it says none. For
    /// whoever passes blobs on.
    pub async fn blob_by_digest(&self, reference: &Reference, digest: Digest) -> Result<Option<(u64, BlobReader)>, RegistryError> {
        self.each(reference, |at| {
            Box::pin(async move {
                let found = at.blob_by_digest(digest).await?;
                Ok(found.map(|(descriptor, body)| (descriptor.size, BlobReader::new(at, descriptor, body))))
            })
        })
        .await
    }

    /// Asks one place after the other until one has it.
    async fn each<'a, T>(&self, reference: &Reference, ask: impl Fn(At) -> Asking<'a, T> + Send) -> Result<T, RegistryError> {
        let endpoints = self.0.options.registries.endpoints(reference)?;
        let mut faults: Vec<RegistryError> = Vec::new();
        for endpoint in endpoints {
            match ask(At::new(self, reference, endpoint)).await {
                Ok(found) => return Ok(found),
                Err(e) => faults.push(e),
            }
        }
        Err(RegistryError::all(faults))
    }
}

/// What we can read. Blobs have no type of their own; registries ignore the header there.
fn manifest_types() -> String {
    [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].join(", ")
}

fn header_text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests;
