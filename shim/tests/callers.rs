//! The real binary, run as each of its callers runs it, without a VM.
#![allow(clippy::unwrap_used)]

use containerd_shim_protos::{
    api::{ConnectRequest, DeleteResponse, ShutdownRequest},
    bootstrap_api::{BootstrapParams, BootstrapResult, Extension},
    sandbox_api::{CreateSandboxRequest, PlatformRequest, SandboxStatusRequest, ShutdownSandboxRequest},
    sandbox_async::SandboxClient,
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

/// What a caller passes beside the id, and how it reads the answer.
struct Caller {
    address: &'static str,
    environment: &'static [(&'static str, &'static str)],
    /// Whether it sends its parameters as a message.
    parameters: bool,
    /// The highest version that it takes as JSON; 0 for one that reads text only.
    json: u64,
}

const CONTAINERD_16: Caller = Caller {
    address: "/nowhere/c.sock",
    environment: &[("GOMAXPROCS", "2"), ("TTRPC_ADDRESS", "/nowhere/c.sock.ttrpc")],
    parameters: false,
    json: 0,
};
const NEWER: &[(&str, &str)] = &[
    ("GOMAXPROCS", "2"),
    ("TTRPC_ADDRESS", "/nowhere/c.sock.ttrpc"),
    ("MAX_SHIM_VERSION", "2"),
    ("GRPC_ADDRESS", "/nowhere/c.sock"),
    ("NAMESPACE", "default"),
];
const CONTAINERD_17: Caller = Caller { address: "/nowhere/c.sock", environment: NEWER, parameters: false, json: 2 };
const CONTAINERD_20: Caller = Caller { address: "/nowhere/c.sock", environment: NEWER, parameters: false, json: 3 };
const CONTAINERD_23: Caller = Caller { address: "/nowhere/c.sock", environment: NEWER, parameters: true, json: 3 };
const CRIO: Caller = Caller {
    address: "",
    environment: &[("TTRPC_ADDRESS", ""), ("GRPC_ADDRESS", ""), ("NAMESPACE", "default"), ("MAX_SHIM_VERSION", "2")],
    parameters: false,
    json: 0,
};
/// From 1.37 on.
const CRIO_137: Caller = Caller { json: 2, ..CRIO };
/// Each with the version that it is to be served.
const CALLERS: [(Caller, u64); 6] =
    [(CONTAINERD_16, 2), (CONTAINERD_17, 2), (CONTAINERD_20, 2), (CONTAINERD_23, 3), (CRIO, 2), (CRIO_137, 2)];

impl Caller {
    /// What it writes to standard input where its user has set no runtime options.
    fn stdin(&self, id: &str) -> Vec<u8> {
        if !self.parameters {
            return Vec::new();
        }
        let options = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff; 4], ..Default::default() };
        let extension = Extension { value: protobuf::MessageField::some(options), ..Default::default() };
        let params = BootstrapParams {
            instance_id: id.into(),
            namespace: "default".into(),
            containerd_version: "2.3.0".into(),
            containerd_ttrpc_address: "/nowhere/c.sock.ttrpc".into(),
            containerd_grpc_address: self.address.into(),
            containerd_binary: "/usr/bin/containerd".into(),
            extensions: vec![extension],
            log_level: protobuf::EnumOrUnknown::from_i32(-4),
            ..Default::default()
        };
        params.write_to_bytes().unwrap()
    }

    /// The version and the address that it makes of an answer, as its sources do it.
    fn reads(&self, output: &[u8]) -> Result<(u64, String), String> {
        if self.parameters
            && let Ok(result) = BootstrapResult::parse_from_bytes(output)
        {
            assert_eq!(result.protocol, "ttrpc");
            return Ok((u64::try_from(result.version).unwrap(), result.address));
        }
        let output = std::str::from_utf8(output).map_err(|_| "unsupported protocol".to_owned())?.trim();
        if self.json > 0
            && let Ok(parameters) = serde_json::from_str::<serde_json::Value>(output)
        {
            let version = parameters["version"].as_u64().unwrap_or_default();
            return if version <= self.json {
                Ok((version, parameters["address"].as_str().unwrap_or_default().to_owned()))
            } else {
                Err("unsupported shim version".to_owned())
            };
        }
        if output.starts_with("unix:///") { Ok((2, output.to_owned())) } else { Err(format!("unsupported protocol: {output}")) }
    }
}

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
        // 1.6 leaves it out of `delete`.
        command.args((action == "start" || caller.json > 0).then_some("-debug"));
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

