//! Whatever is killed, whenever: `ctr` ends, says something, and nothing is left.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bed::{Bed, Setup};
use tests::command::Running;
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::{leaks, place, runner, tests};

const SHIM: &str = "containerd-shim-cloister-v2";
const VM: &str = "qemu-system";

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "crash", containerd: place::CONTAINERD_DEFAULT },
        2,
        tests![
            the_agent_is_killed,
            the_vm_is_killed_while_running,
            the_vm_is_killed_while_booting,
            the_shim_is_killed_while_running,
            the_shim_is_killed_while_starting,
            the_shim_is_killed_at_once,
            the_client_goes_away,
            a_guest_that_hangs_can_be_killed,
        ],
    )
}

fn image(bed: &Bed) -> Result<String> {
    bed.plain(&Image::busybox("echo ready; sleep 3600")?, "crash")
}

fn kill_hard(pid: u32) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?)
}

/// The pid of the first process of `id` that is a `program`, as soon as there is one.
fn appears(program: &str, id: &str, running: &mut Running) -> Result<u32> {
    let started = Instant::now();
    loop {
        match leaks::serving(program, id) {
            Some(pid) => return Ok(pid),
            None if running.ended()? => bail!("ctr ended before any {program} of {id} appeared"),
            None if started.elapsed() > BOOT => bail!("no {program} of {id} appeared"),
            None => sleep(Duration::from_millis(2)),
        }
    }
}

/// Starts a container, kills `program` of it once `when` has come, and expects a failure and a clean machine.
fn killed(bed: &Bed, name: &str, program: &str, when: fn(&Running) -> Result<()>) -> Result<()> {
    let (reference, id) = (image(bed)?, bed.id(name));
    let mut running = bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?;
    let pid = appears(program, &id, &mut running)?;
    when(&running)?;
    kill_hard(pid)?;
    let finished = running.finish(BOOT)?;
    ensure!(!finished.status.success(), "{finished:?}");
    // A dead shim leaves a task that `ctr run --rm` has to be asked to forget.
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}

fn ready(running: &Running) -> Result<()> {
    running.wait_output(BOOT)
}

fn at_once(_: &Running) -> Result<()> {
    Ok(())
}

fn soon(_: &Running) -> Result<()> {
    sleep(Duration::from_secs(3));
    Ok(())
}

/// Seen from outside, an agent that dies is a guest whose init exited: the kernel panics and the VM ends.
fn the_agent_is_killed(bed: &Bed) -> Result<()> {
    // Init ignores signals sent from inside, so the way to end it is to have the kernel end everything: sysrq's crash. The pause lets
    // the one line leave the guest before.
    let (reference, id) = (image(bed)?, bed.id("agent"));
    let script = "mount -t proc proc /proc && echo ready && sleep 2; echo c > /proc/sysrq-trigger; sleep 3600";
    let run =
        Run { image: &reference, id: &id, flags: &["--cap-add", "CAP_SYS_ADMIN"], args: &["/bin/sh", "-c", script], ..Run::default() };
    let finished = bed.ctr().run(&run)?;
    ensure!(finished.code() == Some(137) && finished.text() == "ready\n", "{finished:?}");
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}

fn the_vm_is_killed_while_running(bed: &Bed) -> Result<()> {
    killed(bed, "vm-running", VM, ready)
}

fn the_vm_is_killed_while_booting(bed: &Bed) -> Result<()> {
    killed(bed, "vm-booting", VM, at_once)
}

fn the_shim_is_killed_while_running(bed: &Bed) -> Result<()> {
    killed(bed, "shim-running", SHIM, ready)
}

fn the_shim_is_killed_while_starting(bed: &Bed) -> Result<()> {
    killed(bed, "shim-starting", SHIM, soon)
}

fn the_shim_is_killed_at_once(bed: &Bed) -> Result<()> {
    killed(bed, "shim-at-once", SHIM, at_once)
}

/// `ctr` dies; the container goes on, as with every runtime, and can be removed.
fn the_client_goes_away(bed: &Bed) -> Result<()> {
    let (reference, id) = (image(bed)?, bed.id("client"));
    let running = bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?;
    running.wait_output(BOOT)?;
    kill_hard(running.pid())?;
    ensure!(!running.finish(BOOT)?.status.success());
    let said = bed.ctr().exec(&id, "one", &[], &["/bin/echo", "still here"], b"")?;
    ensure!(said.text() == "still here\n", "{said:?}");
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}

/// A VM that runs no instruction any more: questions are answered, and SIGKILL ends it all the same.
fn a_guest_that_hangs_can_be_killed(bed: &Bed) -> Result<()> {
    let (reference, id) = (image(bed)?, bed.id("hangs"));
    let mut running = bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?;
    running.wait_output(BOOT)?;
    let vm = appears(VM, &id, &mut running)?;
    kill(Pid::from_raw(i32::try_from(vm)?), Signal::SIGSTOP)?;
    let list = bed.ctr().call(&["task", "ls"])?.succeeded()?;
    ensure!(list.text().lines().any(|line| line.starts_with(&id) && line.ends_with("RUNNING")), "{list:?}");
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    let finished = running.finish(BOOT)?;
    ensure!(finished.code() == Some(137), "{finished:?}");
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}
