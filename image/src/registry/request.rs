//! One request to a registry, with what may lie between it and its answer: a challenge, a rate limit, and redirects to where blobs are.

use super::{
    RegistryError,
    auth::{self, Authorization, Challenge},
    endpoint::At,
    header_text, retry,
};
use crate::manifest::clip;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use std::sync::PoisonError;
use tokio::time::sleep;
use transport::{Body, HttpError, read_body};

/// Most redirects followed.
const MAX_REDIRECTS: usize = 5;
/// Longest error or token document, in bytes.
const MAX_SMALL: usize = 64 << 10;

/// What is asked.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) accept: &'a str,
    pub(super) range: Option<&'a str>,
    /// `pull`, or `pull,push`.
    pub(super) scope: &'a str,
    /// Media type and content of what is sent.
    pub(super) content: Option<(&'a str, Bytes)>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, accept: "*/*", range: None, scope: "pull", content: None }
    }
}

impl At {
    /// Sends a request; an answer other than success is an error.
    pub(super) async fn request(&self, ask: &Ask<'_>) -> Result<Response<Body>, RegistryError> {
        let uri = self.uri(ask.path)?;
        let known = self.known(ask.scope);
        let response = self.follow(ask, &uri, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.success(self.host(), response).await;
        }
        // Nobody knew a token yet, or it has run out: one more try with a new one.
        let Some(authorization) = self.authorize(ask.scope, response.headers()).await? else {
            return self.success(self.host(), response).await;
        };
        self.remember(ask.scope, authorization.clone());
        let response = self.follow(ask, &uri, Some(&authorization)).await?;
        self.success(self.host(), response).await
    }

