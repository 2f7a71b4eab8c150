//! The one sandbox of this machine: made once, by CreateSandbox, and then never changed.

use crate::{
    attester::{self, BindError},
    boot::{clock, modules::Modules},
    containers::ContainerError,
    network::{self, NetworkError},
    pull::{Access, PulledImage, Puller},
    scratch::{Scratch, ScratchError},
    stages::Stages,
    sysctl::{self, SysctlError},
    vsock::Courier,
};
use attestation::{Attester, BrokerClient, ClientError};
use log::{info, warn};
use policy::{ImageSettings, Initdata, InitdataError, Policy, PolicyError};
use protocol::api;
use std::{fmt::Write, sync::Arc};
use thiserror::Error;
use tokio::{sync::OnceCell, task::spawn_blocking};
use transport::{HttpClient, HttpError};

/// Why there is no sandbox. The machine then does nothing more: the host may only end it.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The owner's configuration.
    #[error(transparent)]
    Initdata(#[from] InitdataError),
    /// Its measurement.
    #[error(transparent)]
    Bind(#[from] BindError),
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
    /// The pod's kernel parameters.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
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
    resolv_conf: String,
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
        let digest = initdata.as_ref().map(|(_, digest)| digest.bytes().to_vec());
        // Before anything else: from here on the evidence says under which initdata this machine runs.
        let modules = machine.modules.clone();
        let attester = spawn_blocking(move || attester::bind(digest.as_deref(), &modules)).await;
        let attester = attester.map_err(|e| SandboxError::Aborted(e.to_string()))??;
        let policy = Policy::from_initdata(initdata.as_ref().map(|(initdata, _)| initdata))?;
        let settings = ImageSettings::from_initdata(initdata.as_ref().map(|(initdata, _)| initdata))?;
        if let Err(e) = clock::set_forward(request.host_time) {
            warn!("clock: {e}");
        }
        let hostname = if request.hostname.is_empty() { &request.sandbox_id } else { &request.hostname };
        // HOST_NAME_MAX, limits.h; an id may be longer.
        let hostname: String = hostname.chars().take(64).collect();
        nix::unistd::sethostname(&hostname).map_err(SandboxError::Hostname)?;
        let (modules, pod, open) = (machine.modules.clone(), request.clone(), policy.is_open());
        let set_up = spawn_blocking(move || -> Result<(), SandboxError> {
            network::set_up(&modules, &pod)?;
            // Some are an interface's.
            Ok(sysctl::apply(&pod.sysctls.into_iter().collect(), open)?)
        });
        set_up.await.map_err(|e| SandboxError::Aborted(e.to_string()))??;
        let broker = match &initdata {
            Some((initdata, _)) => broker(initdata, attester)?,
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
        let (resolv_conf, access) = (resolv_conf(&request.dns), Access::new(settings, broker));
        Ok((Self { hostname, resolv_conf, policy, machine, puller: Puller::new(Courier, access) }, digest))
    }

    /// The name that containers see as theirs.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Where the pod's names are looked up, as text of resolv.conf(5); empty where nobody says.
    pub fn resolv_conf(&self) -> &str {
        &self.resolv_conf
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

/// The file of these servers. Their bounds keep each word on its line.
fn resolv_conf(dns: &api::Dns) -> String {
    let mut text = String::new();
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (keyword, words) in [("search", &dns.searches), ("options", &dns.options)] {
        if !words.is_empty() {
            let _ = writeln!(text, "{keyword} {}", words.join(" "));
        }
    }
    text
}

/// A client of the broker that the initdata names.
fn broker(initdata: &Initdata, attester: Arc<dyn Attester>) -> Result<Option<Arc<BrokerClient>>, SandboxError> {
    let Some(address) = initdata.broker()? else { return Ok(None) };
    let http = HttpClient::new(Arc::new(Courier), address.cert.as_deref())?;
    Ok(Some(Arc::new(BrokerClient::new(http, &address.url, attester, Some(initdata.toml().to_owned()))?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_written_line_by_line() {
        assert_eq!(resolv_conf(&api::Dns::new()), "");
        let dns = api::Dns {
            servers: vec!["10.0.0.10".into(), "fd00::10".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
            ..Default::default()
        };
        assert_eq!(resolv_conf(&dns), "nameserver 10.0.0.10\nnameserver fd00::10\nsearch a.b c\noptions ndots:5\n");
    }
}
