//! The task service: each method of containerd's, in terms of [`Tasks`].

use crate::{
    info,
    task::{Exit, Process, TaskError, Tasks},
};
use async_trait::async_trait;
use containerd_shim_protos::{api, shim::oci::ProcessDetails, shim_async::Task, types::task::ProcessInfo};
use protobuf::{
    Message, MessageField,
    well_known_types::{any::Any, timestamp::Timestamp},
};
use std::sync::Arc;
use ttrpc::{Result, asynchronous::TtrpcContext};

/// Type of an exec's entry in the list of processes.
const PROCESS_DETAILS: &str = "containerd.runc.v1.ProcessDetails";
/// Type of the metrics, by which containerd and CRI-O know how to read them.
pub const METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// The service.
pub struct TaskService {
    tasks: Arc<Tasks>,
}

impl TaskService {
    /// Serves these tasks.
    pub fn new(tasks: Arc<Tasks>) -> Self {
        Self { tasks }
    }

    fn pids(&self, id: &str) -> std::result::Result<Vec<ProcessInfo>, TaskError> {
        let container = self.tasks.container(id)?;
        let entry = |process: &Process| {
            let details = ProcessDetails { exec_id: process.exec_id.clone(), ..Default::default() };
            let info =
                Any { type_url: PROCESS_DETAILS.to_owned(), value: details.write_to_bytes().unwrap_or_default(), ..Default::default() };
            let info = if process.exec_id.is_empty() { MessageField::none() } else { MessageField::some(info) };
            ProcessInfo { pid: process.pid, info, ..Default::default() }
        };
        // From memory, and never empty: an empty answer after containerd's restart has the container taken for a leak.
        let mut processes = vec![entry(&container.init)];
        processes.extend(container.list_execs().iter().filter(|exec| exec.state().is_alive()).map(|exec| entry(exec)));
        Ok(processes)
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> Result<api::StateResponse> {
        let container = self.tasks.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let state = process.state();
        let exit = state.exit();
        Ok(api::StateResponse {
            id: request.id,
            exec_id: request.exec_id,
            bundle: container.bundle.display().to_string(),
            pid: process.pid,
            status: state.status().into(),
            stdin: process.paths.stdin.clone(),
            stdout: process.paths.stdout.clone(),
            stderr: process.paths.stderr.clone(),
            terminal: process.paths.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(exited_at).unwrap_or_default(),
            ..Default::default()
        })
    }

    async fn create(&self, _: &TtrpcContext, request: api::CreateTaskRequest) -> Result<api::CreateTaskResponse> {
        Ok(api::CreateTaskResponse { pid: self.tasks.create(request).await?, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> Result<api::StartResponse> {
        Ok(api::StartResponse { pid: self.tasks.start(&request.id, &request.exec_id).await?, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> Result<api::DeleteResponse> {
        let (pid, exit) = self.tasks.delete(&request.id, &request.exec_id).await?;
        Ok(api::DeleteResponse { pid, exit_status: exit.status, exited_at: exited_at(exit), ..Default::default() })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> Result<api::PidsResponse> {
        Ok(api::PidsResponse { processes: Self::pids(self, &request.id)?, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> Result<api::Empty> {
        self.tasks.pause(&request.id).await?;
        Ok(api::Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> Result<api::Empty> {
        self.tasks.resume(&request.id).await?;
        Ok(api::Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: api::CheckpointTaskRequest) -> Result<api::Empty> {
        // The memory of a confidential guest is nothing that a host could write down.
        Err(TaskError::Unsupported("checkpointing a confidential guest").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> Result<api::Empty> {
        self.tasks.kill(&request.id, &request.exec_id, request.signal, request.all).await?;
        Ok(api::Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> Result<api::Empty> {
        self.tasks.exec(request).await?;
        Ok(api::Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> Result<api::Empty> {
        self.tasks.resize_pty(&request.id, &request.exec_id, request.width, request.height).await?;
        Ok(api::Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> Result<api::Empty> {
        self.tasks.close_io(&request.id, &request.exec_id, request.stdin)?;
        Ok(api::Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> Result<api::Empty> {
        self.tasks.update(&request.id, request.resources.value.clone()).await?;
        Ok(api::Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> Result<api::WaitResponse> {
        // The server drops this when the client goes away.
        let exit = self.tasks.process(&request.id, &request.exec_id)?.wait().await;
        Ok(api::WaitResponse { exit_status: exit.status, exited_at: exited_at(exit), ..Default::default() })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> Result<api::StatsResponse> {
        let metrics = self.tasks.stats(&request.id).await?;
        let stats = Any { type_url: METRICS.to_owned(), value: metrics.write_to_bytes().unwrap_or_default(), ..Default::default() };
        Ok(api::StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> Result<api::ConnectResponse> {
        // The probe of life: an unknown id is no error here.
        let task_pid = self.tasks.container(&request.id).map_or(0, |container| container.init.pid);
        Ok(api::ConnectResponse { shim_pid: std::process::id(), task_pid, version: info::VERSION.to_owned(), ..Default::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> Result<api::Empty> {
        self.tasks.shut_down();
        Ok(api::Empty::new())
    }
}

/// When a process or pod ended, as the services say it.
pub fn exited_at(exit: Exit) -> MessageField<Timestamp> {
    MessageField::some(Timestamp::from(exit.at))
}
