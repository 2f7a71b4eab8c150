//! The hostile host at the agent's own socket: the service as `main` serves it, behind the gate, over ttrpc. Where an attack has a pair,
//! the same request goes to the service without the gate, to show that the gate is what stops it.

use super::*;
use crate::{
    containers::{streams::Streams, volumes::Volumes},
    reaper::Reaper,
    sandbox::ScratchCell,
};
use protobuf::Message;
use std::path::Path;
use ttrpc::{
    Code, Request, Status,
    asynchronous::{Client, Server},
    context,
};

mod decoder;
mod hostile_spec;
mod mutations;
mod requests;

const PROTO: &str = include_str!("../../../protocol/proto/agent.proto");
const SERVICE: &str = "cloister.agent.v1.Agent";

/// The names of all RPCs in the proto, with their requests.
fn rpcs() -> Vec<(&'static str, &'static str)> {
    let line = |line: &'static str| {
        let (name, rest) = line.trim().strip_prefix("rpc ")?.split_once('(')?;
        Some((name, rest.split_once(')')?.0))
    };
    PROTO.lines().filter_map(line).collect()
}

fn parts() -> (Machine, Arc<Containers>) {
    let root = tempfile::tempdir().unwrap();
    let root = std::os::fd::OwnedFd::from(std::fs::File::open(root.path()).unwrap());
    let modules = Arc::new(crate::boot::modules::Modules::open(&root).unwrap());
    let containers = Arc::new(Containers::new(Arc::new(Reaper::default()), Arc::new(Streams::default()), Arc::new(Volumes::default())));
    (Machine { modules, scratch: Arc::new(ScratchCell::default()) }, containers)
}

type Services = HashMap<String, ttrpc::asynchronous::Service>;

/// The agent of a machine whose sandbox, if any, has this policy.
fn guarded(sandbox: Option<Arc<Sandbox>>) -> Services {
    let (machine, containers) = parts();
    let gate = Arc::new(sandbox.map_or_else(Gate::default, Gate::with));
    gate::guard(create_agent(Arc::new(Service { gate: gate.clone(), machine, containers })), &gate)
}

/// The same without its gate.
fn unguarded(sandbox: Option<Arc<Sandbox>>) -> Services {
    let (machine, containers) = parts();
    let gate = Arc::new(sandbox.map_or_else(Gate::default, Gate::with));
    create_agent(Arc::new(Service { gate, machine, containers }))
}

/// A host at the agent's socket.
struct Host {
    client: Client,
    _server: Server,
    _directory: tempfile::TempDir,
}

impl Host {
    async fn of(services: Services) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = format!("unix://{}", directory.path().join("agent").display());
        let mut server = Server::new().bind(&address).unwrap().register_service(services);
        server.start().await.unwrap();
        Self { client: Client::connect(&address).await.unwrap(), _server: server, _directory: directory }
    }

    async fn raw(&self, method: &str, payload: Vec<u8>) -> Result<Vec<u8>, Status> {
        let request =
            Request { service: SERVICE.into(), method: method.into(), payload, timeout_nano: 20_000_000_000, ..Default::default() };
        match self.client.request(request).await {
            Ok(response) => Ok(response.payload),
            Err(ttrpc::Error::RpcStatus(status)) => Err(status),
            Err(e) => panic!("{method}: {e}"),
        }
    }

    async fn code(&self, method: &str, message: &dyn protobuf::MessageDyn) -> Code {
        self.raw(method, message.write_to_bytes_dyn().unwrap()).await.map_or_else(|status| status.code(), |_| Code::OK)
    }
}

fn id<T>(make: impl FnOnce(String) -> T) -> T {
    make("c".into())
}

/// A small valid request of each RPC.
fn request(rpc: &str) -> Vec<u8> {
    let bytes = |message: &dyn protobuf::MessageDyn| message.write_to_bytes_dyn().unwrap();
    id(|container_id| match rpc {
        "CreateSandbox" => bytes(&api::CreateSandboxRequest { sandbox_id: "s".into(), ..Default::default() }),
        "CreateContainer" => bytes(&api::CreateContainerRequest { container_id, image_reference: "r/x:1".into(), ..Default::default() }),
        "PrepareVolumes" => bytes(&api::PrepareVolumesRequest { container_id, ..Default::default() }),
        "ReadVolume" => bytes(&api::ReadVolumeRequest { container_id, ..Default::default() }),
        "ExecProcess" => bytes(&api::ExecProcessRequest { container_id, exec_id: "e".into(), ..Default::default() }),
        "SignalProcess" => bytes(&api::SignalProcessRequest { container_id, signal: 10, ..Default::default() }),
        "StartProcess" => bytes(&api::StartProcessRequest { container_id, ..Default::default() }),
        "WaitProcess" => bytes(&api::WaitProcessRequest { container_id, ..Default::default() }),
        "WaitOutOfMemory" => bytes(&api::WaitOutOfMemoryRequest { container_id, ..Default::default() }),
        "DeleteProcess" => bytes(&api::DeleteProcessRequest { container_id, ..Default::default() }),
        "ResizePty" => bytes(&api::ResizePtyRequest { container_id, ..Default::default() }),
        "ListProcesses" => bytes(&api::ListProcessesRequest { container_id, ..Default::default() }),
        "UpdateContainer" => bytes(&api::UpdateContainerRequest { container_id, ..Default::default() }),
        "PauseContainer" | "ResumeContainer" | "StatsContainer" => bytes(&api::ContainerRequest { container_id, ..Default::default() }),
        _ => Vec::new(),
    })
}

