//! The service around it: errors, the administrator, bounds, stopping.

use super::*;
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};

/// Method, path, headers, body; status and words of the refusal.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);

#[tokio::test]
async fn requests_outside_the_protocol_get_its_errors() {
    let bench = start(true).await;
    let large = " ".repeat((1 << 20) + 1);
    let deep = auth_body("0.4.0", "sample").replace("{}", &"[".repeat(100_000));
    let (cookie, _) = bench.auth().await;
    let cookie = [("cookie", cookie.as_str())];
    let forged = [("cookie", "kbs-session-id=00000000000000000000000000000000")];
    let cases: [Case<'_>; 14] = [
        ("POST", "/kbs/v0/auth", &[], &auth_body("0.1.1", "sample"), 401, "0.4.0"),
        ("POST", "/kbs/v0/auth", &[], &auth_body("0.4.0", "snp"), 401, "cannot verify evidence of type snp"),
        ("POST", "/kbs/v0/auth", &[], &auth_body("0.4.0", "none"), 400, "unknown variant"),
        ("POST", "/kbs/v0/auth", &[], "", 400, "body"),
        ("POST", "/kbs/v0/auth", &[], &deep, 400, "recursion limit"),
        ("POST", "/kbs/v0/auth", &[], &large, 413, "at most"),
        ("POST", "/kbs/v0/attest", &[], "{}", 401, "session unknown"),
        ("POST", "/kbs/v0/attest", &cookie, "{}", 400, "missing field"),
        ("GET", "/kbs/v0/resource/default/key/one", &cookie, "", 401, "has not attested"),
        ("GET", "/kbs/v0/resource/default/key/one", &forged, "", 401, "session unknown"),
        ("GET", "/kbs/v0/resource/default/key/one", &[], "", 401, "session unknown"),
        ("GET", "/kbs/v0/resource/default/key/one", &[("authorization", "Bearer a.b.c")], "", 401, "token"),
        ("GET", "/kbs/v0/resource/default/%2e%2e/one", &[], "", 404, "not a resource"),
        ("GET", "/kbs/v0/resource/default/key/one/more", &[], "", 404, "no such path"),
    ];
    for (method, path, headers, body, wanted, words) in cases {
        let (status, _, body) = bench.request(method, path, headers, body.to_owned()).await;
        assert_eq!(status, wanted, "{method} {path} {body:?}");
        assert!(detail(&body).contains(words), "{path} {words}: {body:?}");
    }
    assert_eq!(bench.request("GET", "/healthz", &[], "").await.0, 200);
}

#[tokio::test]
async fn only_the_administrator_administers() {
    let bench = start(true).await;
    let path = "/kbs/v0/resource/default/key/one";
    let wrong = format!("Bearer {}", "0".repeat(64));
    for headers in [&[][..], &[("authorization", wrong.as_str())]] {
        for (method, path) in
            [("POST", path), ("PUT", path), ("DELETE", path), ("PUT", "/cloister/v0/rule/a/b/c"), ("GET", "/cloister/v0/resources")]
        {
            let (status, _, body) = bench.request(method, path, headers, "x").await;
            assert_eq!(status, 401, "{method} {path}");
            assert!(detail(&body).contains("admin key"), "{body:?}");
        }
    }
    assert!(bench.admin.list().await.unwrap().is_empty());
    bench.admin.put_resource(&uri("one"), b"1", &rule()).await.unwrap();
    bench.admin.put_rule(&uri("two").into(), &rule()).await.unwrap();
    let list = bench.admin.list().await.unwrap();
    assert_eq!(
        list.iter().map(|e| (e.resource.path(), e.bytes)).collect::<Vec<_>>(),
        [("default/key/one", Some(1)), ("default/key/two", None)]
    );
    bench.admin.delete(&uri("one").into()).await.unwrap();
    let error = bench.admin.delete(&uri("one").into()).await.unwrap_err().to_string();
    assert!(error.contains("no such resource"), "{error}");

    let key = AdminToken::load(&bench.directory.path().join("admin.key")).unwrap();
    let bearer = format!("Bearer {}", *key.to_hex());
    let admin = ("authorization", bearer.as_str());
    for (headers, words) in [
        (&[admin, ("cloister-release-rule", "%")][..], "not base64"),
        (&[admin, ("cloister-release-rule", "eA==")], "release rule: line 1"),
    ] {
        let (status, _, body) = bench.request("POST", path, headers, "x").await;
        assert_eq!(status, 400);
        assert!(detail(&body).contains(words), "{body:?}");
    }
    assert_eq!(bench.admin.list().await.unwrap().len(), 1, "a refused rule stores no secret");

    let bench = start_in(bench.stop().await, |config| config.admin = None).await;
    let error = bench.admin.list().await.unwrap_err().to_string();
    assert!(error.contains("without an admin key"), "{error}");
}

