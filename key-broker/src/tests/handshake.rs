//! Who gets what: releases, refusals, replays.

use super::*;

/// What a host might do to a message on its way.
type Change = fn(&mut Attestation);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_matches_gets_its_secrets_with_one_handshake() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"first secret", &rule()).await.unwrap();
    bench.admin.put_resource(&uri("two"), &[0, 255, 10], &rule()).await.unwrap();
    let guest = Arc::new(bench.guest(&MEASUREMENT, INITDATA));
    let asks: Vec<_> = (0..6)
        .map(|n| {
            tokio::spawn({
                let guest = guest.clone();
                async move { guest.resource(&uri(["one", "two"][n % 2])).await }
            })
        })
        .collect();
    for (n, ask) in asks.into_iter().enumerate() {
        assert_eq!(ask.await.unwrap().unwrap().as_slice(), [b"first secret".as_slice(), &[0, 255, 10]][n % 2]);
    }
    assert_eq!((bench.metric("challenges_total").await, bench.metric("handshakes_total").await), (1, 1));
    assert_eq!((bench.metric("resources_released_total").await, bench.metric("refusals_total").await), (6, 0));
    assert_eq!((bench.metric("sessions").await, bench.metric("development").await), (1, 1));
    bench.stop().await;
}

/// Two round trips for the handshake and one for the first key; the other nine come side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_keys_cost_one_quote_and_three_round_trips_to_the_first() {
    let bench = start(true).await;
    let names: Vec<String> = (0..10).map(|n| format!("layer{n}")).collect();
    for name in &names {
        bench.admin.put_resource(&uri(name), name.as_bytes(), &rule()).await.unwrap();
    }
    let guest = Arc::new(bench.guest(&MEASUREMENT, INITDATA));
    assert_eq!(guest.resource(&uri("layer0")).await.unwrap().as_slice(), b"layer0");
    assert_eq!(bench.metric("requests_total").await, 3);
    let asks = names[1..].iter().cloned().map(|name| {
        let guest = guest.clone();
        tokio::spawn(async move { guest.resource(&uri(&name)).await.map(|secret| secret.as_slice() == name.as_bytes()) })
    });
    for ask in asks.collect::<Vec<_>>() {
        assert!(ask.await.unwrap().unwrap());
    }
    assert_eq!((bench.metric("challenges_total").await, bench.metric("handshakes_total").await), (1, 1));
    assert_eq!(bench.metric("requests_total").await, 2 + 10);
}

/// A token is renewed before its end, by whoever needs one then.
#[tokio::test]
async fn a_token_is_renewed_before_its_end() {
    let bench = start_in(tempfile::tempdir().unwrap(), |config| {
        config.development = true;
        config.session_lifetime = Duration::from_secs(5);
    })
    .await;
    let guest = bench.guest(&MEASUREMENT, INITDATA);
    let first = guest.token().await.unwrap();
    assert_eq!(guest.token().await.unwrap(), first);
    tokio::time::sleep(Duration::from_millis(4200)).await;
    assert_ne!(guest.token().await.unwrap(), first, "the old one had most of a second to live");
    assert_eq!(bench.metric("handshakes_total").await, 2);
}

#[tokio::test]
async fn a_guest_that_does_not_match_is_told_which_condition_failed() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let changed = format!("{INITDATA}# changed\n");
    let cases = [
        (
            bench.guest(&MEASUREMENT, &changed),
            format!(
                "refused kbs:///default/key/one: init_data is {}, the release rule wants {}; ",
                digest(&changed).hex(),
                digest(INITDATA)
            ),
        ),
        (
            bench.guest(&[1; 48], INITDATA),
            format!(
                "refused kbs:///default/key/one: launch_measurement is {}, the release rule wants {}; ",
                "01".repeat(48),
                "5a".repeat(48)
            ),
        ),
    ];
    for (guest, wanted) in cases {
        let error = guest.resource(&uri("one")).await.unwrap_err().to_string();
        assert!(error.contains(&wanted) && !error.contains('\n'), "{error}");
    }
    // No rule, and no such thing: the same answer but for the words.
    let key = bench.directory.path().join("admin.key");
    let bearer = format!("Bearer {}", *AdminToken::load(&key).unwrap().to_hex());
    let (status, ..) = bench.request("POST", "/kbs/v0/resource/default/key/bare", &[("authorization", &bearer)], "secret").await;
    assert_eq!(status, 200);
    let guest = bench.guest(&MEASUREMENT, INITDATA);
    for (tag, words) in [("bare", "no release rule"), ("none", "no such resource")] {
        let error = guest.resource(&uri(tag)).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("(401 PolicyDeny)"), "{error}");
    }
    assert_eq!((bench.metric("resources_released_total").await, bench.metric("refusals_total").await), (0, 4));
}

#[tokio::test]
async fn without_the_development_flag_sample_evidence_opens_nothing() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let guest = bench.guest(&MEASUREMENT, INITDATA);
    let token = guest.token().await.unwrap();
    let bearer = format!("Bearer {token}");
    let (status, ..) = bench.request("GET", "/kbs/v0/resource/default/key/one", &[("authorization", &bearer)], "").await;
    assert_eq!(status, 200);

    // The same store without the flag: neither a new handshake nor the old token helps.
    let bench = start_in(bench.stop().await, |_| {}).await;
    let error = bench.guest(&MEASUREMENT, INITDATA).resource(&uri("one")).await.unwrap_err().to_string();
    assert!(error.contains("sample proves nothing"), "{error}");
    let (status, _, body) = bench.request("GET", "/kbs/v0/resource/default/key/one", &[("authorization", &bearer)], "").await;
    assert_eq!(status, 401);
    assert!(detail(&body).contains("in development"), "{body:?}");
    assert_eq!((bench.metric("development").await, bench.metric("resources_released_total").await), (0, 0));
}

