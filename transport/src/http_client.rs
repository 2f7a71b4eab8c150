//! A small HTTP/1.1 client on hyper and rustls: one connection per request, no redirects and no retries, which are the caller's
//! policy.

use crate::{Dialer, Proxies, Stream, Upload};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{sync::Arc, time::Duration};
use thiserror::Error;
use tokio_rustls::TlsConnector;

/// The body of a response, still on the wire.
pub type Body = Incoming;

/// How long a peer may take to accept a connection, to finish TLS, and to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How a URL says that it is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// Why a request got no answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The URL has no host or another scheme.
    #[error("{0}: not an http or https URL")]
    Url(Uri),
    /// No connection.
    #[error("{authority}: cannot connect: {source}")]
    Connect {
        /// Whom we called.
        authority: String,
        /// The cause.
        source: std::io::Error,
    },
    /// No way through the proxy.
    #[error("{authority}: {source}")]
    Proxy {
        /// Whom we called.
        authority: String,
        /// What the proxy said.
        source: std::io::Error,
    },
    /// No TLS session.
    #[error("{authority}: TLS: {source}")]
    Tls {
        /// Whom we called.
        authority: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate in the configuration.
    #[error("extra root certificate: {0}")]
    Root(String),
    /// HTTP itself.
    #[error("{authority}: {source}")]
    Http {
        /// Whom we called.
        authority: String,
        /// The cause.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("{authority}: no answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout {
        /// Whom we called.
        authority: String,
    },
    /// A body longer than the caller takes.
    #[error("answer longer than {0} bytes")]
    TooLong(usize),
}

/// Sends requests through a [`Dialer`].
#[derive(Clone)]
pub struct HttpClient {
    dialer: Arc<dyn Dialer>,
    tls: Arc<ClientConfig>,
    proxies: Arc<Proxies>,
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

impl HttpClient {
    /// A client that trusts the web's roots and those in `extra_roots_pem`.
    pub fn new(dialer: Arc<dyn Dialer>, extra_roots_pem: Option<&str>) -> Result<Self, HttpError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for certificate in extra_roots_pem.into_iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())) {
            let certificate = certificate.map_err(|e| HttpError::Root(e.to_string()))?;
            roots.add(certificate).map_err(|e| HttpError::Root(e.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| HttpError::Root(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { dialer, tls: Arc::new(tls), proxies: Arc::default() })
    }

    /// The same client, which goes through proxies.
    pub fn through(self, proxies: Proxies) -> Self {
        Self { proxies: Arc::new(proxies), ..self }
    }

    /// Sends `request`, whose URI is absolute, and gives the response with its body still on the wire.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, HttpError> {
        let (scheme, host, authority) = target(request.uri())?;
        let timeout = || HttpError::Timeout { authority: authority.clone() };
        let exchange = self.exchange(request.map(Upload::of), scheme, &host, &authority);
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| timeout())?
    }

    /// As [`Self::send`], with a body that may take any time to be sent.
    pub async fn upload(&self, request: Request<Upload>) -> Result<Response<Body>, HttpError> {
        let (scheme, host, authority) = target(request.uri())?;
        self.exchange(request, scheme, &host, &authority).await
    }

    async fn exchange(&self, request: Request<Upload>, scheme: Scheme, host: &str, authority: &str) -> Result<Response<Body>, HttpError> {
        let proxy = self.proxies.select(scheme == Scheme::Https, host);
        let peer = proxy.map_or(authority, |proxy| proxy.authority());
        let mut connection = self.dialer.dial(peer).await.map_err(|source| HttpError::Connect { authority: peer.to_owned(), source })?;
        if let (Some(proxy), Scheme::Https) = (proxy, scheme) {
            let way = proxy.connect(&mut connection, authority).await;
            way.map_err(|source| HttpError::Proxy { authority: authority.to_owned(), source })?;
        }
        let connection: Box<dyn Stream> = match scheme {
            Scheme::Http => connection,
            Scheme::Https => {
                let name = ServerName::try_from(host.to_owned()).map_err(|_| HttpError::Url(request.uri().clone()))?;
                let tls = TlsConnector::from(self.tls.clone()).connect(name, connection).await;
                Box::new(tls.map_err(|source| HttpError::Tls { authority: authority.to_owned(), source })?)
            }
        };
        let http = |source| HttpError::Http { authority: authority.to_owned(), source };
        let (mut sender, driver) = http1::handshake(TokioIo::new(connection)).await.map_err(http)?;
        // The driver ends with the response's body; an error of its own reaches the reader of that body.
        tokio::spawn(driver);
        let request = match (proxy, scheme) {
            (Some(proxy), Scheme::Http) => proxy_form(request, proxy.authorization())?,
            _ => origin_form(request)?,
        };
        sender.send_request(request).await.map_err(http)
    }
}

