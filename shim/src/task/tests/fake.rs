//! A guest without a VM: an agent on a socket pair, that runs nothing and ends what it is told to end.

use crate::{
    events::Events,
    group::Group,
    guest::{Duplex, Guest, Host},
    task::{Settings, Tasks},
};
use async_trait::async_trait;
use containerd_shim_protos::{
    api::{CreateTaskRequest, ForwardRequest},
    shim_async::{Events as EventsService, create_events},
};
use protobuf::well_known_types::empty::Empty;
use protocol::{
    api,
    line::{self, LineError},
    service::{Agent, AgentClient, create_agent},
    stream::{Kind, StreamId},
    volume::{Entry, VolumeId},
};
use runtime::{config::Config, courier::BlobSource, sandbox::SandboxSpec};
use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};
use ttrpc::{
    Code,
    asynchronous::{Client, Server, TtrpcContext, transport::Listener, transport::Socket},
    get_status,
};

/// Pid of the fake's VM.
pub const PID: u32 = 4711;

fn refusal(code: Code, text: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text))
}

/// How a process ended: its exit status, and the kills for want of memory. `None` while it runs.
type Ended = Option<(u32, u64)>;

/// What the agent is asked for, and how it behaves.
#[derive(Default)]
pub struct Script {
    /// Every call, as `method container/exec`.
    pub calls: Mutex<Vec<String>>,
    /// Methods that are refused, with the text.
    pub refuse: Mutex<HashMap<&'static str, &'static str>>,
    /// Methods that never answer.
    pub hang: Mutex<Vec<&'static str>>,
    /// What was copied, a line for each copy.
    pub copies: Mutex<Vec<String>>,
    /// Boots and stops of VMs.
    pub machines: Mutex<Vec<String>>,
    /// Kills for want of memory of every container that runs.
    pub kills: watch::Sender<u64>,
    exits: Mutex<HashMap<String, watch::Sender<Ended>>>,
}

impl Script {
    async fn called(&self, method: &'static str, container: &str, exec: &str) -> ttrpc::Result<()> {
        self.calls.lock().unwrap().push(format!("{method} {container}/{exec}"));
        if self.hang.lock().unwrap().contains(&method) {
            std::future::pending::<()>().await;
        }
        match self.refuse.lock().unwrap().get(method) {
            Some(text) => Err(refusal(Code::UNKNOWN, text)),
            None => Ok(()),
        }
    }

    /// Ends a process of the guest.
    pub fn end(&self, container: &str, exec: &str, status: u32, oom: bool) {
        if let Some(exit) = self.exits.lock().unwrap().get(&format!("{container}/{exec}")) {
            exit.send_replace(Some((status, u64::from(oom))));
        }
    }
}

struct FakeAgent(Arc<Script>);

#[async_trait]
impl Agent for FakeAgent {
    async fn create_container(&self, _: &TtrpcContext, r: api::CreateContainerRequest) -> ttrpc::Result<api::CreateContainerResponse> {
        self.0.called("create", &r.container_id, "").await?;
        Ok(api::CreateContainerResponse::new())
    }

    async fn prepare_volumes(&self, _: &TtrpcContext, r: api::PrepareVolumesRequest) -> ttrpc::Result<api::PrepareVolumesResponse> {
        self.0.called("volumes", &r.container_id, "").await?;
        let copied = (0u32..).zip(&r.volumes).filter(|(_, volume)| volume.kind == api::VolumeKind::COPY.into());
        Ok(api::PrepareVolumesResponse { wanted: copied.map(|(number, _)| number).collect(), ..Default::default() })
    }

    async fn read_volume(&self, _: &TtrpcContext, r: api::ReadVolumeRequest) -> ttrpc::Result<api::ReadVolumeResponse> {
        self.0.called("read", &r.container_id, &r.number.to_string()).await?;
        Ok(api::ReadVolumeResponse { content: b"last words".to_vec(), ..Default::default() })
    }

    async fn exec_process(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        self.0.called("exec", &r.container_id, &r.exec_id).await?;
        Ok(api::Empty::new())
    }

    async fn start_process(&self, _: &TtrpcContext, r: api::StartProcessRequest) -> ttrpc::Result<api::StartProcessResponse> {
        self.0.called("start", &r.container_id, &r.exec_id).await?;
        let key = format!("{}/{}", r.container_id, r.exec_id);
        self.0.exits.lock().unwrap().insert(key, watch::Sender::new(None));
        Ok(api::StartProcessResponse { pid: 7, ..Default::default() })
    }

