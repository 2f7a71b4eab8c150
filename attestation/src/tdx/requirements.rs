//! What an owner demands of a genuine TDX quote: the table `[tdx]` of a release rule.
//!
//! ```toml
//! [tdx]
//! tcb_status = ["UpToDate", "SWHardeningNeeded"]     # UpToDate alone where nothing is said
//! allow_advisories = ["INTEL-SA-00837"]              # any where nothing is said
//! min_evaluation = 17                                # of Intel's data
//! min_tcb_date = "2024-11-13T00:00:00Z"              # of what the platform meets
//! min_tee_tcb_svn = "07010300…"                      # 16 bytes, each a floor
//! fmspc = ["b0c06f000000"]
//! mr_seam = ["<48 bytes>"]                           # likewise mr_td, mr_owner, mr_owner_config, rtmr0, rtmr1, rtmr2, rtmr3;
//!                                                    # rtmr3 alone may be zeros: nothing was measured since the launch
//! mr_service_td = ["<48 bytes>"]                     # none may be bound where nothing is said
//! xfam = [0x602e7]
//!
//! [tdx.attributes]
//! allow = ["profiling"]                              # "debug" and "profiling" are refused unless they stand here
//! require = ["sept-ve-disable"]
//! refuse = ["perfmon", "key-locker"]
//! ```

use crate::{
    mismatch::{mismatch, shown},
    rule_table::{Id, Register, name, one_of, one_or_more},
    tdx::{TcbStatus, TdxClaims, claims::Attribute},
};
use serde::{Deserialize, Deserializer, de::Error};

/// The table. Without it, all of its defaults hold: up to date, no debugging, profiling, migration or service guests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requirements {
    #[serde(deserialize_with = "one_or_more")]
    tcb_status: Vec<TcbStatus>,
    allow_advisories: Option<Vec<String>>,
    min_evaluation: u32,
    #[serde(deserialize_with = "date")]
    min_tcb_date: u64,
    min_tee_tcb_svn: Option<Id<16>>,
    #[serde(deserialize_with = "one_or_more")]
    fmspc: Vec<Id<6>>,
    #[serde(deserialize_with = "one_or_more")]
    mr_seam: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    mr_td: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    mr_owner: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    mr_owner_config: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    mr_service_td: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    rtmr0: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    rtmr1: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    rtmr2: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    rtmr3: Vec<Register>,
    xfam: Vec<u64>,
    attributes: AttributeBits,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AttributeBits {
    allow: Vec<Allowable>,
    refuse: Vec<Attribute>,
    require: Vec<Attribute>,
}

/// What is refused unless it is allowed. Nothing else can be allowed, so that no rule says something without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Allowable {
    Debug,
    Profiling,
}

impl Requirements {
    /// Whether a guest with these claims is what the owner wants; else, on one line, what is not.
    pub fn check(&self, claims: &TdxClaims) -> Result<(), String> {
        self.check_attributes(claims)?;
        self.check_measurements(claims)?;
        self.check_platform(claims)
    }

    fn check_attributes(&self, claims: &TdxClaims) -> Result<(), String> {
        let remedy = "launch it with other attributes";
        for (allowable, bit, danger) in [
            (Some(Allowable::Debug), Attribute::Debug, "the host can read the memory of such a guest"),
            (Some(Allowable::Profiling), Attribute::Profiling, "the host can follow what such a guest executes"),
            // Which the verification of the quote refuses itself, as it does a guest without `sept-ve-disable`: no rule can let it in.
            (None, Attribute::Migratable, "such a guest can be taken elsewhere"),
        ] {
            let allowed = allowable.is_some_and(|allowable| self.attributes.allow.contains(&allowable));
            if bit.is_set(claims.attributes) && !allowed {
                return Err(format!("tdx.attributes has {bit} set, the release rule does not allow it: {danger}; {remedy}"));
            }
        }
        if let Some(bit) = self.attributes.refuse.iter().find(|bit| bit.is_set(claims.attributes)) {
            return Err(format!("tdx.attributes has {} set, the release rule refuses it; {remedy}", name(*bit)));
        }
        if let Some(bit) = self.attributes.require.iter().find(|bit| !bit.is_set(claims.attributes)) {
            return Err(format!("tdx.attributes does not have {} set, the release rule requires it; {remedy}", name(*bit)));
        }
        if !self.xfam.is_empty() && !self.xfam.contains(&claims.xfam) {
            let wanted: Vec<String> = self.xfam.iter().map(|xfam| format!("{xfam:#x}")).collect();
            return Err(mismatch("tdx.xfam", &format!("{:#x}", claims.xfam), &wanted, "launch it with another processor model"));
        }
        Ok(())
    }

