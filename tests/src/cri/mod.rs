//! The CRI socket of a containerd, driven as kubelet drives it: pods and containers by gRPC ([`grpc`]), their streams by WebSocket
//! ([`websocket`]). What a node needs for it: [`configuration`], [`network`].

pub mod configuration;
pub mod grpc;
pub mod network;
pub mod websocket;

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/cri_pb/modules.rs"));
}

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use protobuf::MessageField;

pub use generated::cri as pb;
use grpc::Grpc;

/// One call that boots no VM.
const SHORT: Duration = Duration::from_secs(120);
/// One that does, on a busy machine without hardware virtualisation.
const LONG: Duration = Duration::from_secs(300);

/// A client of one containerd's CRI.
#[derive(Debug)]
pub struct Cri {
    grpc: Grpc,
    logs: PathBuf,
    count: AtomicU32,
}

/// What a pod is to be; the rest is as kubelet sets it by default.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its name, and its hostname.
    pub name: &'static str,
    /// Handler of the runtime.
    pub handler: &'static str,
    /// Its kernel parameters.
    pub sysctls: &'static [(&'static str, &'static str)],
    /// Its annotations.
    pub annotations: HashMap<String, String>,
    /// Whether its containers see each other's processes.
    pub share_processes: bool,
    /// Whether it asks for the node's network.
    pub host_network: bool,
    /// Whether one of its containers is privileged.
    pub privileged: bool,
    /// Its limit of memory in MiB; 0 for none.
    pub memory_mib: i64,
    /// Its limit of processors in hundredths; 0 for none.
    pub cpu_percent: i64,
    /// The control group of the node that its own is made in.
    pub cgroup_parent: &'static str,
}

impl Default for PodSpec {
    fn default() -> Self {
        Self {
            name: "pod",
            handler: "cloister",
            sysctls: &[],
            annotations: HashMap::new(),
            share_processes: false,
            host_network: false,
            privileged: false,
            memory_mib: 0,
            cpu_percent: 0,
            cgroup_parent: "",
        }
    }
}

/// A running pod.
#[derive(Debug)]
pub struct Pod<'a> {
    cri: &'a Cri,
    /// Its id.
    pub id: String,
    config: pb::PodSandboxConfig,
    share_processes: bool,
    ended: bool,
}

/// What a container is to be.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec<'a> {
    /// Its name in the pod.
    pub name: &'a str,
    /// How often it has been started again.
    pub attempt: u32,
    /// Its image.
    pub image: &'a str,
    /// Its command line in place of the image's.
    pub command: &'a [&'a str],
    /// Whether it has a standard input that stays open.
    pub stdin: bool,
    /// What of the node's it has mounted.
    pub mounts: &'a [Placed<'a>],
    /// Which block devices of the node's it has (`volumeDevices`).
    pub devices: &'a [Placed<'a>],
    /// What kubelet makes of a `securityContext`.
    pub security: Security,
}

/// Something of the node's, and where a container has it.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// On the node.
    pub host: &'a str,
    /// In the container.
    pub container: &'a str,
    /// Whether it is only to be read.
    pub readonly: bool,
}

/// How much a container may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// What a pod that says nothing gets.
    #[default]
    Unsaid,
    /// A user and a group by number, no new privileges, a read-only root, the runtime's default system calls.
    Restricted {
        /// `runAsUser`.
        user: i64,
        /// One of `supplementalGroups`.
        group: i64,
    },
    /// `privileged`.
    Privileged,
}

impl Security {
    fn context(self, namespaces: pb::NamespaceOption) -> pb::LinuxContainerSecurityContext {
        let unsaid = pb::LinuxContainerSecurityContext { namespace_options: MessageField::some(namespaces), ..Default::default() };
        match self {
            Self::Unsaid => unsaid,
            Self::Privileged => pb::LinuxContainerSecurityContext { privileged: true, ..unsaid },
            Self::Restricted { user, group } => {
                let seccomp =
                    pb::SecurityProfile { profile_type: pb::security_profile::ProfileType::RuntimeDefault.into(), ..Default::default() };
                pb::LinuxContainerSecurityContext {
                    run_as_user: MessageField::some(pb::Int64Value { value: user, ..Default::default() }),
                    supplemental_groups: vec![group],
                    readonly_rootfs: true,
                    no_new_privs: true,
                    seccomp: MessageField::some(seccomp),
                    ..unsaid
                }
            }
        }
    }
}