    /// The URL of a path on this registry; a whole URL is taken where the registry itself gave it.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, RegistryError> {
        if !path.starts_with('/') {
            return self.parse(path);
        }
        let scheme = if self.is_plain(self.host()) { "http" } else { "https" };
        self.parse(&format!("{scheme}://{}{path}", self.host()))
    }

    /// Sends and follows redirects. The authorization is for the host that it was made for: storage servers behind a registry would
    /// log it, and a hostile one would use it.
    async fn follow(&self, ask: &Ask<'_>, start: &Uri, authorization: Option<&Authorization>) -> Result<Response<Body>, RegistryError> {
        let mut uri = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = authorization.filter(|_| origin(&uri) == origin(start));
            let response = self.patiently(ask, &uri, authorization).await?;
            if !is_redirect(response.status()) || ask.content.is_some() {
                return Ok(response);
            }
            let location = header_text(response.headers(), header::LOCATION.as_str());
            uri = self.redirect(&uri, &location.unwrap_or_default())?;
        }
        Err(RegistryError::protocol(self, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Sends, and sends again where the server asks to wait or has a bad moment.
    async fn patiently(&self, ask: &Ask<'_>, uri: &Uri, authorization: Option<&Authorization>) -> Result<Response<Body>, RegistryError> {
        let mut patience = retry::Patience::default();
        loop {
            let mut request = Request::builder().method(ask.method.clone()).uri(uri).header(header::ACCEPT, ask.accept);
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization.header());
            }
            if let Some(range) = ask.range {
                request = request.header(header::RANGE, range);
            }
            if let Some((media_type, bytes)) = &ask.content {
                // Said even where it is nothing: some servers answer 411 else.
                request = request.header(header::CONTENT_TYPE, *media_type).header(header::CONTENT_LENGTH, bytes.len());
            }
            let content = ask.content.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
            let request = request.body(content).map_err(|e| RegistryError::protocol(self, e.to_string()))?;
            let wait = match self.registry.0.client.send(request).await {
                Ok(response) => match patience.after_answer(&response) {
                    Some(wait) => wait,
                    None => return Ok(response),
                },
                // A server that is not there, or not the one it says it is, will not be there in a second.
                Err(e @ (HttpError::Http { .. } | HttpError::Timeout { .. })) => match patience.after_fault() {
                    Some(wait) => wait,
                    None => return Err(RegistryError::http(&self.asked, e)),
                },
                Err(e) => return Err(RegistryError::http(&self.asked, e)),
            };
            log::debug!(registry = self.host(), wait:? = wait; "asked again after a while");
            sleep(wait).await;
        }
    }

    /// Where a redirect leads: absolute, or a path on the same server.
    fn redirect(&self, from: &Uri, location: &str) -> Result<Uri, RegistryError> {
        if location.starts_with('/') && !location.starts_with("//") {
            let base = format!("{}://{}", from.scheme_str().unwrap_or_default(), from.authority().map_or("", Authority::as_str));
            return self.parse(&format!("{base}{location}"));
        }
        self.parse(location)
    }

    /// Reads a URL, and refuses plain HTTP to whom it was not allowed.
    pub(super) fn parse(&self, text: &str) -> Result<Uri, RegistryError> {
        let refuse = |why: &str| RegistryError::protocol(self, format!("{why}: {:?}", clip(text)));
        let uri: Uri = text.parse().map_err(|_| refuse("sends us to something that is no URL"))?;
        let authority = uri.authority().ok_or_else(|| refuse("sends us to a URL without a host"))?;
        match uri.scheme_str() {
            _ if authority.as_str().contains('@') => Err(refuse("sends us to a URL with a user in it")),
            Some("https") => Ok(uri),
            Some("http") if self.is_plain(authority.as_str()) => Ok(uri),
            Some("http") => Err(refuse("sends us to a server without TLS, which plain_http does not list")),
            _ => Err(refuse("sends us to another kind of server")),
        }
    }

    fn is_plain(&self, authority: &str) -> bool {
        self.is_insecure(authority) || self.registry.0.options.plain_http.contains(&authority.to_ascii_lowercase())
    }

    /// Without TLS by the owner's own word.
    fn is_insecure(&self, authority: &str) -> bool {
        self.endpoint.insecure && authority.eq_ignore_ascii_case(self.host())
    }

    /// What a challenge asks for; nothing where we cannot give it.
    async fn authorize(&self, scope: &str, headers: &HeaderMap) -> Result<Option<Authorization>, RegistryError> {
        let credentials = self.registry.0.options.credentials.find(&self.endpoint.reference);
        // The node says which registries have no TLS, and carries the traffic: it would read them.
        let basic = |uri: &Uri| -> Result<Option<Authorization>, RegistryError> {
            let Some(credentials) = credentials else { return Ok(None) };
            let authority = uri.authority().map_or("", Authority::as_str);
            if uri.scheme_str() == Some("https") || self.is_insecure(authority) {
                return Ok(credentials.basic());
            }
            let why = format!(
                "wants credentials at {} without TLS: they are not sent unless registries.conf has insecure = true",
                clip(authority)
            );
            Err(RegistryError::protocol(self, why))
        };
        let (realm, service) = match Challenge::parse(headers) {
            None => return Ok(None),
            Some(Challenge::Basic) => return basic(&self.uri("/")?),
            Some(Challenge::Bearer { realm, service }) => (realm, service),
        };
        let url = Challenge::token_url(&realm, service.as_deref(), self.endpoint.reference.repository(), scope);
        let uri = self.parse(&url)?;
        let ask = Ask { accept: "application/json", ..Ask::new(Method::GET, &url) };
        let response = self.follow(&ask, &uri, basic(&uri)?.as_ref()).await?;
        let response = self.success(uri.authority().map_or("", Authority::as_str), response).await?;
        let body = read_body(response.into_body(), MAX_SMALL).await.map_err(|e| RegistryError::http(&self.asked, e))?;
        let token = auth::bearer(&body).ok_or_else(|| RegistryError::protocol(self, "its token server gave no token"))?;
        Ok(Some(token))
    }

    pub(super) async fn success(&self, server: &str, response: Response<Body>) -> Result<Response<Body>, RegistryError> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = read_body(response.into_body(), MAX_SMALL).await.unwrap_or_default();
        Err(RegistryError::status(&self.asked, server, status, &body))
    }

    pub(super) fn known(&self, scope: &str) -> Option<Authorization> {
        self.registry.0.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&self.token_name(scope)).cloned()
    }

    fn remember(&self, scope: &str, authorization: Authorization) {
        self.registry.0.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(self.token_name(scope), authorization);
    }

    fn token_name(&self, scope: &str) -> String {
        format!("{} {scope}", self.endpoint.reference.name())
    }
}

fn origin(uri: &Uri) -> (Option<&str>, Option<&Authority>) {
    (uri.scheme_str(), uri.authority())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
