//! The client against a broker of a few lines that counts and misbehaves on demand.

use super::*;
use crate::{jwe, kbs::Tee, sample::SampleAttester};
use std::sync::{Mutex as StdMutex, atomic::AtomicUsize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use transport::TcpDialer;

/// What the broker does and has seen.
#[derive(Default)]
struct Fake {
    auths: AtomicUsize,
    attests: AtomicUsize,
    gets: AtomicUsize,
    key: StdMutex<Option<crate::kbs::TeePublicKey>>,
    /// Forget the session for this many resource requests.
    forget: AtomicUsize,
    /// Answer auth with this instead.
    auth_answer: Option<&'static str>,
    /// Answer resources with this instead.
    resource_answer: Option<String>,
}

const SECRET: &[u8] = b"the key of a layer";

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn refusal(name: &str, detail: &str) -> String {
    answer("401 Unauthorized", "", &serde_json::to_string(&ErrorBody::new(name, detail)).unwrap())
}

impl Fake {
    fn answer(&self, head: &str, body: &[u8]) -> String {
        if head.starts_with("POST /kbs/v0/auth ") {
            self.auths.fetch_add(1, Ordering::SeqCst);
            if let Some(text) = self.auth_answer {
                return text.to_owned();
            }
            let cookie = "Set-Cookie: kbs-session-id=0123abcd; Max-Age=300\r\n";
            return answer("200 OK", cookie, r#"{"nonce":"bm9uY2U=","extra-params":""}"#);
        }
        assert!(head.to_lowercase().contains("cookie: kbs-session-id=0123abcd\r\n"), "{head}");
        if head.starts_with("POST /kbs/v0/attest ") {
            self.attests.fetch_add(1, Ordering::SeqCst);
            let attestation: Attestation = serde_json::from_slice(body).unwrap();
            assert_eq!(attestation.init_data.as_ref().unwrap().body, "document");
            *self.key.lock().unwrap() = Some(attestation.runtime_data.tee_pubkey);
            return answer("200 OK", "", r#"{"token":"a.b.c"}"#);
        }
        assert!(head.starts_with("GET /kbs/v0/resource/default/key/one "), "{head}");
        self.gets.fetch_add(1, Ordering::SeqCst);
        if let Some(text) = &self.resource_answer {
            return text.clone();
        }
        if self.forget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return refusal("AttestationError", "session expired");
        }
        let jwe = jwe::encrypt(SECRET, self.key.lock().unwrap().as_ref().unwrap()).unwrap();
        answer("200 OK", "", &serde_json::to_string(&jwe).unwrap())
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut seen = Vec::new();
        let (head, length) = loop {
            let mut chunk = [0; 4096];
            let n = stream.read(&mut chunk).await.unwrap();
            seen.extend_from_slice(&chunk[..n]);
            if let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&seen[..end + 2]).into_owned();
                let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ").map(|n| n.parse().unwrap()));
                break (head, end + 4 + length.unwrap_or(0));
            }
            assert!(n > 0, "cut off");
        };
        while seen.len() < length {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
        let body = seen.split_off(head.len() + 2);
        stream.write_all(self.answer(&head, &body).as_bytes()).await.unwrap();
    }
}

async fn client(fake: Fake) -> (Arc<Fake>, Arc<BrokerClient>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let fake = Arc::new(fake);
    let server = fake.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(server.clone().serve(stream));
        }
    });
    let http = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    let attester = Arc::new(SampleAttester::new(vec![1; 48], vec![2; 32]));
    (fake, Arc::new(BrokerClient::new(http, &url, attester, Some("document".into())).unwrap()))
}

