//! `Start`, and the end of what was started.

use super::{Container, Exit, Process, State, TaskError, Tasks, detached, state::KILLED};
use crate::stdio::Bridge;
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit, TaskOOM, TaskStart};
use protobuf::{MessageField, well_known_types::timestamp::Timestamp};
use protocol::api;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::timeout;

/// How long the agent may take to run what is prepared.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the rest of a container or pod may take to end after its first process.
const REST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often want of memory is told at most: a guest may say it as often as it likes.
const OOM_PAUSE: Duration = Duration::from_secs(1);
/// SIGKILL, as requests have it.
const KILL: u32 = libc::SIGKILL.cast_unsigned();
/// Exit status of a process whose end the guest does not tell.
const UNKNOWN: u32 = 255;

impl Tasks {
    /// `Start` of a container's first process, or of an exec: gives the pid.
    pub async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let tasks = self.clone();
        detached(async move {
            let turn = process.clone();
            let _turn = turn.turn.lock().await;
            process.state().start()?;
            if !process.exec_id.is_empty() && !container.init.state().is_alive() {
                return Err(TaskError::InitNotRunning(container.id.clone()));
            }
            let pid = process.pid;
            let hooks = process.exec_id.is_empty().then(|| container.hooks.clone());
            if let Some(hooks) = &hooks {
                hooks.before_start(pid).await?;
            }
            if container.is_sandbox() {
                tasks.now_running(&process)?;
                tokio::spawn(tasks.clone().supervise_sandbox(container.clone()));
            } else {
                let bridge = run_in_guest(&container, &process).await?;
                tasks.now_running(&process)?;
                tokio::spawn(tasks.clone().supervise(container.clone(), process, bridge));
            }
            if let Some(hooks) = hooks
                && let Err(error) = hooks.after_start(pid).await
            {
                // As the specification has it: an error, and the container is stopped.
                if let Err(left) = tasks.kill(&container.id, "", KILL, false).await {
                    log::warn!(container = container.id; "kill after a failed hook: {left}");
                }
                return Err(error.into());
            }
            Ok(pid)
        })
        .await
    }

    fn now_running(&self, process: &Process) -> Result<(), TaskError> {
        let publish = || {
            let container_id = process.container_id.clone();
            if process.exec_id.is_empty() {
                self.events.publish(&TaskStart { container_id, pid: process.pid, ..Default::default() });
            } else {
                let exec_id = process.exec_id.clone();
                self.events.publish(&TaskExecStarted { container_id, exec_id, pid: process.pid, ..Default::default() });
            }
        };
        Ok(process.change(State::start, publish)?)
    }

    /// Waits for a process's end, has its output arrive, and reports it: for the first process after all of its execs.
    async fn supervise(self: Arc<Self>, container: Arc<Container>, process: Arc<Process>, mut bridge: Bridge) {
        let exit = self.await_exit(&container, &process).await;
        bridge.drained().await;
        // What is left of it is read on until the process is deleted.
        process.io().unread = Some(bridge);
        if process.exec_id.is_empty() {
            self.end_all(container.list_execs()).await;
            container.volumes.bring_back(&*container.guest, &container.id).await;
        }
        self.report_exit(&process, exit);
    }

    /// A pod's first container is its VM: it ends when that ends, after all that was in it.
    async fn supervise_sandbox(self: Arc<Self>, container: Arc<Container>) {
        let how = container.guest.exited().await;
        log::info!(container = container.id; "{how}");
        self.end_all(self.members().into_iter().map(|member| member.init.clone()).collect()).await;
        self.report_exit(&container.init, Exit::now(KILLED));
    }

    async fn await_exit(&self, container: &Container, process: &Process) -> Exit {
        let request =
            api::WaitProcessRequest { container_id: process.container_id.clone(), exec_id: process.exec_id.clone(), ..Default::default() };
        let agent = container.guest.agent();
        let told = AtomicU64::new(0);
        let error = tokio::select! {
            answer = agent.wait_process(ttrpc::context::with_timeout(0), &request) => match answer {
                Ok(ended) => {
                    // What was killed at the very end may not have been told yet.
                    if ended.oom_kills > told.load(Ordering::Relaxed) {
                        self.report_oom(container);
                    }
                    return Exit::reported(ended.exit_status, ended.exited_at);
                }
                Err(error) => error,
            },
            how = container.guest.exited() => {
                log::warn!(container = container.id; "{how}");
                return Exit::now(KILLED);
            }
            never = self.tell_of_memory(container, process, &told) => match never {},
        };
        if let ttrpc::Error::RpcStatus(status) = &error {
            log::error!(container = container.id, exec = process.exec_id; "wait: {}", status.message);
            return Exit::now(UNKNOWN);
        }
        // The agent is the guest's first process: without it the guest is ending, or must be.
        if timeout(REST_TIMEOUT, container.guest.exited()).await.is_err() {
            log::error!(container = container.id; "the agent is gone and its VM is not: {error}");
            container.guest.stop().await;
        }
        Exit::now(KILLED)
    }

    /// Tells of a container's want of memory as it comes, and notes how much of it was told. Ends by being dropped.
    async fn tell_of_memory(&self, container: &Container, process: &Process, told: &AtomicU64) -> Infallible {
        while process.exec_id.is_empty() {
            let seen = told.load(Ordering::Relaxed);
            let request = api::WaitOutOfMemoryRequest { container_id: container.id.clone(), seen, ..Default::default() };
            match container.guest.agent().wait_out_of_memory(ttrpc::context::with_timeout(0), &request).await {
                Ok(answer) if answer.kills > seen => {
                    told.store(answer.kills, Ordering::Relaxed);
                    self.report_oom(container);
                    tokio::time::sleep(OOM_PAUSE).await;
                }
                // The container has ended, or its guest has: somebody else hears of that.
                _ => break,
            }
        }
        std::future::pending().await
    }

    /// Waits until all of these have ended; what has not by then is reported as killed.
    pub(super) async fn end_all(&self, processes: Vec<Arc<Process>>) {
        let all = async {
            for process in processes.iter().filter(|process| process.state().is_alive()) {
                process.wait().await;
            }
        };
        if timeout(REST_TIMEOUT, all).await.is_err() {
            log::warn!("not all processes were seen to end");
        }
        for process in processes.iter().filter(|process| process.state().is_alive()) {
            self.report_exit(process, Exit::now(KILLED));
        }
    }

    /// The process has ended: waiters wake, and containerd is told. The second report of an end is none.
    pub(super) fn report_exit(&self, process: &Process, exit: Exit) {
        let id = if process.exec_id.is_empty() { &process.container_id } else { &process.exec_id };
        let event = TaskExit {
            container_id: process.container_id.clone(),
            id: id.clone(),
            pid: process.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        };
        if process.change(|state| state.stop(exit), || self.events.publish(&event)).is_ok() {
            log::info!(container = process.container_id, exec = process.exec_id, status = exit.status; "ended");
        }
    }

    /// The kernel of the guest has killed for want of memory: an event for containerd, a file for CRI-O.
    fn report_oom(&self, container: &Container) {
        self.events.publish(&TaskOOM { container_id: container.id.clone(), ..Default::default() });
        if let Err(error) = std::fs::write(container.bundle.join("oom"), "") {
            log::debug!(container = container.id; "file oom: {error}");
        }
    }
}

/// Connects the process's streams and has the agent run it.
async fn run_in_guest(container: &Container, process: &Process) -> Result<Bridge, TaskError> {
    let (ends, size) = {
        let mut io = process.io();
        (io.ends.take().unwrap_or_default(), io.size)
    };
    let guest = &*container.guest;
    let agent = guest.agent();
    let bridge = Bridge::connect(guest, &process.container_id, &process.exec_id, ends).await?;
    let request =
        api::StartProcessRequest { container_id: process.container_id.clone(), exec_id: process.exec_id.clone(), ..Default::default() };
    let sized = async || match size {
        Some(size) => super::control::resize(&agent, process, size).await.is_ok(),
        None => true,
    };
    // The first program to run should find the size that was asked for; an exec's terminal may not exist before it runs.
    let done = sized().await;
    let started = tokio::select! {
        started = agent.start_process(ttrpc::context::with_duration(START_TIMEOUT), &request) => started,
        how = guest.exited() => return Err(TaskError::Sandbox(how)),
    };
    started?;
    if !done && !sized().await {
        log::debug!(container = process.container_id, exec = process.exec_id; "the terminal's size was not set");
    }
    Ok(bridge)
}
