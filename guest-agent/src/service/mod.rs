//! The service `cloister.agent.v1.Agent`. A call has passed the gate before a method here sees it; here it does its work, and answers.

mod failure;
mod gate;
mod info;
#[cfg(test)]
mod tests;

use crate::{
    boot::power,
    containers::{Containers, CreateRequest, host_spec},
    sandbox::{Machine, Sandbox},
    stages::Stages,
    workload_api,
};
use async_trait::async_trait;
use failure::Failure;
pub use gate::Gate;
use log::info;
use protocol::{
    api,
    service::{Agent, create_agent},
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use ttrpc::asynchronous::TtrpcContext;

/// How long the answer to ShutdownSandbox may take to leave before the machine ends.
const FAREWELL: Duration = Duration::from_millis(50);

/// The service.
pub struct Service {
    gate: Arc<Gate>,
    machine: Machine,
    containers: Arc<Containers>,
}

impl Service {
    /// The service of this machine, each of its methods behind the gate.
    pub fn guarded(gate: Arc<Gate>, machine: Machine, containers: Arc<Containers>) -> HashMap<String, ttrpc::asynchronous::Service> {
        gate::guard(create_agent(Arc::new(Self { gate: gate.clone(), machine, containers })), &gate)
    }

    async fn make_sandbox(&self, request: &api::CreateSandboxRequest) -> Result<api::CreateSandboxResponse, Failure> {
        let (sandbox, initdata_digest) = Sandbox::create(request, self.machine.clone()).await?;
        let sandbox = Arc::new(sandbox);
        if sandbox.policy().gives_secrets() {
            let (sandbox, containers) = (sandbox.clone(), self.containers.clone());
            tokio::spawn(async move {
                if let Err(e) = workload_api::serve(sandbox, containers).await {
                    log::warn!("workload API: {e}");
                }
            });
        }
        self.gate.open(sandbox);
        Ok(api::CreateSandboxResponse { initdata_digest, ..Default::default() })
    }

    async fn announce_volumes(&self, request: &api::PrepareVolumesRequest) -> Result<api::PrepareVolumesResponse, Failure> {
        let sandbox = self.gate.sandbox()?;
        if self.containers.get(&request.container_id).is_ok() {
            return Err(Failure::state("the container exists; its volumes are announced before it"));
        }
        let wanted = self.containers.volumes().prepare(request, &sandbox).await?;
        Ok(api::PrepareVolumesResponse { wanted, ..Default::default() })
    }

    fn volume_content(&self, request: &api::ReadVolumeRequest) -> Result<api::ReadVolumeResponse, Failure> {
        let content = self.containers.volumes().read_back(request)?;
        Ok(api::ReadVolumeResponse { content, ..Default::default() })
    }

    async fn make_container(&self, request: &api::CreateContainerRequest) -> Result<api::CreateContainerResponse, Failure> {
        let sandbox = self.gate.sandbox()?;
        let mut stages = Stages::default();
        self.containers.create(CreateRequest { message: request, sandbox: &sandbox }, &mut stages).await?;
        Ok(api::CreateContainerResponse { stages: info::stages(stages.list()), ..Default::default() })
    }

    async fn run_process(&self, request: &api::StartProcessRequest) -> Result<api::StartProcessResponse, Failure> {
        let pid = self.containers.start(&request.container_id, &request.exec_id).await?;
        Ok(api::StartProcessResponse { pid, ..Default::default() })
    }

    async fn prepare_exec(&self, request: &api::ExecProcessRequest) -> Result<api::Empty, Failure> {
        let sandbox = self.gate.sandbox()?;
        self.containers.exec(request, &sandbox).await?;
        Ok(api::Empty::default())
    }

    async fn signal(&self, request: &api::SignalProcessRequest) -> Result<api::Empty, Failure> {
        let container = self.containers.get(&request.container_id)?;
        container.signal(&request.exec_id, request.signal.cast_signed(), request.all)?;
        Ok(api::Empty::default())
    }

    async fn wait(&self, request: &api::WaitProcessRequest) -> Result<api::WaitProcessResponse, Failure> {
        let (exit, oom_kills) = self.containers.get(&request.container_id)?.wait(&request.exec_id).await?;
        let since_1970 = exit.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(api::WaitProcessResponse {
            exit_status: exit.status,
            exited_at: i64::try_from(since_1970.as_nanos()).unwrap_or(i64::MAX),
            oom_kills,
            ..Default::default()
        })
    }

    async fn wait_memory(&self, request: &api::WaitOutOfMemoryRequest) -> Result<api::WaitOutOfMemoryResponse, Failure> {
        let kills = self.containers.get(&request.container_id)?.oom_kills_beyond(request.seen).await?;
        Ok(api::WaitOutOfMemoryResponse { kills, ..Default::default() })
    }

    async fn delete(&self, request: &api::DeleteProcessRequest) -> Result<api::Empty, Failure> {
        self.containers.delete(&request.container_id, &request.exec_id).await?;
        Ok(api::Empty::default())
    }

    fn resize(&self, request: &api::ResizePtyRequest) -> Result<api::Empty, Failure> {
        let bounded = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let container = self.containers.get(&request.container_id)?;
        container.resize(&request.exec_id, bounded(request.width), bounded(request.height))?;
        Ok(api::Empty::default())
    }

    fn list(&self, request: &api::ListProcessesRequest) -> Result<api::ListProcessesResponse, Failure> {
        let processes = self.containers.get(&request.container_id)?.processes()?;
        let processes = processes.into_iter().map(|(pid, exec_id)| api::Process { pid, exec_id, ..Default::default() }).collect();
        Ok(api::ListProcessesResponse { processes, ..Default::default() })
    }

    async fn freeze(&self, request: &api::ContainerRequest, frozen: bool) -> Result<api::Empty, Failure> {
        let container = self.containers.get(&request.container_id)?;
        let _turn = container.turn().await;
        if !container.is_running() {
            return Err(Failure::state("the container is not running"));
        }
        container.freeze(frozen)?;
        Ok(api::Empty::default())
    }

    async fn update(&self, request: &api::UpdateContainerRequest) -> Result<api::Empty, Failure> {
        let container = self.containers.get(&request.container_id)?;
        let resources = host_spec::parse_resources(&request.resources).map_err(crate::containers::ContainerError::from)?;
        let _turn = container.turn().await;
        container.cgroup().update(&resources).map_err(crate::containers::ContainerError::from)?;
        Ok(api::Empty::default())
    }

    fn stats(&self, request: &api::ContainerRequest) -> Result<api::StatsContainerResponse, Failure> {
        Ok(self.containers.get(&request.container_id)?.cgroup().stats())
    }

    fn shutdown(&self) -> api::Empty {
        info!("shutting down");
        self.containers.kill_all();
        let disks = self.containers.disks();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            // What is mounted of the host's outlives the machine.
            let _ = tokio::task::spawn_blocking(move || disks.sync()).await;
            power::end_machine();
        });
        api::Empty::default()
    }
}

