//! The routes: those of KBS 0.4.0, the administrator's, health and counters.

use crate::{
    audit::Sync,
    broker::Shared,
    error::{self, ApiError},
    listener::Peer,
    refusals::Refusal,
    release,
    session::{Attested, SessionError, Turn},
};
use attestation::{
    Claims, ResourceUri, Tee, jwe,
    kbs::{self, Attestation, Challenge, Request, TokenReply},
    report_data,
    token::Ear,
};
use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use policy::Initdata;
use serde::de::DeserializeOwned;
use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Longest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;

/// A body, or why there is none.
pub(crate) type Body = Result<Bytes, BytesRejection>;

/// Everything that the broker answers to.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let resource = get(resource).post(crate::admin::put).put(crate::admin::put).delete(crate::admin::delete);
    Router::new()
        .route("/kbs/v0/auth", post(auth))
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/{repository}/{kind}/{tag}", resource)
        .route("/cloister/v0/resources", get(crate::admin::list))
        .route("/cloister/v0/rule/{repository}/{kind}/{tag}", put(crate::admin::put_rule))
        .route("/cloister/v0/refusals/{repository}/{kind}/{tag}", get(crate::admin::refusals))
        .route("/cloister/v0/token-key", post(crate::admin::rotate_token_key))
        .route("/cloister/v0/audit", get(crate::admin::audit_head))
        .route("/.well-known/jwks.json", get(jwks))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .fallback(|| async { ApiError::path("no such path; this is a KBS 0.4.0 broker, its paths begin with /kbs/v0") })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn auth(State(shared): State<Arc<Shared>>, ConnectInfo(peer): ConnectInfo<Peer>, body: Body) -> Result<Response, ApiError> {
    shared.metrics.requests.add_one();
    // Before anything is read: an address at its limit costs no more than its connection.
    if let Err(wait) = shared.limiter.take(peer.0.ip(), Instant::now()) {
        shared.metrics.limited.add_one();
        return Err(ApiError::busy(format!("too many handshakes from this address; try again in {:.1} s", wait.as_secs_f64())));
    }
    let request: Request = parse(body)?;
    if request.version != kbs::VERSION {
        let theirs: String = request.version.chars().take(32).collect();
        return Err(ApiError::attestation(format!("KBS protocol {} is spoken here, not {theirs:?}", kbs::VERSION)));
    }
    if !shared.verifiers.contains_key(&request.tee) {
        log::warn!(peer:% = peer.0, tee:% = request.tee, decision = "refused"; "no challenge: evidence cannot be verified");
        return Err(ApiError::attestation(match request.tee {
            Tee::Sample => release::sample_refused(),
            tee => format!("this broker cannot verify evidence of type {tee}"),
        }));
    }
    let (mut id, mut nonce) = ([0; 16], [0; 32]);
    getrandom::fill(&mut id).map_err(ApiError::internal)?;
    getrandom::fill(&mut nonce).map_err(ApiError::internal)?;
    let (id, nonce) = (hex::encode(id), STANDARD.encode(nonce));
    shared.sessions.open(id.clone(), nonce.clone(), request.tee, Instant::now());
    shared.metrics.challenges.add_one();
    log::info!(peer:% = peer.0, session = tag(&id), tee:% = request.tee; "challenge given");
    Ok(with_cookie(&shared, &id, &Challenge { nonce, extra_params: "".into() }))
}

