//! Boots a sandbox and runs a scripted session in it, from an OCI layout directory: `container <vmlinux> <initramfs> <layout> [command…]`.
//!
//! For whoever works on the guest: no containerd, no shim, no registry. The container's output is ours, and so is its exit code; each
//! line of the environment variable `EXEC` is run by `/bin/sh -c` beside it.

use protocol::{
    api,
    stream::{Kind, StreamId},
};
use runtime::{
    config::Config,
    courier::{Blob, BlobSource},
    sandbox::{Sandbox, SandboxSpec},
};
use std::{error::Error, io, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};
use ttrpc::context::Context;

type Failure = Box<dyn Error>;

struct ToStderr(Instant);

impl log::Log for ToStderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("{:8.3} {:5} {}", self.0.elapsed().as_secs_f64(), record.level(), record.args());
    }

    fn flush(&self) {}
}

/// Blobs out of a layout directory.
struct Layout(PathBuf);

#[async_trait::async_trait]
impl BlobSource for Layout {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        let file = tokio::fs::File::open(self.0.join("blobs").join(digest.replace(':', "/"))).await?;
        Ok(Some((file.metadata().await?.len(), Box::new(file))))
    }
}

struct Session {
    sandbox: Sandbox,
    terminal: bool,
}

impl Session {
    fn stdio(&self) -> api::Stdio {
        api::Stdio { stdin: true, stdout: true, stderr: !self.terminal, terminal: self.terminal, ..Default::default() }
    }

    fn process(&self, args: &[String]) -> serde_json::Value {
        serde_json::json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "terminal": self.terminal,
            "env": ["PATH=/bin:/usr/bin", "TERM=xterm"]})
    }

    /// Starts what was prepared and carries its streams to their end; gives its exit code.
    async fn run(&self, exec_id: &str, input: &'static [u8]) -> Result<u32, Failure> {
        let id = |kind| StreamId { kind, container_id: "c".into(), exec_id: exec_id.into() };
        let mut stdin = self.sandbox.stream(&id(Kind::Stdin)).await?;
        let mut outputs = vec![self.sandbox.stream(&id(Kind::Stdout)).await?];
        if !self.terminal {
            outputs.push(self.sandbox.stream(&id(Kind::Stderr)).await?);
        }
        let start = api::StartProcessRequest { container_id: "c".into(), exec_id: exec_id.into(), ..Default::default() };
        let began = Instant::now();
        let pid = self.sandbox.agent().start_process(Context::default(), &start).await?.pid;
        log::info!("started {exec_id:?} as {pid} in {:?}", began.elapsed());
        let copies = outputs.into_iter().map(|mut output| {
            tokio::spawn(async move {
                let mut chunk = vec![0; 1 << 16];
                let mut first = true;
                while let Ok(count @ 1..) = output.read(&mut chunk).await {
                    if std::mem::take(&mut first) {
                        log::info!("first byte after {:?}", began.elapsed());
                    }
                    let _ = io::Write::write_all(&mut io::stdout(), &chunk[..count]);
                }
            })
        });
        let copies: Vec<_> = copies.collect();
        stdin.write_all(input).await?;
        stdin.shutdown().await?;
        let wait = api::WaitProcessRequest { container_id: "c".into(), exec_id: exec_id.into(), ..Default::default() };
        let ended = self.sandbox.agent().wait_process(Context::default(), &wait).await?;
        for copy in copies {
            copy.await?;
        }
        log::info!(
            "{exec_id:?} ended with {} ({} killed for want of memory) after {:?}",
            ended.exit_status,
            ended.oom_kills,
            began.elapsed()
        );
        Ok(ended.exit_status)
    }

    async fn exec(&self, number: usize, command: &str) -> Result<(), Failure> {
        let exec_id = format!("e{number}");
        let process = self.process(&["/bin/sh".into(), "-c".into(), command.into()]).to_string().into_bytes();
        let stdio = Some(self.stdio()).into();
        let request = api::ExecProcessRequest { container_id: "c".into(), exec_id: exec_id.clone(), process, stdio, ..Default::default() };
        self.sandbox.agent().exec_process(Context::default(), &request).await?;
        self.run(&exec_id, b"input of exec\n").await?;
        let delete = api::DeleteProcessRequest { container_id: "c".into(), exec_id, ..Default::default() };
        self.sandbox.agent().delete_process(Context::default(), &delete).await?;
        Ok(())
    }

    async fn whole(&self, args: &[String], digest: String) -> Result<u32, Failure> {
        let mut spec = serde_json::json!({"ociVersion": "1.0.2", "process": self.process(args), "root": {"path": "rootfs"},
            "linux": {"resources": {"memory": {"limit": 100 << 20}, "pids": {"limit": 100}}}});
        if let Ok(more) = std::env::var("SPEC") {
            merge(&mut spec, serde_json::from_str(&more)?);
        }
        let request = api::CreateContainerRequest {
            container_id: "c".into(),
            image_reference: "localhost:1/demo:1".into(),
            image_digest_hint: digest,
            spec: spec.to_string().into_bytes(),
            stdio: Some(self.stdio()).into(),
            ..Default::default()
        };
        let began = Instant::now();
        let created = self.sandbox.agent().create_container(Context::default(), &request).await?;
        let stages: Vec<String> = created.stages.iter().map(|s| format!("{} {:.3}", s.name, s.micros as f64 / 1e6)).collect();
        log::info!("created in {:?}: {}", began.elapsed(), stages.join(", "));
        let execs = async {
            for (number, command) in std::env::var("EXEC").unwrap_or_default().lines().enumerate() {
                if let Err(error) = self.exec(number, command).await {
                    log::error!("exec: {error}");
                }
            }
        };
        let (status, ()) = tokio::join!(self.run("", b"input of container\n"), async {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            execs.await;
        });
        let info = self.sandbox.agent().guest_info(Context::default(), &api::Empty::new()).await?;
        log::info!("agent: {} KiB", info.agent_rss_kib);
        let delete = api::DeleteProcessRequest { container_id: "c".into(), ..Default::default() };
        self.sandbox.agent().delete_process(Context::default(), &delete).await?;
        status
    }
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(serde_json::Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(initramfs), Some(layout)) = (arguments.next(), arguments.next(), arguments.next()) else {
        return Err("usage: container <vmlinux> <initramfs> <layout> [command…]".into());
    };
    let args: Vec<String> = arguments.collect();
    log::set_boxed_logger(Box::new(ToStderr(Instant::now())))?;
    log::set_max_level(log::LevelFilter::Debug);
    let mut config = Config::load()?;
    config.guest.kernel = PathBuf::from(kernel);
    config.guest.initramfs = PathBuf::from(initramfs);
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(format!("{layout}/index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().ok_or("no manifest in the layout")?.to_owned();
    let initdata = std::env::var("INITDATA").map(std::fs::read).unwrap_or(Ok(Vec::new()))?;
    let id = format!("container-{}", std::process::id());
    let sandbox = Sandbox::boot(&config, SandboxSpec { id, hostname: "pod".into(), initdata, ..SandboxSpec::default() }).await?;
    sandbox.courier().set_blobs(Arc::new(Layout(PathBuf::from(layout))));
    let session = Session { sandbox, terminal: std::env::var_os("TERMINAL").is_some() };
    let result = session.whole(&args, digest).await;
    session.sandbox.stop().await?;
    let status = result.inspect_err(|error| log::error!("{error}"))?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}
