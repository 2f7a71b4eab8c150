//! containerd is killed and comes back, under each of its versions: containers live on, and what happened meanwhile is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bed::{Bed, Setup};
use tests::command::Finished;
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::{leaks, place, runner, tests};

const SHIM: &str = "containerd-shim-cloister-v2";

fn main() -> ExitCode {
    let codes = place::CONTAINERD_VERSIONS.map(|version| {
        let setup = Setup { name: &format!("r{version}"), containerd: version };
        // One after the other: each kills what the others would need.
        runner::main(&setup, 1, tests![a_container_outlives_its_daemon, an_end_without_a_daemon_is_told_later, all_are_killed_at_once])
    });
    codes.into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// Starts a container that nobody is attached to; what it writes is in the file.
fn detached(bed: &Bed, what: &str, script: &str) -> Result<(String, PathBuf)> {
    let (reference, id) = (bed.plain(&Image::busybox("true")?, "restart")?, bed.id(what));
    let log = bed.base().join(format!("{what}.out"));
    let uri = format!("file://{}", log.display());
    let flags = ["--detach", "--log-uri", &uri];
    let run = Run { image: &reference, id: &id, flags: &flags, args: &["/bin/sh", "-c", script], ..Run::default() };
    bed.ctr().run(&run)?.succeeded()?;
    Ok((id, log))
}

/// Waits until the file has `text` in it.
fn written(log: &Path, text: &str) -> Result<()> {
    let started = Instant::now();
    while !fs::read_to_string(log).is_ok_and(|content| content.contains(text)) {
        ensure!(started.elapsed() < BOOT, "{} never had {text:?}", log.display());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

/// The status word of a task as `ctr task ls` shows it.
fn status(bed: &Bed, id: &str) -> Result<String> {
    let list = bed.ctr().call(&["task", "ls"])?.succeeded()?.text();
    let line = list.lines().find(|line| line.starts_with(id)).with_context(|| format!("no task {id} in: {list}"))?;
    Ok(line.split_whitespace().last().unwrap_or_default().to_owned())
}

/// Waits until a task has stopped, and deletes it; `ctr` tells the exit code in a warning.
fn ends_with(bed: &Bed, id: &str, code: u32) -> Result<()> {
    let started = Instant::now();
    while status(bed, id)? != "STOPPED" {
        ensure!(started.elapsed() < BOOT, "{id} never stopped");
    }
    let deleted = bed.ctr().call(&["task", "delete", id])?.succeeded()?;
    ensure!(deleted.stderr.contains(&format!("exit code {code}\"")), "{deleted:?}");
    Ok(())
}

fn echo(bed: &Bed, id: &str, exec: &str) -> Result<Finished> {
    bed.ctr().exec(id, exec, &[], &["/bin/echo", "still here"], b"")
}

/// Output goes on without the daemon, processes can be added after it, and a shim's binary that was replaced meanwhile changes nothing.
fn a_container_outlives_its_daemon(bed: &Bed) -> Result<()> {
    let shims = bed.containerd().shims();
    fs::create_dir_all(&shims)?;
    fs::copy(place::ours(SHIM)?, shims.join(SHIM))?;
    let script = "trap 'exit 5' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";
    let (id, log) = detached(bed, "outlives", script)?;
    written(&log, "line 3\n")?;
    bed.containerd().kill()?;
    let so_far = fs::read_to_string(&log)?.lines().count();
    written(&log, &format!("line {}\n", so_far + 10))?;

    // As a package's upgrade does it: another file under the same name.
    fs::copy(place::ours(SHIM)?, shims.join("new"))?;
    fs::rename(shims.join("new"), shims.join(SHIM))?;
    bed.containerd().start_again()?;
    ensure!(status(bed, &id)? == "RUNNING");
    let said = echo(bed, &id, "after")?;
    ensure!(said.text() == "still here\n", "{said:?}");

    bed.ctr().call(&["task", "kill", &id])?.succeeded()?;
    ends_with(bed, &id, 5)?;
    let lines = fs::read_to_string(&log)?;
    let in_order = lines.lines().enumerate().all(|(n, line)| line == format!("line {}", n + 1));
    ensure!(in_order, "a line is missing or doubled: {lines}");
    fs::remove_file(shims.join(SHIM))?;
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}

/// The exit of a container that ended while the daemon was away.
fn an_end_without_a_daemon_is_told_later(bed: &Bed) -> Result<()> {
    let (id, log) = detached(bed, "ends", "echo ready; sleep 2; echo over; exit 9")?;
    written(&log, "ready\n")?;
    bed.containerd().kill()?;
    written(&log, "over\n")?;
    bed.containerd().start_again()?;
    ends_with(bed, &id, 9)?;
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}

/// Daemon, shim and VM at once, as when the machine loses power; the same name can be used again afterwards.
fn all_are_killed_at_once(bed: &Bed) -> Result<()> {
    let (id, log) = detached(bed, "all", "echo ready; sleep 3600")?;
    written(&log, "ready\n")?;
    bed.containerd().kill()?;
    let processes = leaks::pids_with(&id);
    ensure!(processes.len() >= 2, "a shim and a VM are expected: {processes:?}");
    for (pid, _) in processes {
        // The VM may go with its shim before its turn comes.
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).ok();
    }
    bed.containerd().start_again()?;
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)?;

    let reference = bed.plain(&Image::busybox("echo again")?, "again")?;
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, ..Run::default() })?;
    ensure!((finished.code(), finished.text().as_str()) == (Some(0), "again\n"), "{finished:?}");
    bed.nothing_of(&id)
}
