//! What can be asked of a process or container between its start and its end.

use super::{Container, Exit, Process, State, TaskError, Tasks, detached, usage};
use containerd_shim_protos::{
    cgroups_v2::metrics::{CPUStat, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat},
    events::task::{TaskPaused, TaskResumed},
};
use protobuf::MessageField;
use protocol::{api, bounds, service::AgentClient};
use std::{sync::Arc, time::Duration};
use ttrpc::Code;

/// How long an agent that has missed that time may take to say anything at all, before it counts as gone.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(20) };
/// How long the agent may take for a request that it answers from its own memory and a file or two.
const TIMEOUT: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

impl Tasks {
    /// `Kill`. Signal 0 asks whether the process is there.
    pub async fn kill(self: &Arc<Self>, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        if signal > bounds::MAX_SIGNAL {
            return Err(TaskError::Invalid(format!("signal {signal}: 0 to {} are known", bounds::MAX_SIGNAL)));
        }
        match process.state() {
            State::Stopped(_) => return Err(TaskError::Finished),
            _ if signal == 0 => return Ok(()),
            State::Created if !exec_id.is_empty() => return Err(TaskError::NoExec(exec_id.to_owned())),
            State::Created if ends(signal) && !container.is_sandbox() => {
                self.report_exit(&process, Exit::now(128 + signal));
                return Ok(());
            }
            State::Created if !ends(signal) => return Ok(()),
            State::Created | State::Running | State::Paused => {}
        }
        if container.is_sandbox() {
            if ends(signal) {
                self.end_sandbox(container, signal);
            }
            return Ok(());
        }
        let request =
            api::SignalProcessRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned(), signal, all, ..Default::default() };
        match container.guest.agent().signal_process(ttrpc::context::with_duration(TIMEOUT), &request).await {
            Ok(_) => Ok(()),
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Err(TaskError::Finished),
            Err(ttrpc::Error::RpcStatus(status)) => Err(ttrpc::Error::RpcStatus(status).into()),
            // A guest that does not answer cannot refuse to die. In a pod it takes the others with it: nobody could end it otherwise, as
            // containerd ends a pod by ending its containers first.
            Err(error)
                if signal == libc::SIGKILL.cast_unsigned()
                    && exec_id.is_empty()
                    && (container.owns_guest() || !answers(&container).await) =>
            {
                log::warn!(container = id; "the agent does not answer ({error}): the VM is ended");
                tokio::spawn(async move { container.guest.stop().await });
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a pod's VM, and with it all that runs in it.
    fn end_sandbox(self: &Arc<Self>, container: Arc<Container>, signal: u32) {
        let tasks = self.clone();
        tokio::spawn(async move {
            container.guest.stop().await;
            // One that was never started has nobody who waits for its VM.
            if container.init.state() == State::Created {
                tasks.report_exit(&container.init, Exit::now(128 + signal));
            }
        });
    }

    /// `Pause`.
    pub async fn pause(self: &Arc<Self>, id: &str) -> Result<(), TaskError> {
        self.freeze(id, true).await
    }

    /// `Resume`.
    pub async fn resume(self: &Arc<Self>, id: &str) -> Result<(), TaskError> {
        self.freeze(id, false).await
    }

    async fn freeze(self: &Arc<Self>, id: &str, frozen: bool) -> Result<(), TaskError> {
        let container = self.container(id)?;
        if container.is_sandbox() {
            return Err(TaskError::Unsupported("pausing a pod's sandbox container"));
        }
        let tasks = self.clone();
        detached(async move {
            let _turn = container.init.turn.lock().await;
            let step = if frozen { State::pause } else { State::resume };
            step(container.init.state())?;
            let context = ttrpc::context::with_duration(TIMEOUT);
            let agent = container.guest.agent();
            let request = api::ContainerRequest { container_id: container.id.clone(), ..Default::default() };
            let container_id = container.id.clone();
            if frozen {
                agent.pause_container(context, &request).await?;
                container.init.change(step, || tasks.events.publish(&TaskPaused { container_id, ..Default::default() }))?;
            } else {
                agent.resume_container(context, &request).await?;
                container.init.change(step, || tasks.events.publish(&TaskResumed { container_id, ..Default::default() }))?;
            }
            Ok(())
        })
        .await
    }

    /// `ResizePty`. Before the start, the size is kept for it.
    pub async fn resize_pty(&self, id: &str, exec_id: &str, width: u32, height: u32) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        if !process.paths.terminal {
            return Err(TaskError::Invalid("the process has no terminal".to_owned()));
        }
        process.state().change("resize")?;
        process.io().size = Some((width, height));
        if process.state() == State::Created {
            return Ok(());
        }
        resize(&container.guest.agent(), &process, (width, height)).await
    }

    /// `CloseIO`: standard input ends once its last writer has gone. Doing it twice, or without an input, is no error.
    pub fn close_io(&self, id: &str, exec_id: &str, stdin: bool) -> Result<(), TaskError> {
        let process = self.process(id, exec_id)?;
        if stdin {
            drop(process.io().stdin_hold.take());
        }
        Ok(())
    }

    /// `Update` of a container's limits; `resources` is the OCI spec's LinuxResources as JSON.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), TaskError> {
        let container = self.container(id)?;
        container.init.state().change("update")?;
        if container.is_sandbox() {
            // Its limits are the VM's sizes, which are fixed at its start.
            return Ok(());
        }
        let request = api::UpdateContainerRequest { container_id: id.to_owned(), resources, ..Default::default() };
        container.guest.agent().update_container(ttrpc::context::with_duration(TIMEOUT), &request).await?;
        Ok(())
    }

