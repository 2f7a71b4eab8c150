//! Why an image is not here, in one line that names the image, the digest and the rule.

use std::io;
use thiserror::Error;

/// Why an image could not be pulled.
#[derive(Debug, Error)]
pub enum PullError {
    /// Not a reference.
    #[error("image reference {reference:?}: {reason}")]
    Reference {
        /// As the host wrote it.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It could not be fetched, from the host or from the registry.
    #[error("image {image}: {what} {digest}: {reason}")]
    Fetch {
        /// The reference.
        image: String,
        /// Manifest, config or layer.
        what: &'static str,
        /// Its digest, or the tag.
        digest: String,
        /// What each source said.
        reason: String,
    },
    /// What was fetched is not what it should be.
    #[error("image {image}: {what} {digest}: {reason}")]
    Invalid {
        /// The reference.
        image: String,
        /// Manifest, config or layer.
        what: &'static str,
        /// Its digest.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The owner's settings for images.
    #[error("initdata, [image] of cdh.toml: {what}: {reason}")]
    Settings {
        /// Which.
        what: String,
        /// What is wrong, or the broker's words.
        reason: String,
    },
    /// Not signed as the owner wants it.
    #[error(transparent)]
    Signature(#[from] image::signature::SignatureError),
    /// An encrypted layer whose key cannot be had.
    #[error("layer {layer}: key {key}: {reason}")]
    Key {
        /// Digest of the layer.
        layer: String,
        /// The key's name.
        key: String,
        /// The broker's words, or ours.
        reason: String,
    },
    /// Scratch.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl PullError {
    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