async fn attest(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    shared.metrics.requests.add_one();
    let id = session_id(&headers).ok_or_else(|| ApiError::attestation(SessionError::Unknown.to_string()))?;
    let attestation: Attestation = parse(body)?;
    let turn = shared.sessions.take(id, Instant::now()).map_err(|e| ApiError::attestation(e.to_string()))?;
    let (nonce, tee) = match turn {
        Turn::Attested(attested) => return Ok(with_cookie(&shared, id, &TokenReply { token: attested.token.clone() })),
        Turn::Challenge { nonce, tee } => (nonce, tee),
    };
    match appraise(&shared, tee, &nonce, &attestation).await {
        Ok(claims) => {
            let measurement = hex::encode(&claims.launch_measurement);
            let issued = now();
            let expires = issued + shared.session_lifetime.as_secs();
            let key = attestation.runtime_data.tee_pubkey;
            let ear = Ear { issued, expires, development: shared.development, claims, key };
            let attested = Arc::new(Attested { token: shared.signers().sign(&ear, &nonce), ear });
            let stored = shared.sessions.attest(id, attested.clone(), Instant::now());
            stored.map_err(|e| ApiError::attestation(e.to_string()))?;
            shared.metrics.handshakes.add_one();
            record(
                &shared,
                "attested",
                &[("session", tag(id)), ("tee", tee.to_string().as_str()), ("launch_measurement", measurement.as_str())],
                Sync::Later,
            )
            .await?;
            log::info!(peer:% = peer.0, session = tag(id), tee:% = tee, measurement = measurement, decision = "attested"; "handshake");
            Ok(with_cookie(&shared, id, &TokenReply { token: attested.token.clone() }))
        }
        Err(reason) => {
            // It may quote what the peer sent.
            let reason = error::one_line(&reason);
            shared.sessions.close(id, Instant::now());
            shared.metrics.handshake_failures.add_one();
            log::warn!(peer:% = peer.0, session = tag(id), tee:% = tee, decision = "refused", reason = reason; "handshake");
            shared.refusals.add(Refusal {
                at: now(),
                session: tag(id).into(),
                peer: peer.0.ip().to_string(),
                resource: String::new(),
                tee: tee.to_string(),
                launch_measurement: String::new(),
                init_data: String::new(),
                reason: reason.clone(),
            });
            record(
                &shared,
                "refused",
                &[("session", tag(id)), ("tee", tee.to_string().as_str()), ("reason", reason.as_str())],
                Sync::Quota,
            )
            .await?;
            Err(ApiError::attestation(reason))
        }
    }
}

/// What the attestation proves, or why it does not count.
async fn appraise(shared: &Shared, tee: Tee, nonce: &str, attestation: &Attestation) -> Result<Claims, String> {
    let runtime = &attestation.runtime_data;
    // Before anything else: with another nonce, all the rest may be genuine and yet be a replay.
    if runtime.nonce != nonce {
        return Err("the nonce is not the one of this session's challenge: a replay, or an answer to another challenge".into());
    }
    // A key that nothing can be encrypted to is better found now than at the first resource.
    jwe::check_key(&runtime.tee_pubkey).map_err(|e| format!("tee-pubkey: {e}"))?;
    let bound = report_data::primary(nonce, &runtime.tee_pubkey, &attestation.tee_evidence.additional_evidence);
    let verifier = shared.verifiers.get(&tee).ok_or_else(|| format!("this broker cannot verify evidence of type {tee}"))?;
    let (evidence, now) = (&attestation.tee_evidence.primary_evidence, now());
    verifier.prepare(evidence, now).await.map_err(|e| e.to_string())?;
    let claims = verifier.verify(evidence, &bound, now).map_err(|e| e.to_string())?;
    if let Some(initdata) = &attestation.init_data {
        if initdata.format != "toml" {
            return Err("init-data: only the format toml is known".into());
        }
        let (_, digest) = Initdata::parse_toml(&initdata.body).map_err(|e| e.to_string())?;
        if !claims.has_init_data(digest.bytes()) {
            return Err(format!(
                "the initdata that was sent is {digest}, the evidence was made under another one: {}",
                hex::encode(&claims.init_data)
            ));
        }
    }
    Ok(claims)
}

async fn resource(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(path): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    shared.metrics.requests.add_one();
    let uri = uri(&path)?;
    let (session, ear) = caller(&shared, &headers)?;
    let measurement = hex::encode(&ear.claims.launch_measurement);
    let rule = shared.store.rule(&uri).map_err(ApiError::internal)?;
    let stored = shared.store.has_secret(&uri).map_err(ApiError::internal)?;
    if let Err(reason) = release::decide(&ear.claims, rule.as_ref(), stored, shared.development, now()) {
        shared.metrics.refused.add_one();
        log::warn!(
            peer:% = peer.0, session = session, tee:% = ear.claims.tee, measurement = measurement, resource = uri.path(),
            decision = "refused", reason = reason; "resource"
        );
        let what = [
            ("session", session.as_str()),
            ("resource", uri.path()),
            ("launch_measurement", measurement.as_str()),
            ("reason", reason.as_str()),
        ];
        record(&shared, "refused", &what, Sync::Quota).await?;
        shared.refusals.add(Refusal {
            at: now(),
            session,
            peer: peer.0.ip().to_string(),
            resource: uri.path().into(),
            tee: ear.claims.tee.to_string(),
            launch_measurement: measurement,
            init_data: hex::encode(&ear.claims.init_data),
            reason: reason.clone(),
        });
        return Err(ApiError::denied(reason));
    }
    let secret = shared.store.secret(&uri).map_err(ApiError::internal)?;
    // Deleted in between.
    let secret = secret.ok_or_else(|| ApiError::denied("there is no such resource"))?;
    let (tee, init_data) = (ear.claims.tee.to_string(), hex::encode(&ear.claims.init_data));
    let what = [
        ("session", session.as_str()),
        ("resource", uri.path()),
        ("tee", tee.as_str()),
        ("launch_measurement", measurement.as_str()),
        ("init_data", init_data.as_str()),
    ];
    record(&shared, "released", &what, Sync::Now).await?;
    let jwe = jwe::encrypt(&secret, &ear.key).map_err(ApiError::internal)?;
    shared.metrics.released.add_one();
    log::info!(
        peer:% = peer.0, session = session, tee:% = ear.claims.tee, measurement = measurement, resource = uri.path(), decision = "released";
        "resource"
    );
    Ok(Json(jwe).into_response())
}

