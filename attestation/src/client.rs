//! The guest's side of the KBS protocol: one handshake for all that a VM needs, however many callers ask at once.
//!
//! The session lives in a cookie, which every implementation of the protocol takes. A session is renewed when four fifths of its token's
//! life are over, by whoever needs it then: a VM that asks for nothing more attests no more. Where that fails, the old one serves until its
//! end. When the broker no longer knows it (401), one new handshake is made and the request repeated once. A resource that a rule withholds is also 401, but with its own name, and a new
//! handshake would change nothing there: it is refused at once.

use crate::{
    encoding::{from_url, one_line},
    evidence::{Attester, EvidenceError},
    images::Manifest,
    jwe::{Jwe, JweError, TeeKey},
    kbs::{
        Attestation, Challenge, DEFAULT_HASH, ErrorBody, InitData, POLICY_DENY, PREFIX, Request, RuntimeData, SESSION_COOKIE, TeeEvidence,
        TokenReply, VERSION,
    },
    report_data,
    resource::ResourceUri,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::sync::Mutex;
use transport::{HttpClient, read_body};
use zeroize::Zeroizing;

/// Longest answer that is read, in bytes: a resource of 1 MiB in its JWE.
const MAX_ANSWER: usize = 2 << 20;

/// How long the body of an answer may take; a peer that trickles would hold a container's start for ever.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest value of the session cookie.
const MAX_COOKIE: usize = 512;

/// Longest nonce, in characters; the protocol's has 44.
const MAX_NONCE: usize = 256;

/// Longest text of the broker's that is repeated, in characters.
const MAX_DETAIL: usize = 1024;

/// Why there is no secret. One line each; [`Clone`], because all who waited for one handshake get its error.
#[derive(Debug, Clone, Error)]
pub enum ClientError {
    /// The broker's address.
    #[error("broker {url}: not an http or https URL: {reason}")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No answer.
    #[error("broker {broker}: {reason}")]
    Unreachable {
        /// Its URL.
        broker: String,
        /// Why.
        reason: String,
    },
    /// It said no.
    #[error("broker {broker} refused {what}: {detail} ({status} {name})")]
    Refused {
        /// Its URL.
        broker: String,
        /// The step or the resource.
        what: String,
        /// Its own words.
        detail: String,
        /// HTTP status.
        status: u16,
        /// The error's name in the protocol.
        name: String,
    },
    /// It said something else than the protocol allows.
    #[error("broker {broker}: {what}: {reason}")]
    Protocol {
        /// Its URL.
        broker: String,
        /// The step or the resource.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The TEE.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The guest's key.
    #[error("guest key: {0}")]
    Key(#[from] JweError),
}

/// What a handshake gives.
#[derive(Debug)]
struct Session {
    cookie: HeaderValue,
    token: String,
    /// When to make another, and when this one is of no use any more; `None` where the token does not say.
    renew: Option<(Instant, Instant)>,
    /// Which handshake of this client it was, from 1.
    number: u64,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Arc<Session>>,
    /// How the last handshake failed, if it did.
    error: Option<ClientError>,
}

/// A client for one broker and one guest. Cheap to share behind an [`Arc`].
pub struct BrokerClient {
    http: HttpClient,
    url: String,
    attester: Arc<dyn Attester>,
    initdata: Option<String>,
    key: TeeKey,
    /// Held during a handshake: whoever else needs one waits for its result.
    state: Mutex<State>,
    /// Handshakes ended, well or not. Read before waiting for the lock, it tells a caller whether one ended while it waited.
    ended: AtomicU64,
}

impl std::fmt::Debug for BrokerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerClient").field("url", &self.url).finish_non_exhaustive()
    }
}

impl BrokerClient {
    /// A client that talks to the broker at `url` (without the protocol's path) and sends `initdata` (the TOML document) along with its
    /// evidence. The guest's key is made here and leaves never.
    pub fn new(http: HttpClient, url: &str, attester: Arc<dyn Attester>, initdata: Option<String>) -> Result<Self, ClientError> {
        let bad = |reason: &str| ClientError::Url { url: one_line(url, 200), reason: reason.to_owned() };
        let uri: http::Uri = url.parse().map_err(|_| bad("it cannot be parsed"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(bad("scheme or host is missing"));
        }
        if uri.query().is_some() {
            return Err(bad("it has a query"));
        }
        Ok(Self {
            http,
            url: url.trim_end_matches('/').to_owned(),
            attester,
            initdata,
            key: TeeKey::generate()?,
            state: Mutex::default(),
            ended: AtomicU64::new(0),
        })
    }

    /// Makes the handshake if it has not been made; to be called early, so that it overlaps with other work.
    pub async fn attest(&self) -> Result<(), ClientError> {
        self.current().await.map(drop)
    }

    /// The attestation result, for a workload that wants to show it to others.
    pub async fn token(&self) -> Result<String, ClientError> {
        self.current().await.map(|session| session.token.clone())
    }

    /// Evidence of this guest bound to `report_data`, for a workload that wants to show it to others than the broker.
    pub async fn evidence(&self, report_data: report_data::ReportData) -> Result<serde_json::Value, ClientError> {
        let (tee, attester) = (self.attester.tee(), self.attester.clone());
        // Hardware may take a second, and a thread of the runtime is not for waiting.
        let evidence = tokio::task::spawn_blocking(move || attester.evidence(&report_data)).await;
        Ok(evidence.map_err(|e| EvidenceError::Collect { tee, reason: e.to_string() })??)
    }

    /// Has later evidence say that this image runs; see [`Attester::measure`]. Where that fails it must not run.
    pub async fn measure(&self, image: Manifest) -> Result<(), EvidenceError> {
        let (tee, attester) = (self.attester.tee(), self.attester.clone());
        let measured = tokio::task::spawn_blocking(move || attester.measure(&image)).await;
        measured.unwrap_or_else(|e| Err(EvidenceError::Measure { tee, reason: e.to_string() }))
    }

    /// A secret, in memory that is wiped when dropped.
    pub async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let session = self.current().await?;
        let answer = match self.get(uri, &session).await {
            Err(ClientError::Refused { status: 401, name, .. }) if name != POLICY_DENY => {
                log::info!(resource = uri.path(); "the broker does not know the session any more: attesting again");
                let session = self.session(session.number).await?;
                self.get(uri, &session).await?
            }
            answer => answer?,
        };
        let jwe: Jwe = self.parse(&uri.to_string(), &answer)?;
        self.key.decrypt(&jwe).map_err(|e| self.protocol(&uri.to_string(), e.to_string()))
    }

    async fn get(&self, uri: &ResourceUri, session: &Session) -> Result<Bytes, ClientError> {
        let path = format!("/resource/{}", uri.path());
        let (_, body) = self.call(Method::GET, &path, &uri.to_string(), Some(&session.cookie), Bytes::new()).await?;
        Ok(body)
    }

    /// A session that is not near its end.
    async fn current(&self) -> Result<Arc<Session>, ClientError> {
        let session = self.session(0).await?;
        let now = Instant::now();
        match session.renew {
            Some((renew, end)) if now >= renew => {
                log::info!(handshake = session.number; "the token is near its end: attesting again");
                self.session(session.number).await.or_else(|e| if now < end { Ok(session) } else { Err(e) })
            }
            _ => Ok(session),
        }
    }

    /// A session later than number `stale`. One handshake runs at a time; who waited for one that failed gets its error instead of
    /// trying the same again, or a dead broker would be waited for once per caller.
    async fn session(&self, stale: u64) -> Result<Arc<Session>, ClientError> {
        let ended_before = self.ended.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some(session) = state.session.as_ref().filter(|session| session.number > stale) {
            return Ok(session.clone());
        }
        if self.ended.load(Ordering::Acquire) > ended_before
            && let Some(error) = &state.error
        {
            return Err(error.clone());
        }
        let number = 1 + self.ended.load(Ordering::Acquire);
        let result = self.handshake(number).await.map(Arc::new);
        state.session = result.as_ref().ok().cloned();
        state.error = result.as_ref().err().cloned();
        self.ended.fetch_add(1, Ordering::Release);
        result
    }

    async fn handshake(&self, number: u64) -> Result<Session, ClientError> {
        let tee = self.attester.tee();
        let request =
            Request { version: VERSION.into(), tee, extra_params: json!({"supported-hash-algorithms": ["sha256", "sha384", "sha512"]}) };
        let (headers, body) = self.call(Method::POST, "/auth", "auth", None, encode(&request)).await?;
        let cookie = session_cookie(&headers).ok_or_else(|| self.protocol("auth", "no session cookie in the answer".into()))?;
        let challenge: Challenge = self.parse("auth", &body)?;
        if challenge.nonce.len() > MAX_NONCE {
            return Err(self.protocol("auth", format!("nonce longer than {MAX_NONCE} characters")));
        }
        if let Some(hash) = challenge.extra_params.get("selected-hash-algorithm").filter(|hash| **hash != DEFAULT_HASH) {
            return Err(self.protocol("auth", format!("wants hash {}, this guest has {DEFAULT_HASH}", one_line(&hash.to_string(), 32))));
        }

        let tee_pubkey = self.key.public();
        let bound = report_data::primary(&challenge.nonce, &tee_pubkey, "");
        let evidence = self.evidence(bound).await?;
        let attestation = Attestation {
            init_data: self.initdata.as_ref().map(|body| InitData { format: "toml".into(), body: body.clone() }),
            runtime_data: RuntimeData { nonce: challenge.nonce, tee_pubkey },
            tee_evidence: TeeEvidence { primary_evidence: evidence, additional_evidence: String::new() },
        };
        let (headers, body) = self.call(Method::POST, "/attest", "attestation", Some(&cookie), encode(&attestation)).await?;
        let reply: TokenReply = self.parse("attestation", &body)?;
        log::info!(broker = self.url, tee:% = tee, handshake = number; "attested");
        let renew = lifetime(&reply.token).map(|life| (Instant::now() + life * 4 / 5, Instant::now() + life));
        Ok(Session { cookie: session_cookie(&headers).unwrap_or(cookie), token: reply.token, renew, number })
    }

    /// One exchange; an answer that is not 200 is an error with the broker's own words.
    async fn call(
        &self,
        method: Method,
        path: &str,
        what: &str,
        cookie: Option<&HeaderValue>,
        body: Bytes,
    ) -> Result<(HeaderMap, Bytes), ClientError> {
        let mut request = http::Request::builder().method(method).uri(format!("{}{PREFIX}{path}", self.url));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(cookie) = cookie {
            request = request.header(header::COOKIE, cookie);
        }
        let request = request.body(body).map_err(|e| ClientError::Url { url: self.url.clone(), reason: e.to_string() })?;
        let unreachable = |reason: String| ClientError::Unreachable { broker: self.url.clone(), reason };
        let answer = self.http.send(request).await.map_err(|e| unreachable(e.to_string()))?;
        let (parts, body) = answer.into_parts();
        let body = tokio::time::timeout(BODY_TIMEOUT, read_body(body, MAX_ANSWER)).await;
        let body = body.map_err(|_| unreachable("answer stopped in the middle".into()))?.map_err(|e| unreachable(e.to_string()))?;
        if parts.status == StatusCode::OK {
            return Ok((parts.headers, body));
        }
        let error: Option<ErrorBody> = serde_json::from_slice(&body).ok();
        Err(ClientError::Refused {
            broker: self.url.clone(),
            what: what.to_owned(),
            detail: error.as_ref().map_or_else(|| "no reason given".into(), |e| one_line(&e.detail, MAX_DETAIL)),
            status: parts.status.as_u16(),
            name: error.map_or_else(String::new, |e| one_line(e.name(), 64)),
        })
    }

    fn parse<T: DeserializeOwned>(&self, what: &str, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|e| self.protocol(what, format!("unreadable answer: {e}")))
    }

    fn protocol(&self, what: &str, reason: String) -> ClientError {
        ClientError::Protocol { broker: self.url.clone(), what: what.to_owned(), reason: one_line(&reason, MAX_DETAIL) }
    }
}

/// How long a token lives, by its own word: the difference of two moments, so that the guest's clock does not matter. Whether it is genuine
/// is for those to say who rely on it.
fn lifetime(token: &str) -> Option<Duration> {
    let body = from_url(token.split('.').nth(1)?)?;
    let claims: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let seconds = claims["exp"].as_u64()?.checked_sub(claims["iat"].as_u64()?)?;
    // A day is more than any broker gives; a year would overflow nothing, but renew nothing either.
    Some(Duration::from_secs(seconds.clamp(1, 86_400)))
}

fn encode(message: &impl Serialize) -> Bytes {
    // Structs with string keys always serialize.
    serde_json::to_vec(message).unwrap_or_default().into()
}

/// `kbs-session-id=…` out of `Set-Cookie`, as it is sent back.
fn session_cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let cookies = headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pair = cookies.filter_map(|cookie| cookie.split(';').next()).map(str::trim).find(|pair| {
        pair.strip_prefix(SESSION_COOKIE).and_then(|rest| rest.strip_prefix('=')).is_some_and(|v| (1..=MAX_COOKIE).contains(&v.len()))
    })?;
    HeaderValue::from_str(pair).ok()
}

#[cfg(test)]
mod tests;
