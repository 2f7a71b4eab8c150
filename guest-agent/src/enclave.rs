//! Whether this machine is a guest of SEV-SNP or TDX, and its attester if it is.

use crate::boot::{
    modules::{ModuleError, Modules, Stage},
    mounts,
};
use attestation::{
    Attester, EvidenceError,
    evidence::is_init_data,
    snp::{self, SnpAttester, attester::Source},
    tdx::{self, TdxAttester},
    tsm::{self, Tsm},
};
use log::{info, warn};
use std::{arch::x86_64::__cpuid, path::Path, sync::Arc};
use thiserror::Error;

/// The largest of the processor's extended functions, and the one that describes memory encryption (AMD APM volume 3, E.4.17).
const LARGEST_EXTENDED: u32 = 0x8000_0000;
const ENCRYPTION: u32 = 0x8000_001f;
/// EAX of the latter: SNP.
const HAS_SNP: u32 = 1 << 4;

/// The largest of the basic functions, and the one that names TDX (Intel TDX Module Base Architecture Specification, 11.2).
const LARGEST: u32 = 0;
const TDX_NAME: u32 = 0x21;

/// Why an enclave does nothing: what it did could not be what its owner wants.
#[derive(Debug, Error)]
pub enum EnclaveError {
    /// The kernel's interface.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The hardware gives no report.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The host launched this machine for another initdata than it handed over, or for one and handed over none.
    #[error("this {tee} guest was launched for initdata with digest {launched}, and {given}; hand over that initdata")]
    InitData {
        /// The enclave.
        tee: &'static str,
        /// Hexadecimal.
        launched: String,
        /// What the host did.
        given: String,
    },
}

/// The attester of this machine, if it is an enclave: once what it was launched for is known to be what the host has handed over. May block.
pub fn attester(modules: &Modules, initdata_digest: Option<&[u8]>) -> Result<Option<Arc<dyn Attester>>, EnclaveError> {
    // Only to spare an ordinary machine the modules. A host that lies here gets a machine without evidence.
    if !is_likely() {
        return Ok(None);
    }
    // The ciphers that they share are in the first.
    modules.load(Stage::Scratch)?;
    modules.load(Stage::Tee)?;
    if let Err(error) = mounts::mount_configfs() {
        warn!("{error}: no reports by the common interface");
    }
    let tsm = Tsm::new(Path::new(tsm::ROOT));
    let provider = tsm.provider().unwrap_or_else(|error| {
        warn!("{error}: no reports by this interface");
        String::new()
    });
    let snp_device = Path::new(snp::device::PATH);
    let source = match provider.as_str() {
        tdx::attester::PROVIDER => {
            let attester = TdxAttester::new(tsm, tdx::device::PATH.into(), tdx::rtmr::PATH.into());
            bound("tdx", &attester.mr_config_id()?, initdata_digest)?;
            info!(images = attester.measures_images(); "evidence of this machine is a quote of TDX");
            return Ok(Some(Arc::new(attester)));
        }
        snp::attester::PROVIDER => Source::Tsm(tsm),
        _ if snp_device.exists() => Source::Device(snp_device.to_owned()),
        _ => return Ok(None),
    };
    let attester = SnpAttester::new(source);
    bound("snp", &attester.host_data()?, initdata_digest)?;
    info!("evidence of this machine is a report of SEV-SNP");
    Ok(Some(Arc::new(attester)))
}

/// Holds what the machine was launched for against what the host has handed over. A host that launches for an initdata and then hands over none
/// would else get a machine that does whatever it asks, and evidence that a broker takes.
fn bound(tee: &'static str, field: &[u8], digest: Option<&[u8]>) -> Result<(), EnclaveError> {
    let given = match digest {
        Some(digest) if is_init_data(field, digest) => return Ok(()),
        None if field.iter().all(|byte| *byte == 0) => return Ok(()),
        Some(digest) => format!("the host handed over one with digest {}", hex::encode(digest)),
        None => "the host handed over none".into(),
    };
    Err(EnclaveError::InitData { tee, launched: hex::encode(field), given })
}

fn is_likely() -> bool {
    let amd = __cpuid(LARGEST_EXTENDED).eax >= ENCRYPTION && __cpuid(ENCRYPTION).eax & HAS_SNP != 0;
    let name = (__cpuid(LARGEST).eax >= TDX_NAME).then(|| __cpuid(TDX_NAME));
    let intel = name.is_some_and(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"IntelTDX    ");
    amd || intel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_belongs_to_the_initdata_that_it_was_launched_for() {
        assert!(bound("snp", &[7; 32], Some(&[7; 48])).is_ok());
        assert!(bound("tdx", &[vec![7; 32], vec![0; 16]].concat(), Some(&[7; 32])).is_ok());
        assert!(bound("snp", &[0; 32], None).is_ok());
        for (field, digest) in [(&[7; 32], None), (&[7; 32], Some(&[8; 32][..])), (&[0; 32], Some(&[8; 32]))] {
            let error = bound("snp", field, digest).unwrap_err().to_string();
            assert!(error.contains("hand over that initdata") && !error.contains('\n'), "{error}");
        }
    }
}
