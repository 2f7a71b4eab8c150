//! Where bytes come from: the host's courier, else the registry. Both are checked alike.

use super::{
    PullError,
    pace::{Pace, Paced},
};
use crate::vsock::Courier;
use async_trait::async_trait;
use image::{
    digest::Digest,
    manifest::Descriptor,
    reference::Reference,
    registry::{Fetched, Registry},
};
use log::debug;
use protocol::line::LineError;
use std::{fmt::Display, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

/// Longest manifest or index, in bytes (the OCI distribution spec asks registries for 4 MiB).
const MAX_DOCUMENT: u64 = 4 << 20;

/// A stream of a blob.
pub type BlobReader = Box<dyn AsyncRead + Send + Unpin>;

/// How long the host may take to say whether it has a blob: it may ask a registry before.
const ANSWER: Duration = Duration::from_secs(60);

/// Who has blobs without our asking a registry: the host.
#[async_trait]
pub trait Node: Send + Sync {
    /// Size and bytes of a blob, as the host claims them. Nothing of it may be believed.
    async fn blob(&self, digest: &str) -> Result<(u64, BlobReader), LineError>;
}

#[async_trait]
impl Node for Courier {
    async fn blob(&self, digest: &str) -> Result<(u64, BlobReader), LineError> {
        let (size, stream) = self.get(digest).await?;
        Ok((size, Box::new(stream)))
    }
}

/// The sources of one image.
pub struct Source {
    node: Arc<dyn Node>,
    pace: Pace,
    registry: Registry,
    reference: Reference,
}

impl Source {
    /// The sources of `reference`.
    pub fn new(node: Arc<dyn Node>, registry: Registry, reference: Reference) -> Self {
        Self { node, pace: Pace::OF_A_HOST, registry, reference }
    }

    /// The same, impatient.
    #[cfg(test)]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// The registry's client, and what it is asked for.
    pub fn registry(&self) -> (&Registry, &Reference) {
        (&self.registry, &self.reference)
    }

    /// The manifest or index that the reference means: by its own digest, else by the host's hint, else by its tag.
    pub async fn top(&self, hint: &str) -> Result<Fetched, PullError> {
        let digest = match self.reference.digest() {
            Some(digest) => Some(digest),
            None if hint.is_empty() => None,
            None => Some(hint.parse::<Digest>().map_err(|e| self.invalid("manifest", hint, e))?),
        };
        let Some(digest) = digest else {
            return self.registry.manifest(&self.reference).await.map_err(|e| self.failed("manifest", "of this name", e.reason()));
        };
        match self.courier_bytes(&digest, MAX_DOCUMENT).await {
            Ok(bytes) => Ok(Fetched { bytes: bytes.into(), media_type: None, digest }),
            Err(courier) => {
                let by_digest = self.reference.with_digest(digest);
                let fetched = self.registry.manifest(&by_digest).await;
                fetched.map_err(|e| self.failed("manifest", digest, both(&courier, &e.reason())))
            }
        }
    }

    /// A manifest that an index names.
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        match self.verified(descriptor, MAX_DOCUMENT).await {
            Ok(bytes) => Ok(bytes),
            Err(courier) => {
                let fetched = self.registry.document(&self.reference, descriptor).await;
                fetched.map(|b| b.to_vec()).map_err(|e| self.failed("manifest", descriptor.digest, both(&courier, &e.reason())))
            }
        }
    }

    /// A small blob: the config.
    pub async fn blob_bytes(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        match self.verified(descriptor, MAX_DOCUMENT).await {
            Ok(bytes) => Ok(bytes),
            Err(courier) => {
                let fetched = self.registry.blob_bytes(&self.reference, descriptor).await;
                fetched.map(|b| b.to_vec()).map_err(|e| self.failed("config", descriptor.digest, both(&courier, &e.reason())))
            }
        }
    }

    /// A layer as the courier gives it, unverified.
    pub async fn layer_from_courier(&self, descriptor: &Descriptor) -> Result<BlobReader, String> {
        let (size, stream) = self.node_blob(&descriptor.digest).await?;
        if size != descriptor.size {
            return Err(format!("the host has {size} bytes, the manifest says {}", descriptor.size));
        }
        Ok(Box::new(stream))
    }

    /// A layer as the registry gives it, unverified.
    pub async fn layer_from_registry(&self, descriptor: &Descriptor) -> Result<BlobReader, String> {
        let reader = self.registry.blob(&self.reference, descriptor).await.map_err(|e| e.reason())?;
        Ok(Box::new(reader))
    }

    async fn verified(&self, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>, String> {
        let bytes = self.courier_bytes(&descriptor.digest, max).await?;
        descriptor.verify(&bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    /// At most `max` bytes with this digest. The host's size is only a first check: reading ends at the bound in any case.
    async fn courier_bytes(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, String> {
        let fetched = async {
            let (size, stream) = self.node_blob(digest).await?;
            if size > max {
                return Err(format!("{size} bytes, at most {max} are read"));
            }
            let mut bytes = Vec::new();
            stream.take(size).read_to_end(&mut bytes).await.map_err(|e| e.to_string())?;
            digest.check(&bytes).map_err(|e| e.to_string())?;
            Ok(bytes)
        };
        fetched.await.inspect_err(|reason| debug!(digest:% = digest; "not from the host: {reason}"))
    }

    /// A blob as the host gives it, at a pace that it is held to.
    async fn node_blob(&self, digest: &Digest) -> Result<(u64, Paced<BlobReader>), String> {
        match timeout(ANSWER, self.node.blob(&digest.to_string())).await {
            Ok(Ok((size, stream))) => Ok((size, Paced::new(stream, self.pace))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
        }
    }

    /// Something fetched is wrong.
    pub fn invalid(&self, what: &'static str, digest: impl Display, reason: impl Display) -> PullError {
        PullError::Invalid { image: self.reference.to_string(), what, digest: digest.to_string(), reason: reason.to_string() }
    }

    /// Something could not be fetched.
    pub fn failed(&self, what: &'static str, digest: impl Display, reason: impl Display) -> PullError {
        PullError::Fetch { image: self.reference.to_string(), what, digest: digest.to_string(), reason: reason.to_string() }
    }
}

/// What both sources said. The registry is the one that should have it.
pub fn both(courier: &str, registry: &str) -> String {
    format!("{registry} (the node: {courier})")
}