fn one() -> ResourceUri {
    "kbs:///default/key/one".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_share_one_handshake() {
    let (fake, client) = client(Fake::default()).await;
    let callers: Vec<_> = (0..10)
        .map(|_| {
            tokio::spawn({
                let client = client.clone();
                async move { client.resource(&one()).await }
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().unwrap().as_slice(), SECRET);
    }
    client.attest().await.unwrap();
    assert_eq!(client.token().await.unwrap(), "a.b.c");
    assert_eq!((fake.auths.load(Ordering::SeqCst), fake.attests.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(fake.gets.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn a_forgotten_session_is_renewed_once() {
    let (fake, client) = client(Fake { forget: AtomicUsize::new(1), ..Fake::default() }).await;
    assert_eq!(client.resource(&one()).await.unwrap().as_slice(), SECRET);
    assert_eq!(fake.auths.load(Ordering::SeqCst), 2);

    fake.forget.store(9, Ordering::SeqCst);
    let error = client.resource(&one()).await.unwrap_err().to_string();
    assert!(error.contains("session expired"), "{error}");
    assert_eq!(fake.auths.load(Ordering::SeqCst), 3, "once for each request, not for ever");
}

#[tokio::test]
async fn a_withheld_resource_is_refused_without_a_new_handshake() {
    let fake = Fake { resource_answer: Some(refusal(POLICY_DENY, "init_data is a,\nthe rule wants b")), ..Fake::default() };
    let (fake, client) = client(fake).await;
    let error = client.resource(&one()).await.unwrap_err().to_string();
    assert!(error.contains("refused kbs:///default/key/one: init_data is a, the rule wants b (401 PolicyDeny)"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    assert_eq!((fake.auths.load(Ordering::SeqCst), fake.gets.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_for_a_failed_handshake_shares_its_error() {
    let (fake, client) = client(Fake { auth_answer: Some("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"), ..Fake::default() }).await;
    let barrier = Arc::new(tokio::sync::Barrier::new(8));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, barrier) = (client.clone(), barrier.clone());
            tokio::spawn(async move {
                barrier.wait().await;
                client.attest().await
            })
        })
        .collect();
    for caller in callers {
        let error = caller.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("refused auth: no reason given (500 )"), "{error}");
    }
    assert!(fake.auths.load(Ordering::SeqCst) < 8, "not each of them tried");
    client.attest().await.unwrap_err();
}

#[tokio::test]
async fn hostile_answers_are_errors() {
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", MAX_ANSWER + 1, " ".repeat(MAX_ANSWER + 1));
    let cases: [(&'static str, &str); 5] = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no session cookie"),
        ("HTTP/1.1 200 OK\r\nSet-Cookie: kbs-session-id=; x\r\nContent-Length: 2\r\n\r\n{}", "no session cookie"),
        ("HTTP/1.1 200 OK\r\nSet-Cookie: kbs-session-id=x\r\nContent-Length: 2\r\n\r\n{}", "unreadable answer"),
        (
            "HTTP/1.1 200 OK\r\nSet-Cookie: kbs-session-id=x\r\nContent-Length: 64\r\n\r\n{\"nonce\":\"\",\"extra-params\":{\"selected-hash-algorithm\":\"sha512\"}}",
            "wants hash",
        ),
        (String::leak(long), "answer longer than"),
    ];
    for (text, wanted) in cases {
        let (_, client) = client(Fake { auth_answer: Some(text), ..Fake::default() }).await;
        let error = client.attest().await.unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains('\n'), "{wanted}: {error}");
    }
    let other = jwe::encrypt(b"x", &TeeKey::generate().unwrap().public()).unwrap();
    let resource_answer = Some(answer("200 OK", "", &serde_json::to_string(&other).unwrap()));
    let (_, client) = client(Fake { resource_answer, ..Fake::default() }).await;
    let error = client.resource(&one()).await.unwrap_err().to_string();
    assert!(error.contains("not encrypted to this guest's key"), "{error}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() {
    let http = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
    let attester: Arc<dyn Attester> = Arc::new(SampleAttester::new(Vec::new(), Vec::new()));
    assert_eq!(attester.tee(), Tee::Sample);
    let client = BrokerClient::new(http.clone(), "http://127.0.0.1:1", attester.clone(), None).unwrap();
    let error = client.resource(&one()).await.unwrap_err().to_string();
    assert!(error.starts_with("broker http://127.0.0.1:1: 127.0.0.1:1: cannot connect"), "{error}");
    for bad in ["", "ftp://x", "x", "http://", "http://x/?q", "http://x y"] {
        assert!(matches!(BrokerClient::new(http.clone(), bad, attester.clone(), None), Err(ClientError::Url { .. })), "{bad}");
    }
}

/// A TEE whose register is out of order.
struct Broken;

impl Attester for Broken {
    fn tee(&self) -> Tee {
        Tee::Tpm
    }

    fn evidence(&self, _: &report_data::ReportData) -> Result<serde_json::Value, EvidenceError> {
        Err(EvidenceError::Collect { tee: Tee::Tpm, reason: "broken".into() })
    }

    fn measure(&self, _: &Manifest) -> Result<(), EvidenceError> {
        Err(EvidenceError::Measure { tee: Tee::Tpm, reason: "broken".into() })
    }
}

#[tokio::test]
async fn an_image_that_cannot_be_measured_is_refused() {
    let client = |attester| {
        let http = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        BrokerClient::new(http, "http://127.0.0.1:1", attester, None).unwrap()
    };
    client(Arc::new(SampleAttester::new(vec![], vec![]))).measure([1; 32]).await.unwrap();
    let error = client(Arc::new(Broken)).measure([1; 32]).await.unwrap_err().to_string();
    assert!(error.contains("cannot be measured, and so does not run: broken"), "{error}");
}
