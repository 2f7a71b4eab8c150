//! Which evidence this machine can give, and its binding to the owner's initdata.

use crate::{
    boot::{cmdline, modules::Modules, mounts},
    enclave::{self, EnclaveError},
};
use attestation::{
    Attester,
    sample::SampleAttester,
    tpm::{DeviceError, TpmAttester, device},
};
use log::{info, warn};
use std::{path::Path, sync::Arc};
use thiserror::Error;

/// The firmware's log of what it measured (Documentation/security/tpm/tpm_event_log.rst of Linux).
const EVENT_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// The machine cannot be bound to its initdata. It then does nothing: what it did would be nobody's will.
#[derive(Debug, Error)]
pub enum BindError {
    /// The TPM.
    #[error("initdata cannot be measured: {0}")]
    Tpm(#[from] DeviceError),
    /// SNP or TDX.
    #[error(transparent)]
    Enclave(#[from] EnclaveError),
}

/// The machine's attester. Where measurements can still be made, the initdata's digest, or that there is none, is measured here: once,
/// before anything else that the host has sent is acted upon. May block.
pub fn bind(initdata_digest: Option<&[u8]>, modules: &Modules) -> Result<Arc<dyn Attester>, BindError> {
    // Before the TPM: an enclave's host may well give it one, which says what the host wants.
    if let Some(attester) = enclave::attester(modules, initdata_digest)? {
        return Ok(attester);
    }
    if device::is_there() {
        if let Err(error) = mounts::mount_securityfs() {
            warn!("{error}: evidence without the firmware's log");
        }
        let attester = TpmAttester::bind(Path::new(EVENT_LOG), initdata_digest)?;
        info!("evidence of this machine is its TPM's");
        return Ok(Arc::new(attester));
    }
    warn!("no TEE: the evidence of this machine is a sample that proves nothing");
    let measurement = cmdline::measurement().and_then(|text| hex::decode(text).ok()).unwrap_or_default();
    Ok(Arc::new(SampleAttester::new(measurement, initdata_digest.unwrap_or_default().to_vec())))
}
