//! One request to a registry, with what may lie between it and its answer: a challenge, and redirects to where blobs are.

use super::{
    Registry, RegistryError,
    auth::{self, Authorization, Challenge},
    header_text,
};
use crate::reference::Reference;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use transport::{Body, read_body};

/// Most redirects followed.
const MAX_REDIRECTS: usize = 5;
/// Longest error or token document, in bytes.
const MAX_SMALL: usize = 64 << 10;

impl Registry {
    /// Sends a request for `path` to the reference's registry; an answer other than success is an error.
    pub(super) async fn request(
        &self,
        reference: &Reference,
        method: Method,
        path: &str,
        accept: &str,
    ) -> Result<Response<Body>, RegistryError> {
        let scheme = if self.is_plain(reference.registry()) { "http" } else { "https" };
        let uri = self.parse(reference, &format!("{scheme}://{}{path}", reference.registry()))?;
        let known = self.known(reference);
        let response = self.follow(reference, &method, &uri, accept, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.success(reference, response).await;
        }
        // Nobody knew a token yet, or it has run out: one more try with a new one.
        let Some(authorization) = self.authorize(reference, response.headers()).await? else {
            return self.success(reference, response).await;
        };
        self.remember(reference, authorization.clone());
        let response = self.follow(reference, &method, &uri, accept, Some(&authorization)).await?;
        self.success(reference, response).await
    }

    /// Sends and follows redirects. The authorization is for the host that it was made for: storage servers behind a registry would
    /// log it, and a hostile one would use it.
    async fn follow(
        &self,
        reference: &Reference,
        method: &Method,
        start: &Uri,
        accept: &str,
        authorization: Option<&Authorization>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut uri = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::builder().method(method.clone()).uri(&uri).header(header::ACCEPT, accept);
            if let Some(authorization) = authorization.filter(|_| origin(&uri) == origin(start)) {
                request = request.header(header::AUTHORIZATION, authorization.header());
            }
            let request = request.body(Bytes::new()).map_err(|e| RegistryError::protocol(reference, e.to_string()))?;
            let response = self.client.send(request).await.map_err(|e| RegistryError::http(reference, e))?;
            if !is_redirect(response.status()) {
                return Ok(response);
            }
            let location = header_text(response.headers(), header::LOCATION.as_str());
            uri = self.redirect(reference, &uri, &location.unwrap_or_default())?;
        }
        Err(RegistryError::protocol(reference, format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Where a redirect leads: absolute, or a path on the same server.
    fn redirect(&self, reference: &Reference, from: &Uri, location: &str) -> Result<Uri, RegistryError> {
        if location.starts_with('/') && !location.starts_with("//") {
            let base = format!("{}://{}", from.scheme_str().unwrap_or_default(), from.authority().map_or("", Authority::as_str));
            return self.parse(reference, &format!("{base}{location}"));
        }
        self.parse(reference, location)
    }

    /// Reads a URL, and refuses plain HTTP to whom it was not allowed.
    fn parse(&self, reference: &Reference, text: &str) -> Result<Uri, RegistryError> {
        let refuse = |why: &str| RegistryError::protocol(reference, format!("{why}: {:?}", crate::manifest::clip(text)));
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
        self.plain_http.contains(&authority.to_ascii_lowercase())
    }

    /// What a challenge asks for; nothing where we cannot give it.
    async fn authorize(&self, reference: &Reference, headers: &HeaderMap) -> Result<Option<Authorization>, RegistryError> {
        let basic = || self.credentials.as_ref().and_then(|credentials| credentials.basic());
        let (realm, service) = match Challenge::parse(headers) {
            None => return Ok(None),
            Some(Challenge::Basic) => return Ok(basic()),
            Some(Challenge::Bearer { realm, service }) => (realm, service),
        };
        let uri = self.parse(reference, &Challenge::token_url(&realm, service.as_deref(), reference.repository()))?;
        let response = self.follow(reference, &Method::GET, &uri, "application/json", basic().as_ref()).await?;
        let response = self.success_of(reference, uri.authority().map_or("", Authority::as_str), response).await?;
        let body = read_body(response.into_body(), MAX_SMALL).await.map_err(|e| RegistryError::http(reference, e))?;
        let token = auth::bearer(&body).ok_or_else(|| RegistryError::protocol(reference, "its token server gave no token"))?;
        Ok(Some(token))
    }

    async fn success(&self, reference: &Reference, response: Response<Body>) -> Result<Response<Body>, RegistryError> {
        self.success_of(reference, reference.registry(), response).await
    }

    async fn success_of(&self, reference: &Reference, server: &str, response: Response<Body>) -> Result<Response<Body>, RegistryError> {
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let body = read_body(response.into_body(), MAX_SMALL).await.unwrap_or_default();
        Err(RegistryError::status(reference, server, status, &body))
    }

    fn known(&self, reference: &Reference) -> Option<Authorization> {
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&reference.name()).cloned()
    }

    fn remember(&self, reference: &Reference, authorization: Authorization) {
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(reference.name(), authorization);
    }
}

fn origin(uri: &Uri) -> (Option<&str>, Option<&Authority>) {
    (uri.scheme_str(), uri.authority())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}
