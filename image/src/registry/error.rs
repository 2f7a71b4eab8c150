//! What can go wrong between us and a registry, told to the person who typed the reference.

use crate::{digest::DigestError, manifest::clip, reference::Reference};
use http::StatusCode;
use serde::Deserialize;
use thiserror::Error;
use transport::HttpError;

/// Why nothing came from a registry. Each text begins with the reference.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No exchange.
    #[error("{reference}: registry: {source}{hint}")]
    Http {
        /// The image.
        reference: String,
        /// The cause.
        source: Box<HttpError>,
        /// What to do.
        hint: &'static str,
    },
    /// Not there.
    #[error("{reference}: registry {registry} has no such image or blob ({detail}): check the name and the tag, and that it was pushed")]
    NotFound {
        /// The image.
        reference: String,
        /// Who said so.
        registry: String,
        /// Its words.
        detail: String,
    },
    /// Not for us.
    #[error("{reference}: registry {registry} refuses access ({detail}): check the name, and the credentials for it")]
    Denied {
        /// The image.
        reference: String,
        /// Who said so.
        registry: String,
        /// Its words.
        detail: String,
    },
    /// Any other answer.
    #[error("{reference}: registry {registry} answered {detail}")]
    Status {
        /// The image.
        reference: String,
        /// Who said so.
        registry: String,
        /// Its words.
        detail: String,
    },
    /// An answer that is none.
    #[error("{reference}: registry {registry}: {why}")]
    Protocol {
        /// The image.
        reference: String,
        /// Who said so.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// Other bytes than asked for.
    #[error("{reference}: {source}")]
    Digest {
        /// The image.
        reference: String,
        /// What is wrong.
        source: DigestError,
    },
}

/// The error document of the distribution specification.
#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: String,
}

impl RegistryError {
    pub(super) fn http(reference: &Reference, source: HttpError) -> Self {
        let hint = match &source {
            HttpError::Tls { .. } => ": if this registry speaks plain HTTP, list it under plain_http",
            HttpError::Connect { .. } => ": is the registry running, and is its name right?",
            _ => "",
        };
        Self::Http { reference: reference.to_string(), source: Box::new(source), hint }
    }

    pub(super) fn digest(reference: &Reference, source: DigestError) -> Self {
        Self::Digest { reference: reference.to_string(), source }
    }

    pub(super) fn protocol(reference: &Reference, why: impl Into<String>) -> Self {
        Self::Protocol { reference: reference.to_string(), registry: reference.registry().to_owned(), why: why.into() }
    }

    /// From an answer other than success; `body` is its beginning. Only the error's code is quoted, which is a word of a fixed list.
    pub(super) fn status(reference: &Reference, registry: &str, status: StatusCode, body: &[u8]) -> Self {
        let code = serde_json::from_slice::<Errors>(body).ok().and_then(|e| e.errors.into_iter().next()).map(|e| e.code);
        let code = code.filter(|code| !code.is_empty() && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        let detail = code.map_or_else(|| status.to_string(), |code| format!("{}, {}", status.as_u16(), clip(&code)));
        let (reference, registry) = (reference.to_string(), registry.to_owned());
        match status {
            StatusCode::NOT_FOUND => Self::NotFound { reference, registry, detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Denied { reference, registry, detail },
            _ => Self::Status { reference, registry, detail },
        }
    }
}