/// The table of the five, and both of the things that a caller may have on its standard input.
#[tokio::test]
async fn each_caller_gets_the_answer_that_it_can_read() {
    let options = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff; 4], ..Default::default() };
    let options = options.write_to_bytes().unwrap();
    for (caller, version) in CALLERS {
        let inputs = if caller.parameters { vec![caller.stdin("c")] } else { vec![Vec::new(), options.clone()] };
        for stdin in inputs {
            let node = Node::new();
            let bundle = node.bundle("c", "");
            let (done, output) = node.start(&caller, "c", &bundle, &stdin);
            assert!(done, "{}", String::from_utf8_lossy(&output));
            let (served, address) = caller.reads(&output).unwrap();
            assert_eq!(served, version);
            assert_eq!(fs::read_to_string(bundle.join("address")).unwrap(), address);
            // Whoever finds it running is told the same.
            assert_eq!(node.start(&caller, "c", &bundle, &stdin), (true, output));
            shut_down(&address).await;
            assert!(node.sockets().is_empty());
            let output = node.command(&caller, "c", &bundle, "delete").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(DeleteResponse::parse_from_bytes(&output.stdout).unwrap().exit_status, 137);
        }
    }
}

/// Bytes that are no parameters of this container are runtime options, whatever they are, and no reason to fail.
#[tokio::test]
async fn no_standard_input_keeps_a_container_from_starting() {
    let params = CONTAINERD_23.stdin("c");
    let mut spoilt = params.clone();
    spoilt.extend([0xff; 7]);
    for stdin in
        [b"\0".to_vec(), vec![0xff; 64], vec![b'a'; 1 << 20], params[..params.len() / 2].to_vec(), spoilt, CONTAINERD_23.stdin("other")]
    {
        let node = Node::new();
        let bundle = node.bundle("c", "");
        let (done, output) = node.start(&CONTAINERD_17, "c", &bundle, &stdin);
        let output = text(output);
        assert!(done && output.starts_with("unix:///"), "{} bytes: {output}", stdin.len());
        shut_down(&output).await;
    }
}

#[test]
fn endless_standard_input_is_refused_in_one_line() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    let mut command = node.command(&CONTAINERD_17, "c", &bundle, "start");
    command.stdin(fs::File::open("/dev/zero").unwrap());
    let output = command.output().unwrap();
    let error = text(output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty() && error.contains("longer than"), "{error}");
    assert_eq!((error.lines().count(), node.sockets().len()), (1, 0));
}