/// A request that is added to the proto and has no rule fails here.
#[test]
fn every_rpc_of_the_proto_has_its_rule() {
    let proto: Vec<&str> = rpcs().into_iter().map(|(name, _)| name).collect();
    let rules: Vec<&str> = gate::RULES.iter().map(gate::Rule::rpc).collect();
    assert_eq!(rules, proto);
}

#[tokio::test]
async fn an_rpc_without_a_rule_is_refused_whatever_the_service_would_do() {
    let rename = |mut services: Services| {
        let service = services.get_mut(SERVICE).unwrap();
        let key = service.methods.keys().find(|key| key.ends_with("GuestInfo")).unwrap().clone();
        let method = service.methods.remove(&key).unwrap();
        service.methods.insert(key.replace("GuestInfo", "NewInfo"), method);
        services
    };
    assert!(Host::of(rename(unguarded(None))).await.raw("NewInfo", Vec::new()).await.is_ok(), "the attack without the gate");
    let gate = Arc::new(Gate::default());
    let guarded = gate::guard(rename(unguarded(None)), &gate);
    assert_eq!(Host::of(guarded).await.raw("NewInfo", Vec::new()).await.unwrap_err().code(), Code::PERMISSION_DENIED);
}

#[tokio::test]
async fn before_the_sandbox_nothing_is_done() {
    let host = Host::of(guarded(None)).await;
    for rule in gate::RULES.iter().filter(|rule| rule.needs_sandbox()) {
        let status = host.raw(rule.rpc(), request(rule.rpc())).await.unwrap_err();
        assert_eq!(status.code(), Code::FAILED_PRECONDITION, "{}: {}", rule.rpc(), status.message());
        assert!(status.message().contains("CreateSandbox"), "{}", status.message());
    }
    // The pair: without the gate the request reaches the table of containers.
    let host = Host::of(unguarded(None)).await;
    assert_eq!(host.raw("SignalProcess", request("SignalProcess")).await.unwrap_err().code(), Code::NOT_FOUND);
}

