//! `Create` and `Exec`: a container or a process is prepared. What fails half-way, or is given up by its caller, leaves nothing.

use super::{Container, Process, Reservation, TaskError, Tasks, detached, guest_spec, guest_spec::GuestSpec, image, image::Image};
use crate::{
    bundle::{Bundle, Role},
    guest::Guest,
    hooks::Hooks,
    stdio::{Ends, Paths},
    volumes::{self, Attached, Plan},
};
use containerd_shim_protos::{
    api::{CreateTaskRequest, ExecProcessRequest},
    events::task::{TaskCreate, TaskExecAdded, TaskIO},
};
use protobuf::MessageField;
use protocol::{api, bounds};
use runtime::{config::Config, sandbox::Configure, vmm::Disk};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// How long the agent may take to prepare a process.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to forget what was prepared.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);

impl Tasks {
    /// `Create`: gives the pid.
    ///
    /// It runs in a task of its own, so that a caller that goes away (its deadline, its death) has it rolled back instead of dropped.
    pub async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32, TaskError> {
        if !request.checkpoint.is_empty() {
            return Err(TaskError::Unsupported("restoring a checkpoint"));
        }
        bounds::check_id("id", &request.id).map_err(|error| TaskError::Invalid(error.to_string()))?;
        let reservation = self.reserve(&request.id)?;
        let (mut answer, answered) = oneshot::channel();
        let mut draft = Draft { tasks: self.clone(), request, config: None, guest: None, hooks: None, in_guest: false };
        tokio::spawn(async move {
            let result = tokio::select! {
                biased;
                () = answer.closed() => Err(TaskError::Cancelled),
                result = draft.build() => result,
            };
            let result = match result {
                Ok(container) => {
                    let pid = container.init.pid;
                    draft.commit(reservation, container);
                    Ok(pid)
                }
                Err(error) => {
                    log::warn!(container = draft.request.id; "not created: {error}");
                    draft.roll_back().await;
                    Err(error)
                }
            };
            // A caller that has gone in this moment finds a container that was created, and deletes it.
            let _ = answer.send(result);
        });
        answered.await.unwrap_or_else(|_| Err(TaskError::Sandbox("internal error of the shim while creating".to_owned())))
    }

