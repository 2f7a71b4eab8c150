//! Against the real docker-registry (unpacked by `scripts/setup`) with TLS and a password, through connections that break, stall and wait,
//! and through a proxy; without a VM.
#![allow(clippy::unwrap_used)]

use image::{
    digest::Digest,
    manifest::Descriptor,
    reference::Reference,
    registry::{AuthFile, Credentials, Options, Registries, Registry},
};
use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener as StdListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use transport::{HttpClient, Proxies, TcpDialer};

/// `me:pass`, hashed as htpasswd does.
const HTPASSWD: &str = "me:$2b$04$GQ5pRuB4YSBSJ0g25EwIYOab1mE9KDYNp/RqFLDczkPwDqf6i1DE.\n";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry, with TLS and a password unless it is an open one; ends with its owner.
struct Server {
    process: Child,
    address: SocketAddr,
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn openssl(directory: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").current_dir(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        openssl(
            dir,
            &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test CA", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"],
        );
        openssl(dir, &["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=registry", "-keyout", "tls.key", "-out", "tls.csr"]);
        fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        openssl(
            dir,
            &[
                "x509",
                "-req",
                "-in",
                "tls.csr",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-CAcreateserial",
                "-days",
                "2",
                "-extfile",
                "san",
                "-out",
                "tls.pem",
            ],
        );
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let d = dir.display().to_string();
        let closed =
            format!(", tls: {{certificate: {d}/tls.pem, key: {d}/tls.key}}}}\nauth: {{htpasswd: {{realm: test, path: {d}/htpasswd}}}}\n");
        Self::serve(directory, &closed).await
    }

    /// Without TLS and password, so that what lies between can answer in its place.
    async fn start_open() -> Self {
        Self::serve(tempfile::tempdir().unwrap(), "}\n").await
    }

    async fn serve(directory: tempfile::TempDir, closed: &str) -> Self {
        let (dir, d) = (directory.path(), directory.path().display());
        let address = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {d}/data}}}}\n\
             http: {{addr: '{address}'{closed}"
        );
        fs::write(dir.join("config.yml"), config).unwrap();
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../build/deps/registry/usr/bin/docker-registry");
        assert!(program.exists(), "{} is missing: run scripts/setup", program.display());
        let log = File::create(dir.join("log")).unwrap();
        let process = Command::new(program)
            .arg("serve")
            .arg(dir.join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { process, address, directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }

    fn client(&self) -> HttpClient {
        let ca = fs::read_to_string(self.directory.path().join("ca.pem")).unwrap();
        HttpClient::new(Arc::new(TcpDialer), Some(&ca)).unwrap()
    }

    /// A client of the open one, which is reached at `address`.
    fn open_registry(address: SocketAddr, options: Options) -> Registry {
        let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        Registry::new(client, Options { plain_http: vec![address.to_string()], ..options })
    }

    /// A client of what is reached at `address`.
    fn registry(&self, address: SocketAddr, options: Options) -> Registry {
        let credentials = Arc::new(AuthFile::of_registry(&address.to_string(), Credentials::new("me".into(), "pass".into())));
        Registry::new(self.client(), Options { credentials, ..options })
    }
}

fn reference(address: SocketAddr) -> Reference {
    format!("{address}/team/app:1").parse().unwrap()
}

/// Pushes one blob and a manifest that names it.
async fn pushed(server: &Server, content: &[u8]) -> Descriptor {
    pushed_by(&server.registry(server.address, Options::default()), server, content).await
}

async fn pushed_by(registry: &Registry, server: &Server, content: &[u8]) -> Descriptor {
    let (reference, descriptor) = (reference(server.address), Descriptor::of("application/vnd.oci.image.layer.v1.tar", content));
    let file = server.directory.path().join("blob");
    fs::write(&file, content).unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    let progress = move |bytes| {
        counter.fetch_add(bytes, Ordering::Relaxed);
    };
    registry.push_blob(&reference, &descriptor, File::open(&file).unwrap(), progress).await.unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), descriptor.size);
    registry.push_blob(&reference, &descriptor, File::open(&file).unwrap(), |_| panic!("it is there already")).await.unwrap();
    registry.push_bytes(&reference, b"{}").await.unwrap();
    let config = Descriptor::of("application/vnd.oci.image.config.v1+json", b"{}");
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [descriptor]});
    registry.push_manifest(&reference, "1", MANIFEST_TYPE, manifest.to_string().as_bytes()).await.unwrap();
    descriptor
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

