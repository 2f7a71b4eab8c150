//! What an owner demands of a genuine SNP report: the table `[snp]` of a release rule.
//!
//! ```toml
//! [snp]
//! generation = ["milan", "genoa"]            # which processors
//! signing_key = "vcek"                       # signed by the chip, not by a provider's key ("vlek")
//! vmpl = 0                                   # privilege level of who asked; 0 where nothing is said
//! min_guest_svn = 2                          # of the ID block
//! min_abi = "1.51"                           # of the firmware interface that the guest insisted on
//! min_firmware = "1.55.29"
//! refuse_provisional_firmware = true         # firmware or TCB runs that is not committed
//! id_key = ["<SHA-384>"]                     # who signed the ID block
//! author_key = ["<SHA-384>"]                 # who signed that key
//! chip_id = ["<64 bytes>"]
//! family_id = "<16 bytes>"
//! image_id = "<16 bytes>"
//! report_id = "<32 bytes>"
//! report_id_ma = "<32 bytes>"
//! launch_mitigations = 0x1                   # bits that were set at launch
//! current_mitigations = 0x1                  # bits that are set
//!
//! [snp.policy]
//! allow = ["migration"]                      # "debug" and "migration" are refused unless they stand here
//! refuse = ["smt", "cxl"]
//! require = ["single-socket", "ciphertext-hiding"]
//!
//! [snp.platform]
//! require = ["alias-check"]
//! refuse = ["smt"]
//!
//! [snp.min_tcb.milan]                        # reported; a generation without a floor is refused once there is one floor
//! bootloader = 4
//! snp = 23
//! microcode = 213
//! # likewise snp.min_committed_tcb, snp.min_launch_tcb
//! ```

use crate::{
    mismatch::mismatch,
    rule_table::{Id, name, one_of, one_or_more},
    snp::{
        Generation, SigningKey, SnpClaims, Tcb,
        claims::{Bit, PlatformInfo, Policy},
        report::Version,
    },
};
use serde::{Deserialize, Deserializer, de::Error};
use std::{collections::BTreeMap, fmt::Display};

/// The table. Without it, all of its defaults hold: no debugging, no migration, asked for at VMPL 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requirements {
    #[serde(deserialize_with = "one_or_more")]
    generation: Vec<Generation>,
    #[serde(deserialize_with = "one_or_more")]
    signing_key: Vec<SigningKey>,
    vmpl: u32,
    min_guest_svn: u32,
    #[serde(deserialize_with = "abi")]
    min_abi: Option<(u8, u8)>,
    #[serde(deserialize_with = "version")]
    min_firmware: Option<Version>,
    refuse_provisional_firmware: bool,
    #[serde(deserialize_with = "one_or_more")]
    id_key: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    author_key: Vec<Id<48>>,
    #[serde(deserialize_with = "one_or_more")]
    chip_id: Vec<Id<64>>,
    #[serde(deserialize_with = "one_or_more")]
    family_id: Vec<Id<16>>,
    #[serde(deserialize_with = "one_or_more")]
    image_id: Vec<Id<16>>,
    #[serde(deserialize_with = "one_or_more")]
    report_id: Vec<Id<32>>,
    #[serde(deserialize_with = "one_or_more")]
    report_id_ma: Vec<Id<32>>,
    launch_mitigations: u64,
    current_mitigations: u64,
    policy: PolicyBits,
    platform: PlatformBits,
    min_tcb: BTreeMap<Generation, Floor>,
    min_committed_tcb: BTreeMap<Generation, Floor>,
    min_launch_tcb: BTreeMap<Generation, Floor>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyBits {
    allow: Vec<Allowable>,
    refuse: Vec<Policy>,
    require: Vec<Policy>,
}

/// What is refused unless it is allowed. Nothing else can be allowed, so that no rule says something without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Allowable {
    Debug,
    Migration,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PlatformBits {
    refuse: Vec<PlatformInfo>,
    require: Vec<PlatformInfo>,
}

/// Lowest security versions; what is not named may be anything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Floor {
    fmc: u8,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

impl Floor {
    fn is_met(self, tcb: Tcb) -> bool {
        // Each part by itself: a newer one does not make up for an older other one.
        tcb.fmc.unwrap_or_default() >= self.fmc
            && tcb.bootloader >= self.bootloader
            && tcb.tee >= self.tee
            && tcb.snp >= self.snp
            && tcb.microcode >= self.microcode
    }
}

impl Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { fmc, bootloader, tee, snp, microcode } = *self;
        write!(f, "at least {}", Tcb { fmc: (fmc > 0).then_some(fmc), bootloader, tee, snp, microcode })
    }
}

impl Requirements {
    /// Whether a rule with this table names who signed what is launched, which then stands for a list of measurements.
    pub fn names_signer(&self) -> bool {
        !self.id_key.is_empty() || !self.author_key.is_empty()
    }

    /// Whether a guest with these claims is what the owner wants; else, on one line, what is not.
    pub fn check(&self, claims: &SnpClaims) -> Result<(), String> {
        self.check_guest(claims)?;
        self.check_machine(claims)?;
        self.check_versions(claims)
    }

