//! CRI-O's way with a shim (its runtime type "vm", `internal/oci/runtime_vm.go`): the bundle is made by hand, the address is text, options come with
//! Create, `delete` is never run, and after a restart the shim is found by the file in the bundle.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, ResizePtyRequest, ShutdownRequest, StartRequest,
    StateRequest, StateResponse, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::bed::Bed;
use crate::place;

/// CRI-O's `container_create_timeout`, and what its other calls take at most here.
const LIMIT: Duration = Duration::from_secs(240);

/// What reads a container's standard output, to its end.
pub type Output = JoinHandle<std::io::Result<String>>;

/// CRI-O on the node of a test bed.
pub struct Crio {
    runtime: Runtime,
    client: TaskClient,
    /// What `start` printed.
    pub address: String,
    directory: PathBuf,
    configuration: PathBuf,
}

impl Crio {
    /// Makes the bundle of the pod `id` and starts its shim.
    pub fn start(bed: &Bed, id: &str) -> Result<Self> {
        let directory = bed.base().join("crio");
        write_bundle(&directory, id, "sandbox", id, &Value::Null, &Value::Null)?;
        let address = start_shim(&directory, id)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(Client::connect(&address)).map_err(failed)?;
        Ok(Self { runtime, client: TaskClient::new(client), address, directory, configuration: bed.configuration_file() })
    }

    /// Connects anew, by what is in the bundle, as after a restart.
    pub fn restart(&mut self, id: &str) -> Result<()> {
        let address = fs::read_to_string(self.bundle(id).join("address"))?;
        self.client = TaskClient::new(self.runtime.block_on(Client::connect(&address)).map_err(failed)?);
        Ok(())
    }

    /// A container's bundle.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// Makes a container of the pod `pod`: its bundle, a call of `start`, which finds the pod's shim, and its task.
    pub fn add(&self, pod: &str, id: &str, image: &str, args: &[&str], resources: &Value) -> Result<Output> {
        self.add_to(pod, id, &json!({ "image": image, "args": args, "terminal": false }), resources)
    }

    /// The same on a terminal.
    pub fn add_on_terminal(&self, pod: &str, id: &str, image: &str, args: &[&str]) -> Result<Output> {
        self.add_to(pod, id, &json!({ "image": image, "args": args, "terminal": true }), &Value::Null)
    }

    fn add_to(&self, pod: &str, id: &str, what: &Value, resources: &Value) -> Result<Output> {
        write_bundle(&self.directory, id, "container", pod, what, resources)?;
        let address = start_shim(&self.directory, id)?;
        ensure!(address == self.address, "{id} has a shim of its own: {address}");
        self.create_with(id, what["terminal"] == true)
    }

    /// `Create` with pipes for both outputs and no root file system of its own.
    pub fn create(&self, id: &str) -> Result<Output> {
        self.create_with(id, false)
    }

