//! A sandbox: one VM with its vsock, its courier and the connection to its agent, started and ended as one.

mod place;
mod scratch;

pub use place::{Configure, Configuring};

use crate::{
    config::{Config, ConfigError},
    courier::Courier,
    network::{self, Loopback, Network, NetworkError},
    rate::Rate,
    record::{self, Record, RecordError},
    tee::{self, Machine, Request, TeeError},
    vmm::{
        self, Cmdline, Disk, Launch, MissingError, Process, Qemu, QemuVersion, SpawnError, VmExit, Vmm,
        accelerator::{self, NoKvm},
        shared::SharedError,
    },
    vsock::{Vsock, VsockListener, VsockStream},
};
use place::Place;
use protobuf::MessageField;
use protocol::{
    api, console, guest_port, host_port,
    line::{self, LineError},
    service::AgentClient,
    stream::StreamId,
    volume::VolumeId,
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use thiserror::Error;
use tokio::{io::BufReader, sync::Semaphore, task::JoinSet, time::timeout};

/// The oldest QEMU that any guest starts on.
pub const OLDEST_QEMU: QemuVersion = QemuVersion { major: 7, minor: 2 };
/// How long the agent may take to end its processes and power off, before the VM is killed.
const GRACE: Duration = Duration::from_secs(3);
/// How much longer with disks, to which it first writes what is still to be written.
const WRITE_BACK: Duration = Duration::from_secs(60);
/// How long a killed VM may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How long a VM's process may outlive its connections.
const DYING: Duration = Duration::from_secs(2);
/// How long the agent may take for CreateSandbox: it verifies nothing in it, it only reads.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// Most streams that are being connected at a time; the guest's queue holds 128.
const MAX_CONNECTING: usize = 32;
/// How long the end of a sandbox waits for what the agent says of itself.
const INFO_TIMEOUT: Duration = Duration::from_secs(1);

/// What a sandbox is to be.
#[derive(Debug, Clone, Default)]
pub struct SandboxSpec {
    /// Its id; a folder of this name holds its record.
    pub id: String,
    /// Hostname inside.
    pub hostname: String,
    /// The pod's network namespace, if it has one.
    pub netns: Option<PathBuf>,
    /// Without a namespace, whoever configures a fresh one; without either, there is no network.
    pub configure: Option<Configure>,
    /// The owner's initdata, gzip of TOML; empty for none.
    pub initdata: Vec<u8>,
    /// Its digest, which an enclave reports; empty for none.
    pub initdata_digest: Vec<u8>,
    /// Kernel parameters of the pod.
    pub sysctls: BTreeMap<String, String>,
    /// Where its containers look names up.
    pub dns: api::Dns,
    /// Virtual CPUs, where not the configuration's.
    pub vcpus: Option<u32>,
    /// Memory in MiB, where not the configuration's.
    pub memory_mib: Option<u32>,
    /// Disks of the host's; a guest gets none later.
    pub disks: Vec<Disk>,
}

/// Why a sandbox did not start.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file that is not there.
    #[error(transparent)]
    Missing(#[from] MissingError),
    /// The enclave.
    #[error(transparent)]
    Tee(#[from] TeeError),
    /// A shared directory.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// KVM was demanded.
    #[error(transparent)]
    NoKvm(#[from] NoKvm),
    /// QEMU did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The scratch file.
    #[error("scratch file in {dir} (guest.scratch_dir): {source}")]
    Scratch {
        /// Where it was to be.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The vsock device.
    #[error("vsock of sandbox {id}: {source}")]
    Vsock {
        /// The sandbox.
        id: String,
        /// The cause.
        source: io::Error,
    },
    /// The VM ended before its agent spoke.
    #[error("sandbox {id} did not start: {exit}")]
    Died {
        /// The sandbox.
        id: String,
        /// How.
        exit: VmExit,
    },
    /// Nothing happened.
    #[error("sandbox {id}: no word of its agent within {seconds} s; raise vmm.boot_timeout_s if this machine is that slow")]
    Silent {
        /// The sandbox.
        id: String,
        /// The configuration's bound.
        seconds: u64,
    },
    /// The agent speaks another protocol.
    #[error("sandbox {id}: its agent does not speak our protocol: {source}; build the guest anew with `cloister guest build`")]
    Protocol {
        /// The sandbox.
        id: String,
        /// What it said.
        source: LineError,
    },
    /// The agent refused the sandbox.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What was to configure it.
    #[error("{0}")]
    Configure(String),
}

/// A running sandbox. Dropping it kills the VM; [`Sandbox::stop`] ends it in order and removes what it left.
pub struct Sandbox {
    id: String,
    state_dir: PathBuf,
    vsock: Vsock,
    process: Process,
    /// Processes beside it; they end with it.
    _helpers: Vec<Process>,
    /// Directories of the host's that the guest sees.
    shared: Vec<PathBuf>,
    /// How long the guest may take to end by itself.
    grace: Duration,
    courier: Arc<Courier>,
    agent: AgentClient,
    /// Streams that are being connected: more than the guest accepts at a time it refuses.
    connecting: Semaphore,
    /// The courier's, the console's and the port forwarder's tasks; they end with it.
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("id", &self.id).field("vm_pid", &self.process.pid()).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// Boots the VM and waits for its agent to accept the sandbox. On an error everything is removed again.
    pub async fn boot(config: &Config, spec: SandboxSpec) -> Result<Self, SandboxError> {
        let record = Record::create(&config.state_dir, &spec.id)?;
        let id = spec.id.clone();
        or_nothing(config, id, Self::boot_recorded(config, spec, record).await).await
    }

    /// Boots the VM and asks its agent for nothing: for whoever speaks to it himself, as the tests' hostile host does.
    pub async fn power_on(config: &Config, spec: &SandboxSpec) -> Result<Self, SandboxError> {
        let record = Record::create(&config.state_dir, &spec.id)?;
        let on = Self::power_on_recorded(config, spec, record).await;
        or_nothing(config, spec.id.clone(), on.map(|(sandbox, _)| sandbox)).await
    }

    async fn boot_recorded(config: &Config, spec: SandboxSpec, record: Record) -> Result<Self, SandboxError> {
        let (sandbox, network) = Self::power_on_recorded(config, &spec, record).await?;
        let (netns, mut since) = (spec.netns.clone(), Instant::now());
        sandbox.create(spec, network).await?;
        if let Some(netns) = netns {
            sandbox.forward_ports(&netns).await;
        }
        log_stage(&sandbox.id, "sandbox", &mut since);
        Ok(sandbox)
    }

    async fn power_on_recorded(config: &Config, spec: &SandboxSpec, mut record: Record) -> Result<(Self, Network), SandboxError> {
        let id = spec.id.clone();
        let mut since = Instant::now();
        let vsock_error = |source| SandboxError::Vsock { id: id.clone(), source };
        let qemu = Qemu { program: vmm::find_program(&config.vmm.qemu)? };
        let initramfs = vmm::find_guest_file("guest.initramfs", &config.guest.initramfs)?;
        let choice = accelerator::choose(config.vmm.accelerator)?;
        log::info!(sandbox = id, accelerator:? = choice.accelerator; "{}", choice.reason);

        let vcpus = spec.vcpus.unwrap_or(config.guest.vcpus);
        let request = Request { dir: record.dir(), initdata: &spec.initdata_digest, vcpus };
        let (platform, helpers) = prepare_tee(config, &qemu, &request)?;
        let (shared, servers) = vmm::shared::serve(config.vmm.virtiofsd.as_deref(), &config.guest.shared, record.dir())?;
        let kernel = tee::kernel(config, platform.shape.machine)?;
        let scratch = scratch::make(&config.guest.scratch_dir, config.guest.scratch_mib)?;
        let (vsock, device) = Vsock::for_vm(record.dir()).map_err(vsock_error)?;
        let mut console = vsock.listen(host_port::CONSOLE).map_err(vsock_error)?;
        let requests = vsock.listen(host_port::COURIER).map_err(vsock_error)?;
        let place = Place::take(&id, spec, &mut record).await?;
        let mut network = match (&spec.netns, &place) {
            (Some(netns), _) => network::attach(netns, Some(&mut record)).await?,
            (None, Place::Kept(launcher)) => network::attach(&launcher.netns(), None).await?,
            (None, Place::In(_)) => Network::default(),
        };
        // What a guest says of itself where nobody measures it.
        let measurement = if platform.shape.machine == Machine::Microvm { read_measurement(&initramfs) } else { None };
        let cmdline = Cmdline {
            accelerator: choice.accelerator,
            machine: platform.shape.machine,
            acpi: platform.shape.acpi,
            measurement: measurement.as_deref(),
            extra: &config.guest.cmdline_extra,
        };
        let launch = Launch {
            sandbox_id: id.clone(),
            cmdline: cmdline.to_text(vmm::tsc::khz),
            platform,
            kernel,
            initramfs,
            vcpus,
            memory_mib: spec.memory_mib.unwrap_or(config.guest.memory_mib),
            accelerator: choice.accelerator,
            scratch,
            disks: spec.disks.clone(),
            shared,
            vsock: device,
            taps: std::mem::take(&mut network.taps),
        };
        let mut running = Vec::new();
        for command in helpers.into_iter().map(|helper| helper.command).chain(servers) {
            let process = Process::spawn(&id, command)?;
            record.note_helper(process.pid())?;
            running.push(process);
        }
        let process = place.launch(&id, qemu.command(launch))?;
        record.note_vmm(process.pid())?;
        log_stage(&id, "qemu", &mut since);

        let courier = Arc::new(Courier::new(&id, &config.courier));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_courier(requests, courier.clone()));
        let seconds = config.vmm.boot_timeout_s;
        let log_lines = tokio::select! {
            ready = await_ready(&id, &mut console) => match ready {
                Ok(stream) => stream,
                Err(error) => return Err(died_or(&id, &process, error).await),
            },
            exit = process.exited() => return Err(SandboxError::Died { id, exit }),
            () = tokio::time::sleep(Duration::from_secs(seconds)) => return Err(SandboxError::Silent { id, seconds }),
        };
        log_stage(&id, "boot", &mut since);
        tasks.spawn(log_guest(id.clone(), log_lines));
        let rpc = match vsock.connect(guest_port::RPC).await {
            Ok(rpc) => rpc,
            Err(error) => return Err(died_or(&id, &process, vsock_error(error)).await),
        };
        let agent = AgentClient::new(ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::new(rpc)));
        let sandbox = Self {
            id,
            state_dir: config.state_dir.clone(),
            vsock,
            process,
            _helpers: running,
            shared: config.guest.shared.clone(),
            grace: if spec.disks.is_empty() { GRACE } else { GRACE + WRITE_BACK },
            courier,
            agent,
            connecting: Semaphore::new(MAX_CONNECTING),
            tasks: Mutex::new(tasks),
        };
        Ok((sandbox, network))
    }

    async fn create(&self, spec: SandboxSpec, network: Network) -> Result<(), SandboxError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let request = api::CreateSandboxRequest {
            sandbox_id: spec.id,
            hostname: spec.hostname,
            interfaces: network.interfaces,
            routes: network.routes,
            neighbours: network.neighbours,
            dns: MessageField::some(spec.dns),
            sysctls: spec.sysctls.into_iter().collect(),
            initdata: spec.initdata,
            host_time: i64::try_from(now).unwrap_or_default(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(CREATE_TIMEOUT);
        let answer = tokio::select! {
            answer = self.agent.create_sandbox(context, &request) => answer,
            exit = self.process.exited() => return Err(SandboxError::Died { id: self.id.clone(), exit }),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error @ ttrpc::Error::RpcStatus(_)) => return Err(SandboxError::Refused { message: rpc_message(&error) }),
            Err(error) => return Err(died_or(&self.id, &self.process, SandboxError::Refused { message: rpc_message(&error) }).await),
        };
        log::info!(sandbox = self.id, initdata = answer.initdata_digest; "sandbox ready");
        Ok(())
    }

    /// Lets the namespace's loopback lead to the guest's. A kernel without the means (before 5.9) has pods without port forwarding.
    async fn forward_ports(&self, netns: &Path) {
        match Loopback::listen(netns).await {
            Ok(loopback) => {
                let (vsock, id) = (self.vsock.clone(), self.id.clone());
                self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                    if let Err(error) = loopback.serve(vsock).await {
                        log::warn!(sandbox = id; "port forward: {error}");
                    }
                });
            }
            Err(error) => log::warn!(sandbox = self.id; "no port forwarding: {error}"),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The agent.
    pub fn agent(&self) -> AgentClient {
        self.agent.clone()
    }

    /// What the guest may have of this host.
    pub fn courier(&self) -> &Courier {
        &self.courier
    }

    /// Process id of the VM on this host.
    pub fn vm_pid(&self) -> u32 {
        self.process.pid()
    }

    /// Directories of the host's that the guest sees, in the order of their tags: those of the configuration when it was booted.
    pub fn shared(&self) -> &[PathBuf] {
        &self.shared
    }

    /// Connects to one of the guest's ports, `protocol::guest_port`.
    pub async fn connect(&self, port: u32) -> io::Result<VsockStream> {
        self.vsock.connect(port).await
    }

    /// Connects one of a process's standard streams.
    pub async fn stream(&self, stream: &StreamId) -> Result<VsockStream, LineError> {
        // Never closed, so always given.
        let _permit = self.connecting.acquire().await;
        let mut connection = self.vsock.connect(guest_port::STREAM).await?;
        stream.connect(&mut connection).await?;
        Ok(connection)
    }

    /// Connects a copy of a volume.
    pub async fn volume(&self, volume: &VolumeId) -> Result<VsockStream, LineError> {
        let mut connection = self.vsock.connect(guest_port::VOLUME).await?;
        volume.connect(&mut connection).await?;
        Ok(connection)
    }

    /// Returns once the VM has ended; any number of callers, each may be dropped.
    pub fn exited(&self) -> impl Future<Output = VmExit> + Send + 'static {
        self.process.exited()
    }

    /// What the agent says of itself, for the benchmark and for whoever asks where the time of a boot went.
    async fn log_guest_info(&self) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let context = ttrpc::context::with_duration(INFO_TIMEOUT);
        let Ok(info) = self.agent.guest_info(context, &api::Empty::new()).await else { return };
        let marks: Vec<String> = info.boot.iter().map(|mark| format!("{} {}", mark.name, mark.micros)).collect();
        log::debug!(sandbox = self.id, agent_rss_kib = info.agent_rss_kib, boot_micros = marks.join(", "); "guest");
    }

    /// Ends the VM: the agent first, then by force; and removes all that was made for the sandbox.
    pub async fn stop(&self) -> Result<(), RecordError> {
        let exited = self.process.exited();
        tokio::pin!(exited);
        let context = ttrpc::context::with_duration(GRACE);
        let grace = self.grace;
        let asked = async {
            self.log_guest_info().await;
            // The answer may be cut off by the end of the machine; the end is what counts.
            let _ = self.agent.shutdown_sandbox(context, &api::Empty::new()).await;
            exited.as_mut().await
        };
        if timeout(grace, asked).await.is_err() {
            log::warn!(sandbox = self.id; "the guest did not power off in {} s: killed", grace.as_secs());
            self.process.kill();
            if timeout(GONE, self.process.exited()).await.is_err() {
                log::error!(sandbox = self.id, pid = self.process.pid(); "the VM is not gone after SIGKILL");
            }
        }
        // Sockets in the pod's namespace would keep it alive.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        remove_blocking(self.state_dir.clone(), self.id.clone()).await
    }
}

