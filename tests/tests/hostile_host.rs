//! The host tries, in a VM: an attacker who speaks the agent's protocol to a guest behind a closed door. What needs no VM is beside the
//! service (`guest-agent/src/service/tests.rs`); here is what needs the kernel, an image and containers. One VM for all of it, so that each
//! attack also has to leave the guest in a state in which the others fail.
//!
//! Where the same attack works without the check is shown by `e2e_containers` (the open door) and by the pairs of the service's tests.
#![allow(clippy::print_stdout, reason = "a test program's own report")]

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use protocol::api;
use protocol::stream::{Kind, StreamId};
use runtime::config::Config;
use runtime::courier::BlobSource;
use runtime::sandbox::{Sandbox, SandboxSpec, rpc_message};
use serde_json::{Value, json};
use tests::configuration::{Configuration, Initdata};
use tests::oci::{Image, Layout};
use tests::place;
use tokio::io::{AsyncRead, AsyncReadExt};
use ttrpc::Code;
use ttrpc::context::with_duration;

/// For each request; the guest may be emulated.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What the container's processes try; each line of output is a thing that should not be possible.
const INSIDE: &str = "\
[ -e /run/hooked ] && echo a hook ran; \
/bin/busybox mknod /tmp/disk b 254 0 2>/dev/null && head -c 1 /tmp/disk >/dev/null 2>&1 && echo the disk can be read; \
mount -t tmpfs x /mnt 2>/dev/null && echo it can mount; \
echo b > /proc/sysrq-trigger 2>/dev/null && echo it can reboot; \
echo x > /proc/sys/kernel/core_pattern 2>/dev/null && echo it can set the core pattern; \
head -c 1 /proc/kcore 2>/dev/null | grep -q . && echo it can read kcore; \
[ -e /dev/kmsg ] && echo the kernel log is there; \
[ \"$MODE\" = batch ] || echo the environment is another; \
sleep 3600";

struct Blobs(PathBuf);

#[async_trait::async_trait]
impl BlobSource for Blobs {
    async fn open(&self, digest: &str) -> io::Result<Option<(u64, Box<dyn AsyncRead + Send + Unpin>)>> {
        let file = tokio::fs::File::open(self.0.join("blobs").join(digest.replace(':', "/"))).await?;
        Ok(Some((file.metadata().await?.len(), Box::new(file))))
    }
}

/// The attacker with his guest.
struct Host {
    sandbox: Sandbox,
    image: String,
    layerless: String,
}

type Answer = std::result::Result<(), ttrpc::Error>;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        println!("the_host_tries: test");
        return ExitCode::SUCCESS;
    }
    println!("\nrunning 1 tests");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.context("runtime").and_then(|runtime| runtime.block_on(the_host_tries()));
    let (word, passed, code) = match &result {
        Ok(()) => ("ok", 1, ExitCode::SUCCESS),
        Err(error) => {
            println!("error: {error:#}");
            ("FAILED", 0, ExitCode::FAILURE)
        }
    };
    println!(
        "test the_host_tries ... {word}\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; 0 filtered out",
        1 - passed
    );
    code
}

async fn the_host_tries() -> Result<()> {
    let base = place::build()?.join("t/hostile");
    std::fs::remove_dir_all(&base).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    let layout = Image::busybox(INSIDE)?.write(&base.join("image"), "1")?;
    let empty = Image { cmd: vec!["/bin/sh"], ..Image::default() }.write(&base.join("empty"), "1")?;
    merge(&empty, &layout)?;
    let (image, layerless) = (layout.digests()?.manifest, empty.digests()?.manifest);

    let configuration = Configuration::working(base.join("v"))?;
    let file = base.join("cloister.toml");
    configuration.write(&file)?;
    let config = Config::from_file(&file)?;
    let policy = format!(
        "[[container]]\nname = \"app\"\nimage.digest = {image:?}\nenv = [\"MODE=batch\"]\nrestart = true\n\n\
         [[container]]\nname = \"empty\"\nimage.digest = {layerless:?}\n\n\
         [allow]\nexec = [[\"/bin/echo\", \"allowed\"]]\n"
    );
    let packed = packed(&Initdata::new("http://127.0.0.1:1", &policy))?;
    let spec = SandboxSpec { id: format!("hostile-{}", std::process::id()), initdata: packed, ..SandboxSpec::default() };
    let sandbox = Sandbox::boot(&config, spec).await?;
    sandbox.courier().set_blobs(Arc::new(Blobs(layout.directory.clone())));
    let host = Host { sandbox, image, layerless };
    let result = host.all().await;
    host.sandbox.stop().await?;
    result?;
    ensure!(std::fs::read_dir(base.join("v"))?.all(|entry| entry.is_ok_and(|e| e.file_name() == "s")), "something of the sandbox is left");
    std::fs::remove_dir_all(&base)?;
    Ok(())
}

