//! Wall time of the shim's `start`, as containerd runs it: until it has printed its address and exited.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::bed::Bed;
use tests::command;
use tests::{leaks, place};

const LIMIT: Duration = Duration::from_secs(60);

/// Starts a shim that is asked for nothing, and ends it.
pub fn start(bed: &Bed, round: u32) -> Result<Duration> {
    let id = format!("bench-start-{round}");
    let bundle = bed.base().join("bundle");
    fs::create_dir_all(&bundle)?;
    fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.0.2","process":{"args":["true"],"cwd":"/"},"root":{"path":"rootfs"}}"#)?;
    let socket = bed.base().join("c/c.sock");
    let call = |verb: &str| {
        let mut command = Command::new(place::ours("containerd-shim-cloister-v2")?);
        command.current_dir(&bundle).env("CLOISTER_CONFIG", bed.configuration_file());
        command.env("TTRPC_ADDRESS", bed.base().join("c/c.sock.ttrpc")).env("GRPC_ADDRESS", &socket).env("NAMESPACE", "bench");
        command.args(["-namespace", "bench", "-id", &id, "-address"]).arg(&socket).args(["-publish-binary", "/bin/true"]);
        command.arg("-bundle").arg(&bundle).arg(verb);
        anyhow::Ok(command)
    };
    let started = command::run(&mut call("start")?, LIMIT)?.succeeded()?;
    ensure!(started.text().contains("unix://"), "the shim printed no address: {started:?}");
    let server =
        leaks::pids_with("containerd-shim-cloister-v2").into_iter().find(|(_, line)| line.contains(&id)).context("no shim is running")?;
    // SAFETY: kill takes no pointers.
    unsafe { libc::kill(server.0.cast_signed(), libc::SIGKILL) };
    command::run(&mut call("delete")?, LIMIT)?.succeeded()?;
    fs::remove_dir_all(&bundle)?;
    Ok(started.total)
}