#[tokio::test]
async fn a_token_serves_in_place_of_the_cookie_for_its_key_only() {
    let bench = start(true).await;
    bench.admin.put_resource(&uri("one"), b"secret", &rule()).await.unwrap();
    let key = TeeKey::generate().unwrap();
    let (cookie, nonce) = bench.auth().await;
    let (status, body) = bench.attest(&cookie, &attestation(&nonce, &key)).await;
    assert_eq!(status, 200, "{body:?}");
    let token = serde_json::from_slice::<TokenReply>(&body).unwrap().token;
    for header in [("authorization", format!("Bearer {token}")), ("cookie", format!("other=1; {cookie}"))] {
        let (status, _, body) = bench.request("GET", "/kbs/v0/resource/default/key/one", &[(header.0, &header.1)], "").await;
        assert_eq!(status, 200, "{body:?}");
        let jwe: Jwe = serde_json::from_slice(&body).unwrap();
        assert_eq!(key.decrypt(&jwe).unwrap().as_slice(), b"secret");
        assert!(TeeKey::generate().unwrap().decrypt(&jwe).is_err());
    }
    // The same claims, signed by somebody who puts his own key into the header.
    let claims = attestation::Claims {
        tee: Tee::Snp,
        launch_measurement: MEASUREMENT.to_vec(),
        init_data: digest(INITDATA).bytes().to_vec(),
        report_data: Vec::new(),
        details: Details::None,
    };
    let ear = attestation::token::Ear { issued: 0, expires: u64::from(u32::MAX), development: true, claims, key: key.public() };
    let forged = format!("Bearer {}", attestation::token::TokenSigner::generate().unwrap().sign(&ear, "n"));
    let (status, _, body) = bench.request("GET", "/kbs/v0/resource/default/key/one", &[("authorization", &forged)], "").await;
    assert_eq!(status, 401);
    assert!(detail(&body).contains("not signed by this broker"), "{body:?}");
}

#[tokio::test]
async fn a_challenge_is_answered_once_and_by_nobody_else() {
    let bench = start(true).await;
    let key = TeeKey::generate().unwrap();
    let (cookie, nonce) = bench.auth().await;
    let good = attestation(&nonce, &key);

    // The recorded answer to one challenge does not answer another.
    let (other_cookie, other_nonce) = bench.auth().await;
    let (status, body) = bench.attest(&other_cookie, &good).await;
    assert_eq!(status, 401);
    assert!(detail(&body).contains("replay"), "{body:?}");
    // And the failed attempt has used up its session.
    let (status, body) = bench.attest(&other_cookie, &attestation(&other_nonce, &key)).await;
    assert_eq!(status, 401);
    assert!(detail(&body).contains("unknown or expired"), "{body:?}");

    // The nonce corrected but the evidence still bound to the old one.
    let (other_cookie, other_nonce) = bench.auth().await;
    let mut patched = good.clone();
    patched.runtime_data.nonce = other_nonce;
    let (status, body) = bench.attest(&other_cookie, &patched).await;
    assert_eq!(status, 401);
    assert!(detail(&body).contains("made for another challenge or key"), "{body:?}");

    // Genuine evidence with the attacker's key in place of the guest's.
    let (other_cookie, other_nonce) = bench.auth().await;
    let mut stolen = attestation(&other_nonce, &key);
    stolen.runtime_data.tee_pubkey = TeeKey::generate().unwrap().public();
    assert_eq!(bench.attest(&other_cookie, &stolen).await.0, 401);

    // The first session was never touched; the same answer twice is the same token and no second handshake.
    let (status, first) = bench.attest(&cookie, &good).await;
    assert_eq!(status, 200, "{first:?}");
    assert_eq!(bench.attest(&cookie, &good).await, (200, first));
    assert_eq!((bench.metric("handshakes_total").await, bench.metric("handshake_failures_total").await), (1, 3));
}

#[tokio::test]
async fn initdata_that_the_evidence_does_not_carry_is_refused() {
    let bench = start(true).await;
    let key = TeeKey::generate().unwrap();
    let changes: [(Change, &str); 5] = [
        (|a| a.init_data = Some(InitData { format: "toml".into(), body: format!("{INITDATA}#") }), "evidence was made under another"),
        (|a| a.init_data = Some(InitData { format: "toml".into(), body: "x".into() }), "initdata"),
        (|a| a.init_data = Some(InitData { format: "json".into(), body: "{}".into() }), "only the format toml"),
        (|a| a.tee_evidence.primary_evidence = "\n".repeat(500_000).into(), "sample evidence"),
        (|a| a.runtime_data.tee_pubkey.crv = "P-521".into(), "tee-pubkey"),
    ];
    for (change, wanted) in changes {
        let (cookie, nonce) = bench.auth().await;
        let mut attestation = attestation(&nonce, &key);
        change(&mut attestation);
        let (status, body) = bench.attest(&cookie, &attestation).await;
        assert_eq!(status, 401);
        assert!(detail(&body).contains(wanted), "{wanted}: {body:?}");
    }
    // Not sent is fine: the digest in the evidence is what the rule looks at.
    let (cookie, nonce) = bench.auth().await;
    assert_eq!(bench.attest(&cookie, &Attestation { init_data: None, ..attestation(&nonce, &key) }).await.0, 200);
}
