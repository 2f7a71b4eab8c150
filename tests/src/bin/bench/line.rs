//! The line between host and guest: what RPCs, execs and standard output cost over the bare vsock device, measured in turn in one VM.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use protocol::api;
use protocol::stream::{Kind, StreamId};
use runtime::config::Config;
use runtime::courier::{Blob, BlobSource};
use runtime::sandbox::{Sandbox, SandboxSpec};
use serde_json::json;
use tests::bed::Bed;
use tests::oci::{Entry, Image, Layout};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest;
use crate::report::{Report, Unit};

const CONTAINER: &str = "line";
/// Round trips of a round, of which the mean is taken: one alone is shorter than the clock's and the scheduler's noise.
const TRIPS: u32 = 100;
const EXECS: u32 = 5;

/// Blobs out of a layout.
struct Blobs(PathBuf);

#[async_trait::async_trait]
impl BlobSource for Blobs {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        let file = tokio::fs::File::open(self.0.join("blobs").join(digest.replace(':', "/"))).await?;
        Ok(Some((file.metadata().await?.len(), Box::new(file))))
    }
}

/// Boots a VM without containerd and shim, runs this program in it, and measures `rounds` times.
pub fn measure(bed: &Bed, rounds: u32, report: &mut Report) -> Result<()> {
    let mut image = Image::busybox("")?;
    image.layers.push(vec![Entry::File("bin/bench", 0o755, std::fs::read(std::env::current_exe()?)?)]);
    let layout = bed.layout(&image, "line")?;
    let config = Config::from_file(&bed.configuration_file())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let spec = SandboxSpec { id: bed.id("line"), hostname: "line".into(), ..SandboxSpec::default() };
        let line = Line { sandbox: Sandbox::boot(&config, spec).await? };
        let result = line.rounds(&layout, rounds, report).await;
        line.sandbox.stop().await?;
        result
    })
}

struct Line {
    sandbox: Sandbox,
}

impl Line {
    async fn rounds(&self, layout: &Layout, rounds: u32, report: &mut Report) -> Result<()> {
        self.create(layout).await?;
        // The container is the bare device's other end; its one word says that it listens.
        let mut said = self.start("", None).await?;
        ensure!(said.read_u8().await.is_ok(), "the guest's program does not serve");
        for round in 1..=rounds {
            println!("line, round {round} of {rounds}");
            let bare = self.bare_trip().await?.as_secs_f64();
            let rpc = self.rpc().await?.as_secs_f64();
            let exec = self.exec_trip(round).await?.as_secs_f64();
            report.add("bare vsock: round trip of a byte", Unit::Milliseconds, bare * 1e3);
            report.add("RPC round trip", Unit::Milliseconds, rpc * 1e3);
            report.add("RPC: ratio to the bare round trip", Unit::Ratio, rpc / bare);
            report.add("exec, to the first byte of its output", Unit::Milliseconds, exec * 1e3);
            report.add("exec: ratio to the bare round trip", Unit::Ratio, exec / bare);
            let (bare, stdout) = (self.bare_flood().await?.as_secs_f64(), self.stdout(round).await?.as_secs_f64());
            let mib = (guest::FLOOD >> 20) as f64;
            report.add("bare vsock: from guest to host", Unit::Rate, mib / bare);
            report.add("standard output: from process to shim", Unit::Rate, mib / stdout);
            report.add("standard output: ratio to the bare device's time", Unit::Ratio, stdout / bare);
        }
        Ok(())
    }

    async fn create(&self, layout: &Layout) -> Result<()> {
        self.sandbox.courier().set_blobs(Arc::new(Blobs(layout.directory.clone())));
        let spec = json!({"ociVersion": "1.0.2", "process": process(guest::SERVE), "root": {"path": "rootfs"}});
        let request = api::CreateContainerRequest {
            container_id: CONTAINER.into(),
            image_reference: "localhost:1/line:1".into(),
            image_digest_hint: layout.digests()?.manifest,
            spec: spec.to_string().into_bytes(),
            stdio: Some(stdio()).into(),
            ..Default::default()
        };
        self.sandbox.agent().create_container(ttrpc::context::Context::default(), &request).await?;
        Ok(())
    }