/// containerd waits for the end of the pipe that `start` writes to: the daemon holds none of it, nor the session of its caller.
#[tokio::test]
async fn start_returns_while_the_daemon_lives_on() {
    let node = Node::new();
    let bundle = node.bundle("c", "");
    let (_, output) = node.start(&CONTAINERD_16, "c", &bundle, b"");
    let noted = fs::read_to_string(bundle.join("shim.pid")).unwrap();
    let process = Path::new("/proc").join(noted.split(' ').next().unwrap());
    for fd in ["0", "1", "2"] {
        assert_eq!(fs::read_link(process.join("fd").join(fd)).unwrap(), Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(process.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(process.file_name().unwrap(), fields[3], "a session of its own");
    assert_eq!(fs::read_link(process.join("cwd")).unwrap(), bundle.canonicalize().unwrap());
    let score = |path: &Path| fs::read_to_string(path.join("oom_score_adj")).unwrap().trim().parse::<i32>().unwrap();
    let wanted = (score(Path::new("/proc/self")) + 1).min(1000);
    // The daemon's own first step, and it may not have taken it yet.
    let deadline = Instant::now() + Duration::from_secs(20);
    while score(&process) != wanted {
        assert!(Instant::now() < deadline, "{} instead of {wanted}", score(&process));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    shut_down(&text(output)).await;
}

/// The request's deadline kills `start` at any moment; what it had begun goes with `delete`.
#[test]
fn a_start_that_is_killed_leaves_nothing_that_delete_does_not_remove() {
    let node = Node::new();
    for n in 0..12u64 {
        let id = format!("c{n}");
        let bundle = node.bundle(&id, "");
        let mut start = node.command(&CONTAINERD_16, &id, &bundle, "start").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(n * 3));
        start.kill().unwrap();
        start.wait().unwrap();
        assert!(node.command(&CONTAINERD_16, &id, &bundle, "delete").output().unwrap().status.success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !node.sockets().is_empty() || is_working_directory(&bundle) {
            assert!(Instant::now() < deadline, "a shim lives on after {} ms", n * 3);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn is_working_directory(path: &Path) -> bool {
    let path = path.canonicalize().unwrap();
    fs::read_dir("/proc").unwrap().flatten().any(|process| fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == path))
}

/// The Sandbox API's bundle may have no `config.json`; what its service says before there is a VM.
#[tokio::test]
async fn a_pod_of_the_sandbox_api_needs_no_bundle() {
    let node = Node::new();
    let bundle = node.dir.path().join("b/p");
    fs::create_dir_all(&bundle).unwrap();
    let (done, output) = node.start(&CONTAINERD_23, "p", &bundle, &CONTAINERD_23.stdin("p"));
    assert!(done, "{}", String::from_utf8_lossy(&output));
    let (_, address) = CONTAINERD_23.reads(&output).unwrap();
    let client = Client::connect(&address).await.unwrap();
    let (sandbox, task) = (SandboxClient::new(client.clone()), TaskClient::new(client));
    let context = || ttrpc::context::with_duration(Duration::from_secs(10));
    let sandbox_id = "p".to_owned();
    let create = CreateSandboxRequest { sandbox_id: sandbox_id.clone(), bundle_path: bundle.display().to_string(), ..Default::default() };
    sandbox.create_sandbox(context(), &create).await.unwrap();
    let request = SandboxStatusRequest { sandbox_id: sandbox_id.clone(), verbose: true, ..Default::default() };
    let status = sandbox.sandbox_status(context(), &request).await.unwrap();
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_NOTREADY", 0));
    assert!(status.info["cloister"].contains("io.containerd.cloister.v2"));
    let platform = sandbox.platform(context(), &PlatformRequest { sandbox_id: sandbox_id.clone(), ..Default::default() }).await.unwrap();
    assert_eq!((platform.platform.os.as_str(), platform.platform.architecture.as_str()), ("linux", "amd64"));
    // A task's shutdown is not the pod's.
    task.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
    assert!(sandbox.sandbox_status(context(), &request).await.is_ok());
    sandbox.shutdown_sandbox(context(), &ShutdownSandboxRequest { sandbox_id, ..Default::default() }).await.unwrap();
    drop((sandbox, task));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !node.sockets().is_empty() {
        assert!(Instant::now() < deadline, "the shim does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_starts_side_by_side_are_one_shim() {
    let node = Node::new();
    let mut ending = Vec::new();
    for n in 0..100 {
        let (id, other) = (format!("c{n}"), format!("m{n}"));
        let pod = format!(r#""io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"{id}""#);
        let bundles = [(&id, node.bundle(&id, &pod)), (&other, node.bundle(&other, &pod))];
        let answers: Vec<(bool, Vec<u8>)> = std::thread::scope(|scope| {
            let threads = bundles.each_ref().map(|(id, bundle)| scope.spawn(|| node.start(&CONTAINERD_16, id, bundle, b"")));
            threads.map(|thread| thread.join().unwrap()).into()
        });
        assert!(answers.iter().all(|(done, _)| *done));
        assert_eq!(answers[0].1, answers[1].1);
        let noted = bundles.iter().filter(|(_, bundle)| bundle.join("shim.pid").exists()).count();
        assert_eq!(noted, 1, "one of the two started a daemon");
        // Side by side: each waits a while for its callers to hang up.
        let address = text(answers[0].1.clone());
        ending.push(tokio::spawn(async move { shut_down(&address).await }));
    }
    for ended in ending {
        ended.await.unwrap();
    }
    assert!(node.sockets().is_empty());
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
    let options = Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff; 4], ..Default::default() };
    for stdin in [Vec::new(), options.write_to_bytes().unwrap()] {
        let mut info = Command::new(SHIM).arg("-info").env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        info.stdin.take().unwrap().write_all(&stdin).unwrap();
        let output = info.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(RuntimeInfo::parse_from_bytes(&output.stdout).unwrap().name, "io.containerd.cloister.v2");
    }
    assert!(run(&["-info"]).stderr.is_empty());
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
