//! The floor: the same QEMU, kernel and initramfs up to init's first line, with nothing else running.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What init says on the console when it finds no device that leads to a host: it says nothing there while all is well.
const FIRST_LINE: &str = "cloister-agent";
const LIMIT: Duration = Duration::from_secs(300);

/// Runs `line`, a VM's own command line, without what belongs to a sandbox: scratch disk, vsock, network.
pub fn measure(line: &[String]) -> Result<Duration> {
    let (program, arguments) = line.split_first().context("an empty command line")?;
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(bare(arguments))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let console = child.stdout.take().context("no console")?;
    // The console's end is the VM's end: a VM that hangs is killed by the thread, which ends the reading.
    let id = child.id();
    let (done, killed) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        if killed.recv_timeout(LIMIT).is_err() {
            // SAFETY: kill takes no pointers; the child is reaped only after this thread has ended.
            unsafe { libc::kill(id.cast_signed(), libc::SIGKILL) };
        }
    });
    let mut said = String::new();
    let mut time = None;
    for text in BufReader::new(console).split(b'\n') {
        let text = String::from_utf8_lossy(&text?).trim_end().to_owned();
        if text.contains(FIRST_LINE) {
            time = Some(started.elapsed());
            break;
        }
        said = text;
    }
    done.send(()).ok();
    guard.join().ok();
    child.kill()?;
    child.wait()?;
    match time {
        Some(time) => Ok(time),
        None => bail!("the bare VM ended without a word of init; its last line: {said}"),
    }
}

fn bare(arguments: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut rest = arguments.iter().peekable();
    while let Some(option) = rest.next() {
        let value = rest.next_if(|value| !value.starts_with('-'));
        let sandbox = value.is_some_and(|value| ["vsock", "scratch", "virtio-net", "tap,"].iter().any(|part| value.contains(part)));
        if !sandbox {
            kept.push(option.clone());
            kept.extend(value.cloned());
        }
    }
    kept
}
