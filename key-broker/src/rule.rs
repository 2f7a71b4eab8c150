//! Release rules: to whom a secret may be given, in a few lines that a lawyer can read.
//!
//! ```toml
//! tee = ["snp", "tdx"]                   # kind of hardware
//! launch_measurement = ["5f3a…"]         # what was started: hex, as `cloister measure` prints it
//! init_data = ["sha256:9c1e…"]           # under which configuration and policy: digest of the initdata
//! valid_until = 2027-12-31               # optional, as is valid_from
//! ```
//!
//! The first three must be there and must match; within one, any entry will do. There is no entry that means "anything". A single value
//! may stand without the brackets.
//!
//! A kind of hardware has a table of its own for what else is wanted of it, [`attestation::snp::requirements`] for `[snp]`
//! and [`attestation::tdx::requirements`] for `[tdx]`. Where there is none, its defaults hold. In place of a list of measurements a rule may name who signed what was launched:
//!
//! ```toml
//! tee = "snp"
//! init_data = "sha256:9c1e…"
//! snp.id_key = "77ab…"                   # SHA-384 of the key that signed the ID block
//! snp.min_tcb.milan = { snp = 23, microcode = 213 }
//! ```
//!
//! A TPM is whoever's emulator it is, until its attestation key is named. Outside of development it has to be:
//!
//! ```toml
//! tpm.ak = "6b1f…"                       # SHA-256 of the key, as `cloister check --launch` shows it
//! ```

use crate::validity::{self, Validity};
use attestation::{
    Claims, Details, Tee,
    mismatch::{mismatch, shown},
    snp, tdx,
};
use policy::InitdataDigest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest rule, in bytes.
pub const MAX_RULE: usize = 64 * 1024;

/// Entries in any list of a rule.
const MAX_ENTRIES: usize = 256;

/// A rule that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("release rule: {0}")]
pub struct RuleError(String);

/// A parsed rule, with its text.
#[derive(Debug, Clone)]
pub struct Rule {
    text: String,
    tee: Vec<Tee>,
    /// Empty where the signer of what is launched stands for it.
    launch_measurement: Vec<Vec<u8>>,
    init_data: Vec<InitdataDigest>,
    snp: snp::Requirements,
    tdx: tdx::Requirements,
    /// SHA-256 of the attestation keys of TPMs; empty where none is named.
    tpm_ak: Vec<Vec<u8>>,
    validity: Validity,
}

/// `"x"` or `["x", "y"]`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    tee: OneOrMore,
    launch_measurement: Option<OneOrMore>,
    init_data: OneOrMore,
    snp: Option<snp::Requirements>,
    tdx: Option<tdx::Requirements>,
    tpm: Option<TpmTable>,
    #[serde(default)]
    valid_from: Option<toml::value::Datetime>,
    #[serde(default)]
    valid_until: Option<toml::value::Datetime>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TpmTable {
    ak: OneOrMore,
}

/// The text of a rule with one entry each, for tools that write one.
#[derive(Serialize)]
struct Written<'a> {
    tee: [Tee; 1],
    launch_measurement: [String; 1],
    init_data: [&'a str; 1],
}

