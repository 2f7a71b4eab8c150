//! A pod whose VM is asked for by the Sandbox service (`sandboxer = "shim"` of containerd 2.x), and not by the task of a pause container.
//!
//! Its containers are members like any others. One shim has one such pod, or the tasks of a pause container or of a lone one.

use super::{Exit, TaskError, Tasks, guest_spec, usage};
use crate::{guest::Guest, pod::Pod};
use containerd_shim_protos::{cgroups_v2::metrics::Metrics, sandbox_api::CreateSandboxRequest};
use protocol::bounds;
use runtime::config::Config;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};
use tokio::sync::{oneshot, watch};

/// Where a pod is in its life. It goes forward only.
#[derive(Clone)]
pub enum Life {
    /// Described by CreateSandbox; nothing of it exists.
    Created,
    /// Its VM is being started.
    Starting,
    /// Its VM runs.
    Ready(Arc<dyn Guest>),
    /// Over, or never begun.
    Ended(Exit),
}

/// The pod of this shim.
pub struct PodSandbox {
    /// Its id.
    pub id: String,
    /// When it was described.
    pub created_at: SystemTime,
    config: Config,
    /// Taken by the one start.
    description: std::sync::Mutex<Option<Pod>>,
    life: watch::Sender<Life>,
    /// Held while its VM is started or taken away.
    turn: tokio::sync::Mutex<()>,
    /// Somebody asked for its end: no failure.
    asked: AtomicBool,
}

impl PodSandbox {
    /// Where it is in its life.
    pub fn life(&self) -> Life {
        self.life.borrow().clone()
    }

    /// Waits for its end; any number of callers, each may be dropped.
    pub async fn ended(&self) -> Exit {
        let mut life = self.life.subscribe();
        let ended = life.wait_for(|life| matches!(life, Life::Ended(_))).await.map(|life| life.clone());
        match ended {
            Ok(Life::Ended(exit)) => exit,
            // The sender is ours and lives as long as we do.
            _ => Exit::now(super::state::KILLED),
        }
    }

    /// The one end: what has ended keeps its exit.
    fn end(&self, exit: Exit) {
        self.life.send_if_modified(|life| {
            let ends = !matches!(life, Life::Ended(_));
            if ends {
                *life = Life::Ended(exit);
            }
            ends
        });
    }

    /// From `Created` to `Starting`, once.
    fn begin(&self) -> bool {
        self.life.send_if_modified(|life| {
            let begins = matches!(life, Life::Created);
            if begins {
                *life = Life::Starting;
            }
            begins
        })
    }

    /// From `Starting` to `Ready`, unless it has ended meanwhile.
    fn ready(&self, guest: &Arc<dyn Guest>) -> bool {
        self.life.send_if_modified(|life| {
            let starting = matches!(life, Life::Starting);
            if starting {
                *life = Life::Ready(guest.clone());
            }
            starting
        })
    }
}

impl Tasks {
    /// The pod by its id.
    pub fn sandbox(&self, id: &str) -> Result<Arc<PodSandbox>, TaskError> {
        let table = self.table();
        let found = table.sandbox.as_ref().filter(|sandbox| sandbox.id == id).cloned();
        found.ok_or_else(|| TaskError::UnknownSandbox(id.to_owned()))
    }