#[tokio::test]
async fn initdata_is_tried_once() {
    let host = Host::of(guarded(None)).await;
    let with = |initdata: &[u8]| api::CreateSandboxRequest { sandbox_id: "s".into(), initdata: initdata.into(), ..Default::default() };
    assert_eq!(host.code("CreateSandbox", &with(b"not gzip")).await, Code::INVALID_ARGUMENT);
    // Neither other initdata, nor none, which would be the open door.
    for second in [with(b"other"), with(b"")] {
        let status = host.raw("CreateSandbox", second.write_to_bytes().unwrap()).await.unwrap_err();
        assert!(status.message().contains("start another machine"), "{}", status.message());
        assert_eq!(status.code(), Code::FAILED_PRECONDITION);
    }
    assert_eq!(host.raw("StartProcess", request("StartProcess")).await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    // The pair: without the gate it is tried again.
    let host = Host::of(unguarded(None)).await;
    for _ in 0..2 {
        assert_eq!(host.code("CreateSandbox", &with(b"not gzip")).await, Code::INVALID_ARGUMENT);
    }
}

#[tokio::test]
async fn initdata_is_tried_once_also_side_by_side() {
    let host = Host::of(guarded(None)).await;
    let packed = api::CreateSandboxRequest { sandbox_id: "s".into(), initdata: b"not gzip".to_vec(), ..Default::default() };
    let all = (0..16).map(|_| host.code("CreateSandbox", &packed));
    let codes = futures_util::future::join_all(all).await;
    assert_eq!(codes.iter().filter(|code| **code == Code::INVALID_ARGUMENT).count(), 1);
    assert_eq!(codes.iter().filter(|code| **code == Code::FAILED_PRECONDITION).count(), 15);
}

#[tokio::test]
async fn ids_hostnames_and_digests_that_are_something_else_are_refused() {
    let host = Host::of(guarded(Some(Sandbox::for_test(None)))).await;
    for bad in ["", "..", "../x", "a/b", "a\nb", "a\0b", &"a".repeat(200)] {
        let container_id: String = bad.into();
        assert_eq!(
            host.code("StatsContainer", &api::ContainerRequest { container_id, ..Default::default() }).await,
            Code::INVALID_ARGUMENT
        );
        let hostname = format!("x{bad}\n10.0.0.1 registry");
        let sandbox = api::CreateSandboxRequest { sandbox_id: "s".into(), hostname, ..Default::default() };
        assert_eq!(host.code("CreateSandbox", &sandbox).await, Code::INVALID_ARGUMENT);
    }
    for hint in ["sha256:../../x", "sha512:00", &format!("sha256:{}", "A".repeat(64))] {
        let create = api::CreateContainerRequest {
            container_id: "c".into(),
            image_reference: "r/x:1".into(),
            image_digest_hint: hint.into(),
            ..Default::default()
        };
        assert_eq!(host.code("CreateContainer", &create).await, Code::INVALID_ARGUMENT, "{hint}");
    }
    // The pair: without the bounds the id is looked up.
    let host = Host::of(unguarded(Some(Sandbox::for_test(None)))).await;
    let climbing = api::ContainerRequest { container_id: "../x".into(), ..Default::default() };
    assert_eq!(host.code("StatsContainer", &climbing).await, Code::NOT_FOUND);
}

/// Each thing that a closed door keeps from the host at the gate: refused there, and let through by an open door.
#[tokio::test]
async fn a_closed_door_denies_what_its_policy_does_not_list() {
    let closed = Host::of(guarded(Some(Sandbox::for_test(Some("[allow]\noutput = false\nstats = false\n"))))).await;
    let open = Host::of(guarded(Some(Sandbox::for_test(None)))).await;
    let stdio = |stdin, stdout, terminal| Some(api::Stdio { stdin, stdout, terminal, ..Default::default() }).into();
    let create =
        |stdio| api::CreateContainerRequest { container_id: "c".into(), image_reference: "r/x:1".into(), stdio, ..Default::default() };
    let exec = |stdio| api::ExecProcessRequest { container_id: "c".into(), exec_id: "e".into(), stdio, ..Default::default() };
    let signal = |signal| api::SignalProcessRequest { container_id: "c".into(), signal, ..Default::default() };
    let container = api::ContainerRequest { container_id: "c".into(), ..Default::default() };
    let list = api::ListProcessesRequest { container_id: "c".into(), ..Default::default() };
    let attacks: Vec<(&str, Box<dyn protobuf::MessageDyn>)> = vec![
        ("CreateContainer", Box::new(create(stdio(true, false, false)))),
        ("CreateContainer", Box::new(create(stdio(false, true, false)))),
        ("CreateContainer", Box::new(create(stdio(false, false, true)))),
        ("ExecProcess", Box::new(exec(stdio(true, false, false)))),
        ("ExecProcess", Box::new(exec(stdio(false, true, false)))),
        ("ExecProcess", Box::new(exec(stdio(false, false, true)))),
        ("SignalProcess", Box::new(signal(libc::SIGUSR1.cast_unsigned()))),
        ("StatsContainer", Box::new(container)),
        ("ListProcesses", Box::new(list)),
    ];
    for (rpc, message) in attacks {
        assert_eq!(closed.code(rpc, &*message).await, Code::PERMISSION_DENIED, "{rpc} {message}");
        assert_ne!(open.code(rpc, &*message).await, Code::PERMISSION_DENIED, "{rpc} {message}");
    }
    assert_eq!(closed.code("SignalProcess", &signal(libc::SIGKILL.cast_unsigned())).await, Code::NOT_FOUND, "a host may always end it");
}

/// Every request of a container's life, in states in which it makes no sense.
#[tokio::test]
async fn requests_in_illegal_order_are_refused_and_change_nothing() {
    let host = Host::of(guarded(Some(Sandbox::for_test(None)))).await;
    for _ in 0..2 {
        for rule in gate::RULES
            .iter()
            .filter(|rule| rule.needs_sandbox() && !["CreateContainer", "PrepareVolumes", "ReadVolume"].contains(&rule.rpc()))
        {
            let status = host.raw(rule.rpc(), request(rule.rpc())).await.unwrap_err();
            assert_eq!(status.code(), Code::NOT_FOUND, "{}: {}", rule.rpc(), status.message());
        }
    }
    assert_eq!(host.raw("CreateSandbox", request("CreateSandbox")).await.unwrap_err().code(), Code::FAILED_PRECONDITION);
    let other = Request { service: "cloister.agent.v1.Other".into(), method: "CreateSandbox".into(), ..Default::default() };
    assert!(host.client.request(other).await.is_err());
    assert!(host.raw("Create", Vec::new()).await.is_err());
}

/// A frame that claims more than it may, and one that ends early: the connection ends, the agent serves the next.
#[tokio::test]
async fn lying_frames_end_their_connection_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let host = Host::of(guarded(None)).await;
    let path = host._directory.path().join("agent");
    for frame in [&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0][..], &[0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 1], &[0; 10], &[0xff; 64]] {
        let mut connection = tokio::net::UnixStream::connect(Path::new(&path)).await.unwrap();
        connection.write_all(frame).await.unwrap();
        connection.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.len() < 4096, "{frame:?}");
    }
    assert!(host.raw("GuestInfo", Vec::new()).await.is_ok());
    let _ = context::Context::default();
}
