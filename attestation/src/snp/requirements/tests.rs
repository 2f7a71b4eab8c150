use super::*;
use crate::{
    rule_table::MAX_ENTRIES,
    snp::testing::{milan, turin},
};

fn claims() -> SnpClaims {
    SnpClaims::new(&milan(), Generation::Milan, SigningKey::Vcek)
}

fn check(table: &str, claims: &SnpClaims) -> Result<(), String> {
    let requirements: Requirements = toml::from_str(table).unwrap_or_else(|e| panic!("{table}: {e}"));
    requirements.check(claims)
}

#[test]
fn without_a_word_debugging_migration_and_other_levels_are_refused() {
    assert_eq!(check("", &claims()), Ok(()));
    for (bit, word) in [(19, "debug"), (18, "migration")] {
        let claims = SnpClaims { policy: claims().policy | 1 << bit, ..claims() };
        assert!(check("", &claims).unwrap_err().contains(&format!("snp.policy has {word} set")));
        assert_eq!(check(&format!("policy.allow = [{word:?}]"), &claims), Ok(()));
    }
    let other = SnpClaims { vmpl: 2, ..claims() };
    assert!(check("", &other).unwrap_err().contains("snp.vmpl is 2, the release rule wants 0"));
    assert_eq!(check("vmpl = 2", &other), Ok(()));
    assert!(check("vmpl = 2", &claims()).is_err());
}

/// Every option: a table that the claims meet, one that they do not, and what the refusal says.
#[test]
fn every_option_lets_in_and_keeps_out() {
    let id = |byte: &str, n: usize| byte.repeat(n);
    let cases = [
        (
            "generation = 'milan'".into(),
            "generation = ['genoa', 'turin']".into(),
            "snp.generation is milan, the release rule wants genoa or turin",
        ),
        ("signing_key = 'vcek'".into(), "signing_key = 'vlek'".into(), "snp.signing_key is vcek"),
        ("min_guest_svn = 2".into(), "min_guest_svn = 3".into(), "the guest's SVN is 2, the release rule wants at least 3"),
        ("min_abi = '1.51'".into(), "min_abi = '1.52'".into(), "the ABI of the guest policy is 1.51, the release rule wants at least 1.52"),
        ("min_abi = '0.255'".into(), "min_abi = '2.0'".into(), "at least 2.0"),
        ("min_firmware = '1.55.29'".into(), "min_firmware = '1.55.30'".into(), "the firmware is 1.55.29"),
        (format!("id_key = '{}'", id("03", 48)), format!("id_key = '{}'", id("04", 48)), "snp.id_key is 0303"),
        (
            format!("author_key = ['{}', '{}']", id("05", 48), id("04", 48)),
            format!("author_key = '{}'", id("05", 48)),
            "snp.author_key is 0404",
        ),
        (format!("chip_id = '{}'", id("11", 64)), format!("chip_id = '{}'", id("12", 64)), "snp.chip_id is 1111"),
        (format!("family_id = '{}'", id("01", 16)), format!("family_id = '{}'", id("02", 16)), "snp.family_id is 0101"),
        (format!("image_id = '{}'", id("02", 16)), format!("image_id = '{}'", id("01", 16)), "snp.image_id is 0202"),
        (format!("report_id = '{}'", id("05", 32)), format!("report_id = '{}'", id("06", 32)), "snp.report_id is 0505"),
        (format!("report_id_ma = '{}'", id("ff", 32)), format!("report_id_ma = '{}'", id("06", 32)), "snp.report_id_ma is ffff"),
        (
            "policy.require = ['smt']".into(),
            "policy.require = ['ciphertext-hiding']".into(),
            "snp.policy does not have ciphertext-hiding set",
        ),
        ("policy.refuse = ['cxl']".into(), "policy.refuse = ['smt']".into(), "snp.policy has smt set, the release rule refuses it"),
        ("platform.require = ['alias-check', 'ecc']".into(), "platform.require = ['tsme']".into(), "snp.platform does not have tsme set"),
        ("platform.refuse = ['tio', 'rapl-off']".into(), "platform.refuse = ['smt']".into(), "snp.platform has smt set"),
        (
            "min_tcb.milan = {bootloader=4,tee=0,snp=23,microcode=80}".into(),
            "min_tcb.milan = {snp=24}".into(),
            "the reported TCB is bootloader 4",
        ),
        ("min_committed_tcb.milan = {bootloader=4}".into(), "min_committed_tcb.milan = {bootloader=5}".into(), "the committed TCB is"),
        ("min_launch_tcb.milan = {microcode=1}".into(), "min_launch_tcb.milan = {microcode=81}".into(), "the TCB at launch is"),
        ("min_tcb.milan = {}".into(), "min_tcb.genoa = {}".into(), "no snp.min_tcb.milan"),
        ("launch_mitigations = 0".into(), "launch_mitigations = 1".into(), "snp.launch_mitigations is not in reports of this version"),
    ];
    let claims = claims();
    for (good, bad, wanted) in cases {
        assert_eq!(check(&good, &claims), Ok(()), "{good}");
        let refusal = check(&bad, &claims).unwrap_err();
        assert!(refusal.contains(wanted) && !refusal.contains('\n'), "{bad}: {refusal}");
    }
}

