//! Many handshakes: what they cost, and that nothing of them stays. The requests go through the router as axum would call it, without
//! sockets, so that the figures are the broker's own.

use super::*;
use crate::{api, listener::Peer};
use axum::{
    body::{Body, to_bytes},
    extract::ConnectInfo,
};
use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::Instant,
};
use tower_service::Service;

const CHILD: &str = "CLOISTER_TEST_LOAD";

/// A broker without a listener.
struct Direct {
    router: axum::Router,
    broker: Broker,
    key: TeeKey,
}

impl Direct {
    fn open(directory: &Path) -> Self {
        let mut config = BrokerConfig::new(&store_of(directory));
        config.development = true;
        config.max_sessions = 1000;
        config.rate = Rate { burst: u32::MAX, per_second: 1e9 };
        config.audit = Some(directory.join("audit"));
        let broker = Broker::open(config).unwrap();
        Self { router: api::router(broker.shared.clone()), broker, key: TeeKey::generate().unwrap() }
    }

    async fn post(&mut self, path: &str, cookie: &str, body: String) -> (http::HeaderMap, Bytes) {
        let peer = Peer(SocketAddr::from(([127, 0, 0, 1], 1)));
        let request = http::Request::post(path).header("cookie", cookie).extension(ConnectInfo(peer)).body(Body::from(body)).unwrap();
        let (parts, body) = self.router.call(request).await.unwrap().into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        assert_eq!(parts.status, 200, "{body:?}");
        (parts.headers, body)
    }

    async fn handshake(&mut self) {
        let (headers, body) = self.post("/kbs/v0/auth", "", auth_body("0.4.0", "sample")).await;
        let cookie = headers["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        let nonce = serde_json::from_slice::<Challenge>(&body).unwrap().nonce;
        let attestation = serde_json::to_string(&attestation(&nonce, &self.key)).unwrap();
        self.post("/kbs/v0/attest", &cookie, attestation).await;
    }
}

/// Resident memory of this process, in KiB (proc_pid_status(5)).
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// The child of the test below, alone in its process, so that the memory is that of the broker.
#[tokio::test]
#[ignore = "run by ten_thousand_handshakes_do_not_grow_the_broker"]
async fn many() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Direct::open(directory.path());
    // Until every table has its bound.
    for _ in 0..2000 {
        broker.handshake().await;
    }
    let (before, began) = (resident_kib(), Instant::now());
    for _ in 0..10_000 {
        broker.handshake().await;
    }
    let (grown, seconds) = (resident_kib().saturating_sub(before), began.elapsed().as_secs_f64());
    let sessions = broker.broker.shared.sessions.count(Instant::now());
    eprintln!("load: grown {grown} KiB, {sessions} sessions, {:.0} handshakes/s", 10_000.0 / seconds);
}

#[test]
fn ten_thousand_handshakes_do_not_grow_the_broker() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--ignored", "--exact", "tests::load::many", "--nocapture"]).env(CHILD, "1").stderr(Stdio::piped());
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let line = text.lines().find(|line| line.contains("load: ")).unwrap_or_else(|| panic!("{text}"));
    let number = |after: &str| line.split(after).nth(1).unwrap().trim().split(' ').next().unwrap().parse::<u64>().unwrap();
    assert!(number("grown ") < 4096, "{line}");
    // A bound of a thousand attested ones, and as many ids of challenges.
    assert!(number("KiB, ") <= 2000, "{line}");
}

/// Part of `make bench`: handshakes a second on one thread, and the share of it that is signature arithmetic: the broker signs one token
/// (ES256) for each. Evidence of a TEE adds its own verification.
#[tokio::test]
#[ignore = "a benchmark"]
async fn benchmark() {
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Direct::open(directory.path());
    broker.handshake().await;
    let count = 5000;
    let began = Instant::now();
    for _ in 0..count {
        broker.handshake().await;
    }
    let whole = began.elapsed().as_secs_f64() / f64::from(count);
    let claims = attestation::Claims {
        tee: Tee::Sample,
        launch_measurement: MEASUREMENT.to_vec(),
        init_data: vec![1; 32],
        report_data: vec![2; 48],
        details: attestation::Details::None,
    };
    let ear = attestation::token::Ear { issued: 1, expires: 2, development: true, claims, key: broker.key.public() };
    let signers = broker.broker.shared.signers();
    let began = Instant::now();
    for _ in 0..count {
        std::hint::black_box(signers.sign(&ear, "nonce"));
    }
    let signing = began.elapsed().as_secs_f64() / f64::from(count);
    eprintln!(
        "{:.0} handshakes/s on one thread, {:.0} µs each, of which {:.0} µs ({:.0} %) sign the token",
        1.0 / whole,
        whole * 1e6,
        signing * 1e6,
        100.0 * signing / whole
    );
}