    /// `Exec`: prepares one more process.
    pub async fn exec(self: &Arc<Self>, request: ExecProcessRequest) -> Result<(), TaskError> {
        let tasks = self.clone();
        detached(async move {
            let container = tasks.container(&request.id)?;
            bounds::check_id("exec_id", &request.exec_id).map_err(|error| TaskError::Invalid(error.to_string()))?;
            if container.is_sandbox() {
                return Err(TaskError::Unsupported("exec in a pod's sandbox container"));
            }
            let reservation = container.reserve_exec(&request.exec_id)?;
            if !container.init.state().is_alive() {
                return Err(TaskError::InitNotRunning(container.id.clone()));
            }
            let paths = Paths { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
            let prepare = api::ExecProcessRequest {
                container_id: container.id.clone(),
                exec_id: request.exec_id.clone(),
                process: request.spec.value.clone(),
                stdio: MessageField::some(paths.announce()),
                ..Default::default()
            };
            let ends = Ends::open(&paths, reattaches(&container.role, &paths), &tasks.settings.namespace, &request.exec_id).await?;
            container.guest.agent().exec_process(ttrpc::context::with_duration(EXEC_TIMEOUT), &prepare).await?;
            let process = Process::new(&container.id, &request.exec_id, container.guest.pid(), paths, ends);
            let event = TaskExecAdded { container_id: request.id, exec_id: request.exec_id, ..Default::default() };
            reservation.keep(process, || tasks.events.publish(&event));
            Ok(())
        })
        .await
    }
}

/// The first hooks, as the runtime calls them.
fn before_create(hooks: &Hooks) -> Configure {
    let hooks = hooks.clone();
    Configure::new(move |pid| {
        let hooks = hooks.clone();
        Box::pin(async move { hooks.before_create(pid).await.map_err(|error| error.to_string()) })
    })
}

impl Tasks {
    /// Boots a VM. What is left of it on an error is the caller's to remove.
    pub(super) async fn boot(&self, config: &Config, spec: GuestSpec) -> Result<Arc<dyn Guest>, TaskError> {
        if self.settings.address.is_empty() {
            // CRI-O never runs `delete`: what a shim that was killed has left waits for the next one.
            self.host.remove_orphans(config).await;
        }
        // The group's socket is ours, so whatever has this name is left from a shim that died (CRI-O never runs `delete`).
        self.host.remove(config, &spec.sandbox.id).await.map_err(TaskError::Sandbox)?;
        let guest = self.host.boot(config, spec.sandbox).await.map_err(TaskError::Sandbox)?;
        for authority in spec.broker.iter().chain(&spec.destinations) {
            guest.allow(authority);
        }
        Ok(guest)
    }
}

/// Whether a client may go and another come: on a terminal, and in a pod, where containerd itself is the client and may restart.
fn reattaches(role: &Role, paths: &Paths) -> bool {
    paths.terminal || *role != Role::Lone
}

/// A container that is being made, with what has to be undone if it does not come to be.
struct Draft {
    tasks: Arc<Tasks>,
    request: CreateTaskRequest,
    /// Set once a VM may have been started for it.
    config: Option<Config>,
    /// Set once its VM is known.
    guest: Option<Arc<dyn Guest>>,
    /// Set once they may have run.
    hooks: Option<Hooks>,
    /// Set once the guest may know of it.
    in_guest: bool,
}

impl Draft {
    async fn build(&mut self) -> Result<Container, TaskError> {
        let bundle = Bundle::read(Path::new(&self.request.bundle))?;
        let role = bundle.role()?;
        let config = guest_spec::config(self.request.options.as_ref())?;
        // Those of a guest that runs: the configuration may have changed since it was booted.
        let running = self.tasks.table().guest.clone().filter(|_| matches!(role, Role::Member(_)));
        let shared = running.as_ref().map_or(config.guest.shared.as_slice(), |guest| guest.shared());
        // What cannot be had is said before a VM is booted for it.
        let (mut plans, mut disks) = (Vec::new(), Vec::new());
        if role != Role::Sandbox {
            plans = volumes::plan(bundle.mounts(), shared)?;
            for (number, disk) in volumes::disks(&bundle)?.into_iter().enumerate() {
                plans.push(match role {
                    Role::Lone => {
                        let (plan, disk) = disk.of_vm(number);
                        disks.push(disk);
                        plan
                    }
                    _ => disk.served()?,
                });
            }
        }
        let paths = Paths {
            stdin: self.request.stdin.clone(),
            stdout: self.request.stdout.clone(),
            stderr: self.request.stderr.clone(),
            terminal: self.request.terminal,
        };
        let hooks = bundle.hooks(&self.request.id, Path::new(&self.request.bundle));
        hooks.check()?;
        let ends = Ends::open(&paths, reattaches(&role, &paths), &self.tasks.settings.namespace, &self.request.id).await?;
        let (guest, volumes) = match &role {
            Role::Sandbox => (self.boot(&config, &bundle, &hooks, disks).await?, Attached::default()),
            Role::Lone => {
                // Side by side: containerd's answer costs nothing beside a boot, and a missing image ends the boot at once.
                let tasks = self.tasks.clone();
                let id = self.request.id.clone();
                let (guest, image) =
                    tokio::try_join!(self.boot(&config, &bundle, &hooks, disks), image::find(&tasks.settings, &bundle, &id))?;
                let volumes = self.fill(&config, &bundle, &paths, &guest, image, plans).await?;
                (guest, volumes)
            }
            Role::Member(sandbox) => {
                let guest = self.tasks.table().guest.clone().ok_or_else(|| TaskError::NoSandbox(sandbox.clone()))?;
                self.guest = Some(guest.clone());
                self.hooks = Some(hooks.clone());
                hooks.before_create(guest.pid()).await?;
                let image = image::find(&self.tasks.settings, &bundle, &self.request.id).await?;
                let volumes = self.fill(&config, &bundle, &paths, &guest, image, plans).await?;
                (guest, volumes)
            }
        };
        let init = Process::new(&self.request.id, "", guest.pid(), paths, ends);
        Ok(Container::new(&self.request.id, self.request.bundle.clone().into(), role, guest, hooks, volumes, init))
    }