/// One folder for the blobs of both.
fn merge(from: &Layout, into: &Layout) -> Result<()> {
    for entry in std::fs::read_dir(from.directory.join("blobs/sha256"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), into.directory.join("blobs/sha256").join(entry.file_name()))?;
    }
    Ok(())
}

fn packed(initdata: &Initdata) -> Result<Vec<u8>> {
    use base64::Engine;
    Ok(base64::engine::general_purpose::STANDARD.decode(initdata.annotation()?)?)
}

impl Host {
    async fn all(&self) -> Result<()> {
        self.a_second_sandbox_does_not_open_the_door().await.context("a second sandbox")?;
        self.specs_that_are_attacks_are_refused().await.context("specs")?;
        self.other_images_are_refused().await.context("images")?;
        self.one_place_is_taken_once_side_by_side().await.context("side by side")?;
        self.the_container_is_what_the_policy_says().await.context("inside")?;
        self.states_are_not_skipped().await.context("states")?;
        self.streams_are_those_that_were_admitted().await.context("streams")?;
        self.deletion_and_restart().await.context("restart")?;
        let info = self.sandbox.agent().guest_info(with_duration(TIMEOUT), &api::Empty::new()).await?;
        ensure!(info.agent_rss_kib < 64 << 10, "the agent has grown to {} KiB", info.agent_rss_kib);
        Ok(())
    }