/// What the configured enclave asks for, if this QEMU knows it.
fn prepare_tee(config: &Config, qemu: &Qemu, request: &Request<'_>) -> Result<(tee::Platform, Vec<tee::Helper>), TeeError> {
    let tee = tee::of(config);
    // Asked where an old QEMU is likely: it costs the start of a process.
    if tee.oldest_qemu() > OLDEST_QEMU {
        let found = QemuVersion::of(&qemu.program)?;
        if found < tee.oldest_qemu() {
            return Err(TeeError::OldQemu { tee: tee.name(), wanted: tee.oldest_qemu(), found });
        }
    }
    tee.prepare(request)
}

/// Where the time of a start goes, for the log and for `make demo`.
fn log_stage(id: &str, stage: &str, since: &mut Instant) {
    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    log::info!(sandbox = id, stage = stage, micros = micros; "started");
    *since = Instant::now();
}

/// Removes everything of a sandbox from its record alone; what is gone already is no error.
pub fn remove(config: &Config, id: &str) -> Result<(), RecordError> {
    record::remove(&config.state_dir, id)
}

/// Removes every sandbox whose shim is gone; gives their ids.
pub fn remove_orphans(config: &Config) -> Vec<String> {
    record::remove_orphans(&config.state_dir)
}

/// What was made, or, where that failed, nothing of it.
async fn or_nothing(config: &Config, id: String, made: Result<Sandbox, SandboxError>) -> Result<Sandbox, SandboxError> {
    if made.is_err()
        && let Err(left) = remove_blocking(config.state_dir.clone(), id.clone()).await
    {
        log::error!(sandbox = id; "after a failed start: {left}");
    }
    made
}