#[test]
fn mitigations_are_bits() {
    let claims = SnpClaims::new(&turin(), Generation::Turin, SigningKey::Vcek);
    assert_eq!(check("launch_mitigations = 1\ncurrent_mitigations = 0x3", &claims), Ok(()));
    assert!(check("launch_mitigations = 2", &claims).unwrap_err().contains("snp.launch_mitigations is 0x1"));
    assert!(check("current_mitigations = 0x7", &claims).unwrap_err().contains("all bits of 0x7"));
}

#[test]
fn provisional_firmware_is_refused_where_the_rule_says_so() {
    let strict = "refuse_provisional_firmware = true";
    assert_eq!(check(strict, &claims()), Ok(()));
    let newer = SnpClaims { current_tcb: Tcb { microcode: 0x51, ..claims().current_tcb }, ..claims() };
    assert_eq!(check("", &newer), Ok(()));
    assert!(check(strict, &newer).unwrap_err().contains("refuses provisional firmware"));
    let newer = SnpClaims { current_firmware: "1.55.30".parse().unwrap(), ..claims() };
    assert!(check(strict, &newer).is_err());
}

#[test]
fn a_table_that_says_something_else_is_refused() {
    for (table, wanted) in [
        ("generation = []", "an empty list says nothing"),
        ("generation = 'rome'", "unknown variant"),
        ("signing_key = 'none'", "unknown variant"),
        ("policy.allow = ['smt']", "unknown variant"),
        ("policy.refuse = ['smtt']", "unknown variant"),
        ("platform.allow = ['smt']", "unknown field"),
        ("min_tcb.milan = {ucode = 1}", "unknown field"),
        ("min_tcb.milan = {snp = 256}", "256"),
        ("min_abi = '1'", "two numbers"),
        ("min_firmware = '1.55'", "three numbers"),
        ("id_key = '00'", "expected 48 bytes in hexadecimal"),
        ("id_key = 7", "a text or a list of texts"),
        ("chip_id = 'zz'", "expected 64 bytes"),
        (&format!("author_key = '{}'", "00".repeat(48)), "zeros stand for none"),
        ("vmpl = -1", "invalid value"),
        ("vmlp = 1", "unknown field"),
        ("debug = true", "unknown field"),
    ] {
        let error = toml::from_str::<Requirements>(table).unwrap_err().to_string();
        assert!(error.contains(wanted), "{table}: {error}");
    }
    let many = vec![format!("'{}'", "01".repeat(48)); MAX_ENTRIES + 1].join(",");
    assert!(toml::from_str::<Requirements>(&format!("id_key = [{many}]")).unwrap_err().to_string().contains("more than 256"));
    let signed: Requirements = toml::from_str(&format!("id_key = '{}'", "01".repeat(48))).unwrap();
    assert!(signed.names_signer() && !Requirements::default().names_signer());
}
