use super::*;
use crate::{
    EvidenceError, Verifier,
    report_data::padded,
    snp::{
        evidence::KnownCert,
        testing::{NOW, TURIN, VCEK, certificate, evidence, milan, signed, turin, verifier},
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use transport::TcpDialer;

/// A key service that gives these answers in turn, the last one for ever, and remembers what it was asked.
struct Fake {
    url: String,
    asked: Arc<AtomicUsize>,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start(answers: Vec<(&'static str, &'static [u8])>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (asked, paths) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let fake = Self { url, asked: asked.clone(), paths: paths.clone() };
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    let mut chunk = [0; 1024];
                    let n = stream.read(&mut chunk).await.unwrap();
                    seen.extend_from_slice(&chunk[..n]);
                }
                let text = String::from_utf8(seen).unwrap();
                paths.lock().unwrap().push(text.split(' ').nth(1).unwrap().to_owned());
                let number = asked.fetch_add(1, Ordering::SeqCst);
                let (head, body) = answers[number.min(answers.len() - 1)];
                let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
            }
        });
        fake
    }

    fn store(&self) -> CertificateStore {
        CertificateStore::new().with_service(&self.url, HttpClient::new(Arc::new(TcpDialer), None).unwrap())
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn bound(report: Report) -> serde_json::Value {
    evidence(signed(Report { report_data: padded(&[7; 48]), ..report }), Vec::new())
}

#[tokio::test]
async fn a_certificate_is_fetched_once_and_kept_on_disk() {
    let fake = Fake::start(vec![("200 OK", VCEK)]).await;
    let folder = tempfile::tempdir().unwrap();
    let verifier_here = verifier(fake.store().with_directory(folder.path().to_owned()));
    let evidence = bound(milan());
    // Without the preparation there is nothing to verify with.
    assert!(matches!(verifier_here.verify(&evidence, &[7; 48], NOW), Err(EvidenceError::Endorsement { .. })));
    for _ in 0..3 {
        verifier_here.prepare(&evidence, NOW).await.unwrap();
        verifier_here.verify(&evidence, &[7; 48], NOW).unwrap();
    }
    assert_eq!(fake.asked(), 1);
    let wanted = format!("/vcek/v1/Milan/{}?blSPL=04&teeSPL=00&snpSPL=23&ucodeSPL=80", "11".repeat(64));
    assert_eq!(*fake.paths.lock().unwrap(), [wanted]);
    // Another process, which is offline.
    let offline = verifier(CertificateStore::new().with_directory(folder.path().to_owned()));
    offline.prepare(&evidence, NOW).await.unwrap();
    offline.verify(&evidence, &[7; 48], NOW).unwrap();
    assert!(folder.path().join(format!("milan/{}-4-0-23-80.der", "11".repeat(64))).is_file());
}

#[tokio::test]
async fn turin_is_asked_for_by_its_short_id() {
    let fake = Fake::start(vec![("200 OK", TURIN)]).await;
    verifier(fake.store()).prepare(&bound(turin()), NOW).await.unwrap();
    let wanted = "/vcek/v1/Turin/2222222222222222?fmcSPL=00&blSPL=01&teeSPL=00&snpSPL=02&ucodeSPL=71";
    assert_eq!(*fake.paths.lock().unwrap(), [wanted]);
}

#[tokio::test]
async fn what_a_mirror_makes_up_is_neither_trusted_nor_kept() {
    let folder = tempfile::tempdir().unwrap();
    for (answer, wanted) in [
        (("200 OK", b"junk".as_slice()), "not a certificate"),
        (("200 OK", TURIN), "the report says processor milan"),
        (("200 OK", &[b' '; MAX_CERTIFICATE + 1]), "longer than"),
        (("404 Not Found", b""), "404"),
        (("500 Oops", b""), "500"),
    ] {
        let fake = Fake::start(vec![answer]).await;
        let verifier = verifier(fake.store().with_directory(folder.path().to_owned()));
        let error = verifier.prepare(&bound(milan()), NOW).await.unwrap_err().to_string();
        assert!(error.contains(wanted) && !error.contains('\n'), "{wanted}: {error}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_service_that_asks_for_a_pause_is_left_alone() {
    let fake = Fake::start(vec![("429 Too Many Requests\r\nRetry-After: 1", b""), ("200 OK", VCEK)]).await;
    let began = Instant::now();
    verifier(fake.store()).prepare(&bound(milan()), NOW).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(fake.asked(), 2);

    // A long one is waited for by nobody, and nobody asks in between.
    let fake = Fake::start(vec![("429 Too Many Requests\r\nRetry-After: 300", b"")]).await;
    let verifier = verifier(fake.store());
    for _ in 0..5 {
        let error = verifier.prepare(&bound(milan()), NOW).await.unwrap_err().to_string();
        assert!(error.contains("asked too often; it wants to be left alone for 2") || error.contains("for 300 s"), "{error}");
    }
    assert_eq!(fake.asked(), 1);
}

#[tokio::test]
async fn many_guests_of_one_chip_are_one_question() {
    let fake = Fake::start(vec![("200 OK", VCEK)]).await;
    let verifier = Arc::new(verifier(fake.store()));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let verifier = verifier.clone();
            tokio::spawn(async move { verifier.prepare(&bound(milan()), NOW).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(fake.asked(), 1);
}

#[tokio::test]
async fn offline_says_where_the_certificate_should_be() {
    let folder = tempfile::tempdir().unwrap();
    let store = CertificateStore::new().with_directory(folder.path().to_owned());
    let error = verifier(store).prepare(&bound(milan()), NOW).await.unwrap_err().to_string();
    let path = folder.path().join(format!("milan/{}-4-0-23-80.der", "11".repeat(64)));
    assert!(error.contains(&path.display().to_string()) && error.contains("no service to ask"), "{error}");
    // A provider's key cannot be asked for at all.
    let fake = Fake::start(vec![("200 OK", VCEK)]).await;
    let error = verifier(fake.store()).prepare(&bound(Report { key_info: 1 << 2, ..milan() }), NOW).await.unwrap_err().to_string();
    assert!(error.contains("vlek.der"), "{error}");
    assert_eq!(fake.asked(), 0);
}

#[tokio::test]
async fn a_certificate_of_before_an_update_is_replaced() {
    let fake = Fake::start(vec![("200 OK", VCEK)]).await;
    let verifier = verifier(fake.store());
    let stale = evidence(signed(Report { report_data: padded(&[7; 48]), ..milan() }), vec![certificate(KnownCert::Vcek, TURIN)]);
    verifier.prepare(&stale, NOW).await.unwrap();
    verifier.verify(&stale, &[7; 48], NOW).unwrap();
}

#[test]
fn trustees_layout_is_read_and_large_files_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = CertificateStore::new().with_directory(folder.path().to_owned());
    let name = KeyName::of(&milan(), Generation::Milan, SigningKey::Vcek);
    assert!(store.find(&name).unwrap().is_none());
    let trustees = folder.path().join("vcek").join("11".repeat(64));
    fs::create_dir_all(&trustees).unwrap();
    fs::write(trustees.join("vcek.der"), VCEK).unwrap();
    assert_eq!(store.find(&name).unwrap().as_deref(), Some(VCEK));
    fs::write(trustees.join("vcek.der"), vec![0; MAX_CERTIFICATE + 1]).unwrap();
    assert!(store.find(&name).unwrap_err().to_string().contains("longer than"));
}