    /// `CreateSandbox`: everything that can be wrong with the request is told here, and nothing is made.
    pub fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<(), TaskError> {
        bounds::check_id("sandbox_id", &request.sandbox_id).map_err(|error| TaskError::Invalid(error.to_string()))?;
        let mut pod = Pod::of_request(request)?;
        if pod.hostname.is_empty() {
            pod.hostname = request.sandbox_id.chars().take(bounds::MAX_HOSTNAME - 1).collect();
        }
        let config = guest_spec::config(None)?;
        let sandbox = PodSandbox {
            id: request.sandbox_id.clone(),
            created_at: SystemTime::now(),
            config,
            description: std::sync::Mutex::new(Some(pod)),
            life: watch::Sender::new(Life::Created),
            turn: tokio::sync::Mutex::default(),
            asked: AtomicBool::new(false),
        };
        let mut table = self.table();
        if table.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == request.sandbox_id) {
            return Err(TaskError::Exists(format!("sandbox {}", request.sandbox_id)));
        }
        if table.sandbox.is_some() || table.guest.is_some() || !table.slots.is_empty() {
            return Err(TaskError::SecondSandbox);
        }
        table.sandbox = Some(Arc::new(sandbox));
        self.count(&table);
        Ok(())
    }

    /// `StartSandbox`: gives the VM's pid once its agent answers. A caller that goes away has the start taken back.
    pub async fn start_sandbox(self: &Arc<Self>, id: &str) -> Result<(u32, SystemTime), TaskError> {
        let sandbox = self.sandbox(id)?;
        if !sandbox.begin() {
            return Err(TaskError::SandboxState(id.to_owned(), "was started already"));
        }
        let (mut answer, answered) = oneshot::channel();
        let tasks = self.clone();
        tokio::spawn(async move {
            let _turn = sandbox.turn.lock().await;
            let result = tokio::select! {
                biased;
                () = answer.closed() => Err(TaskError::Cancelled),
                result = tasks.bring_up(&sandbox) => result,
            };
            if let Err(error) = &result {
                log::warn!(sandbox = sandbox.id; "not started: {error}");
                tasks.take_back(&sandbox.config).await;
                sandbox.end(Exit::now(super::state::KILLED));
            }
            let _ = answer.send(result);
        });
        answered.await.unwrap_or_else(|_| Err(TaskError::Sandbox("internal error of the shim while starting".to_owned())))
    }

    async fn bring_up(self: &Arc<Self>, sandbox: &Arc<PodSandbox>) -> Result<(u32, SystemTime), TaskError> {
        let description = sandbox.description.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let pod = description.ok_or_else(|| TaskError::SandboxState(sandbox.id.clone(), "was started already"))?;
        let spec = guest_spec::build(&self.settings, &sandbox.config, pod)?;
        let guest = tokio::select! {
            guest = self.boot(&sandbox.config, spec) => guest?,
            _ = sandbox.ended() => return Err(TaskError::SandboxState(sandbox.id.clone(), "was stopped while it started")),
        };
        self.table().guest = Some(guest.clone());
        if !sandbox.ready(&guest) {
            return Err(TaskError::SandboxState(sandbox.id.clone(), "was stopped while it started"));
        }
        tokio::spawn(self.clone().supervise_pod(sandbox.clone(), guest.clone()));
        Ok((guest.pid(), sandbox.created_at))
    }

    /// Ends the VM of a start that failed, and removes what a boot that was dropped half-way has left.
    async fn take_back(&self, config: &Config) {
        self.end().await;
        if let Err(error) = self.host.remove(config, &self.settings.group.sandbox_id()).await {
            log::error!("after a failed start: {error}");
        }
    }

    /// The pod ends with its VM, after all that was in it.
    async fn supervise_pod(self: Arc<Self>, sandbox: Arc<PodSandbox>, guest: Arc<dyn Guest>) {
        let how = guest.exited().await;
        log::info!(sandbox = sandbox.id; "{how}");
        self.end_all(self.members().into_iter().map(|member| member.init.clone()).collect()).await;
        let status = if sandbox.asked.load(Ordering::SeqCst) { 0 } else { super::state::KILLED };
        sandbox.end(Exit::now(status));
    }

    /// `StopSandbox`: the end of the VM, in order first and then by force; twice is no error. How long it takes is ours to bound.
    pub async fn stop_sandbox(self: &Arc<Self>, id: &str) -> Result<(), TaskError> {
        let sandbox = self.sandbox(id)?;
        let tasks = self.clone();
        super::detached(async move {
            sandbox.asked.store(true, Ordering::SeqCst);
            if let Life::Created | Life::Starting = sandbox.life() {
                sandbox.end(Exit::now(0));
            }
            // A start that has been given up takes back what it made before it lets go of this.
            let _turn = sandbox.turn.lock().await;
            tasks.end().await;
            sandbox.ended().await;
            Ok(())
        })
        .await
    }

    /// `ShutdownSandbox`: the pod is forgotten and this shim ends, whatever came of the pod. One that is not there is no error: it may have
    /// failed before it was.
    pub async fn shut_down_sandbox(self: &Arc<Self>, id: &str) -> Result<(), TaskError> {
        match self.stop_sandbox(id).await {
            Ok(()) | Err(TaskError::UnknownSandbox(_)) => {}
            Err(error) => return Err(error),
        }
        {
            let mut table = self.table();
            table.sandbox = None;
            self.count(&table);
        }
        self.shutdown.notify_one();
        Ok(())
    }

    /// `SandboxMetrics`: what the pod costs this host.
    pub fn sandbox_metrics(&self, id: &str) -> Result<Metrics, TaskError> {
        match self.sandbox(id)?.life() {
            Life::Ready(guest) => Ok(usage::of(guest.pid())),
            _ => Ok(Metrics::new()),
        }
    }

    /// `PingSandbox`: whether its VM runs. The guest is not asked, so that one that hangs does not hang the caller.
    pub fn ping_sandbox(&self, id: &str) -> Result<(), TaskError> {
        match self.sandbox(id)?.life() {
            Life::Ready(_) => Ok(()),
            _ => Err(TaskError::SandboxState(id.to_owned(), "is not running")),
        }
    }
}