    fn check_measurements(&self, claims: &TdxClaims) -> Result<(), String> {
        let remedy = "launch what the rule names, or add this one to the rule";
        one_of("tdx.mr_td", &claims.mr_td, &self.mr_td, remedy)?;
        one_of("tdx.rtmr0", &claims.rtmr0, &self.rtmr0, remedy)?;
        one_of("tdx.rtmr1", &claims.rtmr1, &self.rtmr1, remedy)?;
        one_of("tdx.rtmr2", &claims.rtmr2, &self.rtmr2, remedy)?;
        one_of("tdx.rtmr3", &claims.rtmr3, &self.rtmr3, remedy)?;
        one_of("tdx.mr_owner", &claims.mr_owner, &self.mr_owner, remedy)?;
        one_of("tdx.mr_owner_config", &claims.mr_owner_config, &self.mr_owner_config, remedy)?;
        if self.mr_service_td.is_empty() && claims.mr_service_td != [0; 48] {
            let found = shown(&claims.mr_service_td);
            let remedy = "launch it without service guests, or name them in the rule";
            return Err(mismatch("tdx.mr_service_td", &found, &["none"], remedy));
        }
        one_of("tdx.mr_service_td", &claims.mr_service_td, &self.mr_service_td, remedy)
    }

    fn check_platform(&self, claims: &TdxClaims) -> Result<(), String> {
        let update = "update that machine's firmware";
        let allowed: &[TcbStatus] = if self.tcb_status.is_empty() { &[TcbStatus::UpToDate] } else { &self.tcb_status };
        if !allowed.contains(&claims.tcb_status) {
            let open = if claims.advisories.is_empty() { String::new() } else { format!(" ({})", claims.advisories.join(", ")) };
            return Err(mismatch("tdx.tcb_status", &format!("{}{open}", claims.tcb_status), allowed, update));
        }
        if let Some(allowed) = &self.allow_advisories
            && let Some(open) = claims.advisories.iter().find(|open| !allowed.contains(open))
        {
            return Err(format!("{open} is open on that machine, the release rule does not allow it (tdx.allow_advisories); {update}"));
        }
        if claims.evaluation < self.min_evaluation {
            let (found, min) = (claims.evaluation, self.min_evaluation);
            return Err(format!(
                "Intel's evaluation is number {found}, the release rule wants at least {min} (tdx.min_evaluation); give the broker newer collateral"
            ));
        }
        if claims.tcb_date < self.min_tcb_date {
            let (found, min) = (claims.tcb_date, self.min_tcb_date);
            return Err(format!(
                "the platform meets the TCB of {found}, the release rule wants at least that of {min} (tdx.min_tcb_date, seconds since 1970); {update}"
            ));
        }
        if let Some(min) =
            self.min_tee_tcb_svn.as_ref().filter(|min| claims.tee_tcb_svn.iter().zip(min.bytes()).any(|(found, min)| found < min))
        {
            let found = hex::encode(claims.tee_tcb_svn);
            return Err(format!("tdx.min_tee_tcb_svn: it is {found}, the release rule wants at least {min} in each byte; {update}"));
        }
        one_of("tdx.fmspc", &claims.fmspc, &self.fmspc, "run it on such a platform, or add this one to the rule")?;
        one_of("tdx.mr_seam", &claims.mr_seam, &self.mr_seam, "run it on a machine with that TDX module, or add this one to the rule")
    }
}

/// A date of RFC 3339 in UTC, as Intel writes it, to seconds since 1970.
fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    seconds(&text).ok_or_else(|| D::Error::custom("a date is written as \"2024-11-13T00:00:00Z\""))
}

fn seconds(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 20 || [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'Z')].iter().any(|(at, c)| bytes[*at] != *c) {
        return None;
    }
    let part = |range: std::ops::Range<usize>| text.get(range).filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?.parse::<u64>().ok();
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since the first of March of the year 0, so that the leap day is the last of a year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests;
