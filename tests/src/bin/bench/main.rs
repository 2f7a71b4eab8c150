//! `make bench`: what a start costs over the floor, what the line between host and guest carries, what one more container costs in a pod,
//! and what runs beside the guest.
//!
//! The machine is never as quiet as one would like, and its speed swings: everything is measured in one run, interleaved, over several
//! rounds; ratios are made within a round, then their median is taken.

#![allow(clippy::print_stdout, reason = "it reports to the terminal")]

mod crowd;
mod floor;
mod guest;
mod line;
mod pod;
mod report;
mod shim;
mod unpack;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::bed::{Bed, POLICY, Setup};
use tests::ctr::{BOOT, Run};
use tests::memory;
use tests::oci::Image;
use tests::place;

use crate::report::{Report, Unit};

/// Rounds, unless the only argument says otherwise; 0 for the pods of one image alone.
const ROUNDS: u32 = 5;

fn main() -> ExitCode {
    let word = std::env::args().nth(1).unwrap_or_default();
    match guest::run(&word).unwrap_or_else(measure) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("The benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    let rounds = match std::env::args().nth(1) {
        Some(text) => text.parse().with_context(|| format!("'{text}' is no number of rounds"))?,
        None => ROUNDS,
    };
    let mut report = Report::default();
    sizes(&mut report)?;
    if rounds == 0 {
        crowd::measure(&mut report)?;
        return report.finish(&place::build()?.join("bench"));
    }
    let bed = Bed::start(&Setup { name: "bench", containerd: place::CONTAINERD_DEFAULT })?;
    let result = run_rounds(&bed, rounds, &mut report)
        .and_then(|()| unpack::measure(&bed, rounds, &mut report))
        .and_then(|()| line::measure(&bed, rounds, &mut report))
        .and_then(|()| pod::measure(&bed, &mut report));
    let ended = bed.end();
    result?;
    ended?;
    crowd::measure(&mut report)?;
    report.finish(&place::build()?.join("bench"))
}

fn sizes(report: &mut Report) -> Result<()> {
    for (what, path) in [
        ("initramfs", place::guest()?.join("initramfs.cpio")),
        ("kernel", place::guest()?.join("vmlinux")),
        ("cloister-agent", place::ours("cloister-agent")?),
        ("containerd-shim-cloister-v2", place::ours("containerd-shim-cloister-v2")?),
        ("cloister", place::ours("cloister")?),
    ] {
        report.add(&format!("size of {what}"), Unit::MiB, std::fs::metadata(&path)?.len() as f64 / f64::from(1 << 20));
    }
    report.goal("size of initramfs", 16.0);
    Ok(())
}

fn run_rounds(bed: &Bed, rounds: u32, report: &mut Report) -> Result<()> {
    let image = Image::busybox("echo first; sleep 3600")?;
    let plain = bed.plain(&image, "plain")?;
    let initdata = bed.initdata(&format!("{POLICY}exec = true\n"));
    let encrypted = bed.encrypted(&image, "encrypted", &initdata)?;
    let annotation = initdata.annotation()?;

    // Once for the page cache, and for QEMU's command line, which the floor repeats.
    println!("warming up");
    let line = one(bed, &plain, None, "warm", &mut Report::default())?;
    for round in 1..=rounds {
        println!("round {round} of {rounds}");
        let floor = floor::measure(&line)?.as_secs_f64();
        report.add("floor: QEMU, kernel, initramfs to init's first line", Unit::Seconds, floor);
        for (name, reference, initdata) in [("plain", &plain, None), ("encrypted", &encrypted, Some(annotation.as_str()))] {
            one(bed, reference, initdata, name, report)?;
            let seconds = report.last(&format!("ctr run to first output, {name}")).context("no time")?;
            report.add(&format!("ratio to the floor, {name}"), Unit::Ratio, seconds / floor);
        }
        report.add("wall time of the shim's start", Unit::Seconds, shim::start(bed, round)?.as_secs_f64());
    }
    report.goal("ratio to the floor, plain", 1.3);
    report.goal("ratio to the floor, encrypted", 1.5);
    report.goal("memory of the shim (PSS without the guest's RAM)", 12.0);
    report.goal("memory of the agent (RSS inside)", 16.0);
    Ok(())
}

/// One container from `ctr run` to its end; returns QEMU's command line.
fn one(bed: &Bed, reference: &str, initdata: Option<&str>, name: &str, report: &mut Report) -> Result<Vec<String>> {
    let id = bed.id(name);
    let started = std::time::Instant::now();
    let running = bed.ctr().start(&Run { image: reference, id: &id, initdata, ..Run::default() })?;
    running.wait_output(BOOT)?;
    report.add(&format!("ctr run to first output, {name}"), Unit::Seconds, started.elapsed().as_secs_f64());

    let exec = bed.ctr().exec(&id, "one", &[], &["/bin/echo", "second"], b"")?.succeeded()?;
    report.add("exec to first output", Unit::Seconds, exec.first_output.unwrap_or(Duration::ZERO).as_secs_f64());

    let vm = memory::process("qemu-system", &id)?;
    let shim = memory::process("containerd-shim-cloister-v2", &id)?;
    report.add("memory of the shim (PSS without the guest's RAM)", Unit::MiB, memory::private_mib(shim)?);
    report.add("memory of QEMU beyond the guest's RAM (PSS)", Unit::MiB, memory::private_mib(vm)?);
    let line = memory::command_line(vm)?;

    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    running.finish(BOOT)?;
    bed.nothing_of(&id)?;
    let agent = memory::agent_mib(&bed.log_lines(&id)?).context("the shim's log has no agent_rss_kib")?;
    report.add("memory of the agent (RSS inside)", Unit::MiB, agent);
    Ok(line)
}
