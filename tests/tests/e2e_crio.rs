//! A pod's life as CRI-O leads it, on a real VM; CRI-O itself is in no package here, so that its calls are made as its source makes them.

use std::process::ExitCode;

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, Setup};
use tests::crio::Crio;
use tests::oci::Image;
use tests::{place, runner, tests};

fn main() -> ExitCode {
    runner::main(&Setup { name: "crio", containerd: place::CONTAINERD_DEFAULT }, 1, tests![a_pods_life_without_events_and_without_delete])
}

fn a_pods_life_without_events_and_without_delete(bed: &Bed) -> Result<()> {
    let image = bed.plain(&Image::busybox("echo not this")?, "crio")?;
    let pod = bed.id("pod");
    let mut crio = Crio::start(bed, &pod)?;
    ensure!(crio.address.starts_with("unix:///"), "{}", crio.address);
    drop(crio.create(&pod)?);
    crio.run(&pod, "")?;

    let script = "echo hello; trap 'exit 9' TERM; while :; do sleep 0.1; done";
    let app = bed.id("app");
    let output = crio.add(&pod, &app, &image, &["/bin/sh", "-c", script], &Value::Null)?;
    crio.run(&app, "")?;
    crio.kill(&app, 0)?;
    let (status, text) = crio.exec(&app, "one", &["/bin/sh", "-c", "echo inside; exit 4"])?;
    ensure!((status, text.as_str()) == (4, "inside\n"), "{status}: {text}");

    // Input ends when it was closed and nobody writes any more, not before.
    let (status, text) = crio.exec_with_input(&app, "input", &["/bin/cat"], b"typed")?;
    ensure!((status, text.as_str()) == (0, "typed"), "{status}: {text}");
    // New limits are those that the container sees.
    crio.update(&app, &json!({ "memory": { "limit": 64 << 20 }, "cpu": { "quota": 20_000, "period": 100_000 }, "pids": { "limit": 99 } }))?;
    let (_, text) = crio.exec(&app, "limits", &["/bin/sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max"])?;
    ensure!(text == "67108864\n20000 100000\n99\n", "{text}");

    // A terminal has the size that it was given before anything ran on it, and each later one.
    let tty = bed.id("tty");
    let script = "stty size; : > /tmp/seen; until stty size | grep -q '43 132'; do sleep 0.1; done; stty size";
    let output_of_tty = crio.add_on_terminal(&pod, &tty, &image, &["/bin/sh", "-c", script])?;
    crio.resize(&tty, 80, 25)?;
    crio.run(&tty, "")?;
    crio.exec(&tty, "seen", &["/bin/sh", "-c", "until [ -e /tmp/seen ]; do sleep 0.1; done"])?;
    crio.resize(&tty, 132, 43)?;
    ensure!(crio.wait(&tty, "")? == 0);
    crio.delete(&tty, "")?;
    let text = output_of_tty.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(text.starts_with("25 80\r\n") && text.ends_with("43 132\r\n"), "{text:?}");

    // CRI-O restarts: it finds the shim by the bundle, and the pipes by the state.
    crio.restart(&app)?;
    let state = crio.state(&app)?;
    ensure!(state.stdout == crio.bundle(&app).join("stdout").display().to_string() && state.pid > 0, "{state}");
    ensure!(std::path::Path::new(&format!("/proc/{}", state.pid)).exists(), "{} is no process of this host", state.pid);
    crio.kill(&app, libc::SIGTERM)?;
    ensure!(crio.wait(&app, "")? == 9);
    ensure!(crio.delete(&app, "")? == 9);
    crio.shut_down()?;
    let text = output.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(text == "hello\n", "{text}");

    // CRI-O hears of no event: a file in the bundle tells it why.
    let hungry = bed.id("hungry");
    let limit = json!({ "memory": { "limit": 16 << 20 } });
    drop(crio.add(&pod, &hungry, &image, &["/bin/tail", "/dev/zero"], &limit)?);
    crio.run(&hungry, "")?;
    ensure!(crio.wait(&hungry, "")? == 137);
    ensure!(crio.bundle(&hungry).join("oom").exists(), "no file oom");
    ensure!(!crio.bundle(&app).join("oom").exists());
    crio.delete(&hungry, "")?;
    crio.shut_down()?;

    crio.kill(&pod, libc::SIGKILL)?;
    ensure!(crio.wait(&pod, "")? == 137);
    crio.delete(&pod, "")?;
    crio.shut_down()?;
    drop(crio);
    bed.nothing_of(&pod)
}