async fn remove_blocking(state_dir: PathBuf, id: String) -> Result<(), RecordError> {
    let path = state_dir.clone();
    match tokio::task::spawn_blocking(move || record::remove(&state_dir, &id)).await {
        Ok(result) => result,
        Err(error) => Err(RecordError::Io { path, source: io::Error::other(error) }),
    }
}

/// What an agent's refusal says, without the wire's decoration.
pub fn rpc_message(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message.clone(),
        other => format!("the guest's agent did not answer: {other}"),
    }
}

/// A dying VM's connections end before its process does: what happened to the process is then the better answer.
async fn died_or(id: &str, process: &Process, error: SandboxError) -> SandboxError {
    match timeout(DYING, process.exited()).await {
        Ok(exit) => SandboxError::Died { id: id.to_owned(), exit },
        Err(_) => error,
    }
}

/// The development stand-in of the launch measurement, from the manifest that the builder put beside the initramfs. Without one the
/// guest's evidence names none, and a broker's rule that wants one is not met.
fn read_measurement(initramfs: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        measurement: String,
    }
    let manifest = fs::read(initramfs.with_file_name("guest.json")).ok()?;
    let manifest: Manifest = serde_json::from_slice(&manifest).ok()?;
    let hex = manifest.measurement;
    (hex.len() == 96 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
}

