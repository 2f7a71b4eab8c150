//! The decision over one resource for one guest.

use crate::rule::Rule;
use attestation::{Claims, Tee};

/// Whether a guest with these claims gets a resource with this rule; else why not, on one line.
pub(crate) fn decide(claims: &Claims, rule: Option<&Rule>, stored: bool, development: bool, now: u64) -> Result<(), String> {
    // Asked here too, although such a guest gets no session: a token that was issued in development lives on after a restart.
    if claims.tee == Tee::Sample && !development {
        return Err(sample_refused());
    }
    let Some(rule) = rule else {
        let detail = if stored { "it has no release rule, so nobody gets it" } else { "there is no such resource" };
        return Err(format!("{detail}; store it with a release rule"));
    };
    rule.in_force(now)?;
    rule.check(claims)?;
    if claims.tee == Tee::Tpm && !rule.names_tpm() && !development {
        return Err(
            "the release rule does not say whose TPM it means, and anybody can emulate one; name its key (tpm.ak) in the rule".into()
        );
    }
    if stored { Ok(()) } else { Err("it has a release rule but no content; store it".into()) }
}

/// What every refusal of evidence of type `sample` says.
pub(crate) fn sample_refused() -> String {
    "evidence of type sample proves nothing and this broker does not take it; attest with a TEE, or, to develop, start the broker with its \
     development flag"
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use attestation::{Details, tpm::TpmClaims};

    #[test]
    fn a_tpm_without_a_name_is_for_development() {
        let claims = Claims {
            tee: Tee::Tpm,
            launch_measurement: vec![1; 32],
            init_data: vec![2; 32],
            report_data: vec![],
            details: Details::Tpm(TpmClaims { ak: vec![3; 32], pcrs: Vec::new(), images: None }),
        };
        let digest = format!("sha256:{}", "02".repeat(32)).parse().unwrap();
        let rule = Rule::exactly(Tee::Tpm, &[1; 32], &digest).unwrap();
        assert_eq!(decide(&claims, Some(&rule), true, true, 0), Ok(()));
        assert!(decide(&claims, Some(&rule), true, false, 0).unwrap_err().contains("tpm.ak"));
        let named = Rule::parse(&format!("{}\n[tpm]\nak = '{}'\n", rule.text(), "03".repeat(32))).unwrap();
        assert_eq!(decide(&claims, Some(&named), true, false, 0), Ok(()));
    }

    #[test]
    fn nothing_is_released_without_a_rule_a_content_and_a_tee() {
        let claims = Claims {
            tee: Tee::Sample,
            launch_measurement: vec![1; 48],
            init_data: vec![2; 32],
            report_data: vec![],
            details: Details::None,
        };
        let digest = format!("sha256:{}", "02".repeat(32)).parse().unwrap();
        let rule = Rule::exactly(Tee::Sample, &[1; 48], &digest).unwrap();
        assert_eq!(decide(&claims, Some(&rule), true, true, 0), Ok(()));
        assert!(decide(&claims, Some(&rule), true, false, 0).unwrap_err().contains("proves nothing"));
        assert!(decide(&claims, None, true, true, 0).unwrap_err().contains("no release rule"));
        assert!(decide(&claims, None, false, true, 0).unwrap_err().contains("no such resource"));
        assert!(decide(&claims, Some(&rule), false, true, 0).unwrap_err().contains("no content"));
        let other = Claims { init_data: vec![3; 32], ..claims };
        assert!(decide(&other, Some(&rule), true, true, 0).unwrap_err().contains("init_data is 0303"));
    }
}