    fn create_with(&self, id: &str, terminal: bool) -> Result<Output> {
        let bundle = self.bundle(id);
        let pipe = bundle.join("stdout");
        mkfifo(&pipe, Mode::S_IRWXU)?;
        let path = pipe.clone();
        let output = std::thread::spawn(move || fs::read_to_string(path));
        let text = self.configuration.display().to_string();
        // `runtimeoptions.v1.Options`: `config_path` is its second field; a length below 128 is one byte.
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 128).context("the build directory's path is too long")?;
        let value = [&[0x12, length], text.as_bytes()].concat();
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() };
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            stdout: pipe.display().to_string(),
            terminal,
            options: Some(options).into(),
            ..Default::default()
        };
        self.runtime.block_on(self.client.create(context(), &request)).map_err(failed)?;
        Ok(output)
    }

    /// `Start`, of an exec too.
    pub fn run(&self, id: &str, exec_id: &str) -> Result<()> {
        let request = StartRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.runtime.block_on(self.client.start(context(), &request)).map_err(failed)?;
        Ok(())
    }

    /// `Exec` and `Start` of a program whose output goes to a file; gives its exit code.
    pub fn exec(&self, id: &str, exec_id: &str, args: &[&str]) -> Result<(u32, String)> {
        let output = self.prepare(id, exec_id, args, "")?;
        self.run(id, exec_id)?;
        let status = self.wait(id, exec_id)?;
        self.delete(id, exec_id)?;
        Ok((status, fs::read_to_string(output)?))
    }

    /// The same with input, which ends by `CloseIO` once its only writer has gone.
    pub fn exec_with_input(&self, id: &str, exec_id: &str, args: &[&str], input: &[u8]) -> Result<(u32, String)> {
        let pipe = self.bundle(id).join(format!("{exec_id}.in"));
        mkfifo(&pipe, Mode::S_IRWXU)?;
        let output = self.prepare(id, exec_id, args, &pipe.display().to_string())?;
        self.run(id, exec_id)?;
        fs::File::options().write(true).open(&pipe)?.write_all(input)?;
        ensure!(self.state_of(id, exec_id)?.exited_at.is_none(), "the input's end was seen before it was closed");
        for _ in 0..2 {
            let request = CloseIORequest { id: id.into(), exec_id: exec_id.into(), stdin: true, ..Default::default() };
            self.runtime.block_on(self.client.close_io(context(), &request)).map_err(failed)?;
        }
        let status = self.wait(id, exec_id)?;
        self.delete(id, exec_id)?;
        Ok((status, fs::read_to_string(output)?))
    }

    /// `Exec`; gives the file that its output will be in.
    fn prepare(&self, id: &str, exec_id: &str, args: &[&str], stdin: &str) -> Result<PathBuf> {
        let output = self.bundle(id).join(format!("{exec_id}.out"));
        let spec = json!({ "args": args, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] }).to_string();
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: spec.into_bytes(),
            ..Default::default()
        };
        let request = ExecProcessRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            stdin: stdin.into(),
            stdout: format!("file://{}", output.display()),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.runtime.block_on(self.client.exec(context(), &request)).map_err(failed)?;
        Ok(output)
    }

    /// `ResizePty` of a container's terminal.
    pub fn resize(&self, id: &str, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest { id: id.into(), width, height, ..Default::default() };
        self.runtime.block_on(self.client.resize_pty(context(), &request)).map_err(failed)?;
        Ok(())
    }

    /// `Update` of a container's limits.
    pub fn update(&self, id: &str, resources: &Value) -> Result<()> {
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        };
        let request = UpdateTaskRequest { id: id.into(), resources: Some(resources).into(), ..Default::default() };
        self.runtime.block_on(self.client.update(context(), &request)).map_err(failed)?;
        Ok(())
    }

    /// `State` of a container.
    pub fn state(&self, id: &str) -> Result<StateResponse> {
        self.state_of(id, "")
    }

    fn state_of(&self, id: &str, exec_id: &str) -> Result<StateResponse> {
        let request = StateRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.runtime.block_on(self.client.state(context(), &request)).map_err(failed)
    }

    /// `Kill`; signal 0 asks whether the container lives.
    pub fn kill(&self, id: &str, signal: i32) -> Result<()> {
        let request = KillRequest { id: id.into(), signal: u32::try_from(signal)?, ..Default::default() };
        self.runtime.block_on(self.client.kill(context(), &request)).map_err(failed)?;
        Ok(())
    }

    /// `Wait`: the exit status.
    pub fn wait(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = WaitRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        Ok(self.runtime.block_on(self.client.wait(context(), &request)).map_err(failed)?.exit_status)
    }

    /// `Delete` of a task or exec: the exit status.
    pub fn delete(&self, id: &str, exec_id: &str) -> Result<u32> {
        let request = DeleteRequest { id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        Ok(self.runtime.block_on(self.client.delete(context(), &request)).map_err(failed)?.exit_status)
    }

    /// `Shutdown`, as after every deletion.
    pub fn shut_down(&self) -> Result<()> {
        self.runtime.block_on(self.client.shutdown(context(), &ShutdownRequest::new())).map_err(failed)?;
        Ok(())
    }
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(LIMIT)
}

fn failed(error: ttrpc::Error) -> anyhow::Error {
    anyhow!("{error}")
}

/// A bundle with a runtime specification as CRI-O writes it, as far as a shim looks.
fn write_bundle(directory: &Path, id: &str, kind: &str, pod: &str, what: &Value, resources: &Value) -> Result<()> {
    let bundle = directory.join(id);
    fs::create_dir_all(bundle.join("rootfs"))?;
    let args = what.get("args").cloned().unwrap_or_else(|| json!(["/pause"]));
    let spec = json!({
        "ociVersion": "1.1.0",
        "process": { "terminal": what["terminal"] == true, "args": args, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"] },
        "root": { "path": bundle.join("rootfs") },
        "annotations": {
            "io.kubernetes.cri-o.ContainerType": kind,
            "io.kubernetes.cri-o.SandboxID": pod,
            "io.kubernetes.cri-o.ImageName": what.get("image").and_then(Value::as_str).unwrap_or_default(),
        },
        "linux": { "resources": if resources.is_null() { json!({}) } else { resources.clone() } },
    });
    Ok(fs::write(bundle.join("config.json"), spec.to_string())?)
}

fn start_shim(directory: &Path, id: &str) -> Result<String> {
    let mut command = Command::new(place::ours("containerd-shim-cloister-v2")?);
    command.args(["-namespace", "default", "-address", "", "-publish-binary", "/usr/bin/crio", "-id", id, "start"]);
    // Its own configuration is another one's: what counts comes with the options.
    command.current_dir(directory.join(id)).env("CLOISTER_CONFIG", directory.join("start.toml"));
    command.envs([("TTRPC_ADDRESS", ""), ("GRPC_ADDRESS", ""), ("NAMESPACE", "default"), ("MAX_SHIM_VERSION", "2")]);
    fs::write(directory.join("start.toml"), format!("state_dir = {:?}\n", directory.parent().context("no parent")?.join("v")))?;
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "start {id}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