/// How a command that was run in a container ended.
#[derive(Debug)]
pub struct Executed {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cri {
    /// Connects to the socket of a containerd and waits until its CRI answers. Logs of containers go below `logs`.
    pub fn connect(socket: &Path, logs: &Path) -> Result<Self> {
        let cri = Self { grpc: Grpc::connect(socket)?, logs: logs.to_owned(), count: AtomicU32::new(0) };
        cri.wait_serving()?;
        Ok(cri)
    }

    /// Waits until it answers, at its start or after a restart of its containerd.
    pub fn wait_serving(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            match self.call::<_, pb::VersionResponse>("RuntimeService/Version", pb::VersionRequest::new(), SHORT) {
                Ok(version) => {
                    ensure!(version.runtime_name == "containerd", "{version}");
                    return Ok(());
                }
                Err(error) if started.elapsed() > SHORT => return Err(error.context("waiting for the CRI")),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn call<Q: protobuf::Message, A: protobuf::Message>(&self, method: &str, request: Q, limit: Duration) -> Result<A> {
        self.grpc.call(&format!("/runtime.v1.{method}"), request, limit)
    }

    /// Pulls an image, as kubelet does before it creates a container of it.
    pub fn pull(&self, image: &str) -> Result<()> {
        self.pull_for(image, HashMap::new())
    }

    /// The same for a pod with these annotations.
    pub fn pull_for(&self, image: &str, annotations: HashMap<String, String>) -> Result<()> {
        let pod = pb::PodSandboxConfig { annotations, ..Default::default() };
        let request = pb::PullImageRequest {
            image: MessageField::some(image_spec(image)),
            sandbox_config: MessageField::some(pod),
            ..Default::default()
        };
        let answer: pb::PullImageResponse = self.call("ImageService/PullImage", request, SHORT)?;
        ensure!(!answer.image_ref.is_empty(), "no image reference for {image}");
        Ok(())
    }

    /// Waits until the CRI has heard of an image that was pulled past it.
    pub fn wait_image(&self, image: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            let answer: pb::ImageStatusResponse = self.of_image("ImageStatus", image)?;
            if answer.image.is_some() {
                return Ok(());
            }
            ensure!(started.elapsed() < SHORT, "the CRI does not hear of {image}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes an image, as kubelet does when the disk fills.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        self.of_image::<pb::Empty>("RemoveImage", image).map(drop)
    }

    fn of_image<A: protobuf::Message>(&self, method: &str, image: &str) -> Result<A> {
        let request = pb::ImageRequest { image: MessageField::some(image_spec(image)), ..Default::default() };
        self.call(&format!("ImageService/{method}"), request, SHORT)
    }

    /// Stops and removes every pod that it knows, as kubelet does with those that nobody wants.
    pub fn remove_all(&self) -> Result<()> {
        let list: pb::ListPodSandboxResponse = self.call("RuntimeService/ListPodSandbox", pb::Empty::new(), SHORT)?;
        for pod in list.items {
            for method in ["StopPodSandbox", "RemovePodSandbox"] {
                let request = pb::PodSandboxRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
                self.call::<_, pb::Empty>(&format!("RuntimeService/{method}"), request, SHORT)?;
            }
        }
        Ok(())
    }

    /// Starts a pod.
    pub fn run_pod(&self, spec: &PodSpec) -> Result<Pod<'_>> {
        let attempt = self.count.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{}-{attempt}", spec.name);
        let logs = self.logs.join(&uid);
        fs::create_dir_all(&logs)?;
        let mode = |own: bool| if own { pb::NamespaceMode::CONTAINER } else { pb::NamespaceMode::POD };
        let options = pb::NamespaceOption {
            network: if spec.host_network { pb::NamespaceMode::NODE } else { pb::NamespaceMode::POD }.into(),
            pid: mode(!spec.share_processes).into(),
            ..Default::default()
        };
        let resources = pb::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: spec.cpu_percent * 1000,
            memory_limit_in_bytes: spec.memory_mib << 20,
            ..Default::default()
        };
        let linux = pb::LinuxPodSandboxConfig {
            security_context: MessageField::some(pb::LinuxSandboxSecurityContext {
                namespace_options: MessageField::some(options),
                privileged: spec.privileged,
                ..Default::default()
            }),
            sysctls: spec.sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            resources: MessageField::some(resources),
            cgroup_parent: spec.cgroup_parent.to_owned(),
            ..Default::default()
        };
        let config = pb::PodSandboxConfig {
            metadata: MessageField::some(pb::PodSandboxMetadata {
                name: spec.name.to_owned(),
                uid,
                namespace: "default".to_owned(),
                attempt,
                ..Default::default()
            }),
            hostname: if spec.host_network { String::new() } else { spec.name.to_owned() },
            log_directory: logs.display().to_string(),
            dns_config: MessageField::some(pb::DNSConfig {
                servers: vec!["10.231.7.53".to_owned()],
                searches: vec!["default.svc.cluster.local".to_owned(), "cluster.local".to_owned()],
                options: vec!["ndots:5".to_owned()],
                ..Default::default()
            }),
            annotations: spec.annotations.clone(),
            linux: MessageField::some(linux),
            ..Default::default()
        };
        let request = pb::RunPodSandboxRequest {
            config: MessageField::some(config.clone()),
            runtime_handler: spec.handler.to_owned(),
            ..Default::default()
        };
        let answer: pb::RunPodSandboxResponse = self.call("RuntimeService/RunPodSandbox", request, LONG)?;
        Ok(Pod { cri: self, id: answer.pod_sandbox_id, config, share_processes: spec.share_processes, ended: false })
    }
}

impl Pod<'_> {
    /// Pulls a container's image and creates it.
    pub fn create(&self, spec: &ContainerSpec<'_>) -> Result<String> {
        self.cri.pull(spec.image)?;
        self.create_of_present(spec)
    }

