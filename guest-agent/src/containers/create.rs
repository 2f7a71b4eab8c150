//! CreateContainer: image, policy, root file system, process; in this order, and nothing is left of it if a step fails.

use super::{
    Container, ContainerError, Containers, RUN, STATE,
    bundle::Bundle,
    cgroup::Cgroup,
    derive::{self, Accounts, Derived},
    host_spec::HostSpec,
    in_root::InRoot,
    launch::{LaunchError, launch},
    overlay::Overlay,
    process::Process,
    remove_directories,
    terminal::ConsoleSocket,
};
use crate::{
    boot::modules::Stage,
    child::{CreateJob, Job},
    sandbox::{Place, Sandbox},
    secrets::Opened,
    stages::Stages,
};
use log::info;
use policy::Stdio;
use protocol::api;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokio::task::spawn_blocking;

/// A request that has passed its bounds and the stream policy.
pub struct CreateRequest<'a> {
    /// The host's message.
    pub message: &'a api::CreateContainerRequest,
    /// The machine.
    pub sandbox: &'a Arc<Sandbox>,
}

/// What has been made so far; removed again unless it becomes a container.
struct Workspace {
    name: String,
    directory: PathBuf,
    writable: PathBuf,
    root: Option<Overlay>,
    kept: bool,
}

impl Workspace {
    fn make(name: &str, writable: &Path) -> Result<Self, ContainerError> {
        let workspace =
            Self { name: name.to_owned(), directory: Path::new(RUN).join(name), writable: writable.join(name), root: None, kept: false };
        for dir in [STATE.into(), workspace.rootfs(), workspace.writable.join("upper"), workspace.writable.join("work")] {
            fs::create_dir_all(&dir).map_err(ContainerError::io(dir.display().to_string()))?;
        }
        Ok(workspace)
    }

    fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.kept {
            self.root = None;
            let cgroup = Cgroup::of(&self.name);
            let _ = cgroup.kill();
            let _ = cgroup.remove();
            remove_directories(&self.name, &self.directory, &self.writable);
        }
    }
}

impl Containers {
    /// Makes a container; its first process waits for StartProcess. `stages` gets the time of each step.
    pub async fn create(&self, request: CreateRequest<'_>, stages: &mut Stages) -> Result<(), ContainerError> {
        let message = request.message;
        let sandbox = request.sandbox;
        let stdio = message.stdio.clone().unwrap_or_default();
        let host = HostSpec::parse(&message.spec)?;
        let reservation = self.reserve(&message.container_id)?;
        let image = sandbox.pull(message, stages).await?;

        let scratch = sandbox.scratch().await?;
        let (name, modules) = (reservation.name.clone(), sandbox.modules());
        let layers = image.layers.clone();
        let mounted = spawn_blocking(move || -> Result<Workspace, ContainerError> {
            modules.load(Stage::Overlay)?;
            let mut workspace = Workspace::make(&name, &scratch.containers())?;
            let (upper, work) = (workspace.writable.join("upper"), workspace.writable.join("work"));
            Cgroup::of(&name).create().map_err(ContainerError::io("cgroup"))?;
            workspace.root = Some(Overlay::mount(&layers, &upper, &work, &workspace.rootfs())?);
            Ok(workspace)
        });
        let mut workspace = mounted.await.map_err(|e| ContainerError::State(format!("root file system: {e}")))??;
        let root = InRoot::open(&workspace.rootfs()).map_err(ContainerError::io("open root"))?;
        let accounts = read_accounts(&root)?;
        let derived = derive::derive(&image.process, &host, &accounts, sandbox.hostname())?;
        let place = Sandbox::admit(sandbox, &derived.wanted(image.identity.clone(), asked(&stdio)))?;
        let secrets = Opened::of(&derived.env, sandbox.broker()).await?;
        complete_root(&root, &derived, sandbox.hostname())?;
        stages.end("rootfs");

        let bundle = Bundle {
            name: &workspace.name,
            host: &host,
            process: &derived,
            secrets: &secrets,
            hostname: sandbox.hostname(),
            open: sandbox.policy().is_open(),
        };
        let seccomp = bundle.seccomp();
        let spec = bundle.spec(&workspace.rootfs()).map_err(|e| LaunchError::Failed(e.to_string()))?;
        spec.save(workspace.directory.join("config.json")).map_err(|e| LaunchError::Failed(e.to_string()))?;
        let terminal = host.process.terminal().unwrap_or(false);
        let console = terminal.then(|| ConsoleSocket::bind(&workspace.directory.join("tty.sock"))).transpose();
        let console = console.map_err(ContainerError::io("terminal socket"))?;
        let process = Process::prepared(api::Stdio { terminal, ..stdio }, true);
        let job = Job::Create(CreateJob {
            name: workspace.name.clone(),
            bundle: workspace.directory.clone(),
            state: STATE.into(),
            console: console.as_ref().map(|c| c.path().to_owned()),
        });
        let launched = launch(&self.reaper, &workspace.directory, &job, process.wanted()).await?;
        let terminal = console.map(|c| c.receive()).transpose().map_err(ContainerError::io("terminal"))?;
        if let (Some(terminal), Some(size)) = (&terminal, host.process.console_size()) {
            let bounded = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
            terminal.resize(bounded(size.width()), bounded(size.height())).map_err(ContainerError::io("terminal size"))?;
        }
        let pipes = process.exists(launched, terminal);
        stages.end("create");

        self.streams.announce(&message.container_id, "", &process.stdio);
        workspace.kept = true;
        let container = Arc::new(Container {
            id: message.container_id.clone(),
            name: workspace.name.clone(),
            directory: workspace.directory.clone(),
            writable: workspace.writable.clone(),
            derived,
            accounts,
            seccomp,
            secrets,
            place,
            cgroup: Cgroup::of(&workspace.name),
            init: process,
            init_pipes: Mutex::new(Some(pipes)),
            execs: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            root: Mutex::new(workspace.root.take()),
        });
        Place::watch(&container);
        info!(container = message.container_id, image = image.identity.reference; "container created");
        reservation.made(container);
        Ok(())
    }
}

/// The streams as the policy is asked about them.
pub fn asked(stdio: &api::Stdio) -> Stdio {
    Stdio { stdin: stdio.stdin, output: stdio.stdout || stdio.stderr, terminal: stdio.terminal }
}

fn read_accounts(root: &InRoot) -> Result<Accounts, ContainerError> {
    let read = |path: &str| root.read(path).map(Option::unwrap_or_default).map_err(ContainerError::io(path));
    Ok(Accounts { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
}

/// What every container finds, where the image does not bring it.
fn complete_root(root: &InRoot, derived: &Derived, hostname: &str) -> Result<(), ContainerError> {
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n");
    for (path, content) in [("/etc/hosts", hosts), ("/etc/hostname", format!("{hostname}\n"))] {
        root.write_absent(path, &content).map_err(ContainerError::io(path))?;
    }
    root.make_dirs(Path::new(&derived.cwd)).map_err(ContainerError::io(format!("working directory {}", derived.cwd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_completed_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hosts"), "own").unwrap();
        let root = InRoot::open(dir.path()).unwrap();
        let derived = Derived { cwd: "/srv/app".into(), ..Derived::default() };
        complete_root(&root, &derived, "pod").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etc/hosts")).unwrap(), "own");
        assert_eq!(fs::read_to_string(dir.path().join("etc/hostname")).unwrap(), "pod\n");
        assert!(dir.path().join("srv/app").is_dir());
        assert!(read_accounts(&root).unwrap().passwd.is_empty());
    }
}
