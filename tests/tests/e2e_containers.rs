//! Containers of plain images do what a container does: output, arguments, environment, user, directory, exit code, signals, input, a
//! terminal, more processes. No initdata: the host's wishes are followed.

#![allow(clippy::print_stdout, reason = "a test that measures says what")]

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::{flood, pty, runner, tests};

/// Blocks of a MiB that are written by a container: more than 64 times what fifo, vsock and pipes hold together. `make soak` writes a GiB.
const FLOOD: usize = 64;

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "run", containerd: tests::place::CONTAINERD_DEFAULT },
        2,
        tests![
            the_image_decides_what_runs,
            the_host_may_override_what_runs,
            a_running_container_takes_more_processes,
            a_terminal_is_a_terminal,
            signals_arrive_and_are_reported,
            output_of_any_size_arrives_whole_and_nobody_grows,
            a_plain_image_needs_no_snapshotter_of_ours,
            a_second_container_with_the_same_name_is_refused,
        ],
    )
}

fn image(bed: &Bed, name: &str, script: &'static str) -> Result<String> {
    bed.plain(&Image::busybox(script)?, name)
}

fn the_image_decides_what_runs(bed: &Bed) -> Result<()> {
    let script = "echo $GREETING; id -u; id -g; pwd; cat /srv/data; hostname >/dev/null; echo to stderr >&2; exit 7";
    // A number: `ctr` looks names up in the image's files on the host, which are not there.
    let image = Image { user: "1000", working_dir: "/srv", ..Image::busybox(script)?.with_file("srv/data", "of a second layer\n") };
    let (reference, id) = (bed.plain(&image, "decides")?, bed.id("decides"));
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, ..Run::default() })?;
    ensure!(finished.code() == Some(7), "{finished:?}");
    ensure!(finished.text() == "from the image\n1000\n1000\n/srv\nof a second layer\n", "{finished:?}");
    ensure!(finished.stderr.contains("to stderr"), "{finished:?}");
    bed.nothing_of(&id)
}

fn the_host_may_override_what_runs(bed: &Bed) -> Result<()> {
    let (reference, id) = (image(bed, "override", "echo not this")?, bed.id("override"));
    let flags = ["--env", "GREETING=from the host", "--env", "MORE=1", "--cwd", "/tmp", "--user", "1000:1000"];
    let args = ["/bin/sh", "-c", "echo $GREETING $MORE; pwd; id -u; id -g"];
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, flags: &flags, args: &args, ..Run::default() })?;
    ensure!(finished.text() == "from the host 1\n/tmp\n1000\n1000\n", "{finished:?}");
    ensure!(finished.code() == Some(0), "{finished:?}");
    bed.nothing_of(&id)
}

/// One VM for everything that can be asked of a running container.
fn a_running_container_takes_more_processes(bed: &Bed) -> Result<()> {
    let (reference, id) = (image(bed, "exec", "sleep 3600")?, bed.id("exec"));
    let raw = bed.base().join("raw.img");
    fs::write(&raw, [b'd'; 4096])?;
    let mount = format!("type=bind,src={},dst=/dev/data,options=rbind:rw", raw.display());
    bed.ctr().run(&Run { image: &reference, id: &id, flags: &["--detach", "--mount", &mount], ..Run::default() })?.succeeded()?;

    // A raw file of the host is a disk of the guest, which the container may use as it likes.
    let script = "head -c 3 /dev/data; echo; printf changed > /dev/data && sync && echo written";
    let disk = bed.ctr().exec(&id, "disk", &[], &["/bin/sh", "-c", script], b"")?;
    ensure!(disk.text() == "ddd\nwritten\n", "{disk:?}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !fs::read(&raw)?.starts_with(b"changed") {
        ensure!(Instant::now() < deadline, "what was written does not arrive");
        std::thread::sleep(Duration::from_millis(100));
    }

    let seen = bed.ctr().exec(&id, "one", &[], &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], b"")?;
    ensure!((seen.code(), seen.text().as_str()) == (Some(3), "out\n") && seen.stderr.contains("err"), "{seen:?}");
    let echoed = bed.ctr().exec(&id, "two", &[], &["/bin/cat"], b"typed")?;
    ensure!(echoed.text() == "typed", "{echoed:?}");
    // Beyond every buffer on the way in.
    let input: Vec<u8> = (0..8 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let summed = bed.ctr().exec(&id, "input", &[], &["/bin/sha256sum"], &input)?;
    ensure!(summed.text() == tests::oci::digest(&input).replace("sha256:", "") + "  -\n", "{summed:?}");
    let user = bed.ctr().exec(&id, "three", &["--user", "1000", "--cwd", "/tmp"], &["/bin/sh", "-c", "id -u; pwd; echo $GREETING"], b"")?;
    ensure!(user.text() == "1000\n/tmp\nfrom the image\n", "{user:?}");
    let missing = bed.ctr().exec(&id, "four", &[], &["/bin/no-such-program"], b"")?;
    ensure!(missing.code() != Some(0) && missing.stderr.contains("no-such-program"), "{missing:?}");
    let terminal = pty::run(&mut bed.ctr().exec_command(&id, "five", &["--tty"], &["/bin/tty"]), b"", Duration::from_secs(120))?;
    ensure!(terminal.text().contains("/dev/pts/"), "{terminal:?}");

    // Two at once do not hear each other.
    std::thread::scope(|scope| {
        let workers: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let id = &id;
                scope.spawn(move || bed.ctr().exec(id, name, &[], &["/bin/sh", "-c", &format!("yes {name} | head -n 20000")], b""))
            })
            .collect();
        for (worker, name) in workers.into_iter().zip(["a", "b"]) {
            let finished = worker.join().ok().context("the thread panicked")??;
            ensure!(finished.text() == format!("{name}\n").repeat(20000), "{} bytes from {name}", finished.stdout.len());
        }
        Ok(())
    })?;

    let listed = bed.ctr().call(&["task", "ps", &id])?.succeeded()?;
    ensure!(listed.text().lines().count() >= 2, "{listed:?}");
    let metrics = bed.ctr().call(&["task", "metrics", &id])?;
    ensure!(metrics.status.success(), "{metrics:?}");
    for verb in ["pause", "resume"] {
        bed.ctr().call(&["task", verb, &id])?.succeeded()?;
    }
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    bed.ctr().remove(&id)?;
    bed.nothing_of(&id)
}

