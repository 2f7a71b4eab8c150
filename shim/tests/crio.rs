//! The shim as CRI-O drives it (its runtime type "vm"): no address of its own, no events, never `delete`, the configuration in the options
//! of Create, and its own way back to a shim after a restart. Without a VM: what a VM is needed for is in the end-to-end tests.
#![allow(clippy::unwrap_used)]

use containerd_shim_protos::{
    api::{ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest, ShutdownRequest, StateRequest},
    shim_async::{Client, TaskClient},
};
use protobuf::well_known_types::any::Any;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use ttrpc::{Code, context::Context};

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-cloister-v2");

/// A node with CRI-O: one directory for bundles, one for the shim's state.
struct Crio {
    dir: TempDir,
}

impl Crio {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("v");
        fs::write(dir.path().join("cloister.toml"), format!("state_dir = {state:?}\n")).unwrap();
        // What `runtime_config_path` names: the same node, and a guest that is not there.
        let guest = "[guest]\nkernel = \"/nonexistent/of-the-options\"\ninitramfs = \"/nonexistent/of-the-options\"\n";
        let text = format!("state_dir = {state:?}\n{guest}[vmm]\nqemu = \"/bin/true\"\n");
        fs::write(dir.path().join("options.toml"), text).unwrap();
        Self { dir }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        let bundle = self.dir.path().join("b").join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let annotations = format!(
            r#"{{"io.kubernetes.cri-o.ContainerType":"sandbox","io.kubernetes.cri-o.SandboxID":"{id}","io.kubernetes.cri-o.SandboxName":"pod"}}"#
        );
        fs::write(bundle.join("config.json"), format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations}}}"#)).unwrap();
        bundle
    }

    /// `start`; gives the address that was printed.
    fn start(&self, id: &str) -> String {
        let mut command = Command::new(SHIM);
        command.args(["-namespace", "default", "-address", "", "-publish-binary", "/usr/bin/crio", "-id", id, "start"]);
        command.current_dir(self.bundle(id)).env_clear().env("CLOISTER_CONFIG", self.dir.path().join("cloister.toml"));
        command.envs([("TTRPC_ADDRESS", ""), ("GRPC_ADDRESS", ""), ("NAMESPACE", "default"), ("MAX_SHIM_VERSION", "2")]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn create(&self, id: &str) -> CreateTaskRequest {
        let path = self.dir.path().join("options.toml").display().to_string();
        let value = [&[0x12, u8::try_from(path.len()).unwrap()], path.as_bytes()].concat();
        let options = Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Default::default() };
        let bundle = self.dir.path().join("b").join(id).display().to_string();
        CreateTaskRequest { id: id.into(), bundle, options: Some(options).into(), ..Default::default() }
    }

    /// What the shims have on disk.
    fn state(&self) -> Vec<PathBuf> {
        let list = |dir: &str| fs::read_dir(self.dir.path().join("v").join(dir)).into_iter().flatten().flatten().map(|entry| entry.path());
        list("s").chain(list("sandboxes")).collect()
    }
}

fn context() -> Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

async fn connect(address: &str) -> TaskClient {
    TaskClient::new(Client::connect(address).await.unwrap())
}

fn refused<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        error => panic!("{error}"),
    }
}

async fn ended(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "the shim does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_failed_create_uses_the_options_and_leaves_nothing() {
    let crio = Crio::new();
    let address = crio.start("p");
    let client = connect(&address).await;
    let (_, message) = refused(client.create(context(), &crio.create("p")).await);
    assert!(message.contains("/nonexistent/of-the-options") && !message.contains('\n'), "{message}");
    // What CRI-O does then: probe, delete, shutdown. Nobody runs `delete` afterwards.
    let probe = KillRequest { id: "p".into(), ..Default::default() };
    assert_eq!(refused(client.kill(context(), &probe).await).0, Code::NOT_FOUND);
    let delete = DeleteRequest { id: "p".into(), ..Default::default() };
    assert_eq!(refused(client.delete(context(), &delete).await).0, Code::NOT_FOUND);
    let pid = client.connect(context(), &ConnectRequest::new()).await.unwrap().shim_pid;
    client.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
    drop(client);
    ended(pid).await;
    assert_eq!(crio.state(), [] as [PathBuf; 0]);
}

/// After its own restart CRI-O finds a shim by the file in the bundle, and asks it.
#[tokio::test]
async fn the_bundle_leads_back_to_the_shim() {
    let crio = Crio::new();
    let address = crio.start("p");
    let noted = fs::read_to_string(crio.bundle("p").join("address")).unwrap();
    assert_eq!(noted, address);
    let client = connect(&noted).await;
    let (code, message) = refused(client.state(context(), &StateRequest { id: "p".into(), ..Default::default() }).await);
    assert_eq!((code, message.as_str()), (Code::NOT_FOUND, "container not created"));
    assert_eq!(crio.start("p"), address, "the same shim serves");
    client.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
}

#[tokio::test]
async fn what_a_killed_shim_has_left_goes_with_the_next_one() {
    let crio = Crio::new();
    let killed = connect(&crio.start("killed")).await.connect(context(), &ConnectRequest::new()).await.unwrap().shim_pid;
    // A sandbox of it, as far as a record tells.
    let record = crio.dir.path().join("v/sandboxes/killed.0");
    fs::create_dir_all(&record).unwrap();
    fs::write(record.join("record.json"), format!(r#"{{"owner":{{"pid":{killed},"start_time":1}},"vmm":null}}"#)).unwrap();
    fs::write(record.join("scratch.img"), "").unwrap();
    assert!(Command::new("kill").args(["-9", &killed.to_string()]).status().unwrap().success());
    ended(killed).await;
    assert_eq!(crio.state().len(), 2, "a socket and a record: {:?}", crio.state());

    let client = connect(&crio.start("p")).await;
    refused(client.create(context(), &crio.create("p")).await);
    assert_eq!(crio.state().len(), 1, "the new shim's socket alone: {:?}", crio.state());
    client.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
}