    /// Creates a container of an image that is on the node, as kubelet does it with `imagePullPolicy: IfNotPresent`.
    pub fn create_of_present(&self, spec: &ContainerSpec<'_>) -> Result<String> {
        let options = pb::NamespaceOption {
            pid: if self.share_processes { pb::NamespaceMode::POD } else { pb::NamespaceMode::CONTAINER }.into(),
            ..Default::default()
        };
        let security = spec.security.context(options);
        let config = pb::ContainerConfig {
            metadata: MessageField::some(pb::ContainerMetadata { name: spec.name.to_owned(), attempt: spec.attempt, ..Default::default() }),
            image: MessageField::some(image_spec(spec.image)),
            command: spec.command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: log_path(spec),
            stdin: spec.stdin,
            mounts: spec.mounts.iter().map(mount).collect(),
            devices: spec.devices.iter().map(device).collect(),
            linux: MessageField::some(pb::LinuxContainerConfig { security_context: MessageField::some(security), ..Default::default() }),
            ..Default::default()
        };
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: MessageField::some(config),
            sandbox_config: MessageField::some(self.config.clone()),
            ..Default::default()
        };
        let answer: pb::CreateContainerResponse = self.cri.call("RuntimeService/CreateContainer", request, SHORT)?;
        Ok(answer.container_id)
    }

    /// Creates a container and starts it.
    pub fn start(&self, spec: &ContainerSpec<'_>) -> Result<String> {
        let id = self.create(spec)?;
        self.start_created(&id)?;
        Ok(id)
    }

    /// Starts a container that was created.
    pub fn start_created(&self, id: &str) -> Result<()> {
        // It has its image fetched and unpacked in a guest.
        let request = pb::ContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.cri.call::<_, pb::Empty>("RuntimeService/StartContainer", request, LONG).map(drop)
    }

    /// Runs a container to its end: its exit code.
    pub fn run(&self, spec: &ContainerSpec<'_>) -> Result<i32> {
        let id = self.start(spec)?;
        self.wait(&id)
    }

    /// Waits until a container has ended: its exit code.
    pub fn wait(&self, id: &str) -> Result<i32> {
        let started = Instant::now();
        loop {
            let status = self.status(id)?;
            if status.state.enum_value() == Ok(pb::ContainerState::CONTAINER_EXITED) {
                return Ok(status.exit_code);
            }
            if started.elapsed() > SHORT {
                bail!("container {id} has not ended: {status}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the CRI says of a container.
    pub fn status(&self, id: &str) -> Result<pb::ContainerStatus> {
        let answer: pb::ContainerStatusResponse = self.of_container("ContainerStatus", id, 0)?;
        answer.status.into_option().context("no status")
    }

    /// Memory in use by a container, in bytes.
    pub fn memory(&self, id: &str) -> Result<u64> {
        let answer: pb::ContainerStatsResponse = self.of_container("ContainerStats", id, 0)?;
        Ok(answer.stats.memory.working_set_bytes.value)
    }

    /// Stops a container: by its own signal first, by force after `seconds`.
    pub fn stop_container(&self, id: &str, seconds: i64) -> Result<()> {
        self.of_container::<pb::Empty>("StopContainer", id, seconds).map(drop)
    }

    /// Removes a container.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.of_container::<pb::Empty>("RemoveContainer", id, 0).map(drop)
    }

    fn of_container<A: protobuf::Message>(&self, method: &str, id: &str, timeout: i64) -> Result<A> {
        let request = pb::ContainerRequest { container_id: id.to_owned(), timeout, ..Default::default() };
        self.cri.call(&format!("RuntimeService/{method}"), request, SHORT)
    }

    /// Runs a command in a container to its end.
    pub fn exec_sync(&self, id: &str, command: &[&str], timeout: i64) -> Result<Executed> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = pb::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout, ..Default::default() };
        let answer: pb::ExecSyncResponse = self.cri.call("RuntimeService/ExecSync", request, SHORT)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Executed { code: answer.exit_code, stdout: text(answer.stdout), stderr: text(answer.stderr) })
    }

