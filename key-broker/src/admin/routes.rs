//! What the administrator may ask for.

use super::RULE_HEADER;
use crate::{
    api::{Body, bearer, bytes, record, uri},
    audit::{Head, Sync},
    broker::Shared,
    error::ApiError,
    refusals::Refusal,
    rule::Rule,
    store::{Entry, Store, StoreError},
    target::Target,
};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::sync::Arc;
use zeroize::Zeroizing;

type ResourcePath = Path<(String, String, String)>;

pub(crate) async fn put(
    State(shared): State<Arc<Shared>>,
    Path(path): ResourcePath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    authorize(&shared, &headers)?;
    let uri = uri(&path)?;
    let rule = headers.get(RULE_HEADER).map(|value| {
        let text = STANDARD.decode(value.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        read_rule(&text.ok_or_else(|| bad(format!("header {RULE_HEADER}: not base64 of a text")))?)
    });
    let rule = rule.transpose()?;
    let secret = Zeroizing::new(bytes(body)?.to_vec());
    log::info!(resource = uri.path(), bytes = secret.len(), rule = rule.is_some(); "resource stored");
    let text = rule.as_ref().map_or("unchanged", Rule::text);
    record(&shared, "stored", &[("resource", uri.path()), ("bytes", secret.len().to_string().as_str()), ("rule", text)], Sync::Now).await?;
    on_store(shared, move |store| store.put(&uri, &secret, rule.as_ref())).await?;
    Ok(StatusCode::OK)
}

pub(crate) async fn put_rule(
    State(shared): State<Arc<Shared>>,
    Path(path): ResourcePath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    authorize(&shared, &headers)?;
    let target = target(&path)?;
    let body = bytes(body)?;
    let rule = read_rule(std::str::from_utf8(&body).map_err(|_| bad("release rule: not UTF-8".into()))?)?;
    log::info!(resource = target.path(); "rule stored");
    record(&shared, "rule stored", &[("resource", target.path()), ("rule", rule.text())], Sync::Now).await?;
    on_store(shared, move |store| store.put_rule(&target, &rule)).await?;
    Ok(StatusCode::OK)
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(path): ResourcePath,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    authorize(&shared, &headers)?;
    let target = target(&path)?;
    let name = target.clone();
    record(&shared, "deleted", &[("resource", target.path())], Sync::Now).await?;
    if !on_store(shared, move |store| store.delete(&target)).await? {
        return Err(ApiError::path(format!("{name}: there is no such resource")));
    }
    log::info!(resource = name.path(); "resource deleted");
    Ok(StatusCode::OK)
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Vec<Entry>>, ApiError> {
    authorize(&shared, &headers)?;
    Ok(Json(on_store(shared, Store::list).await?))
}

pub(crate) async fn refusals(
    State(shared): State<Arc<Shared>>,
    Path(path): ResourcePath,
    headers: HeaderMap,
) -> Result<Json<Vec<Refusal>>, ApiError> {
    authorize(&shared, &headers)?;
    Ok(Json(shared.refusals.of(uri(&path)?.path())))
}

pub(crate) async fn rotate_token_key(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<serde_json::Value>, ApiError> {
    authorize(&shared, &headers)?;
    record(&shared, "token key rotated", &[], Sync::Now).await?;
    let rotating = shared.clone();
    let rotated = tokio::task::spawn_blocking(move || rotating.rotate_token_key()).await;
    rotated.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
    log::info!("token key rotated");
    Ok(Json(shared.signers().jwks()))
}

pub(crate) async fn audit_head(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Head>, ApiError> {
    authorize(&shared, &headers)?;
    let none = || ApiError::path("this broker was started without an audit log");
    Ok(Json(shared.audit.as_ref().ok_or_else(none)?.head()))
}

fn target((repository, kind, tag): &(String, String, String)) -> Result<Target, ApiError> {
    Target::new(repository, kind, tag).map_err(|e| ApiError::path(e.to_string()))
}

fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(admin) = &shared.admin else {
        return Err(ApiError::admin("this broker was started without an admin key"));
    };
    if bearer(headers).is_some_and(|presented| admin.is(presented)) {
        return Ok(());
    }
    log::warn!("request without the admin key refused");
    Err(ApiError::admin("not the admin key of this broker"))
}

fn read_rule(text: &str) -> Result<Rule, ApiError> {
    Rule::parse(text).map_err(|e| bad(e.to_string()))
}

fn bad(detail: String) -> ApiError {
    ApiError::request(StatusCode::BAD_REQUEST, detail)
}

/// A change waits for the disk, which is not for a thread of the runtime.
async fn on_store<T: Send + 'static>(
    shared: Arc<Shared>,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiError> {
    let result = tokio::task::spawn_blocking(move || work(&shared.store)).await.map_err(ApiError::internal)?;
    result.map_err(ApiError::internal)
}