    async fn wait_process(&self, _: &TtrpcContext, r: api::WaitProcessRequest) -> ttrpc::Result<api::WaitProcessResponse> {
        let key = format!("{}/{}", r.container_id, r.exec_id);
        let mut exit = self.0.exits.lock().unwrap()[&key].subscribe();
        let ended = *exit.wait_for(Option::is_some).await.unwrap();
        let (exit_status, oom_kills) = ended.unwrap();
        Ok(api::WaitProcessResponse { exit_status, oom_kills, ..Default::default() })
    }

    async fn wait_out_of_memory(&self, _: &TtrpcContext, r: api::WaitOutOfMemoryRequest) -> ttrpc::Result<api::WaitOutOfMemoryResponse> {
        let kills = *self.0.kills.subscribe().wait_for(|kills| *kills > r.seen).await.unwrap();
        Ok(api::WaitOutOfMemoryResponse { kills, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, r: api::SignalProcessRequest) -> ttrpc::Result<api::Empty> {
        self.0.called("signal", &r.container_id, &r.exec_id).await?;
        self.0.end(&r.container_id, &r.exec_id, 128 + r.signal, false);
        Ok(api::Empty::new())
    }

    async fn delete_process(&self, _: &TtrpcContext, r: api::DeleteProcessRequest) -> ttrpc::Result<api::Empty> {
        self.0.called("delete", &r.container_id, &r.exec_id).await?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        self.0.called("resize", &r.container_id, &format!("{}x{}", r.width, r.height)).await?;
        Ok(api::Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, r: api::ContainerRequest) -> ttrpc::Result<api::Empty> {
        self.0.called("pause", &r.container_id, "").await?;
        Ok(api::Empty::new())
    }

    async fn guest_info(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::GuestInfoResponse> {
        self.0.called("info", "", "").await?;
        Ok(api::GuestInfoResponse::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, r: api::ContainerRequest) -> ttrpc::Result<api::Empty> {
        self.0.called("resume", &r.container_id, "").await?;
        Ok(api::Empty::new())
    }
}

struct FakeGuest {
    agent: AgentClient,
    pid: u32,
    script: Arc<Script>,
    ended: watch::Sender<bool>,
    /// Not shared, only kept: it is no `Sync`.
    _server: Mutex<Server>,
}

#[async_trait]
impl Guest for FakeGuest {
    fn agent(&self) -> AgentClient {
        self.agent.clone()
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    fn shared(&self) -> &[std::path::PathBuf] {
        &[]
    }

    async fn stream(&self, id: &StreamId) -> Result<Box<dyn Duplex>, LineError> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let text = format!("{} of {}/{}\n", id.kind, id.container_id, id.exec_id);
        if id.kind != Kind::Stdin {
            tokio::spawn(async move { theirs.write_all(text.as_bytes()).await });
        }
        Ok(Box::new(ours))
    }

    async fn volume(&self, id: &VolumeId) -> Result<Box<dyn Duplex>, LineError> {
        self.script.called("volume", &id.container_id, &id.number.to_string()).await.map_err(|e| LineError::Refused(e.to_string()))?;
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let script = self.script.clone();
        tokio::spawn(async move {
            let mut names = Vec::new();
            loop {
                match Entry::read(&mut theirs).await.unwrap() {
                    Entry::End => break,
                    Entry::File(at, size) => {
                        tokio::io::copy(&mut (&mut theirs).take(size), &mut tokio::io::sink()).await.unwrap();
                        names.push(at.path);
                    }
                    Entry::Directory(at) => names.push(at.path + "/"),
                    Entry::Link(path, target) => names.push(format!("{path}@{target}")),
                }
            }
            names.sort();
            script.copies.lock().unwrap().push(names.join(" "));
            line::accept(&mut theirs).await.unwrap();
        });
        Ok(Box::new(ours))
    }

    fn allow(&self, authority: &str) {
        self.script.machines.lock().unwrap().push(format!("allow {authority}"));
    }

    fn add_image(&self, _: &str) {}

    fn set_blobs(&self, _: Arc<dyn BlobSource>) {}

    async fn exited(&self) -> String {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
        "the VM ended (killed)".to_owned()
    }

    async fn stop(&self) {
        self.script.machines.lock().unwrap().push("stop".to_owned());
        self.ended.send_replace(true);
    }
}

struct FakeHost {
    script: Arc<Script>,
    /// Boots begin and never end.
    hang: bool,
    /// Pid of its VMs.
    pid: u32,
}

#[async_trait]
impl Host for FakeHost {
    async fn boot(&self, _: &Config, spec: SandboxSpec) -> Result<Arc<dyn Guest>, String> {
        self.script.machines.lock().unwrap().push(format!("boot {}", spec.hostname));
        if self.hang {
            std::future::pending::<()>().await;
        }
        if self.script.refuse.lock().unwrap().contains_key("boot") {
            return Err("no kernel".to_owned());
        }
        // A process that there is: hooks enter its namespace.
        let pid = match &spec.configure {
            Some(configure) => {
                configure.run(std::process::id()).await?;
                self.script.machines.lock().unwrap().push("configured".to_owned());
                std::process::id()
            }
            None => self.pid,
        };
        let (host, guest) = UnixStream::pair().unwrap();
        let incoming = futures_util::stream::iter([Ok(guest)]);
        let agent = FakeAgent(self.script.clone());
        let mut server = Server::new().add_listener(Listener::new(incoming)).register_service(create_agent(Arc::new(agent)));
        server.start().await.unwrap();
        let agent = AgentClient::new(Client::new(Socket::new(host)));
        Ok(Arc::new(FakeGuest { agent, pid, script: self.script.clone(), ended: watch::Sender::new(false), _server: Mutex::new(server) }))
    }

    async fn remove_orphans(&self, _: &Config) {}

    async fn remove(&self, _: &Config, _: &str) -> Result<(), String> {
        self.script.machines.lock().unwrap().push("remove".to_owned());
        Ok(())
    }
}

#[derive(Default)]
struct Daemon(Mutex<Vec<String>>);

#[async_trait]
impl EventsService for Daemon {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        self.0.lock().unwrap().push(request.envelope.topic.clone());
        Ok(Empty::new())
    }
}

/// A shim's tasks on a fake host, with a fake containerd that takes the events.
pub struct Bench {
    /// What is tested.
    pub tasks: Arc<Tasks>,
    /// The agent's behaviour.
    pub script: Arc<Script>,
    events: Events,
    daemon: Arc<Daemon>,
    dir: TempDir,
    _server: Server,
}

impl Bench {
    /// With boots that succeed at once.
    pub async fn new() -> Self {
        Self::with(false, PID).await
    }

    /// With VMs whose process is this one.
    pub async fn here() -> Self {
        Self::with(false, std::process::id()).await
    }

    /// With boots that never end.
    pub async fn slow() -> Self {
        Self::with(true, PID).await
    }

    async fn with(hang: bool, pid: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (daemon, address) = (Arc::new(Daemon::default()), format!("unix://{}/e", dir.path().display()));
        let mut server = Server::new().bind(&address).unwrap().register_service(create_events(daemon.clone()));
        server.start().await.unwrap();
        let events = Events::new("default", &address);
        tokio::spawn(events.clone().run());
        let script = Arc::new(Script::default());
        let host = FakeHost { script: script.clone(), hang, pid };
        let settings = Settings { namespace: "default".into(), address: String::new(), group: Group::new("", "default", "c") };
        let tasks = Arc::new(Tasks::new(settings, Box::new(host), events.clone()));
        Self { tasks, script, events, daemon, dir, _server: server }
    }

    /// A request to create a container with this `config.json`.
    pub fn request(&self, id: &str, annotations: &str) -> CreateTaskRequest {
        let bundle = self.bundle(id);
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), format!("{{\"annotations\":{{{annotations}}}}}")).unwrap();
        CreateTaskRequest { id: id.to_owned(), bundle: bundle.display().to_string(), ..Default::default() }
    }

    /// A container by itself.
    pub fn lone(&self, id: &str) -> CreateTaskRequest {
        self.request(id, r#""io.kubernetes.cri.image-name":"127.0.0.1:5000/demo:1""#)
    }

    /// A pod's first container.
    pub fn sandbox(&self, id: &str) -> CreateTaskRequest {
        self.request(id, r#""io.kubernetes.cri.container-type":"sandbox""#)
    }

    /// A container of the pod `c`.
    pub fn member(&self, id: &str) -> CreateTaskRequest {
        let annotations = r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"c",
            "io.kubernetes.cri.image-name":"ghcr.io/demo""#;
        self.request(id, annotations)
    }

    /// Where a container's bundle is.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.path().join(id)
    }

    /// The topics of all events so far, without their common prefix.
    pub async fn topics(&self) -> Vec<String> {
        self.events.drained(std::time::Duration::from_secs(20)).await;
        self.daemon.0.lock().unwrap().iter().map(|topic| topic.trim_start_matches("/tasks/").to_owned()).collect()
    }

    /// The agent's calls so far.
    pub fn calls(&self) -> Vec<String> {
        self.script.calls.lock().unwrap().clone()
    }

    /// What was done to VMs so far.
    pub fn machines(&self) -> Vec<String> {
        self.script.machines.lock().unwrap().clone()
    }
}
