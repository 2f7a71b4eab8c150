//! Where verification finds the certificates that evidence does not bring.

use anyhow::{Context, Result};
use attestation::{
    Verifier,
    snp::{
        SnpVerifier,
        store::{AMD_SERVICE, CertificateStore},
    },
    tdx::{
        TdxVerifier,
        collateral::{CollateralStore, INTEL_SERVICE},
    },
    tpm::TpmVerifier,
};
use std::{path::PathBuf, sync::Arc};
use transport::{HttpClient, TcpDialer};

/// Options of every command that verifies evidence.
#[derive(Debug, clap::Args)]
pub(crate) struct Endorsements {
    /// Directory with certificates of chips and collateral of platforms; what is fetched is kept there
    #[arg(long, value_name = "DIR")]
    endorsements: Option<PathBuf>,
    /// Address of AMD's key distribution service or of a mirror of it, for certificates that are not at hand; `none` asks nobody
    #[arg(long, value_name = "URL", default_value = AMD_SERVICE)]
    amd_service: String,
    /// Address of Intel's provisioning certification service or of a cache of it (PCCS), for collateral that is not at hand or has run
    /// out; `none` asks nobody
    #[arg(long, value_name = "URL", default_value = INTEL_SERVICE)]
    intel_service: String,
}

impl Endorsements {
    /// A verifier for each kind of hardware that is known.
    pub(crate) fn verifiers(&self) -> Result<Vec<Box<dyn Verifier>>> {
        Ok(vec![Box::new(self.snp()?), Box::new(self.tdx()?), Box::new(TpmVerifier)])
    }

    fn snp(&self) -> Result<SnpVerifier> {
        let mut store = CertificateStore::new();
        if let Some(directory) = &self.endorsements {
            store = store.with_directory(directory.clone());
        }
        if self.amd_service != "none" {
            store = store.with_service(&self.amd_service, HttpClient::new(Arc::new(TcpDialer), None)?);
        }
        SnpVerifier::new(store).context("AMD's certificates in this program")
    }

    fn tdx(&self) -> Result<TdxVerifier> {
        let mut store = CollateralStore::new();
        if let Some(directory) = &self.endorsements {
            store = store.with_directory(directory.join("tdx"));
        }
        if self.intel_service != "none" {
            store = store.with_service(&self.intel_service, HttpClient::new(Arc::new(TcpDialer), None)?);
        }
        Ok(TdxVerifier::new(store))
    }
}
