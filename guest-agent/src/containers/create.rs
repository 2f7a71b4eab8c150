//! CreateContainer: image, policy, root file system, process; in this order, and nothing is left of it if a step fails.

use super::{
    Container, ContainerError, Containers, RUN, STATE,
    bundle::Bundle,
    cgroup::Cgroup,
    derive::{self, Accounts, Derived},
    device_nodes::Node,
    devices::{self, Access, Further},
    disks::Disk,
    host_spec::{HostSpec, SpecError, printable},
    in_root::InRoot,
    launch::{LaunchError, launch},
    memory::Kills,
    mounted::Mounted,
    mounts::Binds,
    overlay::Overlay,
    process::Process,
    remove_directories,
    terminal::ConsoleSocket,
    volumes::Bind,
};
use crate::{
    boot::modules::Stage,
    child::{CreateJob, Job},
    reaper::Watched,
    sandbox::{Place, Sandbox},
    secrets::Opened,
    stages::Stages,
};
use log::info;
use policy::{Denial, Stdio};
use protocol::api;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
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
    disks: Vec<Mounted>,
    kept: bool,
}

impl Workspace {
    fn make(name: &str, writable: &Path) -> Result<Self, ContainerError> {
        let workspace = Self {
            name: name.to_owned(),
            directory: Path::new(RUN).join(name),
            writable: writable.join(name),
            root: None,
            disks: Vec::new(),
            kept: false,
        };
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
            self.disks.clear();
            remove_directories(&self.name, &self.directory, &self.writable);
        }
    }
}

impl Containers {
    /// Makes a container; its first process waits for StartProcess. `stages` gets the time of each step. Without a container its volumes go.
    pub async fn create(&self, request: CreateRequest<'_>, stages: &mut Stages) -> Result<(), ContainerError> {
        let id = request.message.container_id.clone();
        let made = self.make(request, stages).await;
        // Another container's volumes stay, if it is its id that was taken.
        if made.is_err() && matches!(self.get(&id), Err(ContainerError::NoContainer(_))) {
            self.volumes.forget(&id);
        }
        made
    }