#[async_trait]
impl Agent for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, request: api::CreateSandboxRequest) -> ttrpc::Result<api::CreateSandboxResponse> {
        Ok(Box::pin(self.make_sandbox(&request)).await?)
    }

    async fn prepare_volumes(&self, _: &TtrpcContext, request: api::PrepareVolumesRequest) -> ttrpc::Result<api::PrepareVolumesResponse> {
        Ok(self.announce_volumes(&request).await?)
    }

    async fn read_volume(&self, _: &TtrpcContext, request: api::ReadVolumeRequest) -> ttrpc::Result<api::ReadVolumeResponse> {
        Ok(self.volume_content(&request)?)
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: api::CreateContainerRequest,
    ) -> ttrpc::Result<api::CreateContainerResponse> {
        Ok(Box::pin(self.make_container(&request)).await?)
    }

    async fn start_process(&self, _: &TtrpcContext, request: api::StartProcessRequest) -> ttrpc::Result<api::StartProcessResponse> {
        Ok(Box::pin(self.run_process(&request)).await?)
    }

    async fn exec_process(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.prepare_exec(&request).await?)
    }

    async fn signal_process(&self, _: &TtrpcContext, request: api::SignalProcessRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.signal(&request).await?)
    }

    async fn wait_process(&self, _: &TtrpcContext, request: api::WaitProcessRequest) -> ttrpc::Result<api::WaitProcessResponse> {
        Ok(self.wait(&request).await?)
    }

    async fn wait_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: api::WaitOutOfMemoryRequest,
    ) -> ttrpc::Result<api::WaitOutOfMemoryResponse> {
        Ok(self.wait_memory(&request).await?)
    }

    async fn delete_process(&self, _: &TtrpcContext, request: api::DeleteProcessRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.delete(&request).await?)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.resize(&request)?)
    }

    async fn list_processes(&self, _: &TtrpcContext, request: api::ListProcessesRequest) -> ttrpc::Result<api::ListProcessesResponse> {
        Ok(self.list(&request)?)
    }

    async fn pause_container(&self, _: &TtrpcContext, request: api::ContainerRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.freeze(&request, true).await?)
    }

    async fn resume_container(&self, _: &TtrpcContext, request: api::ContainerRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.freeze(&request, false).await?)
    }

    async fn update_container(&self, _: &TtrpcContext, request: api::UpdateContainerRequest) -> ttrpc::Result<api::Empty> {
        Ok(self.update(&request).await?)
    }

    async fn stats_container(&self, _: &TtrpcContext, request: api::ContainerRequest) -> ttrpc::Result<api::StatsContainerResponse> {
        Ok(self.stats(&request)?)
    }

    async fn guest_info(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::GuestInfoResponse> {
        Ok(info::guest_info())
    }

    async fn shutdown_sandbox(&self, _: &TtrpcContext, _: api::Empty) -> ttrpc::Result<api::Empty> {
        Ok(self.shutdown())
    }
}