#[tokio::test]
async fn sessions_end_and_the_guest_attests_again() {
    let bench = start_in(tempfile::tempdir().unwrap(), |config| {
        config.development = true;
        config.session_lifetime = Duration::from_secs(2);
    })
    .await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let guest = bench.guest(&MEASUREMENT, INITDATA);
    guest.attest().await.unwrap();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(guest.resource(&uri("one")).await.unwrap().as_slice(), b"secret");
    assert_eq!(bench.metric("handshakes_total").await, 2);
}

#[tokio::test]
async fn a_flood_of_challenges_meets_a_bound_and_then_a_rate() {
    let bench = start_in(tempfile::tempdir().unwrap(), |config| {
        config.development = true;
        config.max_sessions = 2;
        config.rate = Rate { burst: 6, per_second: 0.001 };
    })
    .await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let guest = bench.guest(&MEASUREMENT, INITDATA);
    guest.attest().await.unwrap();
    for _ in 0..5 {
        bench.auth().await;
    }
    assert_eq!(bench.metric("sessions").await, 3, "two challenges, and the guest that has attested");
    let (status, _, body) = bench.request("POST", "/kbs/v0/auth", &[], auth_body("0.4.0", "sample")).await;
    assert_eq!(status, 429);
    assert!(detail(&body).contains("too many handshakes from this address"), "{body:?}");
    assert_eq!(bench.metric("rate_limited_total").await, 1);
    assert_eq!(guest.resource(&uri("one")).await.unwrap().as_slice(), b"secret", "who has a session is not limited");
}

#[tokio::test]
async fn a_refusal_is_explained_to_the_administrator() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    bench.guest(&[1; 48], INITDATA).resource(&uri("one")).await.unwrap_err();
    bench.guest(&MEASUREMENT, INITDATA).resource(&uri("other")).await.unwrap_err();
    let refusals = bench.admin.refusals(&uri("one")).await.unwrap();
    assert_eq!(refusals.len(), 1);
    assert_eq!((refusals[0].resource.as_str(), refusals[0].tee.as_str()), ("default/key/one", "sample"));
    assert_eq!(refusals[0].launch_measurement, "01".repeat(48));
    assert!(refusals[0].reason.contains("launch_measurement is 0101") && refusals[0].reason.contains("wants 5a5a"), "{refusals:?}");
    let (status, ..) = bench.request("GET", "/cloister/v0/refusals/default/key/one", &[], "").await;
    assert_eq!(status, 401, "only to him");
}