    async fn boot(&mut self, config: &Config, bundle: &Bundle, hooks: &Hooks, disks: Vec<Disk>) -> Result<Arc<dyn Guest>, TaskError> {
        let taken = {
            let table = self.tasks.table();
            table.guest.is_some() || table.sandbox.is_some()
        };
        if taken {
            return Err(TaskError::SecondSandbox);
        }
        let mut spec = guest_spec::build(&self.tasks.settings, config, bundle.pod(&self.request.id)?)?;
        self.config = Some(config.clone());
        self.hooks = Some(hooks.clone());
        // A namespace that hooks are to fill has to be there before the VM, which takes its network from it.
        let fresh = bundle.wants_netns() && !hooks.is_empty();
        spec.sandbox.configure = fresh.then(|| before_create(hooks));
        spec.sandbox.disks = disks;
        let guest = self.tasks.boot(config, spec).await?;
        self.guest = Some(guest.clone());
        if !fresh {
            hooks.before_create(guest.pid()).await?;
        }
        Ok(guest)
    }

    /// Has the guest make the container from its image and its volumes.
    async fn fill(
        &mut self,
        config: &Config,
        bundle: &Bundle,
        paths: &Paths,
        guest: &Arc<dyn Guest>,
        image: Image,
        plans: Vec<Plan>,
    ) -> Result<Attached, TaskError> {
        for registry in image::registries(&image.name, &config.courier.plain_http) {
            guest.allow(&registry);
        }
        guest.add_image(&image.name);
        if let Some(containerd) = image.containerd {
            guest.set_blobs(Arc::new(containerd));
        }
        let request = api::CreateContainerRequest {
            container_id: self.request.id.clone(),
            image_reference: image.name,
            image_digest_hint: image.digest,
            spec: bundle.json().to_vec(),
            stdio: MessageField::some(paths.announce()),
            plain_http_registries: config.courier.plain_http.clone(),
            ..Default::default()
        };
        self.in_guest = true;
        let volumes = Attached::attach(guest, &self.tasks.served, &self.request.id, plans).await?;
        let agent = guest.agent();
        // A pull takes as long as it takes; the caller has a deadline of its own, and its end ends this.
        let answer = tokio::select! {
            answer = agent.create_container(ttrpc::context::with_timeout(0), &request) => answer,
            how = guest.exited() => return Err(TaskError::Sandbox(how)),
        };
        for stage in answer?.stages {
            log::info!(container = self.request.id, stage = stage.name, micros = stage.micros; "created");
        }
        Ok(volumes)
    }

    /// The container is there from here on.
    fn commit(&mut self, reservation: Reservation, container: Container) {
        let request = &self.request;
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: MessageField::some(TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            }),
            pid: container.init.pid,
            ..Default::default()
        };
        if container.owns_guest() {
            self.tasks.table().guest = Some(container.guest.clone());
        }
        reservation.keep(Arc::new(container), || self.tasks.events.publish(&event));
    }

    /// Takes back what was done, whatever of it was done.
    async fn roll_back(&mut self) {
        match (self.config.take(), self.guest.take()) {
            (Some(config), guest) => {
                if let Some(guest) = guest {
                    guest.stop().await;
                }
                // A boot that was dropped half-way has killed its VM and left its record.
                if let Err(error) = self.tasks.host.remove(&config, &self.tasks.settings.group.sandbox_id()).await {
                    log::error!("after a failed start: {error}");
                }
            }
            (None, Some(guest)) if self.in_guest => {
                let forget = api::DeleteProcessRequest { container_id: self.request.id.clone(), ..Default::default() };
                if let Err(error) = guest.agent().delete_process(ttrpc::context::with_duration(UNDO_TIMEOUT), &forget).await {
                    log::debug!(container = self.request.id; "undo: {error}");
                }
            }
            _ => {}
        }
        if let Some(hooks) = self.hooks.take() {
            hooks.after_delete().await;
        }
    }
}
