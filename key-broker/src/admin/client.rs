//! A client for the administrator's routes.

use super::{AdminToken, RULE_HEADER};
use crate::{audit::Head, refusals::Refusal, rule::Rule, store::Entry, target::Target};
use attestation::{ResourceUri, kbs::ErrorBody};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use thiserror::Error;
use transport::{HttpClient, read_body};

/// Longest answer, in bytes: a list of some ten thousand resources.
const MAX_ANSWER: usize = 16 << 20;

/// Why the broker did not do it.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The address.
    #[error("broker {url}: {source}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        source: http::Error,
    },
    /// No answer.
    #[error("broker {url}: {source}")]
    Unreachable {
        /// Its URL.
        url: String,
        /// The cause.
        source: transport::HttpError,
    },
    /// It said no.
    #[error("broker {url} refused {what}: {detail} ({status})")]
    Refused {
        /// Its URL.
        url: String,
        /// What was wanted.
        what: String,
        /// Its own words.
        detail: String,
        /// HTTP status.
        status: StatusCode,
    },
    /// It said something unreadable.
    #[error("broker {url}: unreadable answer: {source}")]
    Answer {
        /// Its URL.
        url: String,
        /// The cause.
        source: serde_json::Error,
    },
}

/// Works on one broker with its admin key.
#[derive(Debug, Clone)]
pub struct AdminClient {
    http: HttpClient,
    url: String,
    token: AdminToken,
}

impl AdminClient {
    /// A client for the broker at `url` (without the protocol's path).
    pub fn new(http: HttpClient, url: &str, token: AdminToken) -> Self {
        Self { http, url: url.trim_end_matches('/').to_owned(), token }
    }

    /// Stores a secret and its release rule, both at once, in place of what was there.
    pub async fn put_resource(&self, uri: &ResourceUri, secret: &[u8], rule: &Rule) -> Result<(), AdminError> {
        self.put(uri, secret, Some(rule)).await
    }

    /// Replaces a secret; its release rule stays.
    pub async fn rotate(&self, uri: &ResourceUri, secret: &[u8]) -> Result<(), AdminError> {
        self.put(uri, secret, None).await
    }

    async fn put(&self, uri: &ResourceUri, secret: &[u8], rule: Option<&Rule>) -> Result<(), AdminError> {
        let rule = rule.map(|rule| STANDARD.encode(rule.text()));
        let body = Bytes::copy_from_slice(secret);
        let path = format!("/kbs/v0/resource/{}", uri.path());
        self.call(Method::POST, &path, &format!("storing {uri}"), rule.as_deref(), body).await.map(drop)
    }

    /// Makes a new key for tokens. The answer is the JWK set with both.
    pub async fn rotate_token_key(&self) -> Result<serde_json::Value, AdminError> {
        self.json(Method::POST, "/cloister/v0/token-key", "a new token key").await
    }

    /// Why guests did not get a resource, the newest first.
    pub async fn refusals(&self, uri: &ResourceUri) -> Result<Vec<Refusal>, AdminError> {
        self.json(Method::GET, &format!("/cloister/v0/refusals/{}", uri.path()), "the refusals").await
    }

    /// The last line of the audit log.
    pub async fn audit_head(&self) -> Result<Head, AdminError> {
        self.json(Method::GET, "/cloister/v0/audit", "the audit log").await
    }

    /// Stores or replaces the release rule of a resource or of a pattern.
    pub async fn put_rule(&self, uri: &Target, rule: &Rule) -> Result<(), AdminError> {
        let body = Bytes::copy_from_slice(rule.text().as_bytes());
        let path = format!("/cloister/v0/rule/{}", uri.path());
        self.call(Method::PUT, &path, &format!("storing the rule of {uri}"), None, body).await.map(drop)
    }

    /// Removes a secret with its rule.
    pub async fn delete(&self, uri: &Target) -> Result<(), AdminError> {
        let path = format!("/kbs/v0/resource/{}", uri.path());
        self.call(Method::DELETE, &path, &format!("deleting {uri}"), None, Bytes::new()).await.map(drop)
    }

    /// All resources with their rules, without their secrets.
    pub async fn list(&self) -> Result<Vec<Entry>, AdminError> {
        self.json(Method::GET, "/cloister/v0/resources", "the list").await
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, method: Method, path: &str, what: &str) -> Result<T, AdminError> {
        let body = self.call(method, path, what, None, Bytes::new()).await?;
        serde_json::from_slice(&body).map_err(|source| AdminError::Answer { url: self.url.clone(), source })
    }

    async fn call(&self, method: Method, path: &str, what: &str, rule: Option<&str>, body: Bytes) -> Result<Bytes, AdminError> {
        let url = || self.url.clone();
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", *self.token.to_hex()));
        if let Some(rule) = rule {
            request = request.header(RULE_HEADER, rule);
        }
        let request = request.body(body).map_err(|source| AdminError::Url { url: url(), source })?;
        let unreachable = |source| AdminError::Unreachable { url: url(), source };
        let answer = self.http.send(request).await.map_err(unreachable)?;
        let status = answer.status();
        let body = read_body(answer.into_body(), MAX_ANSWER).await.map_err(unreachable)?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        let detail = serde_json::from_slice(&body).map_or_else(|_| "no reason given".into(), |error: ErrorBody| error.detail);
        let detail = detail.chars().take(1024).map(|c| if c.is_control() { ' ' } else { c }).collect();
        Err(AdminError::Refused { url: url(), what: what.to_owned(), detail, status })
    }
}