#[tokio::test]
async fn a_rule_for_a_pattern_releases_what_has_none_of_its_own() {
    let bench = start(true).await;
    let guest = bench.guest(&MEASUREMENT, INITDATA);
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    bench.admin.put_rule(&"kbs:///default/*/*".parse().unwrap(), &rule()).await.unwrap();
    bench.admin.delete(&uri("one").into()).await.unwrap();
    assert!(guest.resource(&uri("one")).await.unwrap_err().to_string().contains("no content"));
    bench.admin.rotate(&uri("one"), b"new").await.unwrap();
    assert_eq!(guest.resource(&uri("one")).await.unwrap().as_slice(), b"new");
    let expired = Rule::parse(&format!("{}valid_until = 2020-01-01\n", rule().text())).unwrap();
    bench.admin.put_rule(&uri("one").into(), &expired).await.unwrap();
    assert!(guest.resource(&uri("one")).await.unwrap_err().to_string().contains("no longer valid"));
    assert_eq!(bench.admin.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn tokens_outlive_the_rotation_of_their_key_and_others_can_verify_them() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let jwks = || async {
        let (status, _, body) = bench.request("GET", "/.well-known/jwks.json", &[], "").await;
        assert_eq!(status, 200);
        attestation::jwks::Jwks::parse(&body).unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let old = bench.guest(&MEASUREMENT, INITDATA).token().await.unwrap();
    let before = jwks().await;
    let claims = before.verify(&old, now).unwrap();
    assert_eq!(claims["submods"]["cpu0"]["ear.status"], "contraindicated");
    bench.admin.rotate_token_key().await.unwrap();
    let new = bench.guest(&MEASUREMENT, INITDATA).token().await.unwrap();
    assert!(before.verify(&new, now).is_err());
    for token in [&old, &new] {
        jwks().await.verify(token, now).unwrap();
        let bearer = format!("Bearer {token}");
        let (status, ..) = bench.request("GET", "/kbs/v0/resource/default/key/one", &[("authorization", &bearer)], "").await;
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn releases_refusals_and_changes_are_in_the_audit_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let log = path.clone();
    let bench = start_in(directory, |config| {
        config.development = true;
        config.audit = Some(log);
    })
    .await;
    bench.admin.put_resource(&uri("one"), b"the secret itself", &rule()).await.unwrap();
    bench.guest(&MEASUREMENT, INITDATA).resource(&uri("one")).await.unwrap();
    bench.guest(&[1; 48], INITDATA).resource(&uri("one")).await.unwrap_err();
    bench.admin.delete(&uri("one").into()).await.unwrap();
    let head = bench.admin.audit_head().await.unwrap();
    assert_eq!(crate::audit::verify(&path).unwrap(), head);
    let text = std::fs::read_to_string(&path).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["stored", "attested", "released", "attested", "refused", "deleted"]);
    assert_eq!(events[2]["resource"], "default/key/one");
    assert!(events[4]["reason"].as_str().unwrap().contains("launch_measurement"));
    assert!(!text.contains("the secret itself"));
    let _directory = bench.stop().await;
}

/// The certificate and key in testdata are for `localhost` and 127.0.0.1 and sign themselves; made by
/// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj /CN=localhost -addext
/// subjectAltName=DNS:localhost,IP:127.0.0.1 -addext basicConstraints=CA:FALSE`.
#[tokio::test]
async fn with_a_certificate_only_tls_is_spoken() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let (certificate, key) = (testdata.join("localhost.pem"), testdata.join("localhost.key"));
    let bench = start_in(tempfile::tempdir().unwrap(), |config| {
        config.development = true;
        config.tls = Some(crate::tls::server(&certificate, &key).unwrap());
    })
    .await;
    let url = bench.url.replace("http://", "https://");
    let get = |client: HttpClient, url: String| async move {
        client.send(http::Request::get(url + "/healthz").body(Bytes::new()).unwrap()).await
    };
    let trusting = HttpClient::new(Arc::new(TcpDialer), Some(&std::fs::read_to_string(&certificate).unwrap())).unwrap();
    assert_eq!(get(trusting.clone(), url.clone()).await.unwrap().status(), 200);
    assert!(get(http(), url.clone()).await.is_err(), "nobody vouches for it");
    assert!(get(http(), bench.url.clone()).await.is_err(), "not in the clear");
    let admin = AdminToken::load(&bench.directory.path().join("admin.key")).unwrap();
    AdminClient::new(trusting, &url, admin).put_resource(&uri("one"), b"1", &rule()).await.unwrap();
    let error = crate::tls::server(&key, &key).err().unwrap().to_string();
    assert!(error.contains("localhost.key") && error.contains("no certificate"), "{error}");
}

#[tokio::test]
async fn stopping_lets_requests_end_and_frees_the_store() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let (url, silent) = (bench.url.clone(), tokio::net::TcpStream::connect(bench.url.trim_start_matches("http://")).await.unwrap());
    let directory = tokio::time::timeout(Duration::from_secs(20), bench.stop()).await.unwrap();
    drop(silent);
    let error = http().send(http::Request::get(url).body(Bytes::new()).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let bench = start_in(directory, |config| config.development = true).await;
    assert_eq!(bench.guest(&MEASUREMENT, INITDATA).resource(&uri("one")).await.unwrap().as_slice(), b"secret");
}

/// What an answer looks like to a strict peer: exactly the protocol's members.
#[tokio::test]
async fn answers_have_the_members_of_the_protocol() {
    let bench = start(true).await;
    let (status, headers, body) = bench.request("POST", "/kbs/v0/auth", &[], auth_body("0.4.0", "sample")).await;
    assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "application/json"));
    let challenge: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(challenge.as_object().unwrap().keys().collect::<Vec<_>>(), ["extra-params", "nonce"]);
    assert_eq!((challenge["extra-params"].as_str(), challenge["nonce"].as_str().unwrap().len()), (Some(""), 44));
    let cookie = headers["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("kbs-session-id=") && cookie.contains("Max-Age=300"), "{cookie}");
    let (_, _, body) = bench.request("GET", "/kbs/v0/resource/a/b/c", &[], "").await;
    let error: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(error["type"], "https://github.com/confidential-containers/kbs/errors/AttestationError");
}

