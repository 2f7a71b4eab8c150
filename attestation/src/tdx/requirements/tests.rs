use super::*;

fn claims() -> TdxClaims {
    TdxClaims {
        quote_version: 4,
        tcb_status: TcbStatus::UpToDate,
        advisories: Vec::new(),
        evaluation: 17,
        tcb_date: 1_731_456_000,
        fmspc: [0xb0, 0xc0, 0x6f, 0, 0, 0],
        ppid: vec![1; 16],
        tee_tcb_svn: [7, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        mr_seam: [2; 48],
        mr_signer_seam: [0; 48],
        attributes: 1 << 28,
        xfam: 0x602e7,
        mr_td: [3; 48],
        mr_owner: [4; 48],
        mr_owner_config: [5; 48],
        mr_service_td: [0; 48],
        rtmr0: [6; 48],
        rtmr1: [7; 48],
        rtmr2: [8; 48],
        rtmr3: [9; 48],
        images: None,
    }
}

fn check(table: &str, claims: &TdxClaims) -> Result<(), String> {
    let requirements: Requirements = toml::from_str(table).unwrap_or_else(|e| panic!("{table}: {e}"));
    requirements.check(claims)
}

#[test]
fn without_a_word_only_what_is_up_to_date_and_closed_gets_in() {
    assert_eq!(check("", &claims()), Ok(()));
    for (bit, word) in [(0, "debug"), (4, "profiling"), (29, "migratable")] {
        let open = TdxClaims { attributes: claims().attributes | 1 << bit, ..claims() };
        assert!(check("", &open).unwrap_err().contains(&format!("tdx.attributes has {word} set")));
        let allow = format!("attributes.allow = [{word:?}]");
        if word == "migratable" {
            assert!(toml::from_str::<Requirements>(&allow).unwrap_err().to_string().contains("unknown variant"));
        } else {
            assert_eq!(check(&allow, &open), Ok(()));
        }
    }
    let late = TdxClaims { tcb_status: TcbStatus::OutOfDate, advisories: vec!["INTEL-SA-1".into()], ..claims() };
    assert!(check("", &late).unwrap_err().contains("tdx.tcb_status is OutOfDate (INTEL-SA-1), the release rule wants UpToDate"));
    assert_eq!(check("tcb_status = ['UpToDate', 'OutOfDate']", &late), Ok(()));
    assert_eq!(check("tcb_status = 'OutOfDate'\nallow_advisories = ['INTEL-SA-1']", &late), Ok(()));
    assert!(check("tcb_status = 'OutOfDate'\nallow_advisories = []", &late).unwrap_err().contains("INTEL-SA-1 is open"));
    let bound = TdxClaims { mr_service_td: [1; 48], ..claims() };
    assert!(check("", &bound).unwrap_err().contains("tdx.mr_service_td is 0101"));
    assert_eq!(check(&format!("mr_service_td = '{}'", "01".repeat(48)), &bound), Ok(()));
    assert!(check(&format!("mr_service_td = '{}'", "02".repeat(48)), &bound).is_err());
}

/// Every other option: a table that the claims meet, one that they do not, and what the refusal says.
#[test]
fn every_option_lets_in_and_keeps_out() {
    let id = |key: &str, byte: &str| format!("{key} = '{}'", byte.repeat(48));
    let cases = [
        ("min_evaluation = 17".into(), "min_evaluation = 18".into(), "number 17, the release rule wants at least 18"),
        ("min_tcb_date = '2024-11-13T00:00:00Z'".into(), "min_tcb_date = '2024-11-13T00:00:01Z'".into(), "tdx.min_tcb_date"),
        (
            format!("min_tee_tcb_svn = '07{}'", "00".repeat(15)),
            format!("min_tee_tcb_svn = '0002{}'", "00".repeat(14)),
            "tdx.min_tee_tcb_svn",
        ),
        ("fmspc = ['b0c06f000000']".into(), "fmspc = '90c06f000000'".into(), "tdx.fmspc is b0c06f000000"),
        (id("mr_seam", "02"), id("mr_seam", "01"), "tdx.mr_seam is 0202"),
        (id("mr_td", "03"), id("mr_td", "01"), "tdx.mr_td is 0303"),
        (id("mr_owner", "04"), id("mr_owner", "01"), "tdx.mr_owner is 0404"),
        (id("mr_owner_config", "05"), id("mr_owner_config", "01"), "tdx.mr_owner_config is 0505"),
        (id("rtmr0", "06"), id("rtmr0", "01"), "tdx.rtmr0 is 0606"),
        (id("rtmr1", "07"), id("rtmr1", "01"), "tdx.rtmr1 is 0707"),
        (id("rtmr2", "08"), id("rtmr2", "01"), "tdx.rtmr2 is 0808"),
        (id("rtmr3", "09"), id("rtmr3", "01"), "tdx.rtmr3 is 0909"),
        ("xfam = [0x602e7]".into(), "xfam = [0x61ae7, 0x1]".into(), "tdx.xfam is 0x602e7, the release rule wants 0x61ae7 or 0x1"),
        ("attributes.require = ['sept-ve-disable']".into(), "attributes.require = ['pks']".into(), "does not have pks set"),
        ("attributes.refuse = ['perfmon']".into(), "attributes.refuse = ['sept-ve-disable']".into(), "has sept-ve-disable set"),
    ];
    for (good, bad, wanted) in cases {
        assert_eq!(check(&good, &claims()), Ok(()), "{good}");
        let refusal = check(&bad, &claims()).unwrap_err();
        assert!(refusal.contains(wanted) && !refusal.contains('\n'), "{bad}: {refusal}");
    }
}

#[test]
fn that_nothing_was_measured_since_the_launch_can_be_demanded() {
    let nothing = format!("rtmr3 = '{}'", "00".repeat(48));
    assert_eq!(check(&nothing, &TdxClaims { rtmr3: [0; 48], ..claims() }), Ok(()));
    assert!(check(&nothing, &claims()).unwrap_err().starts_with("tdx.rtmr3 is 0909"));
    assert!(toml::from_str::<Requirements>("rtmr3 = '00'").unwrap_err().to_string().contains("expected 48 bytes"));
}

#[test]
fn a_table_that_says_something_else_is_refused() {
    for (table, wanted) in [
        ("tcb_status = []", "an empty list says nothing"),
        ("tcb_status = 'Revoked'", "unknown variant"),
        ("attributes.allow = ['perfmon']", "unknown variant"),
        ("attributes.require = ['x']", "unknown variant"),
        ("fmspc = '00'", "expected 6 bytes"),
        ("min_tcb_date = '2024-11-13'", "a date is written as"),
        ("mrtd = '00'", "unknown field"),
        (&format!("mr_td = '{}'", "00".repeat(48)), "zeros stand for none"),
    ] {
        let error = toml::from_str::<Requirements>(table).unwrap_err().to_string();
        assert!(error.contains(wanted), "{table}: {error}");
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (text, wanted) in [
        ("1970-01-01T00:00:00Z", Some(0)),
        ("2000-02-29T23:59:59Z", Some(951_868_799)),
        ("2024-11-13T00:00:00Z", Some(1_731_456_000)),
        ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
        ("1969-12-31T00:00:00Z", None),
        ("2024-13-01T00:00:00Z", None),
        ("2024-11-13T24:00:00Z", None),
        ("2024-11-13 00:00:00Z", None),
        ("2024-11-13T00:00:00+", None),
        ("+024-11-13T00:00:00Z", None),
        ("2024-11-13T00:00:00é", None),
    ] {
        assert_eq!(seconds(text), wanted, "{text}");
    }
}
