//! Further processes of a container.

use super::{
    Container, ContainerError, Containers, MAX_EXECS, bundle,
    cgroup::Cgroup,
    derive::derive_exec,
    host_spec::parse_process,
    launch::{LaunchError, launch},
    process::Process,
    terminal::ConsoleSocket,
};
use crate::{
    child::{ExecJob, Job},
    sandbox::Sandbox,
};
use log::info;
use protocol::api;
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
};

/// A process that ExecProcess prepared.
pub struct Exec {
    /// As the host calls it.
    pub id: String,
    /// Its life.
    pub process: Process,
    /// What it will run.
    oci: oci_spec::runtime::Process,
}

impl Containers {
    /// Prepares an exec; nothing runs before StartProcess.
    pub async fn exec(&self, request: &api::ExecProcessRequest, sandbox: &Sandbox) -> Result<(), ContainerError> {
        let container = self.get(&request.container_id)?;
        let _turn = container.turn.read().await;
        container.takes_processes()?;
        let host = parse_process(&request.process)?;
        let derived = derive_exec(&container.derived, &host, &container.accounts)?;
        sandbox.policy().exec(&derived.args)?;
        sandbox.policy().overrides(&derived.overrides)?;
        let oci = bundle::process(&derived, &host, &container.secrets, sandbox.policy().is_open())
            .map_err(|e| LaunchError::Failed(e.to_string()))?;
        let stdio = request.stdio.clone().unwrap_or_default();
        let stdio = api::Stdio { terminal: host.terminal().unwrap_or(false), ..stdio };
        let mut execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(&request.exec_id) {
            return Err(ContainerError::Exists(format!("process {} of container {}", request.exec_id, container.id)));
        }
        if execs.len() >= MAX_EXECS {
            return Err(ContainerError::Full(MAX_EXECS, "processes of a container"));
        }
        self.streams.announce(&container.id, &request.exec_id, &stdio);
        let exec = Exec { id: request.exec_id.clone(), process: Process::prepared(stdio, false), oci };
        execs.insert(request.exec_id.clone(), Arc::new(exec));
        Ok(())
    }
}

impl Container {
    pub(super) fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, ContainerError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || ContainerError::NoProcess { container: self.id.clone(), exec: exec_id.to_owned() };
        execs.get(exec_id).cloned().ok_or_else(missing)
    }

    /// Whether a process can be run in it. One that joins a frozen cgroup would stand still half made.
    fn takes_processes(&self) -> Result<(), ContainerError> {
        let state = match () {
            () if !self.is_running() => "not running",
            () if self.frozen.load(Ordering::SeqCst) => "paused; resume it first",
            () => return Ok(()),
        };
        Err(ContainerError::State(format!("container {} is {state}", self.id)))
    }

    pub(super) async fn start_exec(&self, containers: &Containers, exec_id: &str) -> Result<u32, ContainerError> {
        let _permit = containers.launching.acquire().await.map_err(|e| ContainerError::State(e.to_string()))?;
        let _turn = self.turn.read().await;
        let exec = self.exec(exec_id)?;
        self.takes_processes()?;
        let init = self.init.running().ok_or_else(|| ContainerError::NoContainer(self.id.clone()))?;
        if !exec.process.claim_start() {
            return Err(ContainerError::State(format!("process {exec_id} of container {} has been started already", self.id)));
        }
        let streams = match containers.streams.take(&self.id, exec_id, &exec.process.stdio).await {
            Ok(streams) => streams,
            Err(e) => {
                exec.process.unclaim_start();
                return Err(e.into());
            }
        };
        let directory = Directory::make(self.directory.join(format!("e{}", self.next_exec.fetch_add(1, Ordering::Relaxed))))?;
        let directory = &directory.0;
        let console = exec.process.stdio.terminal.then(|| ConsoleSocket::bind(&directory.join("tty.sock"))).transpose();
        let console = console.map_err(ContainerError::io("terminal socket"))?;
        let job = Job::Exec(Box::new(ExecJob {
            init_pid: init.watched.pid,
            cgroup: Cgroup::spec_path(&self.name),
            cgroup_dir: self.cgroup.path().to_owned(),
            process: exec.oci.clone(),
            seccomp: self.seccomp.clone(),
            console: console.as_ref().map(|c| c.path().to_owned()),
        }));
        let launched = launch(&containers.reaper, directory, &job, exec.process.wanted()).await?;
        let terminal = console.map(|c| c.receive()).transpose().map_err(ContainerError::io("terminal"))?;
        if let (Some(terminal), Some(size)) = (&terminal, exec.oci.console_size()) {
            let bounded = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
            terminal.resize(bounded(size.width()), bounded(size.height())).map_err(ContainerError::io("terminal size"))?;
        }
        let pid = launched.process.pid;
        let pipes = exec.process.exists(launched, terminal);
        if let Some(running) = exec.process.running() {
            exec.process.connect(&running, pipes, streams);
        }
        info!(container = self.id, exec = exec_id, pid; "process started");
        Ok(pid)
    }

    pub(super) fn delete_exec(&self, exec_id: &str) -> Result<(), ContainerError> {
        let exec = self.exec(exec_id)?;
        if exec.process.is_alive() {
            return Err(ContainerError::State(format!("process {exec_id} of container {} is running; kill it first", self.id)));
        }
        exec.process.gone();
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
        Ok(())
    }
}

/// Where a launch has its files; removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn make(path: PathBuf) -> Result<Self, ContainerError> {
        fs::create_dir(&path).map_err(ContainerError::io("exec directory"))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