/// Somebody else's implementation: the published key as PEM, the signature as DER, and nothing of ours.
#[tokio::test]
async fn openssl_verifies_a_token_with_the_published_key() {
    let bench = start(true).await;
    let token = bench.guest(&MEASUREMENT, INITDATA).token().await.unwrap();
    let (_, _, body) = bench.request("GET", "/.well-known/jwks.json", &[], "").await;
    let key = serde_json::from_slice::<Value>(&body).unwrap()["keys"][0].clone();
    let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let part = |name: &str| bytes(key[name].as_str().unwrap());
    // SubjectPublicKeyInfo of a point on P-256 (RFC 5480).
    let begin = hex::decode("3059301306072a8648ce3d020106082a8648ce3d03010703420004").unwrap();
    let der = STANDARD.encode([begin, part("x"), part("y")].concat());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    // Two numbers of 32 bytes, as a SEQUENCE of INTEGERs: positive, without zeros that say nothing.
    let integer = |number: &[u8]| {
        let digits: Vec<u8> = number.iter().copied().skip_while(|byte| *byte == 0).collect();
        let digits = if digits[0] >= 0x80 { [vec![0], digits].concat() } else { digits };
        [vec![2, u8::try_from(digits.len()).unwrap()], digits].concat()
    };
    let (r, s) = (integer(&bytes(signature)[..32]), integer(&bytes(signature)[32..]));
    let path = |name: &str| bench.directory.path().join(name);
    std::fs::write(path("key"), format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")).unwrap();
    std::fs::write(path("signature"), [vec![0x30, u8::try_from(r.len() + s.len()).unwrap()], r, s].concat()).unwrap();
    let verified = |signed: &str| {
        std::fs::write(path("signed"), signed).unwrap();
        let openssl = std::process::Command::new("openssl")
            .current_dir(bench.directory.path())
            .args(["dgst", "-sha256", "-verify", "key", "-signature", "signature", "signed"])
            .output()
            .expect("openssl: install it (scripts/setup)");
        openssl.status.success()
    };
    assert!(verified(signed));
    assert!(!verified(&signed.replacen('.', "A.", 1)));
}
