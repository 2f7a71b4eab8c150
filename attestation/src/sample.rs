//! The TEE `sample`: for development, and it proves nothing. Whoever can open a socket can write this evidence. It has the same shape
//! as a real one, so that everything around it is the code that real evidence goes through; a broker takes it only when it was
//! started with its development flag.
//!
//! ```json
//! {"svn": "1", "report_data": "<base64>", "launch_measurement": "<hex>", "init_data": "<hex>"}
//! ```
//! The first two members are Trustee's; it ignores the others.

use crate::{
    encoding::{from_standard, standard},
    evidence::{Attester, Claims, Details, EvidenceError, Verifier},
    kbs::Tee,
    report_data::ReportData,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest digest in either field, in bytes.
const MAX_DIGEST: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
struct Evidence {
    svn: String,
    report_data: String,
    #[serde(default)]
    launch_measurement: String,
    #[serde(default)]
    init_data: String,
}

/// Says what it was told to say.
#[derive(Debug, Clone)]
pub struct SampleAttester {
    launch_measurement: Vec<u8>,
    init_data: Vec<u8>,
}

impl SampleAttester {
    /// An attester that claims this launch measurement and this digest of initdata (empty without initdata).
    pub fn new(launch_measurement: Vec<u8>, init_data: Vec<u8>) -> Self {
        Self { launch_measurement, init_data }
    }
}

impl Attester for SampleAttester {
    fn tee(&self) -> Tee {
        Tee::Sample
    }

    fn evidence(&self, report_data: &ReportData) -> Result<Value, EvidenceError> {
        let evidence = Evidence {
            svn: "1".into(),
            report_data: standard(report_data),
            launch_measurement: hex::encode(&self.launch_measurement),
            init_data: hex::encode(&self.init_data),
        };
        serde_json::to_value(evidence).map_err(|e| EvidenceError::Collect { tee: Tee::Sample, reason: e.to_string() })
    }
}

/// Checks form and binding, which is all that there is to check, and says so each time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SampleVerifier;

impl Verifier for SampleVerifier {
    fn tee(&self) -> Tee {
        Tee::Sample
    }

    fn verify(&self, evidence: &Value, report_data: &ReportData, _now: u64) -> Result<Claims, EvidenceError> {
        log::warn!(tee = "sample"; "development evidence: it PROVES NOTHING about who asks, its claims are taken as they stand");
        let malformed = |reason: String| EvidenceError::Malformed { tee: Tee::Sample, reason };
        let evidence: Evidence = Evidence::deserialize(evidence).map_err(|e| malformed(e.to_string()))?;
        let found = from_standard(&evidence.report_data).ok_or_else(|| malformed("report_data is not base64".into()))?;
        if found != report_data {
            // At most the length of a digest of what the peer sent goes into the text.
            let found = hex::encode(&found[..found.len().min(report_data.len())]);
            return Err(EvidenceError::Binding { tee: Tee::Sample, found, wanted: hex::encode(report_data) });
        }
        let digest = |text: &str, name: &str| {
            let bad = || malformed(format!("{name} is not at most {MAX_DIGEST} bytes of hex"));
            if text.len() > 2 * MAX_DIGEST {
                return Err(bad());
            }
            hex::decode(text).map_err(|_| bad())
        };
        Ok(Claims {
            tee: Tee::Sample,
            launch_measurement: digest(&evidence.launch_measurement, "launch_measurement")?,
            init_data: digest(&evidence.init_data, "init_data")?,
            report_data: found,
            details: Details::None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const BOUND: ReportData = [5; 48];

    #[test]
    fn what_is_said_is_read() {
        let evidence = SampleAttester::new(vec![1; 48], vec![2; 32]).evidence(&BOUND).unwrap();
        let claims = SampleVerifier.verify(&evidence, &BOUND, 0).unwrap();
        assert_eq!((claims.tee, claims.launch_measurement, claims.init_data), (Tee::Sample, vec![1; 48], vec![2; 32]));
        assert_eq!(claims.report_data, BOUND);
    }

    #[test]
    fn the_short_form_of_others_claims_nothing() {
        let claims = SampleVerifier.verify(&json!({"svn": "1", "report_data": standard(&BOUND)}), &BOUND, 0).unwrap();
        assert!(claims.launch_measurement.is_empty() && claims.init_data.is_empty());
    }

    #[test]
    fn evidence_for_another_handshake_is_a_replay() {
        let evidence = SampleAttester::new(vec![1; 48], vec![]).evidence(&BOUND).unwrap();
        assert!(matches!(SampleVerifier.verify(&evidence, &[6; 48], 0), Err(EvidenceError::Binding { .. })));
        let long = json!({"svn": "1", "report_data": standard(&[5; 100_000])});
        let error = SampleVerifier.verify(&long, &BOUND, 0).unwrap_err();
        assert!(error.to_string().len() < 500);
    }

    #[test]
    fn malformed_evidence_is_refused() {
        let bound = standard(&BOUND);
        let bad = [
            json!(null),
            json!([]),
            json!({"svn": "1"}),
            json!({"svn": 1, "report_data": bound}),
            json!({"svn": "1", "report_data": "%"}),
            json!({"svn": "1", "report_data": bound, "launch_measurement": "xx"}),
            json!({"svn": "1", "report_data": bound, "init_data": "0"}),
            json!({"svn": "1", "report_data": bound, "init_data": "00".repeat(65)}),
        ];
        for evidence in bad {
            assert!(matches!(SampleVerifier.verify(&evidence, &BOUND, 0), Err(EvidenceError::Malformed { .. })), "{evidence}");
        }
    }
}
