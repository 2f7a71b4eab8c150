//! Against a small server that answers by path and records what it was asked.

use super::*;
use crate::{digest::DigestError, strict_json::MAX_DOCUMENT};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use transport::TcpDialer;

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

/// One answer: status, headers, body.
#[derive(Clone)]
struct Answer(u16, String, Vec<u8>);

impl Answer {
    fn ok(body: &[u8]) -> Self {
        Self(200, format!("Content-Type: {OCI_MANIFEST}\r\n"), body.to_vec())
    }

    fn redirect(location: &str) -> Self {
        Self(307, format!("Location: {location}\r\n"), Vec::new())
    }
}

/// Answers by `path` and, where a token is required, `path AUTHORIZATION`.
struct Server {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, answers) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<BTreeMap<String, Answer>>>::default());
        let server = Self { address, seen: seen.clone(), answers: answers.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, seen.clone(), answers.clone()));
            }
        });
        server
    }

    fn on(&self, key: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(key.to_owned(), answer);
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn reference(&self) -> Reference {
        format!("{}/demo:1", self.address).parse().unwrap()
    }
}

async fn answer(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>, answers: Arc<Mutex<BTreeMap<String, Answer>>>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
        // Someone speaks TLS.
        if !request[0].is_ascii_uppercase() {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let authorization = request.lines().find_map(|line| line.strip_prefix("authorization: "));
    let key = authorization.map_or_else(|| path.clone(), |value| format!("{path} {value}"));
    seen.lock().unwrap().push(format!("{} {key}", request.split(' ').next().unwrap()));
    let found = answers.lock().unwrap().get(&key).cloned();
    let Answer(status, headers, body) =
        found.unwrap_or_else(|| Answer(404, String::new(), br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#.to_vec()));
    let head = format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    if !request.starts_with("HEAD ") {
        stream.write_all(&body).await.ok();
    }
}

fn registry(plain: &[&str], credentials: Option<Credentials>) -> Registry {
    let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    // Credentials are for those that the owner lets go without TLS.
    let insecure: String = plain.iter().map(|host| format!("[[registry]]\nlocation = {host:?}\ninsecure = true\n")).collect();
    let mut options = Options { plain_http: plain.iter().map(|s| (*s).to_owned()).collect(), ..Options::default() };
    if let Some(credentials) = credentials {
        options.credentials = Arc::new(AuthFile::of_registry(plain[0], credentials));
        options.registries = Registries::parse(&insecure).unwrap();
    }
    Registry::new(client, options)
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::of("x", bytes)
}

#[tokio::test]
async fn manifests_and_blobs_are_fetched() {
    let server = Server::start().await;
    let registry = registry(&[&server.address], None);
    server.on("/v2/demo/manifests/1", Answer::ok(MANIFEST));
    let digest = Digest::of(b"blob");
    server.on(&format!("/v2/demo/blobs/{digest}"), Answer::ok(b"blob"));
    let fetched = registry.manifest(&server.reference()).await.unwrap();
    assert_eq!(
        (fetched.bytes.as_ref(), fetched.media_type.as_deref(), fetched.digest),
        (MANIFEST, Some(OCI_MANIFEST), Digest::of(MANIFEST))
    );
    assert_eq!(registry.resolve(&server.reference()).await.unwrap(), Digest::of(MANIFEST), "without the header, the document says it");
    assert_eq!(registry.blob_bytes(&server.reference(), &descriptor(b"blob")).await.unwrap(), "blob");
    let mut body = Vec::new();
    registry.blob(&server.reference(), &descriptor(b"blob")).await.unwrap().read_to_end(&mut body).await.unwrap();
    assert_eq!(body, b"blob");
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_refused() {
    let server = Server::start().await;
    let registry = registry(&[&server.address], None);
    let pinned = server.reference().with_digest(Digest::of(b"other"));
    server.on(&format!("/v2/demo/manifests/{}", Digest::of(b"other")), Answer::ok(MANIFEST));
    let mismatch = |e: RegistryError| matches!(e, RegistryError::Digest { source: DigestError::Mismatch { .. }, .. });
    assert!(mismatch(registry.manifest(&pinned).await.unwrap_err()));
    let blob = format!("/v2/demo/blobs/{}", Digest::of(b"blob"));
    server.on(&blob, Answer::ok(b"blub"));
    assert!(mismatch(registry.blob_bytes(&server.reference(), &descriptor(b"blob")).await.unwrap_err()));
    server.on(&blob, Answer::ok(b"longer"));
    let error = registry.blob(&server.reference(), &descriptor(b"blob")).await.err().unwrap();
    assert!(matches!(error, RegistryError::Digest { source: DigestError::Size { .. }, .. }), "{error}");
    server.on("/v2/demo/manifests/1", Answer(200, format!("Docker-Content-Digest: {}\r\n", Digest::of(b"x")), MANIFEST.to_vec()));
    assert!(mismatch(registry.manifest(&server.reference()).await.unwrap_err()));
    server.on("/v2/demo/manifests/1", Answer::ok(&vec![b' '; MAX_DOCUMENT + 1]));
    assert!(matches!(registry.manifest(&server.reference()).await, Err(RegistryError::Http { .. })));
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let server = Server::start().await;
    let plain = registry(&[&server.address], None);
    let error = plain.manifest(&server.reference()).await.unwrap_err();
    let address = &server.address;
    let expected =
        format!("registry {address} has no such image or blob (404, MANIFEST_UNKNOWN): check the name and the tag, and that it was pushed");
    assert_eq!((error.to_string(), error.reason()), (format!("{address}/demo:1: {expected}"), expected));
    server.on("/v2/demo/manifests/1", Answer(503, String::new(), b"<html>\nnoise".to_vec()));
    assert!(plain.manifest(&server.reference()).await.unwrap_err().to_string().ends_with("answered 503 Service Unavailable"));
    let down: Reference = "127.0.0.1:1/demo:1".parse().unwrap();
    let error = registry(&["127.0.0.1:1"], None).manifest(&down).await.unwrap_err().to_string();
    assert!(error.starts_with("127.0.0.1:1/demo:1: registry: 127.0.0.1:1: cannot connect"), "{error}");
    // TLS is not given up because the other side speaks none.
    let error = registry(&[], None).manifest(&server.reference()).await.unwrap_err().to_string();
    assert!(error.contains("list it under plain_http"), "{error}");
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used() {
    let server = Server::start().await;
    let registry = registry(&[&server.address], Some(Credentials::new("me".into(), "pass".into())));
    let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n", server.address);
    for path in ["/v2/demo/manifests/1".to_owned(), format!("/v2/demo/blobs/{}", Digest::of(b"blob"))] {
        server.on(&path, Answer(401, challenge.clone(), Vec::new()));
    }
    let token_path = "/token?scope=repository%3Ademo%3Apull&service=s";
    server.on(&format!("{token_path} Basic bWU6cGFzcw=="), Answer::ok(br#"{"token":"t1"}"#));
    server.on("/v2/demo/manifests/1 Bearer t1", Answer::ok(MANIFEST));
    server.on(&format!("/v2/demo/blobs/{} Bearer t1", Digest::of(b"blob")), Answer::ok(b"blob"));
    registry.manifest(&server.reference()).await.unwrap();
    registry.blob_bytes(&server.reference(), &descriptor(b"blob")).await.unwrap();
    let tokens = server.seen().iter().filter(|line| line.contains("/token")).count();
    assert_eq!((tokens, server.seen().len()), (1, 4), "{:?}", server.seen());
    // A token that is refused is not tried for ever.
    server.on("/v2/demo/manifests/1 Bearer t1", Answer(401, challenge, Vec::new()));
    let error = registry.manifest(&server.reference()).await.unwrap_err().to_string();
    assert!(error.contains("refuses access"), "{error}");
}

#[tokio::test]
async fn basic_authentication_is_answered() {
    let server = Server::start().await;
    server.on("/v2/demo/manifests/1", Answer(401, "WWW-Authenticate: Basic realm=\"r\"\r\n".into(), Vec::new()));
    server.on("/v2/demo/manifests/1 Basic bWU6cGFzcw==", Answer::ok(MANIFEST));
    let with = registry(&[&server.address], Some(Credentials::new("me".into(), "pass".into())));
    assert_eq!(with.manifest(&server.reference()).await.unwrap().bytes, MANIFEST);
    let error = registry(&[&server.address], None).manifest(&server.reference()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn redirects_take_no_authorization_to_strangers() {
    let (server, storage) = (Server::start().await, Server::start().await);
    let registry = registry(&[&server.address, &storage.address], Some(Credentials::new("me".into(), "pass".into())));
    let blob = format!("/v2/demo/blobs/{}", Digest::of(b"blob"));
    server.on(&blob, Answer(401, "WWW-Authenticate: Basic realm=\"r\"\r\n".into(), Vec::new()));
    server.on(&format!("{blob} Basic bWU6cGFzcw=="), Answer::redirect("/elsewhere"));
    server.on("/elsewhere Basic bWU6cGFzcw==", Answer::redirect(&format!("http://{}/stored?sig=1", storage.address)));
    storage.on("/stored?sig=1", Answer::ok(b"blob"));
    assert_eq!(registry.blob_bytes(&server.reference(), &descriptor(b"blob")).await.unwrap(), "blob");
    assert_eq!(storage.seen(), ["GET /stored?sig=1"], "without authorization");
}

#[tokio::test]
async fn hostile_redirects_are_refused() {
    let (server, other) = (Server::start().await, Server::start().await);
    let registry = registry(&[&server.address], None);
    for (location, expected) in [
        (format!("http://{}/x", other.address), "without TLS"),
        ("file:///etc/passwd".into(), "sends us to"),
        (String::new(), "sends us to"),
        ("//evil/x".into(), "sends us to"),
        (format!("http://u@{}/x", server.address), "with a user"),
        ("/v2/demo/manifests/1".into(), "more than 5 redirects"),
    ] {
        server.on("/v2/demo/manifests/1", Answer::redirect(&location));
        let error = registry.manifest(&server.reference()).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{location}: {error}");
    }
    assert!(other.seen().is_empty());
    let challenge = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n", other.address);
    server.on("/v2/demo/manifests/1", Answer(401, challenge, Vec::new()));
    assert!(registry.manifest(&server.reference()).await.unwrap_err().to_string().contains("without TLS"));
    assert!(other.seen().is_empty(), "no credentials to a token server in the clear");
}

#[tokio::test]
async fn credentials_do_not_go_where_the_node_alone_allowed_plain_http() {
    let server = Server::start().await;
    let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    let credentials = Arc::new(AuthFile::of_registry(&server.address, Credentials::new("me".into(), "pass".into())));
    let registry = Registry::new(client, Options { plain_http: vec![server.address.clone()], credentials, ..Options::default() });
    for challenge in ["Basic realm=\"r\"".to_owned(), format!("Bearer realm=\"http://{}/token\"", server.address)] {
        server.on("/v2/demo/manifests/1", Answer(401, format!("WWW-Authenticate: {challenge}\r\n"), Vec::new()));
        let error = registry.manifest(&server.reference()).await.unwrap_err().to_string();
        assert!(error.contains("without TLS") && error.contains("insecure = true"), "{error}");
    }
    assert!(server.seen().iter().all(|line| !line.contains("Basic")), "{:?}", server.seen());
}

#[tokio::test]
async fn mirrors_come_first_and_the_images_own_place_last() {
    let (own, mirror) = (Server::start().await, Server::start().await);
    let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    let file = format!(
        "[[registry]]\nlocation = \"{}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{}/copies\"\ninsecure = true\n\
         [[registry]]\nprefix = \"{}/banned\"\nblocked = true\n",
        own.address, mirror.address, own.address
    );
    let registry = Registry::new(client, Options { registries: Registries::parse(&file).unwrap(), ..Options::default() });
    mirror.on("/v2/copies/demo/manifests/1", Answer::ok(MANIFEST));
    assert_eq!(registry.manifest(&own.reference()).await.unwrap().bytes, MANIFEST);
    assert!(own.seen().is_empty());
    // What the mirror has not, or has wrong, its own place may have.
    let blob = Digest::of(b"blob");
    mirror.on(&format!("/v2/copies/demo/blobs/{blob}"), Answer::ok(b"blub"));
    own.on(&format!("/v2/demo/blobs/{blob}"), Answer::ok(b"blob"));
    assert_eq!(registry.blob_bytes(&own.reference(), &descriptor(b"blob")).await.unwrap(), "blob");
    let error = registry.manifest(&format!("{}/demo:2", own.address).parse().unwrap()).await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains(&mirror.address), "{error}");
    let error = registry.manifest(&format!("{}/banned/x:1", own.address).parse().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("blocked"), "{error}");
}
