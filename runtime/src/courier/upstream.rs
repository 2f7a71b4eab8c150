//! A registry as a source of blobs for the node's cache, asked by the node itself and without credentials.
//!
//! Who downloads what guests share? Not a guest on behalf of others: none knows of them, and each would have to trust the first not to
//! stop. Not the node in a guest's name: its credentials would be the host's then, and with them the repository. So the node asks as
//! anybody may. Where that is enough, the blob is public (and if it is of an encrypted image, ciphertext): the node learns nothing. Where it
//! is not, the registry refuses, and each guest downloads for itself, its TLS session and its credentials ending inside; or the node has the
//! blob from a pull of its own (`imagePullSecrets`), in containerd's content store, which is asked first.

use super::{Blob, BlobSource};
use async_trait::async_trait;
use image::{
    digest::Digest,
    reference::{Reference, ReferenceError},
    registry::{Options, Registry, RegistryError},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use thiserror::Error;
use tokio::time::timeout;
use transport::{HttpClient, HttpError, TcpDialer};

/// How long a registry may take to begin. The guest waits meanwhile, and could ask by itself.
const BEGIN: Duration = Duration::from_secs(20);

/// Why a repository cannot be asked.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No client.
    #[error(transparent)]
    Http(#[from] HttpError),
}

/// One repository.
pub struct Upstream {
    registry: Registry,
    reference: Reference,
    /// It did not answer, or not us: the guest does better by itself, without waiting for us each time.
    given_up: AtomicBool,
}

impl Upstream {
    /// The repository of an image reference. `plain_http` lists the registries that are spoken to without TLS.
    pub fn new(reference: &str, plain_http: &[String]) -> Result<Self, UpstreamError> {
        let client = HttpClient::new(Arc::new(TcpDialer), None)?;
        let registry = Registry::new(client, Options { plain_http: plain_http.to_vec(), ..Options::default() });
        Ok(Self { registry, reference: reference.parse()?, given_up: AtomicBool::new(false) })
    }
}

#[async_trait]
impl BlobSource for Upstream {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        let digest: Digest = digest.parse().map_err(io::Error::other)?;
        if self.given_up.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let why = match timeout(BEGIN, self.registry.blob_by_digest(&self.reference, digest)).await {
            Ok(Ok(Some((size, body)))) => return Ok(Some((size, Box::new(body)))),
            // A cache needs to know how much it takes on.
            Ok(Ok(None)) => "the registry does not say how large its blobs are".to_owned(),
            Ok(Err(RegistryError::NotFound { .. })) => return Ok(None),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("{}: no answer within {} s", self.reference, BEGIN.as_secs()),
        };
        self.given_up.store(true, Ordering::Relaxed);
        log::info!(image:% = self.reference; "not cached on this node, guests download by themselves: {why}");
        Ok(None)
    }
}