    /// `Stats`, in containerd's type for cgroup v2: the guest has no other.
    pub async fn stats(&self, id: &str) -> Result<Metrics, TaskError> {
        let container = self.container(id)?;
        if container.init.state().exit().is_some() {
            return Ok(Metrics::new());
        }
        if container.is_sandbox() {
            return Ok(usage::of(container.guest.pid()));
        }
        let request = api::ContainerRequest { container_id: id.to_owned(), ..Default::default() };
        let stats = container.guest.agent().stats_container(ttrpc::context::with_duration(TIMEOUT), &request).await?;
        Ok(metrics(&stats))
    }
}

/// Whether a process that does nothing against it ends by this signal. What has not run yet has no handlers.
fn ends(signal: u32) -> bool {
    [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP].contains(&signal.cast_signed())
}

/// Whether the agent says anything.
async fn answers(container: &Container) -> bool {
    let context = ttrpc::context::with_duration(PATIENCE);
    matches!(container.guest.agent().guest_info(context, &api::Empty::new()).await, Ok(_) | Err(ttrpc::Error::RpcStatus(_)))
}

/// Has the agent set a terminal's size.
pub(super) async fn resize(agent: &AgentClient, process: &Process, (width, height): (u32, u32)) -> Result<(), TaskError> {
    let request = api::ResizePtyRequest {
        container_id: process.container_id.clone(),
        exec_id: process.exec_id.clone(),
        width,
        height,
        ..Default::default()
    };
    agent.resize_pty(ttrpc::context::with_duration(TIMEOUT), &request).await?;
    Ok(())
}

fn metrics(stats: &api::StatsContainerResponse) -> Metrics {
    let of = |name: &str| stats.memory_stat.get(name).copied().unwrap_or_default();
    let memory =
        MemoryStat { usage: stats.memory_usage, usage_limit: stats.memory_limit, max_usage: stats.memory_peak, ..memory_stat(&of) };
    let of_cpu = |name: &str| stats.cpu_stat.get(name).copied().unwrap_or_default();
    let cpu = CPUStat {
        usage_usec: stats.cpu_usage_usec,
        user_usec: stats.cpu_user_usec,
        system_usec: stats.cpu_system_usec,
        nr_periods: of_cpu("nr_periods"),
        nr_throttled: of_cpu("nr_throttled"),
        throttled_usec: of_cpu("throttled_usec"),
        ..Default::default()
    };
    let event = |name: &str| stats.memory_events.get(name).copied().unwrap_or_default();
    let events = MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: stats.oom_kills,
        ..Default::default()
    };
    Metrics {
        pids: MessageField::some(PidsStat { current: stats.pids_current, limit: stats.pids_limit, ..Default::default() }),
        cpu: MessageField::some(cpu),
        memory: MessageField::some(memory),
        memory_events: MessageField::some(events),
        // Nothing of a guest's disk is told, but nerdctl crashes where the message is missing.
        io: MessageField::some(IOStat::default()),
        ..Default::default()
    }
}

/// The kernel's `memory.stat` by the names of its lines (Documentation/admin-guide/cgroup-v2.rst).
fn memory_stat(of: &dyn Fn(&str) -> u64) -> MemoryStat {
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        ..Default::default()
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_guests_numbers_stand_where_containerd_reads_them() {
        let stats = api::StatsContainerResponse {
            memory_usage: 1,
            memory_limit: 2,
            cpu_usage_usec: 3,
            pids_current: 4,
            oom_kills: 5,
            memory_stat: HashMap::from([("inactive_file".to_owned(), 6), ("unknown".to_owned(), 7)]),
            cpu_stat: HashMap::from([("nr_throttled".to_owned(), 8)]),
            memory_events: HashMap::from([("high".to_owned(), 9)]),
            ..Default::default()
        };
        let metrics = metrics(&stats);
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit, metrics.memory.inactive_file), (1, 2, 6));
        assert_eq!((metrics.cpu.nr_throttled, metrics.memory_events.high), (8, 9));
        assert_eq!((metrics.cpu.usage_usec, metrics.pids.current, metrics.memory_events.oom_kill), (3, 4, 5));
    }

    #[test]
    fn only_deadly_signals_end_what_has_not_run() {
        assert!(ends(9) && ends(15) && !ends(28) && !ends(10));
    }
}
