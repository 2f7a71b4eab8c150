//! The workload API of Confidential Containers at 127.0.0.1:8006, for containers whose policy lists something under `secrets`:
//!
//! ```text
//! GET /cdh/resource/<repository>/<type>/<tag>   a resource, as it is
//! GET /aa/token[?token_type=kbs]                the attestation result, as JSON {"token": …}
//! GET /aa/evidence?runtime_data=<text>          evidence bound to SHA-384("cloister workload evidence\0" ‖ text)
//! ```
//! What stands under `allow.secrets` is for all containers, what stands under a container's own `secrets` for that one: it is known by the
//! process that holds the connection. Evidence is not bound to the caller's text itself: who could choose what evidence is bound to could
//! answer a broker's challenge with a key of his own, and have every secret of the VM.

use crate::{caller, containers::Containers, sandbox::Sandbox};
use attestation::report_data::ReportData;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{info, warn};
use policy::Denial;
use sha2::{Digest, Sha384};
use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};
use zeroize::Zeroizing;

/// Where it has always been.
const PORT: u16 = 8006;

/// Connections at once.
const MAX_CONNECTIONS: usize = 32;

/// Longest `runtime_data`, in bytes.
const MAX_RUNTIME_DATA: usize = 1024;

/// How long a client may take for its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Separates this evidence from that of the handshake with the broker.
const DOMAIN: &[u8] = b"cloister workload evidence\0";

/// Serves until the machine ends.
pub async fn serve(sandbox: Arc<Sandbox>, containers: Arc<Containers>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).await?;
    info!(port = PORT; "workload API");
    accept(listener, Arc::new(Api { sandbox, containers, port: PORT })).await
}

/// What an answer needs.
struct Api {
    sandbox: Arc<Sandbox>,
    containers: Arc<Containers>,
    port: u16,
}

async fn accept(listener: TcpListener, api: Arc<Api>) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!("workload API: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let api = api.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let api = api.clone();
                async move { Ok::<_, Infallible>(answer(&api, peer, request).await) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(16 << 10).keep_alive(false);
            // A caller that goes away is its own loss.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Resource(String),
    Token,
    Evidence(String),
}

async fn answer(api: &Api, peer: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    let wanted = match parse(request.uri().path(), request.uri().query().unwrap_or_default()) {
        Ok(wanted) => wanted,
        Err(what) => return text(StatusCode::NOT_FOUND, what),
    };
    if let Err(denial) = admit(api, peer, &wanted) {
        warn!("workload API: {denial}");
        return text(StatusCode::FORBIDDEN, &denial.to_string());
    }
    match give(&api.sandbox, wanted).await {
        Ok((kind, body)) => respond(StatusCode::OK, kind, body),
        Err(reason) => text(StatusCode::BAD_GATEWAY, &reason),
    }
}

fn admit(api: &Api, peer: SocketAddr, wanted: &Wanted) -> Result<(), Denial> {
    let name = match wanted {
        Wanted::Resource(path) => format!("kbs:///{path}"),
        Wanted::Token => "token".into(),
        Wanted::Evidence(_) => "evidence".into(),
    };
    let own = || caller::container(&api.containers, peer, api.port).is_some_and(|container| container.place().has_secret(&name));
    api.sandbox.policy().secret(&name).or_else(|denial| if own() { Ok(()) } else { Err(denial) })
}

fn parse(path: &str, query: &str) -> Result<Wanted, &'static str> {
    let value = |name: &str| query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name)).map(|(_, value)| value);
    match path {
        "/aa/token" if value("token_type").is_none_or(|kind| kind == "kbs") => Ok(Wanted::Token),
        "/aa/token" => Err("token_type: only kbs is known"),
        "/aa/evidence" => {
            let data = percent_decoded(value("runtime_data").unwrap_or_default()).ok_or("runtime_data: not percent-encoded text")?;
            if data.len() > MAX_RUNTIME_DATA { Err("runtime_data: too long") } else { Ok(Wanted::Evidence(data)) }
        }
        _ => path.strip_prefix("/cdh/resource/").map(|rest| Wanted::Resource(rest.to_owned())).ok_or("no such path"),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok().filter(|d| !d.starts_with('+'))?, 16).ok()?
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

