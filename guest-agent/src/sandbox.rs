//! The one sandbox of this machine: made once, by CreateSandbox, and then never changed.

use crate::{
    attester::{self, BindError},
    boot::{clock, modules::Modules, power},
    containers::{Container, ContainerError},
    network::{self, NetworkError},
    pull::{Access, PulledImage, Puller},
    scratch::{Scratch, ScratchError},
    stages::Stages,
    sysctl::{self, SysctlError},
    vsock::Courier,
};
use attestation::{Attester, BrokerClient, ClientError, Tee};
use log::{info, warn};
use policy::{Denial, DiskRule, ImageSettings, Initdata, InitdataError, Ledger, PlaceId, Policy, PolicyError, Wanted};
use protocol::api;
use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
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
    /// What the policy does not allow.
    #[error(transparent)]
    Denied(#[from] Denial),
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
    tee: Tee,
    policy: Policy,
    ledger: Mutex<Ledger>,
    /// Whether the time of `pod.complete_within_s` runs.
    timed: AtomicBool,
    machine: Machine,
    broker: Option<Arc<BrokerClient>>,
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
        let tee = attester.tee();
        let policy = Policy::from_initdata(initdata.as_ref().map(|(initdata, _)| initdata))?;
        policy.network(request.interfaces.len(), request.routes.len())?;
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
        let ledger = Mutex::new(Ledger::new(policy.clone()));
        let (resolv_conf, access) = (resolv_conf(&request.dns), Access::new(settings, broker.clone()));
        let (timed, puller) = (AtomicBool::new(false), Puller::new(Courier, access));
        Ok((Self { hostname, resolv_conf, tee, policy, ledger, timed, machine, puller, broker }, digest))
    }

    /// The name that containers see as theirs.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The owner's broker, where the initdata names one.
    pub fn broker(&self) -> Option<&BrokerClient> {
        self.broker.as_deref()
    }

    /// The same, to keep.
    pub fn kept_broker(&self) -> Option<Arc<BrokerClient>> {
        self.broker.clone()
    }

    /// Where the pod's names are looked up, as text of resolv.conf(5); empty where nobody says.
    pub fn resolv_conf(&self) -> &str {
        &self.resolv_conf
    }

    /// What this machine's evidence comes from.
    pub fn tee(&self) -> Tee {
        self.tee
    }

    /// What the host may ask for.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the place of a container, if the policy lets it be made now. The first one starts the time in which the pod must be complete.
    pub fn admit(sandbox: &Arc<Self>, wanted: &Wanted) -> Result<Place, Denial> {
        let id = sandbox.ledger().admit(wanted)?;
        if let Some(seconds) = sandbox.policy.complete_within_s()
            && !sandbox.timed.swap(true, Ordering::AcqRel)
        {
            let sandbox = sandbox.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(seconds.into())).await;
                if let Some(name) = sandbox.ledger().missing() {
                    power::fatal(&format!("container {name:?} was not created within {seconds} s of the first (pod.complete_within_s)"));
                }
            });
        }
        Ok(Place { sandbox: sandbox.clone(), id, kept: AtomicBool::new(false) })
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

/// The place of a container in the policy's list, where it has one. Given back when it is dropped before its container is there.
pub struct Place {
    sandbox: Arc<Sandbox>,
    id: Option<PlaceId>,
    kept: AtomicBool,
}

impl Place {
    /// The container is there: its place is kept until it is deleted, and its end is noted.
    pub fn watch(container: &Arc<Container>) {
        container.place().kept.store(true, Ordering::Release);
        if container.place().id.is_some() {
            let container = container.clone();
            // Also where no host waits for it.
            tokio::spawn(async move { container.wait("").await.map(drop) });
        }
    }

    /// Which one of the policy's containers it is.
    pub fn id(&self) -> Option<PlaceId> {
        self.id
    }

    /// May its container have this at the workload API, beside what all may?
    pub fn has_secret(&self, name: &str) -> bool {
        self.id.is_some_and(|id| self.sandbox.ledger().rule(id).is_some_and(|rule| rule.has_secret(name)))
    }

    /// The disk that the policy has its container have here.
    pub fn disk(&self, destination: &str) -> Option<DiskRule> {
        self.id.and_then(|id| self.sandbox.ledger().rule(id)?.disk(destination).cloned())
    }

    /// Its first process has ended.
    pub fn ended(&self, status: u32) {
        if let Some(id) = self.id {
            self.sandbox.ledger().ended(id, status);
        }
    }

    /// The container is gone.
    pub fn deleted(&self) {
        if let Some(id) = self.id {
            self.sandbox.ledger().deleted(id);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let (Some(id), false) = (self.id, self.kept.load(Ordering::Acquire)) {
            self.sandbox.ledger().give_back(id);
        }
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
impl Sandbox {
    /// A sandbox with this policy and nothing else; `None` is the open door.
    pub fn for_test(policy: Option<&str>) -> Arc<Self> {
        let policy = policy.map_or_else(|| Policy::from_initdata(None), Policy::parse).unwrap();
        let root = tempfile::tempdir().unwrap();
        let root = std::os::fd::OwnedFd::from(std::fs::File::open(root.path()).unwrap());
        let machine = Machine { modules: Arc::new(Modules::open(&root).unwrap()), scratch: Arc::default() };
        let settings = ImageSettings::from_initdata(None).unwrap();
        let (ledger, puller) = (Mutex::new(Ledger::new(policy.clone())), Puller::new(Courier, Access::new(settings, None)));
        Arc::new(Self {
            hostname: "pod".into(),
            resolv_conf: String::new(),
            tee: Tee::Sample,
            policy,
            ledger,
            timed: AtomicBool::new(false),
            machine,
            broker: None,
            puller,
        })
    }
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
