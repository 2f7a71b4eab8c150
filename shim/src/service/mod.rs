//! What the shim serves on its socket: the task service under both of its names, and the sandbox service.

mod sandbox;
mod task;

use crate::task::Tasks;
use containerd_shim_protos::{sandbox_async, shim_async};
use std::{collections::HashMap, sync::Arc};
use ttrpc::asynchronous::Service;

/// The task service's name to containerd 2.x, which the generated code knows.
const TASK_V3: &str = "containerd.task.v3.Task";
/// Its name to containerd 1.x and CRI-O: the same methods, the same messages.
const TASK_V2: &str = "containerd.task.v2.Task";

/// All services, each under its name. An unknown *service* is answered INVALID_ARGUMENT by the ttrpc server, which defeats
/// containerd's step down from v3 to v2: so there is none of them that is not served.
pub fn all(tasks: &Arc<Tasks>) -> HashMap<String, Service> {
    let task = || shim_async::create_task(Arc::new(task::TaskService::new(tasks.clone())));
    let mut services = task();
    services.extend(task().remove(TASK_V3).map(|service| (TASK_V2.to_owned(), service)));
    services.extend(sandbox_async::create_sandbox(Arc::new(sandbox::SandboxService::new(tasks.clone()))));
    services
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{events::Events, group::Group, guest::Machines, task::Settings};
    use ttrpc::{
        Code, Request, Response,
        asynchronous::{Client, Server},
    };

    const TASK_METHODS: [&str; 17] = [
        "State",
        "Create",
        "Start",
        "Delete",
        "Pids",
        "Pause",
        "Resume",
        "Checkpoint",
        "Kill",
        "Exec",
        "ResizePty",
        "CloseIO",
        "Update",
        "Wait",
        "Stats",
        "Connect",
        "Shutdown",
    ];
    const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";
    const SANDBOX_METHODS: [&str; 9] = [
        "CreateSandbox",
        "StartSandbox",
        "Platform",
        "StopSandbox",
        "WaitSandbox",
        "SandboxStatus",
        "PingSandbox",
        "ShutdownSandbox",
        "SandboxMetrics",
    ];

    async fn call(client: &Client, service: &str, method: &str) -> Result<Response, (Code, String)> {
        let request = Request { service: service.to_owned(), method: method.to_owned(), ..Default::default() };
        client.request(request).await.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("{other}"),
        })
    }

    /// The generated default of a method that was forgotten answers NOT_FOUND, which means something else to containerd.
    #[tokio::test]
    async fn every_method_of_every_service_is_ours() {
        let settings = Settings { namespace: "default".into(), address: String::new(), group: Group::new("", "default", "c") };
        let tasks = Arc::new(Tasks::new(settings, Box::new(Machines), Events::new("default", "")));
        let dir = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/s", dir.path().display());
        let mut server = Server::new().bind(&address).unwrap().register_service(all(&tasks));
        server.start().await.unwrap();
        let client = Client::connect(&address).await.unwrap();
        for service in [TASK_V2, TASK_V3] {
            for method in TASK_METHODS {
                let answer = call(&client, service, method).await;
                match method {
                    "Connect" | "Shutdown" => assert!(answer.is_ok(), "{service}/{method}"),
                    "Create" => assert_eq!(answer.unwrap_err().0, Code::INVALID_ARGUMENT),
                    "Checkpoint" => assert_eq!(answer.unwrap_err().0, Code::UNIMPLEMENTED),
                    _ => assert_eq!(answer.unwrap_err(), (Code::NOT_FOUND, "container not created".to_owned()), "{service}/{method}"),
                }
            }
            assert_eq!(call(&client, service, "Nothing").await.unwrap_err().0, Code::UNIMPLEMENTED);
        }
        for method in SANDBOX_METHODS {
            let answer = call(&client, SANDBOX, method).await;
            match method {
                "CreateSandbox" => assert_eq!(answer.unwrap_err().0, Code::INVALID_ARGUMENT, "an empty id"),
                "ShutdownSandbox" => assert!(answer.is_ok(), "{method}"),
                _ => assert_eq!(answer.unwrap_err(), (Code::NOT_FOUND, "sandbox  not found".to_owned()), "{method}"),
            }
        }
        // What newer daemons ask for first and can do without: they take this code, and no other, for "do it yourself".
        for method in ["PortForward", "UpdateSandbox"] {
            assert_eq!(call(&client, SANDBOX, method).await.unwrap_err().0, Code::UNIMPLEMENTED, "{method}");
        }
    }
}