async fn read_all(registry: &Registry, reference: &Reference, descriptor: &Descriptor) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    registry.blob(reference, descriptor).await.map_err(std::io::Error::other)?.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What lies between us and the server: passes on what is sent, and does to what is answered as `fault` says.
#[derive(Clone, Copy)]
enum Fault {
    /// Ends the connection after so many bytes of the answer.
    Cut(usize),
    /// Sends nothing more after so many bytes, and keeps the connection open.
    Stall(usize),
    /// Passes on so many bytes each time that this has passed.
    Slow(usize, Duration),
    /// Answers the first request itself: asked too often, again in a second.
    Limited,
}

/// Connections, by number, of which `faulty` have the fault.
async fn between(server: SocketAddr, fault: Fault, faulty: impl Fn(usize) -> bool + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((ours, _)) = listener.accept().await {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let fault = Some(fault).filter(|_| faulty(number));
            let theirs = TcpStream::connect(server).await.unwrap();
            tokio::spawn(pass(ours, theirs, fault));
        }
    });
    (address, count)
}

async fn pass(mut ours: TcpStream, theirs: TcpStream, fault: Option<Fault>) {
    if let Some(Fault::Limited) = fault {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(ours.read_u8().await.unwrap());
        }
        ours.write_all(b"HTTP/1.1 429 X\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
        return;
    }
    let (mut our_reader, mut our_writer) = ours.into_split();
    let (mut their_reader, mut their_writer) = theirs.into_split();
    let up = async { tokio::io::copy(&mut our_reader, &mut their_writer).await.ok() };
    let down = async {
        let piece = if let Some(Fault::Slow(bytes, _)) = fault { bytes } else { 16 << 10 };
        let (mut passed, mut buffer) = (0, vec![0; piece]);
        loop {
            if let Some(Fault::Slow(_, pause)) = fault {
                tokio::time::sleep(pause).await;
            }
            let n = their_reader.read(&mut buffer).await.unwrap_or(0);
            passed += n;
            match fault {
                _ if n == 0 => return,
                Some(Fault::Cut(limit)) if passed > limit => return,
                Some(Fault::Stall(limit)) if passed > limit => std::future::pending().await,
                _ => (),
            }
            if our_writer.write_all(&buffer[..n]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = down => (),
        // The other side is done asking; the answer may still come.
        () = async { up.await; std::future::pending().await } => (),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_and_a_certificate_of_our_own() {
    let server = Server::start().await;
    let content = noise(3 << 20);
    let blob = pushed(&server, &content).await;
    let (registry, reference) = (server.registry(server.address, Options::default()), reference(server.address));
    let fetched = registry.manifest(&reference).await.unwrap();
    assert_eq!((fetched.media_type.as_deref(), registry.resolve(&reference).await.unwrap()), (Some(MANIFEST_TYPE), fetched.digest));
    assert!(read_all(&registry, &reference, &blob).await.unwrap() == content);

    let nobody = Registry::new(server.client(), Options::default());
    let error = nobody.manifest(&reference).await.unwrap_err().to_string();
    assert!(error.contains("refuses access") && error.contains("credentials"), "{error}");
    let strangers = Registry::new(HttpClient::new(Arc::new(TcpDialer), None).unwrap(), Options::default());
    let error = strangers.manifest(&reference).await.unwrap_err().to_string();
    assert!(error.contains("TLS") && !error.contains('\n'), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_is_taken_up_where_it_ended() {
    let server = Server::start().await;
    let content = noise(6 << 20);
    let blob = pushed(&server, &content).await;
    // Every connection breaks after a mebibyte: only one that goes on where the last one ended gets to the end.
    let (address, connections) = between(server.address, Fault::Cut(1 << 20), |_| true).await;
    let registry = server.registry(address, Options::default());
    let bytes = read_all(&registry, &reference(address), &blob).await.unwrap();
    assert!(bytes == content, "{} of {} bytes, or others", bytes.len(), content.len());
    assert!(connections.load(Ordering::Relaxed) >= 7, "{connections:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_left_and_the_download_taken_up() {
    let server = Server::start().await;
    let content = noise(2 << 20);
    let blob = pushed(&server, &content).await;
    let quick = || Options { stall: Duration::from_millis(1500), ..Options::default() };
    // The first two connections are the challenge and the blob.
    let (address, _) = between(server.address, Fault::Stall(1 << 20), |number| number < 2).await;
    assert!(read_all(&server.registry(address, quick()), &reference(address), &blob).await.unwrap() == content);
}

/// A line that is slow for longer than a stall may last, and never stalls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_line_is_no_stall() {
    let server = Server::start_open().await;
    let content = noise(1 << 20);
    let blob = pushed_by(&Server::open_registry(server.address, Options::default()), &server, &content).await;
    let stall = Duration::from_millis(700);
    let (address, connections) = between(server.address, Fault::Slow(16 << 10, Duration::from_millis(30)), |_| true).await;
    let started = Instant::now();
    let registry = Server::open_registry(address, Options { stall, ..Options::default() });
    assert!(read_all(&registry, &reference(address), &blob).await.unwrap() == content);
    assert!(started.elapsed() > 2 * stall, "{:?}: it was not slow", started.elapsed());
    assert_eq!(connections.load(Ordering::Relaxed), 1, "it was not left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_is_waited_for_and_then_the_registry_answers() {
    let server = Server::start_open().await;
    let content = noise(300_000);
    let blob = pushed_by(&Server::open_registry(server.address, Options::default()), &server, &content).await;
    let (address, connections) = between(server.address, Fault::Limited, |number| number < 2).await;
    let started = Instant::now();
    let registry = Server::open_registry(address, Options::default());
    registry.manifest(&reference(address)).await.unwrap();
    assert!(read_all(&registry, &reference(address), &blob).await.unwrap() == content);
    assert!(started.elapsed() >= Duration::from_secs(2), "its word counts each time");
    assert!(connections.load(Ordering::Relaxed) >= 3, "{connections:?}");
}

/// A server that begins each answer and never goes on.
#[tokio::test]
async fn a_peer_that_makes_no_progress_is_left_and_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\nbeginning").await.unwrap();
            open.push(stream);
        }
    });
    let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    let options = Options { plain_http: vec![address.to_string()], stall: Duration::from_millis(300), ..Options::default() };
    let blob = Descriptor::of("x", &noise(200_000));
    let error =
        read_all(&Registry::new(client, options), &reference(address), &blob).await.map(|bytes| bytes.len()).unwrap_err().to_string();
    assert!(error.contains("has sent less than"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_breaks_is_made_up_for() {
    let server = Server::start().await;
    let content = noise(100_000);
    let blob = pushed(&server, &content).await;
    // A mirror that ends every connection at once.
    let (mirror, _) = between(server.address, Fault::Cut(0), |_| true).await;
    let file = format!("[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{mirror}\"\n", server.address);
    let options = Options { registries: Registries::parse(&file).unwrap(), ..Options::default() };
    let registry = server.registry(server.address, options);
    assert!(read_all(&registry, &reference(server.address), &blob).await.unwrap() == content);
}

/// Speaks enough of HTTP to be a proxy for TLS.
async fn connect_proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut ours, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(ours.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let target = request.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let mut theirs = TcpStream::connect(target).await.unwrap();
                ours.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                tokio::io::copy_bidirectional(&mut ours, &mut theirs).await.ok();
            });
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_carries_tls_that_ends_here() {
    let server = Server::start().await;
    let blob = pushed(&server, b"content").await;
    let (proxy, connections) = connect_proxy().await;
    let proxies = |exceptions| Proxies::new(None, Some(&format!("http://{proxy}")), exceptions).unwrap();
    let credentials = || Arc::new(AuthFile::of_registry(&server.address.to_string(), Credentials::new("me".into(), "pass".into())));
    let through = Registry::new(server.client().through(proxies(None)), Options { credentials: credentials(), ..Options::default() });
    assert_eq!(read_all(&through, &reference(server.address), &blob).await.unwrap(), b"content");
    let used = connections.load(Ordering::Relaxed);
    assert!(used > 0);
    let past =
        Registry::new(server.client().through(proxies(Some("127.0.0.0/8"))), Options { credentials: credentials(), ..Options::default() });
    past.manifest(&reference(server.address)).await.unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), used);
}

/// A registry that is asked too often, then begins a blob anew instead of going on: what Docker's own does not do on demand.
#[tokio::test]
async fn a_rate_limit_is_waited_for_and_a_server_without_ranges_is_read_anew() {
    let content = noise(200_000);
    let (served, listener) = (content.clone(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut asked, mut ranges) = (0, Vec::new());
        while asked < 3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            ranges.push(request.lines().find_map(|line| line.strip_prefix("range: ")).unwrap_or_default().to_owned());
            asked += 1;
            if asked == 1 {
                stream.write_all(b"HTTP/1.1 429 X\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                continue;
            }
            let end = if asked == 2 { 50_000 } else { served.len() };
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len()).as_bytes()).await.unwrap();
            stream.write_all(&served[..end]).await.unwrap();
            stream.shutdown().await.ok();
        }
        ranges
    });
    let client = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    let registry = Registry::new(client, Options { plain_http: vec![address.to_string()], ..Options::default() });
    let blob = Descriptor { digest: Digest::of(&content), ..Descriptor::of("x", &content) };
    let started = Instant::now();
    assert!(read_all(&registry, &reference(address), &blob).await.unwrap() == content);
    assert!(started.elapsed() >= Duration::from_secs(1), "the server's word counts");
    let ranges = server.await.unwrap();
    assert!(ranges[0].is_empty() && ranges[1].is_empty() && ranges[2].starts_with("bytes="), "{ranges:?}");
}
