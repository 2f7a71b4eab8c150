//! The Sandbox service (`sandboxer = "shim"`): each of its methods, in terms of [`Tasks`].

use super::task::{METRICS, exited_at};
use crate::{
    info,
    task::{Exit, Life, TaskError, Tasks},
};
use async_trait::async_trait;
use containerd_shim_protos::{sandbox_api as api, sandbox_async::Sandbox};
use protobuf::{
    Message, MessageField,
    well_known_types::{any::Any, timestamp::Timestamp},
};
use std::{collections::HashMap, sync::Arc, time::SystemTime};
use ttrpc::{Result, asynchronous::TtrpcContext};

/// The service.
pub struct SandboxService {
    tasks: Arc<Tasks>,
}

impl SandboxService {
    /// Serves the pod of these tasks.
    pub fn new(tasks: Arc<Tasks>) -> Self {
        Self { tasks }
    }

    fn status(&self, id: &str, verbose: bool) -> std::result::Result<api::SandboxStatusResponse, TaskError> {
        let sandbox = self.tasks.sandbox(id)?;
        let mut status = api::SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            // Anything but the first of the two is taken for the second.
            state: "SANDBOX_NOTREADY".to_owned(),
            created_at: at(sandbox.created_at),
            ..Default::default()
        };
        match sandbox.life() {
            Life::Ready(guest) => {
                "SANDBOX_READY".clone_into(&mut status.state);
                status.pid = guest.pid();
            }
            Life::Ended(exit) => status.exited_at = exited_at(exit),
            Life::Created | Life::Starting => {}
        }
        if verbose {
            let name = serde_json::json!({ "runtime": info::NAME, "version": info::VERSION, "vmPid": status.pid });
            status.info = HashMap::from([("cloister".to_owned(), name.to_string())]);
        }
        Ok(status)
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(&self, _: &TtrpcContext, request: api::CreateSandboxRequest) -> Result<api::CreateSandboxResponse> {
        self.tasks.create_sandbox(&request)?;
        Ok(api::CreateSandboxResponse::new())
    }

    async fn start_sandbox(&self, _: &TtrpcContext, request: api::StartSandboxRequest) -> Result<api::StartSandboxResponse> {
        let (pid, created_at) = self.tasks.start_sandbox(&request.sandbox_id).await?;
        Ok(api::StartSandboxResponse { pid, created_at: at(created_at), ..Default::default() })
    }

    async fn platform(&self, _: &TtrpcContext, request: api::PlatformRequest) -> Result<api::PlatformResponse> {
        self.tasks.sandbox(&request.sandbox_id)?;
        let mut response = api::PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        (platform.os, platform.architecture) = ("linux".to_owned(), "amd64".to_owned());
        Ok(response)
    }

    async fn stop_sandbox(&self, _: &TtrpcContext, request: api::StopSandboxRequest) -> Result<api::StopSandboxResponse> {
        self.tasks.stop_sandbox(&request.sandbox_id).await?;
        Ok(api::StopSandboxResponse::new())
    }

    async fn wait_sandbox(&self, _: &TtrpcContext, request: api::WaitSandboxRequest) -> Result<api::WaitSandboxResponse> {
        // The server drops this when the client goes away.
        let exit: Exit = self.tasks.sandbox(&request.sandbox_id)?.ended().await;
        Ok(api::WaitSandboxResponse { exit_status: exit.status, exited_at: exited_at(exit), ..Default::default() })
    }

    async fn sandbox_status(&self, _: &TtrpcContext, request: api::SandboxStatusRequest) -> Result<api::SandboxStatusResponse> {
        Ok(self.status(&request.sandbox_id, request.verbose)?)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: api::PingRequest) -> Result<api::PingResponse> {
        self.tasks.ping_sandbox(&request.sandbox_id)?;
        Ok(api::PingResponse::new())
    }

    async fn shutdown_sandbox(&self, _: &TtrpcContext, request: api::ShutdownSandboxRequest) -> Result<api::ShutdownSandboxResponse> {
        self.tasks.shut_down_sandbox(&request.sandbox_id).await?;
        Ok(api::ShutdownSandboxResponse::new())
    }

    async fn sandbox_metrics(&self, _: &TtrpcContext, request: api::SandboxMetricsRequest) -> Result<api::SandboxMetricsResponse> {
        let usage = self.tasks.sandbox_metrics(&request.sandbox_id)?;
        let data = Any { type_url: METRICS.to_owned(), value: usage.write_to_bytes().unwrap_or_default(), ..Default::default() };
        let mut response = api::SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        (metrics.timestamp, metrics.id, metrics.data) = (at(SystemTime::now()), request.sandbox_id, MessageField::some(data));
        Ok(response)
    }
}

fn at(time: SystemTime) -> MessageField<Timestamp> {
    MessageField::some(Timestamp::from(time))
}
