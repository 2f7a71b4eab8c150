//! The real binary, run as each of its callers runs it, without a VM.
#![allow(clippy::unwrap_used)]

use containerd_shim_protos::{
    api::{ConnectRequest, DeleteResponse, ShutdownRequest},
    bootstrap_api::{BootstrapParams, BootstrapResult},
    shim_async::{Client, TaskClient},
    types::introspection::RuntimeInfo,
};
use protobuf::{Message, well_known_types::any::Any};
use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-cloister-v2");

/// A state directory with its configuration, and a bundle.
struct Node {
    dir: TempDir,
}

/// What a caller passes beside the id.
struct Caller {
    address: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

const CONTAINERD_16: Caller =
    Caller { address: "/nowhere/c.sock", environment: &[("TTRPC_ADDRESS", "/nowhere/c.sock.ttrpc"), ("GOMAXPROCS", "2")] };
const CONTAINERD_17: Caller = Caller {
    address: "/nowhere/c.sock",
    environment: &[("TTRPC_ADDRESS", "/nowhere/c.sock.ttrpc"), ("MAX_SHIM_VERSION", "2"), ("NAMESPACE", "default")],
};
const CRIO: Caller = Caller { address: "", environment: &[("TTRPC_ADDRESS", ""), ("GRPC_ADDRESS", ""), ("MAX_SHIM_VERSION", "2")] };

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cloister.toml"), format!("state_dir = \"{}/v\"\n", dir.path().display())).unwrap();
        Self { dir }
    }

    fn bundle(&self, id: &str, annotations: &str) -> PathBuf {
        let bundle = self.dir.path().join("b").join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), format!("{{\"annotations\":{{{annotations}}}}}")).unwrap();
        bundle
    }

    fn command(&self, caller: &Caller, id: &str, bundle: &Path, action: &str) -> Command {
        let mut command = Command::new(SHIM);
        command.args(["-namespace", "default", "-address", caller.address, "-publish-binary", "/usr/bin/containerd", "-id", id]);
        command.args((action == "delete").then_some(["-bundle", bundle.to_str().unwrap()]).into_iter().flatten());
        command.arg(action).current_dir(bundle).env_clear().env("CLOISTER_CONFIG", self.dir.path().join("cloister.toml"));
        command.envs(caller.environment.iter().copied()).stdin(Stdio::null());
        command
    }

    /// `start` as containerd runs it: both outputs into one pipe, and read until all of its writers are gone.
    fn start(&self, caller: &Caller, id: &str, bundle: &Path, stdin: &[u8]) -> (bool, Vec<u8>) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = self.command(caller, id, bundle, "start");
        command.stdin(Stdio::piped()).stdout(writer.try_clone().unwrap()).stderr(writer);
        let mut child = command.spawn().unwrap();
        drop(command);
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        let mut output = Vec::new();
        reader.read_to_end(&mut output).unwrap();
        (child.wait().unwrap().success(), output)
    }

    /// The sockets in the state directory.
    fn sockets(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("v/s")).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
        entries.into_iter().filter(|entry| entry.file_type().unwrap().is_socket()).map(|entry| entry.path()).collect()
    }
}

/// Connects to a shim, and has it end.
async fn shut_down(address: &str) {
    let client = TaskClient::new(Client::connect(address).await.unwrap());
    let context = || ttrpc::context::with_duration(Duration::from_secs(10));
    let answer = client.connect(context(), &ConnectRequest { id: "nobody".into(), ..Default::default() }).await.unwrap();
    assert!(answer.shim_pid > 0 && answer.task_pid == 0);
    client.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
    drop(client);
    let path = PathBuf::from(address.strip_prefix("unix://").unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    while path.exists() || Path::new(&format!("/proc/{}", answer.shim_pid)).exists() {
        assert!(Instant::now() < deadline, "the shim does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn text(output: Vec<u8>) -> String {
    String::from_utf8(output).unwrap()
}

#[tokio::test]
async fn older_callers_get_the_bare_address() {
    for caller in [&CONTAINERD_16, &CONTAINERD_17, &CRIO] {
        let node = Node::new();
        let bundle = node.bundle("c", "");
        let options = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff; 4], ..Default::default() };
        let (done, output) = node.start(caller, "c", &bundle, &options.write_to_bytes().unwrap());
        let address = text(output);
        assert!(done && address.starts_with("unix:///"), "{address}");
        assert_eq!(fs::read_to_string(bundle.join("address")).unwrap(), address);
        shut_down(&address).await;
        assert!(node.sockets().is_empty());
    }
}

#[tokio::test]
async fn a_new_caller_gets_a_message() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    let params = BootstrapParams { instance_id: "c".into(), namespace: "default".into(), ..Default::default() };
    let (done, output) = node.start(&CONTAINERD_17, "c", &bundle, &params.write_to_bytes().unwrap());
    assert!(done);
    let result = BootstrapResult::parse_from_bytes(&output).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    shut_down(&result.address).await;
}