/// Collects a body of at most `max` bytes.
pub async fn read_body(mut body: Body, max: usize) -> Result<Bytes, HttpError> {
    let mut out = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| HttpError::Http { authority: "answer".into(), source })?;
        let Ok(data) = frame.into_data() else { continue };
        if out.len() + data.len() > max {
            return Err(HttpError::TooLong(max));
        }
        out.extend_from_slice(&data);
    }
    Ok(out.freeze())
}

/// Scheme, host name for TLS, and `host:port` to dial.
fn target(uri: &Uri) -> Result<(Scheme, String, String), HttpError> {
    let bad = || HttpError::Url(uri.clone());
    let (scheme, port) = match uri.scheme_str() {
        Some("http") => (Scheme::Http, 80),
        Some("https") => (Scheme::Https, 443),
        _ => return Err(bad()),
    };
    let host = uri.host().ok_or_else(bad)?;
    let port = uri.port_u16().unwrap_or(port);
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((scheme, name, format!("{host}:{port}")))
}

/// HTTP/1.1 wants the path in the request line and the host in a header.
fn origin_form(mut request: Request<Upload>) -> Result<Request<Upload>, HttpError> {
    name_host(&mut request)?;
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).parse::<Uri>();
    *request.uri_mut() = path.map_err(|_| HttpError::Url(request.uri().clone()))?;
    Ok(request)
}

/// A proxy wants the whole URL in the request line (RFC 9112 §3.2.2).
fn proxy_form(mut request: Request<Upload>, authorization: Option<&str>) -> Result<Request<Upload>, HttpError> {
    name_host(&mut request)?;
    if let Some(value) = authorization.and_then(|value| HeaderValue::from_str(value).ok()) {
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, value);
    }
    Ok(request)
}

fn name_host(request: &mut Request<Upload>) -> Result<(), HttpError> {
    let bad = || HttpError::Url(request.uri().clone());
    let authority = request.uri().authority().ok_or_else(bad)?.as_str();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = HeaderValue::from_str(host).map_err(|_| bad())?;
    request.headers_mut().insert(header::HOST, host);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TcpDialer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serve_once(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 4096];
            let n = stream.read(&mut seen).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&seen[..n]).into_owned()
        });
        (address, server)
    }

    #[tokio::test]
    async fn a_request_has_a_host_and_a_path() {
        let (address, server) = serve_once("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        let request = Request::get(format!("http://{address}/v2/?x=1")).body(Bytes::new()).unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(read_body(answer.into_body(), 5).await.unwrap(), "hello");
        let seen = server.await.unwrap();
        assert!(seen.starts_with("GET /v2/?x=1 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains(&format!("host: {address}\r\n")), "{seen}");
    }

    #[tokio::test]
    async fn plain_http_goes_through_its_proxy_with_the_whole_url() {
        let (address, server) = serve_once("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        let proxies = Proxies::new(Some(&format!("http://me:pass@{address}")), None, None).unwrap();
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap().through(proxies);
        let answer = client.send(Request::get("http://registry.invalid/v2/").body(Bytes::new()).unwrap()).await.unwrap();
        assert_eq!(read_body(answer.into_body(), 5).await.unwrap(), "hello");
        let seen = server.await.unwrap();
        assert!(seen.starts_with("GET http://registry.invalid/v2/ HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("host: registry.invalid\r\n") && seen.contains("proxy-authorization: Basic bWU6cGFzcw==\r\n"), "{seen}");
    }

    #[tokio::test]
    async fn an_upload_has_its_length() {
        let (address, server) = serve_once("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        let body = Upload::read(b"content".as_slice(), 7, |_| ());
        client.upload(Request::put(format!("http://{address}/x")).body(body).unwrap()).await.unwrap();
        let seen = server.await.unwrap();
        assert!(seen.contains("content-length: 7\r\n"), "{seen}");
    }

    #[tokio::test]
    async fn a_body_over_its_bound_is_refused() {
        let (address, _server) = serve_once("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!").await;
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        let answer = client.send(Request::get(format!("http://{address}/")).body(Bytes::new()).unwrap()).await.unwrap();
        assert!(matches!(read_body(answer.into_body(), 5).await, Err(HttpError::TooLong(5))));
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address() {
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        let error = client.send(Request::get("http://127.0.0.1:1/").body(Bytes::new()).unwrap()).await.unwrap_err();
        assert!(error.to_string().starts_with("127.0.0.1:1: cannot connect"), "{error}");
        assert!(client.send(Request::get("ftp://x/").body(Bytes::new()).unwrap()).await.is_err());
    }
}
