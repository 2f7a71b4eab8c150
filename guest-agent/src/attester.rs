//! Which evidence this machine can give.

use crate::boot::cmdline;
use attestation::{Attester, sample::SampleAttester};
use log::warn;
use std::sync::Arc;

/// The machine's attester. `initdata_digest` is what a TEE would have measured.
pub fn of_this_machine(initdata_digest: &[u8]) -> Arc<dyn Attester> {
    warn!("no TEE: the evidence of this machine is a sample that proves nothing");
    let measurement = cmdline::measurement().and_then(|text| hex::decode(text).ok()).unwrap_or_default();
    Arc::new(SampleAttester::new(measurement, initdata_digest.to_vec()))
}