    /// What was launched, and how.
    fn check_guest(&self, claims: &SnpClaims) -> Result<(), String> {
        for (allowable, bit, danger) in [
            (Allowable::Debug, Policy::Debug, "the host can read the memory of such a guest"),
            (Allowable::Migration, Policy::Migration, "a migration agent can take such a guest elsewhere"),
        ] {
            if bit.is_set(claims) && !self.policy.allow.contains(&allowable) {
                let name = name(bit);
                return Err(format!("snp.policy has {name} set, the release rule does not allow it: {danger}; launch it without {name}"));
            }
        }
        bits("snp.policy", claims, &self.policy.refuse, &self.policy.require, "launch it with another guest policy")?;
        if claims.vmpl != self.vmpl {
            let remedy = "the evidence must come from that privilege level of the guest";
            return Err(mismatch("snp.vmpl", &claims.vmpl, &[self.vmpl], remedy));
        }
        let abi = ((claims.policy >> 8) as u8, claims.policy as u8);
        if let Some(min) = self.min_abi.filter(|min| abi < *min) {
            let text = |(major, minor): (u8, u8)| format!("{major}.{minor}");
            return Err(below("snp.min_abi", "the ABI of the guest policy", &text(abi), &text(min), "launch it with another guest policy"));
        }
        if claims.guest_svn < self.min_guest_svn {
            let remedy = "launch it with an ID block of a newer guest";
            return Err(below("snp.min_guest_svn", "the guest's SVN", &claims.guest_svn, &self.min_guest_svn, remedy));
        }
        let remedy = "launch it with an ID block of that signer, or add this one to the rule";
        one_of("snp.id_key", &claims.id_key, &self.id_key, remedy)?;
        one_of("snp.author_key", &claims.author_key, &self.author_key, remedy)?;
        let remedy = "launch it with such an ID block, or add this one to the rule";
        one_of("snp.family_id", &claims.family_id, &self.family_id, remedy)?;
        one_of("snp.image_id", &claims.image_id, &self.image_id, remedy)?;
        let remedy = "the rule is for one running guest";
        one_of("snp.report_id", &claims.report_id, &self.report_id, remedy)?;
        one_of("snp.report_id_ma", &claims.report_id_ma, &self.report_id_ma, remedy)
    }

    /// Where it runs.
    fn check_machine(&self, claims: &SnpClaims) -> Result<(), String> {
        if !self.generation.is_empty() && !self.generation.contains(&claims.generation) {
            let remedy = "run it on such a processor, or add this one to the rule";
            return Err(mismatch("snp.generation", &claims.generation, &self.generation, remedy));
        }
        if !self.signing_key.is_empty() && !self.signing_key.contains(&claims.signing_key) {
            let remedy = "run it where reports are signed with such a key, or add this kind to the rule";
            return Err(mismatch("snp.signing_key", &claims.signing_key, &self.signing_key, remedy));
        }
        one_of("snp.chip_id", &claims.chip_id, &self.chip_id, "run it on that machine, or add this one to the rule")?;
        let remedy = "change the firmware's settings of that machine";
        bits("snp.platform", claims, &self.platform.refuse, &self.platform.require, remedy)
    }

    /// What runs below the guest.
    fn check_versions(&self, claims: &SnpClaims) -> Result<(), String> {
        for (key, what, tcb, floors) in [
            ("snp.min_tcb", "the reported TCB", claims.reported_tcb, &self.min_tcb),
            ("snp.min_committed_tcb", "the committed TCB", claims.committed_tcb, &self.min_committed_tcb),
            ("snp.min_launch_tcb", "the TCB at launch", claims.launch_tcb, &self.min_launch_tcb),
        ] {
            match floors.get(&claims.generation) {
                Some(floor) if !floor.is_met(tcb) => {
                    return Err(format!("{what} is {tcb}, the release rule wants {floor} ({key}); update that machine's firmware"));
                }
                None if !floors.is_empty() => {
                    let generation = claims.generation;
                    return Err(format!("the release rule has no {key}.{generation}, but floors for others; add one, or run it elsewhere"));
                }
                _ => {}
            }
        }
        if let Some(min) = self.min_firmware.filter(|min| claims.current_firmware < *min) {
            let remedy = "update that machine's firmware";
            return Err(below("snp.min_firmware", "the firmware", &claims.current_firmware, &min, remedy));
        }
        let provisional = claims.current_firmware != claims.committed_firmware || claims.current_tcb != claims.committed_tcb;
        if self.refuse_provisional_firmware && provisional {
            return Err(format!(
                "firmware {} ({}) runs but {} ({}) is committed, the release rule refuses provisional firmware; commit it on that machine",
                claims.current_firmware, claims.current_tcb, claims.committed_firmware, claims.committed_tcb
            ));
        }
        for (key, wanted, found) in [
            ("snp.launch_mitigations", self.launch_mitigations, claims.launch_mitigations),
            ("snp.current_mitigations", self.current_mitigations, claims.current_mitigations),
        ] {
            if wanted & !found.unwrap_or_default() != 0 {
                let found = found.map_or_else(|| "not in reports of this version".into(), |bits| format!("{bits:#x}"));
                let remedy = "update that machine's firmware, and launch the guest anew";
                return Err(mismatch(key, &found, &[format!("all bits of {wanted:#x}")], remedy));
            }
        }
        Ok(())
    }
}

fn bits<B: Bit>(claim: &str, claims: &SnpClaims, refuse: &[B], require: &[B], remedy: &str) -> Result<(), String> {
    if let Some(bit) = refuse.iter().find(|bit| bit.is_set(claims)) {
        return Err(format!("{claim} has {} set, the release rule refuses it; {remedy}", name(*bit)));
    }
    if let Some(bit) = require.iter().find(|bit| !bit.is_set(claims)) {
        return Err(format!("{claim} does not have {} set, the release rule requires it; {remedy}", name(*bit)));
    }
    Ok(())
}

fn below(key: &str, what: &str, found: &dyn Display, min: &dyn Display, remedy: &str) -> String {
    format!("{what} is {found}, the release rule wants at least {min} ({key}); {remedy}")
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Version>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}

fn abi<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<(u8, u8)>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parts = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts.map(Some).ok_or_else(|| D::Error::custom("an ABI version has two numbers up to 255, as \"1.51\""))
}

#[cfg(all(test, feature = "verify"))]
mod tests;