async fn jwks(State(shared): State<Arc<Shared>>) -> Json<serde_json::Value> {
    Json(shared.signers().jwks())
}

/// Writes an event to the audit log, if there is one. What must be on disk is waited for on a thread that may wait.
pub(crate) async fn record(shared: &Arc<Shared>, event: &'static str, members: &[(&str, &str)], sync: Sync) -> Result<(), ApiError> {
    let Some(audit) = &shared.audit else { return Ok(()) };
    if sync != Sync::Now {
        return audit.write(event, members, sync).map_err(ApiError::internal);
    }
    let members: Vec<(String, String)> = members.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let shared = shared.clone();
    let written = tokio::task::spawn_blocking(move || {
        let members: Vec<(&str, &str)> = members.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        shared.audit.as_ref().map_or(Ok(()), |audit| audit.write(event, &members, sync))
    });
    written.await.map_err(ApiError::internal)?.map_err(ApiError::internal)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> String {
    shared.metrics.text(shared.sessions.count(Instant::now()), shared.development)
}

/// Who asks for a resource: by token, if there is one, else by cookie. With the name for the log.
fn caller(shared: &Shared, headers: &HeaderMap) -> Result<(String, Ear), ApiError> {
    if let Some(bearer) = bearer(headers) {
        let ear = shared.signers().verify(bearer, now()).map_err(|e| ApiError::attestation(e.to_string()))?;
        if ear.development && !shared.development {
            return Err(ApiError::attestation("token: issued when this broker was in development; attest again"));
        }
        return Ok(("token".into(), ear));
    }
    let id = session_id(headers).ok_or_else(|| ApiError::attestation(SessionError::Unknown.to_string()))?;
    let attested = shared.sessions.attested(id, Instant::now()).map_err(|e| ApiError::attestation(e.to_string()))?;
    Ok((tag(id).to_owned(), attested.ear.clone()))
}

/// A resource out of a path.
pub(crate) fn uri((repository, kind, tag): &(String, String, String)) -> Result<ResourceUri, ApiError> {
    ResourceUri::new(repository, kind, tag).map_err(|e| ApiError::path(e.to_string()))
}

/// The bytes of a body within the bound.
pub(crate) fn bytes(body: Body) -> Result<Bytes, ApiError> {
    body.map_err(|e| ApiError::request(e.status(), format!("body: at most {MAX_BODY} bytes, and whole")))
}

/// `Authorization: Bearer …`.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

fn parse<T: DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    serde_json::from_slice(&bytes(body)?).map_err(|e| ApiError::request(StatusCode::BAD_REQUEST, format!("body: {e}")))
}

fn session_id(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    cookies.filter_map(|cookie| cookie.trim().strip_prefix(kbs::SESSION_COOKIE)?.strip_prefix('=')).next()
}

fn with_cookie(shared: &Shared, id: &str, body: &impl serde::Serialize) -> Response {
    let cookie = format!("{}={id}; Path=/; Max-Age={}; HttpOnly", kbs::SESSION_COOKIE, shared.session_lifetime.as_secs());
    ([(header::SET_COOKIE, cookie)], Json(body)).into_response()
}

/// Enough of a session's id to follow it through the log: the whole one would let a reader of the log act for the guest.
fn tag(id: &str) -> &str {
    id.get(..8).unwrap_or("?")
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
