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
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Endorsements {
    /// Directory with certificates of chips and collateral of platforms; what is fetched is kept there
    #[arg(long, value_name = "DIR")]
    endorsements: Option<PathBuf>,
    /// Address of AMD's key distribution service or of a mirror of it, for certificates that are not at hand; `none` asks nobody, and
    /// so does a command that works offline if it is not given
    #[arg(long, value_name = "URL")]
    amd_service: Option<String>,
    /// Address of Intel's provisioning certification service or of a cache of it (PCCS), for collateral that is not at hand or has run
    /// out; `none` and no address mean the same as for AMD's
    #[arg(long, value_name = "URL")]
    intel_service: Option<String>,
}

/// Whom to ask where no address is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// The maker's own service.
    Maker,
    /// Nobody.
    Nobody,
}

/// The address to ask, if any.
fn service<'a>(given: Option<&'a str>, maker: &'a str, default: Service) -> Option<&'a str> {
    match given {
        Some("none") => None,
        Some(url) => Some(url),
        None => (default == Service::Maker).then_some(maker),
    }
}

impl Endorsements {
    /// A verifier for each kind of hardware that is known.
    pub(crate) fn verifiers(&self) -> Result<Vec<Box<dyn Verifier>>> {
        Ok(vec![Box::new(self.snp(Service::Maker)?), Box::new(self.tdx(Service::Maker)?), Box::new(TpmVerifier)])
    }

    /// A verifier of SNP reports.
    pub(crate) fn snp(&self, default: Service) -> Result<SnpVerifier> {
        let mut store = CertificateStore::new();
        if let Some(directory) = &self.endorsements {
            store = store.with_directory(directory.clone());
        }
        if let Some(url) = service(self.amd_service.as_deref(), AMD_SERVICE, default) {
            store = store.with_service(url, HttpClient::new(Arc::new(TcpDialer), None)?);
        }
        SnpVerifier::new(store).context("AMD's certificates in this program")
    }

    /// A verifier of TDX quotes.
    pub(crate) fn tdx(&self, default: Service) -> Result<TdxVerifier> {
        let mut store = CollateralStore::new();
        if let Some(directory) = &self.endorsements {
            store = store.with_directory(directory.join("tdx"));
        }
        if let Some(url) = service(self.intel_service.as_deref(), INTEL_SERVICE, default) {
            store = store.with_service(url, HttpClient::new(Arc::new(TcpDialer), None)?);
        }
        Ok(TdxVerifier::new(store))
    }
}
