//! What the administrator may ask for.

use super::RULE_HEADER;
use crate::{
    api::{Body, bearer, bytes, uri},
    broker::Shared,
    error::ApiError,
    rule::Rule,
    store::{Entry, Store, StoreError},
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
    let uri = uri(&path)?;
    let body = bytes(body)?;
    let rule = read_rule(std::str::from_utf8(&body).map_err(|_| bad("release rule: not UTF-8".into()))?)?;
    log::info!(resource = uri.path(); "rule stored");
    on_store(shared, move |store| store.put_rule(&uri, &rule)).await?;
    Ok(StatusCode::OK)
}

pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Path(path): ResourcePath,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    authorize(&shared, &headers)?;
    let uri = uri(&path)?;
    let name = uri.clone();
    if !on_store(shared, move |store| store.delete(&uri)).await? {
        return Err(ApiError::path(format!("{name}: there is no such resource")));
    }
    log::info!(resource = name.path(); "resource deleted");
    Ok(StatusCode::OK)
}

pub(crate) async fn list(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Result<Json<Vec<Entry>>, ApiError> {
    authorize(&shared, &headers)?;
    Ok(Json(on_store(shared, Store::list).await?))
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