async fn give(sandbox: &Sandbox, wanted: Wanted) -> Result<(&'static str, Zeroizing<Vec<u8>>), String> {
    let broker = sandbox.broker().ok_or("the machine was started without initdata that names a broker")?;
    match wanted {
        Wanted::Resource(path) => {
            let resource = attestation::ResourceUri::from_path(&path).map_err(|e| e.to_string())?;
            let secret = broker.resource(&resource).await.map_err(|e| e.to_string())?;
            Ok(("application/octet-stream", secret))
        }
        Wanted::Token => {
            let token = broker.token().await.map_err(|e| e.to_string())?;
            Ok(("application/json", serde_json::json!({ "token": token }).to_string().into_bytes().into()))
        }
        Wanted::Evidence(data) => {
            let evidence = broker.evidence(bound(&data)).await.map_err(|e| e.to_string())?;
            Ok(("application/json", evidence.to_string().into_bytes().into()))
        }
    }
}

/// What evidence for a workload is bound to.
fn bound(data: &str) -> ReportData {
    Sha384::new().chain_update(DOMAIN).chain_update(data).finalize().into()
}

fn respond(status: StatusCode, kind: &'static str, body: Zeroizing<Vec<u8>>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(&body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Zeroizing::new(format!("{message}\n").into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use transport::{HttpClient, TcpDialer, read_body};

    #[test]
    fn paths_are_those_of_confidential_containers() {
        assert_eq!(parse("/cdh/resource/a/b/c", ""), Ok(Wanted::Resource("a/b/c".into())));
        assert_eq!(parse("/aa/token", ""), Ok(Wanted::Token));
        assert_eq!(parse("/aa/token", "token_type=kbs"), Ok(Wanted::Token));
        assert_eq!(parse("/aa/evidence", "runtime_data=a%20b+c"), Ok(Wanted::Evidence("a b c".into())));
        for (path, query) in [
            ("/", ""),
            ("/aa/token", "token_type=coco_as"),
            ("/aa/evidence", "runtime_data=%zz"),
            ("/aa/evidence", "runtime_data=%+1"),
            ("/aa/evidence", "runtime_data=%e4"),
        ] {
            assert!(parse(path, query).is_err(), "{path}?{query}");
        }
        let long = format!("runtime_data={}", "a".repeat(MAX_RUNTIME_DATA + 1));
        assert!(parse("/aa/evidence", &long).is_err());
    }

    /// Or a container could answer the broker's challenge with a key of its own.
    #[test]
    fn evidence_is_never_bound_to_what_a_workload_chooses() {
        let challenge = Sha384::digest(b"chosen");
        assert_ne!(bound("chosen")[..], challenge[..]);
        assert_ne!(bound("a"), bound("b"));
    }

    #[tokio::test]
    async fn what_the_policy_does_not_list_is_forbidden() {
        let sandbox = Sandbox::for_test(Some("[allow]\nsecrets = [\"kbs:///acme/api/*\"]\n"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let containers = Arc::new(Containers::new(Arc::default(), Arc::default(), Arc::default()));
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(accept(listener, Arc::new(Api { sandbox, containers, port })));
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        for (path, status, words) in [
            ("/cdh/resource/acme/api/db", 502, "names a broker"),
            ("/cdh/resource/acme/other/db", 403, "allow.secrets"),
            ("/cdh/resource/acme/api/../other/db", 502, ""),
            ("/aa/token", 403, "token at the workload API"),
            ("/aa/evidence?runtime_data=x", 403, "allow.secrets"),
            ("/other", 404, "no such path"),
        ] {
            let answer = client.send(Request::get(format!("{url}{path}")).body(Bytes::new()).unwrap()).await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{path}");
            let body = read_body(answer.into_body(), 4096).await.unwrap();
            assert!(String::from_utf8_lossy(&body).contains(words), "{path}: {body:?}");
        }
    }
}
