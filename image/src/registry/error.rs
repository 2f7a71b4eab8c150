//! What can go wrong between us and a registry, told to the person who typed the reference.

use super::{endpoint::At, registries::RegistriesError};
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
    /// Sent away by the owner's configuration.
    #[error(transparent)]
    Registries(#[from] RegistriesError),
    /// No mirror had it, and its own registry neither.
    #[error("{last} (before that, {mirrors})")]
    Mirrors {
        /// What its own registry said.
        last: Box<RegistryError>,
        /// What the mirrors said.
        mirrors: String,
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

    pub(super) fn protocol(at: &At, why: impl Into<String>) -> Self {
        Self::Protocol { reference: at.asked.to_string(), registry: at.host().to_owned(), why: why.into() }
    }

    /// What every place said; the last one is the image's own.
    pub(super) fn all(mut faults: Vec<Self>) -> Self {
        let mirrors: Vec<String> = faults.iter().rev().skip(1).rev().map(ToString::to_string).collect();
        match faults.pop() {
            Some(last) if mirrors.is_empty() => last,
            Some(last) => Self::Mirrors { last: Box::new(last), mirrors: mirrors.join("; ") },
            None => Self::Registries(RegistriesError::File("no place for the image".into())),
        }
    }

    /// The same without the image's name at its beginning, for a line that has it already.
    pub fn reason(&self) -> String {
        let text = self.to_string();
        let reference = match self {
            Self::Http { reference, .. }
            | Self::NotFound { reference, .. }
            | Self::Denied { reference, .. }
            | Self::Status { reference, .. }
            | Self::Protocol { reference, .. }
            | Self::Digest { reference, .. } => reference,
            Self::Mirrors { last, mirrors } => return format!("{} (before that, {mirrors})", last.reason()),
            Self::Registries(_) => return text,
        };
        text.strip_prefix(&format!("{reference}: ")).map_or(text.clone(), str::to_owned)
    }

    /// Whether the image's own registry answered that it has no such thing.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Mirrors { last, .. } => last.is_not_found(),
            _ => false,
        }
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
