//! cloister-agent: the first process of a Cloister guest. It makes the machine's world, answers the host on vsock, attests, pulls and
//! verifies images, and runs their containers.
//!
//! - `boot`: from the kernel's hand-over to a machine in which containers can run, and its end.
//! - `service`: the RPCs, and the gate through which each of them passes.
//! - `sandbox`, `pull`, `scratch`, `network`: what CreateSandbox and CreateContainer need.
//! - `secrets`, `workload_api`: what the owner's broker gives to containers.
//! - `forward`: the host's way to ports of the pod.
//! - `containers`: their life; `child`: the single-threaded re-execution that makes their processes.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attester;
mod boot;
mod caller;
mod child;
mod containers;
mod enclave;
mod forward;
mod logger;
mod netlink;
mod network;
mod pull;
mod reaper;
mod sandbox;
mod scratch;
mod sealed_disk;
mod secrets;
mod service;
mod stages;
mod sysctl;
#[cfg(test)]
mod test_support;
mod vsock;
mod workload_api;

use anyhow::{Context, Result};
use boot::{
    marks,
    modules::{Modules, Stage},
    power,
};
use containers::{Containers, streams::Streams, volumes::Volumes};
use log::{info, warn};
use protocol::guest_port;
use reaper::Reaper;
use sandbox::{Machine, ScratchCell};
use service::{Gate, Service};
use std::{fs, process::ExitCode, sync::Arc};
use tokio::{runtime, task::spawn_blocking};
use ttrpc::asynchronous::{Server, transport::Listener};

/// Threads that run tasks. The work that takes time is on the blocking threads.
const WORKERS: usize = 2;
/// Threads for hashing, unpacking and system calls that wait.
const MAX_BLOCKING: usize = 8;
/// Stack of each thread, in bytes: enough for TLS and for the unpacker, and small against the guest's memory.
const STACK: usize = 1 << 20;

fn main() -> ExitCode {
    if let Some((job, answer)) = child::arguments(std::env::args_os()) {
        child::run(&job, &answer);
    }
    if std::process::id() != 1 {
        eprintln!("cloister-agent {}: the first process of a Cloister guest; it runs only as PID 1", env!("CARGO_PKG_VERSION"));
        return ExitCode::from(2);
    }
    power::install_panic_hook();
    match run() {
        Ok(never) => match never {},
        Err(e) => power::fatal(&format!("{e:#}")),
    }
}

/// What `run` gives when it ends well: it does not end.
enum Never {}

fn run() -> Result<Never> {
    let modules = boot::prepare()?;
    // The kernel takes a container before it takes the agent; a machine without its agent is of no use.
    fs::write("/proc/self/oom_score_adj", "-1000").context("oom_score_adj")?;
    limit_arenas();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_stack_size(STACK)
        .enable_all()
        .build()
        .context("runtime")?;
    runtime.block_on(serve(modules))
}

/// Two heaps rather than eight per processor (mallopt(3)): what a thread frees then serves the others.
fn limit_arenas() {
    // SAFETY: mallopt with integers, before any thread exists.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

async fn serve(modules: Arc<Modules>) -> Result<Never> {
    let reaper = Arc::new(Reaper::default());
    tokio::spawn(reaper.clone().run(Reaper::signals().context("SIGCHLD")?));
    let machine = Machine { modules, scratch: Arc::new(ScratchCell::default()) };
    let streams = Arc::new(Streams::default());
    let volumes = Arc::new(Volumes::default());
    let containers = Arc::new(Containers::new(reaper, streams.clone(), volumes.clone()));
    let rpc = vsock::listen(guest_port::RPC).context("RPC port")?;
    tokio::spawn(streams.serve(vsock::listen(guest_port::STREAM).context("stream port")?));
    tokio::spawn(volumes.serve(vsock::listen(guest_port::VOLUME).context("volume port")?));
    let gate = Arc::new(Gate::default());
    tokio::spawn(forward::serve(vsock::listen(guest_port::FORWARD).context("forward port")?, gate.clone()));
    let service = Service::guarded(gate, machine.clone(), containers);
    let mut server = Server::new().add_listener(Listener::new(vsock::incoming(rpc))).register_service(service);
    server.start().await.context("RPC service")?;
    // Only now: the host calls as soon as it has read this.
    let console = vsock::announce().await.context("host's console port")?;
    marks::mark("ready");
    tokio::spawn(prepare_ahead(machine));
    logger::to_host(console).await;
    // The shim is gone, and with it everyone who could want anything of this machine.
    power::fatal("the host closed the console connection")
}

/// What the first container will need, while the host is busy with its own part.
async fn prepare_ahead(machine: Machine) {
    if let Err(e) = machine.scratch.get(&machine.modules).await {
        // Said again, to whoever needs it.
        warn!("{e}");
    }
    let modules = machine.modules.clone();
    match spawn_blocking(move || modules.load(Stage::Overlay)).await {
        Ok(Ok(())) => info!("prepared"),
        Ok(Err(e)) => warn!("{e}"),
        Err(e) => warn!("{e}"),
    }
    marks::mark("prepared");
}