    fn spec(&self) -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["MODE=batch"]},
            "root": {"path": "rootfs"}
        })
    }

    async fn create(&self, id: &str, digest: &str, spec: &Value) -> Answer {
        let request = api::CreateContainerRequest {
            container_id: id.into(),
            image_reference: "localhost:1/demo:1".into(),
            image_digest_hint: digest.into(),
            spec: spec.to_string().into_bytes(),
            stdio: Some(api::Stdio { stdout: true, stderr: true, ..Default::default() }).into(),
            ..Default::default()
        };
        self.sandbox.agent().create_container(with_duration(TIMEOUT), &request).await.map(drop)
    }

    async fn start(&self, id: &str, exec_id: &str) -> Answer {
        let request = api::StartProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        self.sandbox.agent().start_process(with_duration(TIMEOUT), &request).await.map(drop)
    }

    async fn exec(&self, id: &str, exec_id: &str, process: &Value) -> Answer {
        let request = api::ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process: process.to_string().into_bytes(),
            stdio: Some(api::Stdio { stdout: true, ..Default::default() }).into(),
            ..Default::default()
        };
        self.sandbox.agent().exec_process(with_duration(TIMEOUT), &request).await.map(drop)
    }

    async fn delete(&self, id: &str) -> Answer {
        let request = api::DeleteProcessRequest { container_id: id.into(), ..Default::default() };
        self.sandbox.agent().delete_process(with_duration(TIMEOUT), &request).await.map(drop)
    }

    async fn kill(&self, id: &str, signal: u32) -> Answer {
        let request = api::SignalProcessRequest { container_id: id.into(), signal, all: true, ..Default::default() };
        self.sandbox.agent().signal_process(with_duration(TIMEOUT), &request).await.map(drop)
    }

    async fn stream(&self, kind: Kind, id: &str, exec_id: &str) -> Result<impl AsyncRead + Unpin + use<>> {
        Ok(self.sandbox.stream(&StreamId { kind, container_id: id.into(), exec_id: exec_id.into() }).await?)
    }

    async fn a_second_sandbox_does_not_open_the_door(&self) -> Result<()> {
        for initdata in [Vec::new(), packed(&Initdata::new("http://127.0.0.1:1", "[allow]\nexec = true\n"))?] {
            let request = api::CreateSandboxRequest { sandbox_id: "again".into(), initdata, ..Default::default() };
            let answer = self.sandbox.agent().create_sandbox(with_duration(TIMEOUT), &request).await.map(drop);
            refused(answer, Code::FAILED_PRECONDITION, "start another machine")?;
        }
        Ok(())
    }

    async fn specs_that_are_attacks_are_refused(&self) -> Result<()> {
        let tmpfs =
            |destination: &str, options: Value| json!([{"destination": destination, "type": "tmpfs", "source": "x", "options": options}]);
        let attacks = [
            ("/process/args", json!(["/bin/cat", "/etc/passwd"]), "command line"),
            ("/process/env", json!(["MODE=batch", "LD_PRELOAD=/x.so"]), "LD_PRELOAD"),
            ("/process/env", json!(["MODE=other"]), "MODE"),
            ("/process/env", json!([]), "MODE"),
            ("/process/cwd", json!("/tmp"), "working directory"),
            ("/process/user", json!({"uid": 1000, "gid": 1000}), "user 1000:1000"),
            ("/process/terminal", json!(true), "terminal"),
            ("/process/noNewPrivileges", json!(true), "no_new_privileges"),
            ("/process/capabilities", json!({"bounding": ["CAP_SYS_ADMIN"]}), "capability CAP_SYS_ADMIN"),
            ("/root/readonly", json!(true), "read-only"),
            ("/mounts", tmpfs("/etc", json!([])), "mount at /etc"),
            ("/mounts", tmpfs("/x", json!(["size=1m,suid"])), "mounts.options"),
            ("/mounts", tmpfs("/proc/../etc", json!([])), "without '..'"),
            ("/mounts", json!([{"destination": "/x", "type": "bind", "source": "/", "options": ["rbind"]}]), "/x"),
            ("/linux", json!({"devices": [{"path": "/dev/vda", "type": "b", "major": 254, "minor": 0}]}), "/dev/vda"),
            ("/linux", json!({"sysctl": {"kernel.core_pattern": "|/x"}}), "kernel.core_pattern"),
            ("/linux", json!({"sysctl": {"kernel.shmmax": "1"}}), "kernel.shmmax"),
        ];
        for (path, value, word) in attacks {
            let mut spec = self.spec();
            let (parent, key) = path.rsplit_once('/').context("a path")?;
            spec.pointer_mut(parent).context("a parent")?[key] = value;
            let answer = self.create("attack", &self.image, &spec).await;
            let message = message(answer).with_context(|| path.to_owned())?;
            ensure!(message.contains(word) && !message.contains('\n'), "{path}: '{word}' is not in: {message}");
            // Nothing of it is left: the id is free, and the place.
            refused(self.start("attack", "").await, Code::NOT_FOUND, "attack")?;
        }
        Ok(())
    }

    async fn other_images_are_refused(&self) -> Result<()> {
        let other = "sha256:".to_owned() + &"0".repeat(64);
        ensure!(self.create("other", &other, &self.spec()).await.is_err(), "a digest that nobody has");
        // An image without a layer: an error about it, and nothing of the guest's own in its place.
        let mut spec = self.spec();
        spec["process"]["env"] = json!([]);
        let created = self.create("empty", &self.layerless, &spec).await;
        if created.is_ok() {
            ensure!(self.start("empty", "").await.is_err(), "an image without a file ran something");
            self.delete("empty").await?;
        }
        Ok(())
    }

    async fn one_place_is_taken_once_side_by_side(&self) -> Result<()> {
        let mut tasks = Vec::new();
        let spec = self.spec();
        for n in 0..6 {
            // Half of them also fight for one id.
            let id = if n % 2 == 0 { "race".to_owned() } else { format!("race{n}") };
            tasks.push((id.clone(), self.create_owned(id, spec.clone())));
        }
        let (ids, tasks): (Vec<String>, Vec<_>) = tasks.into_iter().unzip();
        let answers = futures_util::future::join_all(tasks).await;
        let made: Vec<&String> = ids.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).map(|(id, _)| id).collect();
        ensure!(made.len() == 1, "{} containers were made at the place of one", made.len());
        self.delete(made[0]).await?;
        Ok(())
    }

    async fn create_owned(&self, id: String, spec: Value) -> Answer {
        self.create(&id, &self.image, &spec).await
    }

    async fn the_container_is_what_the_policy_says(&self) -> Result<()> {
        let mut spec = self.spec();
        let hook = json!([{"path": "/bin/busybox", "args": ["touch", "/run/hooked"]}]);
        for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
            spec["hooks"][kind] = hook.clone();
        }
        // A filter that would answer "done" to what is not done, paths that would be hidden, a umask: none of it has an effect.
        spec["linux"] = json!({
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 0},
            "maskedPaths": ["/bin"],
            "readonlyPaths": [],
            "namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "mount", "path": "/proc/1/ns/mnt"}],
        });
        spec["process"]["user"]["umask"] = json!(0);
        self.create("app", &self.image, &spec).await?;
        let mut output = self.stream(Kind::Stdout, "app", "").await?;
        let _errors = self.stream(Kind::Stderr, "app", "").await?;
        self.start("app", "").await?;
        let mut seen = vec![0; 4096];
        // It sleeps when it has tried everything; then there is nothing to read.
        let read = tokio::time::timeout(Duration::from_secs(10), output.read(&mut seen)).await;
        ensure!(read.is_err(), "from inside: {}", String::from_utf8_lossy(&seen[..read??]));
        Ok(())
    }

    async fn states_are_not_skipped(&self) -> Result<()> {
        refused(self.start("app", "").await, Code::FAILED_PRECONDITION, "started already")?;
        refused(self.delete("app").await, Code::FAILED_PRECONDITION, "kill it first")?;
        refused(self.create("app", &self.image, &self.spec()).await, Code::ALREADY_EXISTS, "app")?;
        refused(self.start("app", "none").await, Code::NOT_FOUND, "none")?;
        refused(self.kill("app", 10).await, Code::PERMISSION_DENIED, "allow.signals")?;
        let process = |args: Value, env: Value| json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": env});
        let attacks = [
            (process(json!(["/bin/sh"]), json!([])), "allow.exec"),
            (process(json!(["/bin/echo", "allowed"]), json!(["LD_PRELOAD=/x.so"])), "LD_PRELOAD"),
            (process(json!(["/bin/echo"]), json!([])), "allow.exec"),
        ];
        for (process, word) in attacks {
            refused(self.exec("app", "e", &process).await, Code::PERMISSION_DENIED, word)?;
        }
        self.exec("app", "good", &process(json!(["/bin/echo", "allowed"]), json!([]))).await?;
        let mut output = self.stream(Kind::Stdout, "app", "good").await?;
        self.start("app", "good").await?;
        let mut text = String::new();
        tokio::time::timeout(TIMEOUT, output.read_to_string(&mut text)).await??;
        ensure!(text == "allowed\n", "{text:?}");
        refused(self.start("app", "good").await, Code::FAILED_PRECONDITION, "")?;
        Ok(())
    }

    async fn streams_are_those_that_were_admitted(&self) -> Result<()> {
        for (kind, id, exec_id) in
            [(Kind::Stdin, "app", ""), (Kind::Stdout, "app", ""), (Kind::Stdout, "none", ""), (Kind::Stdin, "app", "good")]
        {
            // A second connection to a stream, one to a stream that was never admitted, and one to nothing: closed, without a byte.
            if let Ok(mut stream) = self.stream(kind, id, exec_id).await {
                let mut byte = [0];
                let read = tokio::time::timeout(TIMEOUT, stream.read(&mut byte)).await;
                ensure!(matches!(read, Ok(Ok(0) | Err(_))), "{kind:?} {id} {exec_id}: {read:?}");
            }
        }
        Ok(())
    }

    async fn deletion_and_restart(&self) -> Result<()> {
        self.kill("app", 9).await?;
        let wait = api::WaitProcessRequest { container_id: "app".into(), ..Default::default() };
        let ended = self.sandbox.agent().wait_process(with_duration(TIMEOUT), &wait).await?;
        ensure!(ended.exit_status == 137, "{}", ended.exit_status);
        self.delete("app").await?;
        for answer in [self.start("app", "").await, self.kill("app", 9).await, self.delete("app").await] {
            refused(answer, Code::NOT_FOUND, "app")?;
        }
        // The policy lets it be made again.
        self.create("app", &self.image, &self.spec()).await?;
        self.delete("app").await?;
        Ok(())
    }
}

/// The refusal's text.
fn message(answer: Answer) -> Result<String> {
    match answer {
        Ok(()) => anyhow::bail!("it was done"),
        Err(error) => Ok(rpc_message(&error)),
    }
}

fn refused(answer: Answer, code: Code, word: &str) -> Result<()> {
    let Err(ttrpc::Error::RpcStatus(status)) = &answer else { anyhow::bail!("not refused: {answer:?}") };
    ensure!(
        status.code() == code && status.message().contains(word),
        "{:?}: {}; expected {code:?} with '{word}'",
        status.code(),
        status.message()
    );
    Ok(())
}