    /// Starts what was prepared; gives its standard output.
    async fn start(&self, exec_id: &str, args: Option<&str>) -> Result<impl tokio::io::AsyncRead + Unpin + use<>> {
        let context = ttrpc::context::Context::default;
        if let Some(word) = args {
            let process = process(word).to_string().into_bytes();
            let stdio = Some(stdio()).into();
            let request =
                api::ExecProcessRequest { container_id: CONTAINER.into(), exec_id: exec_id.into(), process, stdio, ..Default::default() };
            self.sandbox.agent().exec_process(context(), &request).await?;
        }
        let id = StreamId { kind: Kind::Stdout, container_id: CONTAINER.into(), exec_id: exec_id.into() };
        let output = self.sandbox.stream(&id).await?;
        let request = api::StartProcessRequest { container_id: CONTAINER.into(), exec_id: exec_id.into(), ..Default::default() };
        self.sandbox.agent().start_process(context(), &request).await?;
        Ok(output)
    }

    async fn end(&self, exec_id: &str) -> Result<()> {
        let context = ttrpc::context::Context::default;
        let wait = api::WaitProcessRequest { container_id: CONTAINER.into(), exec_id: exec_id.into(), ..Default::default() };
        let ended = self.sandbox.agent().wait_process(context(), &wait).await?;
        ensure!(ended.exit_status == 0, "the guest's program ended with {}", ended.exit_status);
        let delete = api::DeleteProcessRequest { container_id: CONTAINER.into(), exec_id: exec_id.into(), ..Default::default() };
        self.sandbox.agent().delete_process(context(), &delete).await?;
        Ok(())
    }

    async fn bare_trip(&self) -> Result<Duration> {
        let mut line = self.sandbox.connect(guest::PORT).await?;
        line.write_all(&[guest::ECHO]).await?;
        let started = Instant::now();
        for _ in 0..TRIPS {
            line.write_all(b"x").await?;
            line.read_u8().await?;
        }
        Ok(started.elapsed() / TRIPS)
    }

    async fn rpc(&self) -> Result<Duration> {
        let request = api::ListProcessesRequest { container_id: CONTAINER.into(), ..Default::default() };
        let started = Instant::now();
        for _ in 0..TRIPS {
            self.sandbox.agent().list_processes(ttrpc::context::Context::default(), &request).await?;
        }
        Ok(started.elapsed() / TRIPS)
    }

    async fn exec_trip(&self, round: u32) -> Result<Duration> {
        let mut taken = Duration::ZERO;
        for n in 0..EXECS {
            let exec_id = format!("trip{round}-{n}");
            let started = Instant::now();
            let mut output = self.start(&exec_id, Some("echo")).await?;
            output.read_u8().await.context("an exec without output")?;
            taken += started.elapsed();
            self.end(&exec_id).await?;
        }
        Ok(taken / EXECS)
    }

    async fn bare_flood(&self) -> Result<Duration> {
        let mut line = self.sandbox.connect(guest::PORT).await?;
        line.write_all(&[guest::SEND]).await?;
        received(line).await
    }

    async fn stdout(&self, round: u32) -> Result<Duration> {
        let exec_id = format!("flood{round}");
        let output = self.start(&exec_id, Some(guest::WRITE)).await?;
        let taken = received(output).await?;
        self.end(&exec_id).await?;
        Ok(taken)
    }
}

/// From the first byte of [`guest::FLOOD`] to the last.
async fn received(mut from: impl tokio::io::AsyncRead + Unpin) -> Result<Duration> {
    from.read_u8().await?;
    let (started, mut piece, mut rest) = (Instant::now(), vec![0; 64 << 10], guest::FLOOD - 1);
    while rest > 0 {
        let count = from.read(&mut piece).await?;
        ensure!(count > 0, "{rest} bytes are missing");
        rest = rest.checked_sub(count).context("more bytes than were sent")?;
    }
    Ok(started.elapsed())
}

fn stdio() -> api::Stdio {
    api::Stdio { stdout: true, ..Default::default() }
}

/// A process of the container: this program with one of its words, or a program of busybox.
fn process(word: &str) -> serde_json::Value {
    let args = if word.starts_with("--") { vec!["/bin/bench", word] } else { vec!["/bin/busybox", word, "x"] };
    json!({"user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"]})
}