#[tokio::test]
async fn a_pod_has_one_shim() {
    let node = Node::new();
    let sandbox = node.bundle("p", r#""io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"p""#);
    let member = node.bundle("m", r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p""#);
    let (_, first) = node.start(&CONTAINERD_17, "p", &sandbox, b"");
    let (done, second) = node.start(&CONTAINERD_17, "m", &member, b"");
    assert!(done);
    assert_eq!(text(first.clone()), text(second));
    assert_eq!(fs::read(member.join("address")).unwrap(), first);
    // The end of one container's connection is not the end of its pod.
    let deleted = node.command(&CONTAINERD_17, "m", &member, "delete").output().unwrap();
    assert!(deleted.status.success());
    assert_eq!(node.sockets().len(), 1);
    shut_down(&text(first)).await;
}

#[tokio::test]
async fn two_starts_side_by_side_are_one_shim() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    for _ in 0..5 {
        let answers: Vec<(bool, Vec<u8>)> = std::thread::scope(|scope| {
            let threads = [0, 1].map(|_| scope.spawn(|| node.start(&CONTAINERD_16, "c", &bundle, b"")));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert!(answers.iter().all(|(done, _)| *done));
        assert_eq!(answers[0].1, answers[1].1);
        assert_eq!(node.sockets().len(), 1);
        shut_down(&text(answers[0].1.clone())).await;
    }
}

#[test]
fn delete_answers_twice_and_ends_the_shim() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    let (done, _) = node.start(&CONTAINERD_16, "c", &bundle, b"");
    assert!(done);
    let noted = fs::read_to_string(bundle.join("shim.pid")).unwrap();
    let process = Path::new("/proc").join(noted.split(' ').next().unwrap());
    assert!(process.exists());
    for _ in 0..2 {
        let began = Instant::now();
        let output = node.command(&CONTAINERD_16, "c", &bundle, "delete").output().unwrap();
        assert!(output.status.success() && began.elapsed() < Duration::from_secs(5));
        let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
        assert_eq!(response.exit_status, 137);
        assert!(response.exited_at.seconds > 0);
        assert!(node.sockets().is_empty());
    }
    // Whoever has inherited it may take a moment to reap it.
    let deadline = Instant::now() + Duration::from_secs(20);
    while process.exists() {
        assert!(Instant::now() < deadline, "the shim lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn delete_runs_the_poststop_hooks_that_are_owed() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    let hooks = |script: &str| format!(r#"{{"hooks":{{"poststop":[{{"path":"/bin/sh","args":["sh","-c","{script}"]}}]}}}}"#);
    fs::write(bundle.join("config.json"), hooks("cat >> ran; echo >> ran")).unwrap();
    let delete = || node.command(&CONTAINERD_17, "c", &bundle, "delete").output().unwrap();
    assert!(delete().status.success() && !bundle.join("ran").exists(), "nothing had begun");
    fs::write(bundle.join("poststop-owed"), "").unwrap();
    for _ in 0..2 {
        assert!(delete().status.success());
    }
    let ran = fs::read_to_string(bundle.join("ran")).unwrap();
    assert!(ran.lines().count() == 1 && ran.contains(r#""id":"c""#) && ran.contains("stopped"), "{ran}");
    // containerd's five seconds are kept, whatever a hook does.
    fs::write(bundle.join("config.json"), hooks("sleep 100")).unwrap();
    fs::write(bundle.join("poststop-owed"), "").unwrap();
    let began = Instant::now();
    let output = delete();
    assert!(began.elapsed() < Duration::from_secs(5) && output.status.success());
    assert!(text(output.stderr).contains("poststop"));
}

#[test]
fn delete_of_nothing_answers_as_well() {
    let node = Node::new();
    let bundle = node.dir.path().join("empty");
    fs::create_dir_all(&bundle).unwrap();
    let output = node.command(&CONTAINERD_17, "c", &bundle, "delete").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().exit_status, 137);
}

#[test]
fn what_cannot_start_says_why_on_one_line() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    fs::write(node.dir.path().join("cloister.toml"), "[guest]\nvcpu = 2\n").unwrap();
    let (done, output) = node.start(&CONTAINERD_16, "c", &bundle, b"");
    let error = text(output);
    assert!(!done && error.contains("line 2") && error.contains("vcpu"), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert!(!bundle.join("address").exists());
    let (done, output) = node.start(&CONTAINERD_16, "../c", &bundle, b"");
    assert!(!done && text(output).contains("-id"));
}

fn run(args: &[&str]) -> Output {
    Command::new(SHIM).args(args).env_clear().stdin(Stdio::null()).output().unwrap()
}

#[test]
fn version_and_info_need_nothing() {
    for flag in ["-v", "-version", "--version"] {
        let output = run(&[flag]);
        assert!(output.status.success() && text(output.stdout).contains(env!("CARGO_PKG_VERSION")));
    }
    let output = run(&["-info"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.cloister.v2");
}

#[test]
fn a_bad_command_line_is_told_apart() {
    for (args, status, text_wanted) in [
        (&["-nope", "start"][..], 2, "-nope"),
        (&["-id"], 2, "-id"),
        (&["-id", "c", "start"], 1, "namespace"),
        (&["-namespace", "n", "-id", "c", "jump"], 1, "jump"),
        (&["-namespace", "n", "-id", "c"], 1, "no socket"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert!(output.stdout.is_empty() && text(output.stderr).contains(text_wanted), "{args:?}");
    }
}