fn a_terminal_is_a_terminal(bed: &Bed) -> Result<()> {
    let (reference, id) = (image(bed, "tty", "tty; stty size; read line; echo \"got $line\"; exit 5")?, bed.id("tty"));
    let mut command = bed.ctr().run_command(&Run { image: &reference, id: &id, flags: &["--tty"], ..Run::default() });
    let finished = pty::run(&mut command, b"a line\n", BOOT)?;
    let text = finished.text();
    ensure!(text.contains("/dev/pts/") && text.contains("got a line"), "{text}");
    ensure!(text.contains("40 100"), "the terminal's size did not arrive: {text}");
    ensure!(finished.code() == Some(5), "{finished:?}");
    bed.nothing_of(&id)
}

fn signals_arrive_and_are_reported(bed: &Bed) -> Result<()> {
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let (reference, id) = (image(bed, "signal", script)?, bed.id("signal"));
    let running = bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?;
    running.wait_output(BOOT)?;
    bed.ctr().call(&["task", "kill", "--signal", "SIGTERM", &id])?.succeeded()?;
    let finished = running.finish(BOOT)?;
    ensure!((finished.code(), finished.text().as_str()) == (Some(9), "ready\ncaught\n"), "{finished:?}");
    bed.nothing_of(&id)
}

fn output_of_any_size_arrives_whole_and_nobody_grows(bed: &Bed) -> Result<()> {
    let (reference, id) = (bed.plain(&flood::image()?, "flood")?, bed.id("flood"));
    let flooded = flood::run(bed, &reference, &id, FLOOD)?;
    println!("  {flooded:?}");
    bed.nothing_of(&id)
}

fn a_plain_image_needs_no_snapshotter_of_ours(bed: &Bed) -> Result<()> {
    let layout = bed.layout(&Image { user: "app", ..Image::busybox("id -u; id -g")? }, "native")?;
    let (reference, id) = (bed.registry.push(&layout, "native", "1")?, bed.id("native"));
    bed.ctr().pull_unpacking(&reference, "native")?;
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, flags: &["--snapshotter", "native"], ..Run::default() })?;
    ensure!((finished.code(), finished.text().as_str()) == (Some(0), "1000\n1000\n"), "{finished:?}");
    bed.nothing_of(&id)
}

fn a_second_container_with_the_same_name_is_refused(bed: &Bed) -> Result<()> {
    let (reference, id) = (image(bed, "twice", "echo here; sleep 3600")?, bed.id("twice"));
    let first = bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?;
    first.wait_output(BOOT)?;
    let second = bed.ctr().run(&Run { image: &reference, id: &id, ..Run::default() })?;
    ensure!(!second.status.success() && second.stderr.contains("already exists"), "{second:?}");
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?;
    first.finish(BOOT)?;
    bed.nothing_of(&id)
}
