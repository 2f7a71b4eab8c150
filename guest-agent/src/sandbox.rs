//! The one sandbox of this machine: made once, by CreateSandbox, and then never changed.

use crate::{
    attester,
    boot::{clock, modules::Modules},
    containers::ContainerError,
    network::{self, NetworkError},
    pull::{Access, PulledImage, Puller},
    scratch::{Scratch, ScratchError},
    stages::Stages,
    vsock::Courier,
};
use attestation::{BrokerClient, ClientError};
use log::{info, warn};
use policy::{ImageSettings, Initdata, InitdataDigest, InitdataError, Policy, PolicyError};
use protocol::api;
use std::sync::Arc;
use thiserror::Error;
use tokio::{sync::OnceCell, task::spawn_blocking};
use transport::{HttpClient, HttpError};

/// Why there is no sandbox. The machine then does nothing more: the host may only end it.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The owner's configuration.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
    /// The policy in it.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The broker in it.
    #[error(transparent)]
    Broker(#[from] ClientError),
    /// HTTP over the courier.
    #[error("broker: {0}")]
    Http(#[from] HttpError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A task ended without its result.
    #[error("sandbox: {0}")]
    Aborted(String),
    /// The hostname.
    #[error("hostname: {0}")]
    Hostname(#[source] nix::errno::Errno),
}

/// Scratch, prepared once, by whoever needs it first.
#[derive(Default)]
pub struct ScratchCell(OnceCell<Scratch>);

impl ScratchCell {
    /// The scratch space; the first caller makes it, others wait.
    pub async fn get(&self, modules: &Arc<Modules>) -> Result<Scratch, ScratchError> {
        let prepare = || async {
            let modules = modules.clone();
            let made = spawn_blocking(move || Scratch::prepare(&modules)).await;
            made.map_err(|e| ScratchError::Io { path: "prepare".into(), source: std::io::Error::other(e) })?
        };
        self.0.get_or_try_init(prepare).await.cloned()
    }
}

/// What the machine has whether there is a sandbox or not.
#[derive(Clone)]
pub struct Machine {
    /// Kernel modules.
    pub modules: Arc<Modules>,
    /// Scratch.
    pub scratch: Arc<ScratchCell>,
}

/// The sandbox.
pub struct Sandbox {
    hostname: String,
    policy: Policy,
    machine: Machine,
    puller: Puller,
}

impl Sandbox {
    /// Reads the owner's configuration, sets up clock, name and network, and begins to attest in the background. Gives the digest
    /// of the initdata that counts, empty without one.
    pub async fn create(request: &api::CreateSandboxRequest, machine: Machine) -> Result<(Self, String), SandboxError> {
        let initdata = match request.initdata.as_slice() {
            [] => None,
            packed => Some(Initdata::parse_gzip(packed)?),
        };
        let policy = Policy::from_initdata(initdata.as_ref().map(|(initdata, _)| initdata))?;
        let settings = ImageSettings::from_initdata(initdata.as_ref().map(|(initdata, _)| initdata))?;
        if let Err(e) = clock::set_forward(request.host_time) {
            warn!("clock: {e}");
        }
        let hostname = if request.hostname.is_empty() { &request.sandbox_id } else { &request.hostname };
        // HOST_NAME_MAX, limits.h; an id may be longer.
        let hostname: String = hostname.chars().take(64).collect();
        nix::unistd::sethostname(&hostname).map_err(SandboxError::Hostname)?;
        let (modules, interfaces, routes) = (machine.modules.clone(), request.interfaces.clone(), request.routes.clone());
        let network = spawn_blocking(move || network::set_up(&modules, &interfaces, &routes)).await;
        network.map_err(|e| SandboxError::Aborted(e.to_string()))??;
        let broker = match &initdata {
            Some((initdata, digest)) => broker(initdata, digest)?,
            None => None,
        };
        if let Some(broker) = broker.clone() {
            // While the host looks for the image; whoever needs a key waits for this handshake or repeats its error.
            tokio::spawn(async move {
                if let Err(e) = broker.attest().await {
                    warn!("attestation: {e}");
                }
            });
        }
        let digest = initdata.map(|(_, digest)| digest.to_string()).unwrap_or_default();
        info!(sandbox = request.sandbox_id, initdata = digest, broker = broker.is_some(); "sandbox created");
        Ok((Self { hostname, policy, machine, puller: Puller::new(Courier, Access::new(settings, broker)) }, digest))
    }

    /// The name that containers see as theirs.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// What the host may ask for.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Kernel modules.
    pub fn modules(&self) -> Arc<Modules> {
        self.machine.modules.clone()
    }

    /// The scratch space.
    pub async fn scratch(&self) -> Result<Scratch, ScratchError> {
        self.machine.scratch.get(&self.machine.modules).await
    }

    /// Fetches, verifies and unpacks the image of a request, if the policy lets it run.
    pub async fn pull(&self, request: &api::CreateContainerRequest, stages: &mut Stages) -> Result<PulledImage, ContainerError> {
        let resolved = self.puller.resolve(request, &self.policy, stages).await?;
        resolved.admit(&self.policy)?;
        let scratch = self.scratch().await?;
        stages.end("scratch");
        Ok(self.puller.fetch(resolved, &scratch, stages).await?)
    }
}

/// A client of the broker that the initdata names.
fn broker(initdata: &Initdata, digest: &InitdataDigest) -> Result<Option<Arc<BrokerClient>>, SandboxError> {
    let Some(address) = initdata.broker()? else { return Ok(None) };
    let http = HttpClient::new(Arc::new(Courier), address.cert.as_deref())?;
    let attester = attester::of_this_machine(digest.bytes());
    Ok(Some(Arc::new(BrokerClient::new(http, &address.url, attester, Some(initdata.toml().to_owned()))?)))
}
