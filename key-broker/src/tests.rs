//! Whole handshakes over TCP: the guest's client against the broker, and requests that no client of ours would send.

use crate::{AdminClient, AdminToken, Broker, BrokerConfig, Rate, Rule};
use attestation::{
    Attester, BrokerClient, Details, Jwe, ResourceUri, Tee, TeeKey,
    kbs::{Attestation, Challenge, ErrorBody, InitData, RuntimeData, TeeEvidence, TokenReply},
    report_data,
    sample::SampleAttester,
};
use bytes::Bytes;
use policy::Initdata;
use serde_json::{Value, json};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use transport::{HttpClient, TcpDialer, read_body};

mod handshake;
mod load;
mod service;

const MEASUREMENT: [u8; 48] = [0x5a; 48];
const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n";

/// A broker on loopback with its administrator.
struct Bench {
    url: String,
    http: HttpClient,
    admin: AdminClient,
    stop: oneshot::Sender<()>,
    server: JoinHandle<std::io::Result<()>>,
    directory: tempfile::TempDir,
}

fn http() -> HttpClient {
    HttpClient::new(Arc::new(TcpDialer), None).unwrap()
}

async fn start(development: bool) -> Bench {
    start_in(tempfile::tempdir().unwrap(), |config| config.development = development).await
}

async fn start_in(directory: tempfile::TempDir, change: impl FnOnce(&mut BrokerConfig)) -> Bench {
    let key = AdminToken::load_or_create(&directory.path().join("admin.key")).unwrap();
    let mut config = BrokerConfig::new(&store_of(directory.path()));
    config.admin = Some(key.clone());
    change(&mut config);
    let broker = Broker::open(config).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(async move { broker.serve(listener, async { drop(stopped.await) }).await });
    Bench { admin: AdminClient::new(http(), &url, key), url, http: http(), stop, server, directory }
}

fn store_of(directory: &Path) -> std::path::PathBuf {
    directory.join("store")
}

fn uri(tag: &str) -> ResourceUri {
    ResourceUri::new("default", "key", tag).unwrap()
}

fn digest(initdata: &str) -> policy::InitdataDigest {
    Initdata::parse_toml(initdata).unwrap().1
}

fn rule() -> Rule {
    Rule::exactly(Tee::Sample, &MEASUREMENT, &digest(INITDATA)).unwrap()
}

impl Bench {
    /// A guest with this measurement, started with this initdata.
    fn guest(&self, measurement: &[u8], initdata: &str) -> BrokerClient {
        let attester = SampleAttester::new(measurement.to_vec(), digest(initdata).bytes().to_vec());
        BrokerClient::new(http(), &self.url, Arc::new(attester), Some(initdata.to_owned())).unwrap()
    }

    async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> (u16, http::HeaderMap, Bytes) {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, body) = self.http.send(request.body(body.into()).unwrap()).await.unwrap().into_parts();
        (parts.status.as_u16(), parts.headers, read_body(body, 2 << 20).await.unwrap())
    }

    async fn metric(&self, name: &str) -> u64 {
        let (_, _, body) = self.request("GET", "/metrics", &[], "").await;
        let text = String::from_utf8(body.to_vec()).unwrap();
        text.lines().find_map(|line| line.strip_prefix(&format!("cloister_broker_{name} "))).unwrap().parse().unwrap()
    }

    /// The first step by hand: cookie and nonce.
    async fn auth(&self) -> (String, String) {
        let (status, headers, body) = self.request("POST", "/kbs/v0/auth", &[], auth_body("0.4.0", "sample")).await;
        assert_eq!(status, 200, "{body:?}");
        let cookie = headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        (cookie, serde_json::from_slice::<Challenge>(&body).unwrap().nonce)
    }

    async fn attest(&self, cookie: &str, attestation: &Attestation) -> (u16, Bytes) {
        let (status, _, body) =
            self.request("POST", "/kbs/v0/attest", &[("cookie", cookie)], serde_json::to_vec(attestation).unwrap()).await;
        (status, body)
    }

    async fn stop(self) -> tempfile::TempDir {
        self.stop.send(()).unwrap();
        self.server.await.unwrap().unwrap();
        self.directory
    }
}

fn auth_body(version: &str, tee: &str) -> String {
    json!({"version": version, "tee": tee, "extra-params": {}}).to_string()
}

/// The second step by hand, as a genuine guest would make it.
fn attestation(nonce: &str, key: &TeeKey) -> Attestation {
    let bound = report_data::primary(nonce, &key.public(), "");
    let evidence = SampleAttester::new(MEASUREMENT.to_vec(), digest(INITDATA).bytes().to_vec()).evidence(&bound).unwrap();
    Attestation {
        init_data: Some(InitData { format: "toml".into(), body: INITDATA.into() }),
        runtime_data: RuntimeData { nonce: nonce.into(), tee_pubkey: key.public() },
        tee_evidence: TeeEvidence { primary_evidence: evidence, additional_evidence: String::new() },
    }
}

fn detail(body: &[u8]) -> String {
    let error: ErrorBody = serde_json::from_slice(body).unwrap();
    assert!(!error.detail.contains('\n') && error.detail.len() < 2048, "{}", error.detail);
    error.detail
}
