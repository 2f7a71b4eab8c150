//! Every verb that is not offered is answered Unimplemented: the generated default would say NotFound.

use super::*;
use crate::{events::Events, group::Group, guest::Machines, task::Settings};
use containerd_shim_protos::{
    api::{CheckpointTaskRequest, ConnectRequest, KillRequest, StateRequest},
    sandbox_api::{
        CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest, ShutdownSandboxRequest,
        StartSandboxRequest, StopSandboxRequest, WaitSandboxRequest,
    },
    sandbox_async::SandboxClient,
    shim_async::TaskClient,
};
use ttrpc::{Code, asynchronous::Client, context::Context};

async fn serve(dir: &std::path::Path) -> (Server, Client) {
    let address = format!("unix://{}", dir.join("s").display());
    let group = Group::new("", "default", "a");
    let settings = Settings { namespace: "default".into(), address: String::new(), group };
    let tasks = Arc::new(Tasks::new(settings, Box::new(Machines), Events::new("default", "")));
    let mut server = register(Server::new().bind(&address).unwrap(), &tasks);
    server.start().await.unwrap();
    (server, Client::connect(&address).await.unwrap())
}

fn code<T>(result: ttrpc::Result<T>) -> Code {
    match result {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn what_is_not_offered_is_unimplemented() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = serve(dir.path()).await;
    let sandbox = SandboxClient::new(client.clone());
    let context = Context::default;
    let codes = [
        code(sandbox.create_sandbox(context(), &CreateSandboxRequest::new()).await),
        code(sandbox.start_sandbox(context(), &StartSandboxRequest::new()).await),
        code(sandbox.platform(context(), &PlatformRequest::new()).await),
        code(sandbox.stop_sandbox(context(), &StopSandboxRequest::new()).await),
        code(sandbox.wait_sandbox(context(), &WaitSandboxRequest::new()).await),
        code(sandbox.sandbox_status(context(), &SandboxStatusRequest::new()).await),
        code(sandbox.ping_sandbox(context(), &PingRequest::new()).await),
        code(sandbox.shutdown_sandbox(context(), &ShutdownSandboxRequest::new()).await),
        code(sandbox.sandbox_metrics(context(), &SandboxMetricsRequest::new()).await),
        code(TaskClient::new(client).checkpoint(context(), &CheckpointTaskRequest::new()).await),
    ];
    assert_eq!(codes, [Code::UNIMPLEMENTED; 10]);
}

#[tokio::test]
async fn an_unknown_container_is_not_created_and_the_shim_alive() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = serve(dir.path()).await;
    let task = TaskClient::new(client);
    let state = StateRequest { id: "x".into(), ..Default::default() };
    let Err(ttrpc::Error::RpcStatus(status)) = task.state(Context::default(), &state).await else { panic!("found") };
    assert_eq!((status.code(), status.message.as_str()), (Code::NOT_FOUND, "container not created"));
    let kill = KillRequest { id: "x".into(), signal: 9, ..Default::default() };
    assert_eq!(code(task.kill(Context::default(), &kill).await), Code::NOT_FOUND);
    let connected = task.connect(Context::default(), &ConnectRequest { id: "x".into(), ..Default::default() }).await.unwrap();
    assert_eq!((connected.shim_pid, connected.task_pid), (std::process::id(), 0));
}
