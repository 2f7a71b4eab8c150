//! The JSON form of a TPM's evidence: Trustee's, with the event log and the initdata's digest beside it.
//!
//! ```json
//! {"ak_public": "<base64 of SubjectPublicKeyInfo>",
//!  "tpm_quote": {"message": "<base64 of TPMS_ATTEST>", "signature": "<base64 of TPMT_SIGNATURE>", "pcrs": ["<hex>", … 24]},
//!  "event_log": "<base64>", "init_data": "<hex>", "images": ["sha256:…"]}
//! ```

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Evidence {
    pub(super) ak_public: String,
    pub(super) tpm_quote: TpmQuote,
    /// As the firmware wrote it; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) event_log: String,
    /// What was extended into PCR 8; empty without initdata.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) init_data: String,
    /// What was extended into PCR 13; absent where others made the evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<Vec<String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TpmQuote {
    pub(super) message: String,
    pub(super) signature: String,
    pub(super) pcrs: Vec<String>,
}
