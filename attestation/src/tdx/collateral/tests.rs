use super::*;
use crate::{
    Verifier,
    tdx::{TdxEvidence, TdxVerifier},
};
use std::{
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use transport::TcpDialer;
use vectors::{folder, read};

/// 2025-07-01, when the recorded collateral was valid.
const THEN: u64 = 1_751_328_000;

/// A cache of Intel's service that has this collateral.
async fn serve(collateral: QuoteCollateralV3) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let mut chunk = [0; 1024];
                let n = stream.read(&mut chunk).await.unwrap();
                seen.extend_from_slice(&chunk[..n]);
            }
            count.fetch_add(1, Ordering::SeqCst);
            let path = String::from_utf8(seen).unwrap().split(' ').nth(1).unwrap().to_owned();
            let escaped = |chain: &str| chain.replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B").replace('=', "%3D");
            let signed = |name: &str, body: &str, signature: &[u8]| {
                format!("{{\"{name}\":{body},\"signature\":\"{}\"}}", hex::encode(signature)).into_bytes()
            };
            let c = &collateral;
            let (header, body) = match path.as_str() {
                "/tdx/certification/v4/tcb?fmspc=b0c06f000000" => (
                    format!("TCB-Info-Issuer-Chain: {}\r\n", escaped(&c.tcb_info_issuer_chain)),
                    signed("tcbInfo", &c.tcb_info, &c.tcb_info_signature),
                ),
                "/tdx/certification/v4/qe/identity" => (
                    format!("SGX-Enclave-Identity-Issuer-Chain: {}\r\n", escaped(&c.qe_identity_issuer_chain)),
                    signed("enclaveIdentity", &c.qe_identity, &c.qe_identity_signature),
                ),
                "/sgx/certification/v4/pckcrl?ca=platform&encoding=der" => {
                    (format!("SGX-PCK-CRL-Issuer-Chain: {}\r\n", escaped(&c.pck_crl_issuer_chain)), c.pck_crl.clone())
                }
                "/sgx/certification/v4/rootcacrl" => (String::new(), hex::encode(&c.root_ca_crl).into_bytes()),
                other => panic!("asked for {other}"),
            };
            let mut out = Vec::new();
            write!(out, "HTTP/1.1 200 OK\r\n{header}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()).unwrap();
            out.extend(body);
            stream.write_all(&out).await.unwrap();
        }
    });
    (url, asked)
}

fn http() -> HttpClient {
    HttpClient::new(Arc::new(TcpDialer), None).unwrap()
}

#[tokio::test]
async fn collateral_is_fetched_once_and_kept_on_disk() {
    let Some(folder) = folder() else { return };
    let recorded = parse(&read(&folder, "tdx/phala_tdx_quote_v4_collateral.json")).unwrap();
    let quote = read(&folder, "tdx/phala_tdx_quote_v4.dat");
    let evidence = TdxEvidence { quote: quote.clone(), images: None }.to_json().unwrap();
    let (url, asked) = serve(recorded).await;
    let directory = tempfile::tempdir().unwrap();
    let store = || CollateralStore::new().with_directory(directory.path().to_owned());
    let verifier = TdxVerifier::new(store().with_service(&url, http()));
    assert!(verifier.verify_quote(&quote, THEN).is_err());
    for _ in 0..3 {
        verifier.prepare(&evidence, THEN).await.unwrap();
        verifier.verify_quote(&quote, THEN).unwrap();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4, "one question for each part");
    // Another process, which is offline.
    let offline = TdxVerifier::new(store());
    offline.prepare(&evidence, THEN).await.unwrap();
    offline.verify_quote(&quote, THEN).unwrap();
    // What has run out is asked for again, and what is had then says what is wrong.
    let later = THEN + 365 * 86_400;
    verifier.prepare(&evidence, later).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 8);
    assert!(verifier.verify_quote(&quote, later).unwrap_err().to_string().contains("xpired"));
}

#[tokio::test]
async fn offline_says_where_the_collateral_should_be() {
    let Some(folder) = folder() else { return };
    let evidence = TdxEvidence { quote: read(&folder, "tdx/phala_tdx_quote_v4.dat"), images: None }.to_json().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = || CollateralStore::new().with_directory(directory.path().to_owned());
    let error = TdxVerifier::new(store()).prepare(&evidence, THEN).await.unwrap_err().to_string();
    let path = directory.path().join("b0c06f000000-platform.json");
    assert!(error.contains(&path.display().to_string()), "{error}");
    fs::write(&path, "{}").unwrap();
    let error = TdxVerifier::new(store()).prepare(&evidence, THEN).await.unwrap_err().to_string();
    assert!(error.contains("b0c06f000000-platform.json") && error.contains("missing field"), "{error}");
}

#[test]
fn headers_are_decoded_and_broken_ones_survive() {
    assert_eq!(percent_decoded("a%0Ab%2Bc"), "a\nb+c");
    assert_eq!(percent_decoded("%"), "%");
    assert_eq!(percent_decoded("%zz%4"), "%zz%4");
    assert_eq!(percent_decoded("%ff"), "\u{fffd}");
}