async fn await_ready(id: &str, console: &mut VsockListener) -> Result<VsockStream, SandboxError> {
    let failed = |source: LineError| SandboxError::Protocol { id: id.to_owned(), source };
    let mut stream = console.accept().await.map_err(|e| failed(e.into()))?;
    match line::read_line(&mut stream).await.map_err(failed)? {
        first if first == console::READY => Ok(stream),
        first => Err(failed(LineError::Unexpected(first))),
    }
}

/// The guest's log lines, as lines of ours. What is no line ends the log, not the sandbox.
async fn log_guest(id: String, stream: VsockStream) {
    let mut lines = BufReader::with_capacity(4096, stream);
    let mut rate = Rate::new(Instant::now());
    loop {
        match line::read_line(&mut lines).await {
            Ok(line) => match rate.pass(Instant::now()) {
                Some(0) => log::info!(sandbox = id, source = "guest"; "{line}"),
                Some(held_back) => log::warn!(sandbox = id, source = "guest"; "{line} ({held_back} lines before it are left out)"),
                None => {}
            },
            Err(LineError::NotText) => {}
            Err(error) => return log::debug!(sandbox = id; "guest log: {error}"),
        }
    }
}

async fn serve_courier(mut requests: VsockListener, courier: Arc<Courier>) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            request = requests.accept() => match request {
                Ok(stream) => {
                    let courier = courier.clone();
                    serving.spawn(async move { courier.serve(stream).await });
                }
                Err(error) => return log::debug!("courier: {error}"),
            },
            Some(_) = serving.join_next() => {}
        }
    }
}
