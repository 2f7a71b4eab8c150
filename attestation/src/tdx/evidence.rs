//! Quote and event log as a guest sends them, in Trustee's form:
//!
//! ```json
//! {"quote": "<base64>", "cc_eventlog": "<base64>", "images": ["sha256:…"]}
//! ```
//! The last is ours: what was extended into RTMR3 (see [`crate::images`]).

use crate::{
    encoding::{from_standard, one_line, standard},
    evidence::EvidenceError,
    kbs::Tee,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest quote, in bytes: what the kernel's own interface gives at most.
pub const MAX_QUOTE: usize = 16 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images: Option<Vec<String>>,
}

/// The evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxEvidence {
    /// The quote, as the quoting enclave made it.
    pub quote: Vec<u8>,
    /// Manifests of the images that were run, `sha256:…`; none where the evidence does not say.
    pub images: Option<Vec<String>>,
}

impl TdxEvidence {
    /// The JSON form. The event log is left out: what was measured is predicted, not replayed.
    pub fn to_json(&self) -> Result<Value, EvidenceError> {
        let document = Document { quote: standard(&self.quote), cc_eventlog: None, images: self.images.clone() };
        serde_json::to_value(document).map_err(|e| EvidenceError::Collect { tee: Tee::Tdx, reason: e.to_string() })
    }

    /// Reads the JSON form within its bounds.
    pub fn from_json(evidence: &Value) -> Result<Self, EvidenceError> {
        let malformed = |reason: String| EvidenceError::Malformed { tee: Tee::Tdx, reason };
        let document = Document::deserialize(evidence).map_err(|e| malformed(one_line(&e.to_string(), 256)))?;
        if document.quote.len() > MAX_QUOTE * 4 / 3 + 4 {
            return Err(malformed(format!("quote: longer than {MAX_QUOTE} bytes")));
        }
        let quote = from_standard(&document.quote).ok_or_else(|| malformed("quote is not base64".into()))?;
        Ok(Self { quote, images: document.images })
    }
}