    /// The output of a shell's line in a container; an error if it fails.
    pub fn shell(&self, id: &str, line: &str) -> Result<String> {
        let done = self.exec_sync(id, &["/bin/sh", "-c", line], 60)?;
        ensure!(done.code == 0, "{line}: {done:?}");
        Ok(done.stdout)
    }

    /// Where the streams of a command in a container are.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<String> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = pb::ExecRequest { container_id: id.to_owned(), cmd, stdin: true, stdout: true, stderr: true, ..Default::default() };
        let answer: pb::StreamResponse = self.cri.call("RuntimeService/Exec", request, SHORT)?;
        Ok(answer.url)
    }

    /// Where the streams of a container are.
    pub fn attach(&self, id: &str) -> Result<String> {
        let request = pb::AttachRequest { container_id: id.to_owned(), stdin: true, stdout: true, stderr: true, ..Default::default() };
        let answer: pb::StreamResponse = self.cri.call("RuntimeService/Attach", request, SHORT)?;
        Ok(answer.url)
    }

    /// Where the streams of a port of the pod are.
    pub fn port_forward(&self, port: u16) -> Result<String> {
        let request = pb::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()], ..Default::default() };
        let answer: pb::StreamResponse = self.cri.call("RuntimeService/PortForward", request, SHORT)?;
        Ok(answer.url)
    }

    /// The log of a container, in the CRI's format: a time, a stream, a tag and a line each.
    pub fn log(&self, spec: &ContainerSpec<'_>) -> Result<String> {
        let path = Path::new(&self.config.log_directory).join(log_path(spec));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Whether the pod is ready, and its address.
    pub fn ready(&self) -> Result<(bool, String)> {
        let answer: pb::PodSandboxStatusResponse = self.of_pod("PodSandboxStatus")?;
        let ready = answer.status.state.enum_value() == Ok(pb::PodSandboxState::SANDBOX_READY);
        Ok((ready, answer.status.network.ip.clone()))
    }

    /// Stops the pod with all that runs in it.
    pub fn stop(&self) -> Result<()> {
        self.of_pod::<pb::Empty>("StopPodSandbox").map(drop)
    }

    /// Removes the pod, which has been stopped.
    pub fn remove(&self) -> Result<()> {
        self.of_pod::<pb::Empty>("RemovePodSandbox").map(drop)
    }

    /// Stops the pod, twice as kubelet may, and removes it.
    pub fn end(mut self) -> Result<()> {
        self.ended = true;
        for method in ["StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"] {
            self.of_pod::<pb::Empty>(method)?;
        }
        Ok(())
    }

    fn of_pod<A: protobuf::Message>(&self, method: &str) -> Result<A> {
        let request = pb::PodSandboxRequest { pod_sandbox_id: self.id.clone(), ..Default::default() };
        self.cri.call(&format!("RuntimeService/{method}"), request, SHORT)
    }
}

impl Drop for Pod<'_> {
    /// After a failed test, so that it is the only one that fails.
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.of_pod::<pb::Empty>("StopPodSandbox").and_then(|_| self.of_pod::<pb::Empty>("RemovePodSandbox"));
        }
    }
}

fn log_path(spec: &ContainerSpec<'_>) -> String {
    format!("{}_{}.log", spec.name, spec.attempt)
}

fn mount(placed: &Placed<'_>) -> pb::Mount {
    let (host_path, container_path) = (placed.host.to_owned(), placed.container.to_owned());
    pb::Mount { host_path, container_path, readonly: placed.readonly, ..Default::default() }
}

/// With the permissions that kubelet gives it.
fn device(placed: &Placed<'_>) -> pb::Device {
    let (host_path, container_path) = (placed.host.to_owned(), placed.container.to_owned());
    pb::Device { host_path, container_path, permissions: if placed.readonly { "r" } else { "mrw" }.to_owned(), ..Default::default() }
}

fn image_spec(image: &str) -> pb::ImageSpec {
    pb::ImageSpec { image: image.to_owned(), ..Default::default() }
}