    async fn make(&self, request: CreateRequest<'_>, stages: &mut Stages) -> Result<(), ContainerError> {
        let message = request.message;
        let sandbox = request.sandbox;
        let stdio = message.stdio.clone().unwrap_or_default();
        let host = HostSpec::parse(&message.spec)?;
        let reservation = self.reserve(&message.container_id)?;
        let volumes = self.volumes.of(&message.container_id);
        let mut binds = host.mounts.binds(volumes.as_deref())?;
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
        let wanted = derived.wanted(image.identity.clone(), asked(&stdio), &accounts);
        let place = match &volumes {
            None => Sandbox::admit(sandbox, &wanted)?,
            Some(volumes) => volumes.decide(&binds, wanted, |wanted| {
                let place = Sandbox::admit(sandbox, wanted)?;
                let id = place.id();
                Ok((place, id))
            })?,
        };
        // The policy lets it run, and nothing of it has run yet: what the host is refused is not in the evidence, and nothing else is missing.
        // Without a broker there is no evidence either.
        if let Some(broker) = sandbox.broker() {
            broker.measure(*image.manifest.as_bytes()).await?;
        }
        let known = image.signed || sandbox.policy().names_images();
        let secrets = Opened::of(&derived.env, sandbox.broker(), known).await?;
        let cgroup = Cgroup::of(&workspace.name);
        let disks = volumes.as_ref().map(|volumes| volumes.disks()).transpose()?.unwrap_or_default();
        let devices = give_devices(&cgroup, &host, &disks)?;
        cgroup.update(&host.resources)?;
        set_network(&host)?;
        complete_root(&root, &derived, sandbox)?;
        if host.readonly_root {
            if !sandbox.policy().is_open() {
                declared_by_image(&binds, &image.process.volumes)?;
            }
            keep_writable(&root, &mut binds)?;
        }
        if let Some(volumes) = &volumes {
            workspace.disks = self.mount_disks(volumes, &place, &derived, sandbox, &mut binds).await?;
            volumes.make_directory(&derived.cwd).map_err(ContainerError::io(format!("working directory {}", derived.cwd)))?;
        }
        stages.end("rootfs");

        let shared = self.share(host.shares, sandbox.hostname()).await?;
        let bundle = Bundle {
            name: &workspace.name,
            host: &host,
            process: &derived,
            secrets: &secrets,
            hostname: sandbox.hostname(),
            binds: &binds,
            devices: &devices,
            open: sandbox.policy().is_open(),
            shared: &shared,
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
            hold: false,
        });
        let launched = launch(&self.reaper, &workspace.directory, &job, process.wanted()).await?;
        let terminal = console.map(|c| c.receive()).transpose().map_err(ContainerError::io("terminal"))?;
        if let (Some(terminal), Some(size)) = (&terminal, host.process.console_size()) {
            let bounded = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
            terminal.resize(bounded(size.width()), bounded(size.height())).map_err(ContainerError::io("terminal size"))?;
        }
        if shared.pid.is_some() {
            end_together(&launched.process, Cgroup::of(&workspace.name));
        }
        let oom_kills = Kills::watch(&cgroup, launched.process.exit.clone());
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
            cgroup,
            oom_kills,
            init: process,
            init_pipes: Mutex::new(Some(pipes)),
            execs: Mutex::default(),
            next_exec: AtomicU64::new(1),
            frozen: false.into(),
            turn: tokio::sync::RwLock::default(),
            root: Mutex::new(workspace.root.take()),
            disks: Mutex::new(std::mem::take(&mut workspace.disks)),
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

/// A process namespace ends with its first process, and all in it; in one that is the pod's, a container's others would go on.
fn end_together(init: &Watched, cgroup: Cgroup) {
    let exit = init.exit.clone();
    tokio::spawn(async move {
        Watched::wait(&exit).await;
        if let Err(e) = cgroup.kill() {
            log::debug!("after the container's first process: {e}");
        }
    });
}

/// What the image declares as a volume stays writable where the root does not: it is mounted over itself.
fn keep_writable(root: &InRoot, binds: &mut Binds) -> Result<(), ContainerError> {
    for (destination, (bind, _)) in binds.iter_mut().filter(|(_, (bind, _))| *bind == Bind::Image) {
        let path = root.make_dirs(Path::new(destination)).and_then(|()| root.real_path(destination));
        *bind = Bind::Path(path.map_err(ContainerError::io(format!("volume of the image at {destination}")))?);
    }
    Ok(())
}

/// Behind a closed door only the image says what of a read-only root is writable: a host could name any directory.
fn declared_by_image(binds: &Binds, declared: &[String]) -> Result<(), Denial> {
    let is_declared = |destination: &str| declared.iter().any(|volume| volume.trim_end_matches('/') == destination);
    let mut undeclared = binds.iter().filter(|(destination, (bind, _))| *bind == Bind::Image && !is_declared(destination));
    undeclared.next().map_or(Ok(()), |(destination, _)| {
        Err(Denial {
            asked: format!("a writable {} in a read-only root", printable(destination)),
            rule: "the image does not declare it as a volume".to_owned(),
            remedy: "put it into VOLUME of the image, or mount an emptyDir there".to_owned(),
        })
    })
}

/// Kernel parameters of the network: the pod's, and so the guest's.
fn set_network(host: &HostSpec) -> Result<(), ContainerError> {
    for (name, value) in host.network_sysctls() {
        // Checked when it was read: letters, digits, '-', '_' and single dots.
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(path, value).map_err(ContainerError::io(format!("sysctl {name}")))?;
    }
    Ok(())
}

/// Lets the container open the devices that it may have, before there is a process in its cgroup; gives those that it gets beyond the
/// usual ones.
fn give_devices(cgroup: &Cgroup, host: &HostSpec, disks: &[(String, Disk)]) -> Result<Vec<Node>, ContainerError> {
    // The others are mounted.
    let disks: Vec<&(String, Disk)> = disks.iter().filter(|(destination, _)| destination.starts_with("/dev/")).collect();
    let missing = host.disks.iter().find(|path| !disks.iter().any(|(destination, _)| destination == *path));
    if let Some(path) = missing {
        return Err(SpecError::Disk(path.clone()).into());
    }
    let disks = disks.iter().map(|(destination, disk)| Node::disk(*disk, destination)).collect::<Vec<_>>();
    let others = match &host.devices {
        Access::All => return Ok([Node::all(), disks].concat()),
        Access::Some(paths) => paths.iter().map(|path| Node::find(path)).collect::<Result<Vec<_>, _>>()?,
    };
    let nodes = [others, disks].concat();
    let numbers: Vec<Further> = nodes.iter().map(Node::further).collect();
    devices::restrict(cgroup.path(), &numbers).map_err(ContainerError::io("device filter"))?;
    Ok(nodes)
}

fn read_accounts(root: &InRoot) -> Result<Accounts, ContainerError> {
    let read = |path: &str| root.read(path).map(Option::unwrap_or_default).map_err(ContainerError::io(path));
    Ok(Accounts { passwd: read("/etc/passwd")?, group: read("/etc/group")? })
}

/// What every container finds, where the image does not bring it; and where names are looked up, which the pod knows better than the image.
fn complete_root(root: &InRoot, derived: &Derived, sandbox: &Sandbox) -> Result<(), ContainerError> {
    complete(root, derived, sandbox.hostname(), sandbox.resolv_conf())
}

fn complete(root: &InRoot, derived: &Derived, hostname: &str, resolv_conf: &str) -> Result<(), ContainerError> {
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n127.0.1.1\t{hostname}\n");
    for (path, content) in [("/etc/hosts", hosts), ("/etc/hostname", format!("{hostname}\n"))] {
        root.write_absent(path, &content).map_err(ContainerError::io(path))?;
    }
    if !resolv_conf.is_empty() {
        root.replace("/etc/resolv.conf", resolv_conf).map_err(ContainerError::io("/etc/resolv.conf"))?;
    }
    root.make_dirs(Path::new(&derived.cwd)).map_err(ContainerError::io(format!("working directory {}", derived.cwd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_image_makes_a_part_of_a_read_only_root_writable() {
        let binds = |destination: &str, bind| Binds::from([(destination.to_owned(), (bind, false))]);
        let declared = ["/data/".to_owned()];
        assert_eq!(declared_by_image(&binds("/data", Bind::Image), &declared), Ok(()));
        assert_eq!(declared_by_image(&binds("/bin", Bind::Path("/x".into())), &declared), Ok(()));
        let denial = declared_by_image(&binds("/bin", Bind::Image), &declared).unwrap_err().to_string();
        assert!(denial.contains("/bin") && denial.contains("VOLUME"), "{denial}");
    }

    #[test]
    fn a_root_is_completed_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/hosts"), "own").unwrap();
        let root = InRoot::open(dir.path()).unwrap();
        let derived = Derived { cwd: "/srv/app".into(), ..Derived::default() };
        complete(&root, &derived, "pod", "nameserver 10.0.0.10\n").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etc/resolv.conf")).unwrap(), "nameserver 10.0.0.10\n");
        assert_eq!(fs::read_to_string(dir.path().join("etc/hosts")).unwrap(), "own");
        assert_eq!(fs::read_to_string(dir.path().join("etc/hostname")).unwrap(), "pod\n");
        assert!(dir.path().join("srv/app").is_dir());
        assert!(read_accounts(&root).unwrap().passwd.is_empty());
    }
}
