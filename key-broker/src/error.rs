//! Errors as the protocol has them: JSON with a type and one line, 401 for nearly everything.

use attestation::kbs::{self, ErrorBody};
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

/// Longest detail, in characters.
const MAX_DETAIL: usize = 1024;

/// A text that may quote a peer, for a log or an answer: bounded, and on one line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().take(MAX_DETAIL).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An answer that is not 200.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    name: &'static str,
    pub(crate) detail: String,
}

impl ApiError {
    /// The handshake failed.
    pub(crate) fn attestation(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, name: "AttestationError", detail: detail.into() }
    }

    /// No rule releases this to this guest.
    pub(crate) fn denied(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, name: kbs::POLICY_DENY, detail: detail.into() }
    }

    /// Not the administrator.
    pub(crate) fn admin(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, name: "AdminAuth", detail: detail.into() }
    }

    /// The path names nothing that there could be.
    pub(crate) fn path(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, name: "InvalidRequestPath", detail: detail.into() }
    }

    /// A body or header that cannot be read.
    pub(crate) fn request(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, name: "InvalidRequest", detail: detail.into() }
    }

    /// Too often.
    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        Self { status: StatusCode::TOO_MANY_REQUESTS, name: "TooManyRequests", detail: detail.into() }
    }

    /// Our own fault: the cause goes into the log, not to the peer.
    pub(crate) fn internal(cause: impl std::fmt::Display) -> Self {
        log::error!("{cause}");
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, name: "Internal", detail: "internal error, see the broker's log".into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody::new(self.name, one_line(&self.detail)))).into_response()
    }
}