impl OneOrMore {
    fn read<T>(self, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, RuleError> {
        let list = match self {
            Self::One(text) => vec![text],
            Self::More(list) => list,
        };
        if list.is_empty() || list.len() > MAX_ENTRIES {
            return Err(RuleError(format!("{key}: needs between 1 and {MAX_ENTRIES} entries")));
        }
        let entry = |text: &String| read(text).map_err(|e| RuleError(format!("{key}: {e}")));
        list.iter().map(entry).collect()
    }
}

impl Rule {
    /// Reads a rule; a missing or unknown key is an error.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        if text.len() > MAX_RULE {
            return Err(RuleError(format!("longer than {MAX_RULE} bytes")));
        }
        let document: Document = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            RuleError(format!("line {line}: {}", e.message().split_whitespace().collect::<Vec<_>>().join(" ")))
        })?;
        let tee = document.tee.read("tee", |name| name.parse().map_err(|_| format!("{name:?} is no TEE")))?;
        for (there, kind) in [(document.snp.is_some(), Tee::Snp), (document.tdx.is_some(), Tee::Tdx)] {
            if there && !tee.contains(&kind) {
                return Err(RuleError(format!("there is a table [{kind}], but tee does not name {kind}")));
            }
        }
        let (snp, tdx) = (document.snp.unwrap_or_default(), document.tdx.unwrap_or_default());
        let measurement = |digits: &str| {
            let bytes = hex::decode(digits).map_err(|_| format!("{digits:?} is not hex"))?;
            if matches!(bytes.len(), 32 | 48 | 64) { Ok(bytes) } else { Err(format!("{digits:?} is not 32, 48 or 64 bytes of hex")) }
        };
        let launch_measurement = match document.launch_measurement {
            Some(list) => list.read("launch_measurement", measurement)?,
            None if tee == [Tee::Snp] && snp.names_signer() => Vec::new(),
            None => {
                return Err(RuleError(
                    "launch_measurement is missing; for snp alone, snp.id_key or snp.author_key may stand for it".into(),
                ));
            }
        };
        let init_data = document.init_data.read("init_data", |digest| digest.parse().map_err(|e| format!("{e}")))?;
        let digest = |digits: &str| match hex::decode(digits) {
            Ok(digest) if digest.len() == 32 => Ok(digest),
            _ => Err(format!("{digits:?} is not 32 bytes of hex")),
        };
        let tpm_ak = document.tpm.map_or(Ok(Vec::new()), |table| table.ak.read("tpm.ak", digest))?;
        if !tpm_ak.is_empty() && !tee.contains(&Tee::Tpm) {
            return Err(RuleError("there is a table [tpm], but tee does not name tpm".into()));
        }
        let validity = validity::Written { valid_from: document.valid_from, valid_until: document.valid_until };
        let validity = Validity::read(validity).map_err(RuleError)?;
        Ok(Self { text: text.to_owned(), tee, launch_measurement, init_data, snp, tdx, tpm_ak, validity })
    }

    /// The rule that releases to this TEE, this measurement (raw digest) and this initdata.
    pub fn exactly(tee: Tee, launch_measurement: &[u8], init_data: &InitdataDigest) -> Result<Self, RuleError> {
        let init_data = init_data.to_string();
        let written = Written { tee: [tee], launch_measurement: [hex::encode(launch_measurement)], init_data: [&init_data] };
        Self::parse(&toml::to_string(&written).map_err(|e| RuleError(e.to_string()))?)
    }

    /// The text, as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the rule says whose TPM is meant.
    pub(crate) fn names_tpm(&self) -> bool {
        !self.tpm_ak.is_empty()
    }

    /// Whether the rule counts `now` (seconds since 1970); else why not.
    pub fn in_force(&self, now: u64) -> Result<(), String> {
        self.validity.covers(now)
    }

    /// Whether the rule releases to a guest with these claims; else, on one line: which claim, what it is, what the rule wants, what
    /// to change.
    pub fn check(&self, claims: &Claims) -> Result<(), String> {
        if !self.tee.contains(&claims.tee) {
            let remedy = "run it on such hardware, or add the TEE to the rule";
            return Err(mismatch("tee", &claims.tee, &self.tee, remedy));
        }
        if !self.launch_measurement.is_empty() && !self.launch_measurement.contains(&claims.launch_measurement) {
            let wanted: Vec<String> = self.launch_measurement.iter().map(hex::encode).collect();
            let remedy = "start the guest image that the rule names, or add this measurement to the rule";
            return Err(mismatch("launch_measurement", &shown(&claims.launch_measurement), &wanted, remedy));
        }
        if !self.init_data.iter().any(|digest| claims.has_init_data(digest.bytes())) {
            let remedy = "start the VM with that initdata, or add the digest of this one to the rule";
            return Err(mismatch("init_data", &shown(&claims.init_data), &self.init_data, remedy));
        }
        if let (Details::Tpm(tpm), true) = (&claims.details, self.names_tpm())
            && !self.tpm_ak.contains(&tpm.ak)
        {
            let wanted: Vec<String> = self.tpm_ak.iter().map(hex::encode).collect();
            return Err(mismatch("tpm.ak", &hex::encode(&tpm.ak), &wanted, "run it where that TPM is, or add this key to the rule"));
        }
        match (claims.tee, &claims.details) {
            (Tee::Snp, Details::Snp(claims)) => self.snp.check(claims),
            (Tee::Tdx, Details::Tdx(claims)) => self.tdx.check(claims),
            // A verifier that leaves out what its hardware says leaves nothing to hold the rule's table against.
            (tee @ (Tee::Snp | Tee::Tdx), _) => {
                Err(format!("the evidence has no claims of {tee} to hold the release rule's table against"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attestation::snp::{Generation, Report, SigningKey, SnpClaims, Tcb, testing::milan};
    use attestation::tpm::TpmClaims;

    const MEASUREMENT: &str = "111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111111";
    const INITDATA: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    fn text() -> String {
        format!("tee = [\"snp\", \"sample\"]\nlaunch_measurement = {MEASUREMENT:?}\ninit_data = [{INITDATA:?}]\n")
    }

    fn claims() -> Claims {
        Claims {
            tee: Tee::Sample,
            launch_measurement: vec![0x11; 48],
            init_data: vec![0x22; 32],
            report_data: vec![0; 48],
            details: Details::None,
        }
    }

    fn snp_claims(report: Report) -> Claims {
        let details = SnpClaims::new(&report, Generation::Milan, SigningKey::Vcek);
        Claims { tee: Tee::Snp, details: Details::Snp(Box::new(details)), ..claims() }
    }

    #[test]
    fn the_table_of_the_hardware_must_hold_too() {
        let debug = Report { policy: milan().policy | 1 << 19, ..milan() };
        let rule = Rule::parse(&text()).unwrap();
        assert!(
            rule.check(&snp_claims(debug.clone())).unwrap_err().contains("snp.policy has debug set"),
            "the defaults hold without a table"
        );
        let rule = Rule::parse(&format!("{}[snp]\npolicy.allow = ['debug']\nmin_tcb.milan.snp = 24\n", text())).unwrap();
        assert!(rule.check(&snp_claims(debug.clone())).unwrap_err().contains("snp.min_tcb"));
        let newer = Tcb { snp: 24, ..debug.reported_tcb };
        assert_eq!(rule.check(&snp_claims(Report { reported_tcb: newer, ..debug })), Ok(()));
        assert_eq!(rule.check(&claims()), Ok(()), "a table says nothing about other hardware");
    }

    #[test]
    fn a_signer_stands_for_measurements_on_snp_only() {
        let signer = format!("snp.id_key = '{}'\n", "03".repeat(48));
        let unmeasured = text().replace(&format!("launch_measurement = {MEASUREMENT:?}\n"), &signer);
        assert!(Rule::parse(&unmeasured).unwrap_err().to_string().contains("launch_measurement is missing"));
        let rule = Rule::parse(&unmeasured.replace("[\"snp\", \"sample\"]", "\"snp\"")).unwrap();
        let other = snp_claims(milan());
        assert_eq!(rule.check(&Claims { launch_measurement: vec![9; 48], ..other.clone() }), Ok(()));
        assert!(rule.check(&snp_claims(Report { id_key_digest: [4; 48], ..milan() })).unwrap_err().contains("snp.id_key is 0404"));
        assert!(rule.check(&Claims { init_data: vec![9; 32], ..other }).unwrap_err().contains("init_data is"));
    }

    #[test]
    fn all_three_conditions_must_hold() {
        let rule = Rule::parse(&text()).unwrap();
        assert_eq!(rule.check(&claims()), Ok(()));
        assert_eq!(rule.check(&snp_claims(milan())), Ok(()));
        assert!(rule.check(&Claims { tee: Tee::Snp, ..claims() }).unwrap_err().contains("no claims of snp"));
        let cases = [
            (Claims { tee: Tee::Tdx, ..claims() }, "tee is tdx, the release rule wants snp or sample; ".to_owned()),
            (
                Claims { launch_measurement: vec![0x33; 48], ..claims() },
                format!("launch_measurement is {}, the release rule wants {MEASUREMENT}; ", "33".repeat(48)),
            ),
            (
                Claims { launch_measurement: Vec::new(), ..claims() },
                format!("launch_measurement is none, the release rule wants {MEASUREMENT}; "),
            ),
            (
                Claims { init_data: vec![0x44; 32], ..claims() },
                format!("init_data is {}, the release rule wants {INITDATA}; ", "44".repeat(32)),
            ),
            (Claims { init_data: vec![0; 32], ..claims() }, format!("init_data is none, the release rule wants {INITDATA}; ")),
        ];
        for (claims, wanted) in cases {
            let refusal = rule.check(&claims).unwrap_err();
            assert!(refusal.starts_with(&wanted) && !refusal.contains('\n'), "{refusal}");
        }
    }

    #[test]
    fn a_tpm_is_known_by_its_key() {
        let of_tpm = text().replace("\"sample\"", "\"tpm\"");
        let details = |ak: u8| Details::Tpm(TpmClaims { ak: vec![ak; 32], pcrs: Vec::new(), images: None });
        let claims = |ak| Claims { tee: Tee::Tpm, details: details(ak), ..claims() };
        let open = Rule::parse(&of_tpm).unwrap();
        assert!(open.check(&claims(9)).is_ok() && !open.names_tpm());
        let rule = Rule::parse(&format!("{of_tpm}tpm.ak = '{}'\n", "09".repeat(32))).unwrap();
        assert!(rule.check(&claims(9)).is_ok() && rule.names_tpm());
        let refusal = rule.check(&claims(8)).unwrap_err();
        assert!(refusal.starts_with(&format!("tpm.ak is {}, the release rule wants {}; ", "08".repeat(32), "09".repeat(32))), "{refusal}");
        assert!(Rule::parse(&format!("{of_tpm}tpm.ak = '00'\n")).is_err());
        assert!(Rule::parse(&format!("{}tpm.ak = '{}'\n", text(), "09".repeat(32))).unwrap_err().to_string().contains("does not name tpm"));
    }

    #[test]
    fn a_rule_that_is_written_is_read() {
        let rule = Rule::exactly(Tee::Sample, &[0x11; 48], &INITDATA.parse().unwrap()).unwrap();
        assert_eq!(rule.check(&claims()), Ok(()));
        assert!(rule.check(&Claims { tee: Tee::Snp, ..claims() }).is_err());
        assert!(Rule::parse(rule.text()).unwrap().check(&claims()).is_ok());
        assert!(Rule::exactly(Tee::Sample, &[], &INITDATA.parse().unwrap()).is_err(), "no rule for guests without a measurement");
    }

    #[test]
    fn long_lists_are_not_repeated_whole() {
        let many: Vec<String> = (0..20).map(|n| format!("\"{}\"", format!("{n:02x}").repeat(48))).collect();
        let rule = Rule::parse(&text().replace(&format!("{MEASUREMENT:?}"), &format!("[{}]", many.join(",")))).unwrap();
        let refusal = rule.check(&claims().clone()).map_or_else(|e| e, |()| String::new());
        assert_eq!(refusal, "", "0x11 is in the list");
        let refusal = rule.check(&Claims { launch_measurement: vec![0xee; 48], ..claims() }).unwrap_err();
        assert!(refusal.contains("or one of 16 more") && refusal.len() < 700, "{refusal}");
    }

    #[test]
    fn rules_that_leave_something_open_are_refused() {
        let good = text();
        let cases = [
            (good.replace("tee = [\"snp\", \"sample\"]\n", ""), "tee"),
            (good.replace(&format!("init_data = [{INITDATA:?}]\n"), ""), "init_data"),
            (good.replace(&format!("launch_measurement = {MEASUREMENT:?}\n"), ""), "launch_measurement"),
            (good.replace(&format!("[{INITDATA:?}]"), "[]"), "init_data: needs between"),
            (good.replace(INITDATA, "any"), "init_data"),
            (good.replace(INITDATA, &"22".repeat(32)), "init_data"),
            (good.replace(MEASUREMENT, "*"), "not hex"),
            (good.replace(MEASUREMENT, "00"), "32, 48 or 64 bytes"),
            (good.replace("\"snp\"", "\"none\""), "no TEE"),
            (format!("{good}until = 3\n"), "line 4"),
            (format!("{good}[snp]\nvmlp = 3\n"), "line 5"),
            (format!("{}[snp]\n", good.replace("\"snp\", ", "")), "tee does not name snp"),
            (good.replace(&format!("{MEASUREMENT:?}"), "7"), "a text or a list"),
            ("\u{0}".into(), "line 1"),
            ("#".repeat(MAX_RULE + 1), "longer than"),
        ];
        for (text, wanted) in cases {
            let error = Rule::parse(&text).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{text:.80}: {error}");
        }
    }
}
