//! `make soak`: does anything of ours grow? Sandboxes one after the other, as many side by side as memory allows, execs in one container that
//! stays, and a GiB of output; descriptors, threads and memory of every process of ours before and after. Then an image of four times its
//! guest's memory, fifty pods of one image, and kill -9 of everybody in every call of a pod's life.
//!
//! Takes the number of sandboxes and of execs, 200 and 500 unless said otherwise; or the word `pods`, for those of one image alone, `matrix`,
//! for the deaths, or `large`, for the image. Fails where something grew or was left.

#![allow(clippy::print_stdout, reason = "it reports to the terminal")]

mod census;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use census::{Census, Growth};
use tests::bed::{Bed, POLICY, Setup};
use tests::configuration::{Configuration, Initdata};
use tests::ctr::{BOOT, Run};
use tests::matrix::{Matrix, cells};
use tests::oci::Image;
use tests::{crowd, flood, large, memory, place};

const SANDBOXES: usize = 200;
const EXECS: usize = 500;
/// Blocks of a little more than a MiB: a GiB of output.
const FLOOD: usize = 1024;
/// After so many of each, caches and heaps have their size.
const WARM: usize = 5;
/// Memory of one VM and what runs beside it, in MiB: the guest's own 512 and QEMU's.
const SANDBOX_MIB: u64 = 768;
/// Pods of one image, where memory holds them.
const PODS_OF_ONE_IMAGE: usize = 50;
/// Side by side on any machine, however large.
const MOST_SIDE_BY_SIDE: usize = 64;

fn main() -> ExitCode {
    match soak() {
        Ok(growths) if growths.iter().all(Growth::is_flat) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("The soak failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn soak() -> Result<Vec<Growth>> {
    match std::env::args().nth(1).as_deref() {
        Some("pods") => return one_image().map(|()| Vec::new()),
        Some("matrix") => return matrix().map(|()| Vec::new()),
        Some("large") => return larger_than_memory().map(|()| Vec::new()),
        _ => {}
    }
    let number = |position: usize, usual: usize| match std::env::args().nth(position) {
        Some(text) => text.parse().with_context(|| format!("'{text}' is no number")),
        None => Ok(usual),
    };
    let (sandboxes, execs) = (number(1, SANDBOXES)?, number(2, EXECS)?);
    let bed = Bed::start(&Setup { name: "soak", containerd: place::CONTAINERD_DEFAULT })?;
    let result = Soak::new(&bed).and_then(|soak| soak.run(sandboxes, execs));
    let ended = bed.end();
    let growths = result?;
    ended?;
    println!("\n{:44} {:>9} {:>9}", "", "before", "after");
    growths.iter().for_each(|growth| println!("{growth}"));
    larger_than_memory()?;
    one_image()?;
    matrix()?;
    Ok(growths)
}

/// Fifty pods of one image, or as many as memory holds: the registry is asked once for each blob.
fn one_image() -> Result<()> {
    let bed = Bed::start_with_cri(&Setup { name: "scw", containerd: place::CONTAINERD_NEWEST })?;
    let result = crowd::run(&bed, "one", 1).and_then(|one| {
        let count = crowd::room(one.memory_mib, PODS_OF_ONE_IMAGE)?;
        let crowd = crowd::run(&bed, "crowd", count)?;
        println!("{count} pods of one image, downloaded once, in {:.0} s", crowd.took.as_secs_f32());
        Ok(())
    });
    let ended = bed.end();
    result.and(ended)
}

/// 2 GiB in a guest of 512 MiB.
fn larger_than_memory() -> Result<()> {
    let bed = Bed::start(&Setup { name: "slm", containerd: place::CONTAINERD_DEFAULT })?;
    Configuration { scratch_mib: 4096, ..bed.configuration.clone() }.write(&bed.configuration_file())?;
    let started = Instant::now();
    let result = large::starts(&bed, 2 << 30, BOOT * 4);
    println!("an image of 2 GiB in a guest of 512 MiB, made, pushed, pulled and run: {:.0} s", started.elapsed().as_secs_f32());
    let ended = bed.end();
    result.and(ended)
}

/// Everybody dies at every call, each time in the life of another pod, on the containerd that is asked for pods by most, and on the newest.
fn matrix() -> Result<()> {
    for containerd in ["1.7", "2"] {
        let bed = Bed::start_with_cri(&Setup { name: "smx", containerd })?;
        let matrix = Matrix::new(&bed)?;
        let mut failed = Vec::new();
        for (step, victim) in cells() {
            let result = matrix.cell(step, victim);
            println!(
                "containerd {containerd}: {victim:?} dies at {step:?}: {}",
                result.as_ref().map_or_else(|e| format!("{e:#}"), |()| "ok".into())
            );
            failed.extend(result.err());
        }
        bed.end()?;
        ensure!(failed.is_empty(), "{} cells of the matrix failed, see above", failed.len());
    }
    Ok(())
}

struct Soak<'a> {
    bed: &'a Bed,
    reference: String,
    initdata: Initdata,
}

impl<'a> Soak<'a> {
    fn new(bed: &'a Bed) -> Result<Self> {
        let initdata = bed.initdata(POLICY);
        let reference = bed.encrypted(&Image::busybox("echo ready")?, "soak", &initdata)?;
        Ok(Self { bed, reference, initdata })
    }

    fn run(&self, sandboxes: usize, execs: usize) -> Result<Vec<Growth>> {
        let mut growths = self.in_sequence(sandboxes)?;
        self.side_by_side()?;
        growths.extend(self.execs(execs)?);
        self.flood()?;
        Ok(growths)
    }

    /// Each boots, attests, is given its key, says one word and goes; what stays is the broker and the snapshotter.
    fn in_sequence(&self, count: usize) -> Result<Vec<Growth>> {
        let daemons = [("broker", self.bed.broker.pid()), ("snapshotter", self.bed.snapshotter_pid())];
        let mut before = None;
        for n in 0..count + WARM {
            if n == WARM {
                before = Some(Census::of(&daemons)?);
            }
            let id = self.bed.id("seq");
            let annotation = self.initdata.annotation()?;
            let finished = self.bed.ctr().run(&Run { image: &self.reference, id: &id, initdata: Some(&annotation), ..Run::default() })?;
            ensure!(finished.code() == Some(0) && finished.text() == "ready\n", "sandbox {n}: {finished:?}");
            self.bed.nothing_of(&id)?;
            println!("sandbox {} of {}", n + 1, count + WARM);
        }
        Ok(before.context("no census")?.growth(&Census::of(&daemons)?))
    }

    /// All of them speak before the first is ended.
    fn side_by_side(&self) -> Result<()> {
        let count = usize::try_from(memory::available_mib()? / SANDBOX_MIB)?.clamp(2, MOST_SIDE_BY_SIDE);
        println!("{count} sandboxes side by side");
        let reference = self.bed.encrypted(&Image::busybox("echo ready; sleep 36000")?, "side", &self.initdata)?;
        let annotation = self.initdata.annotation()?;
        let ids: Vec<String> = (0..count).map(|_| self.bed.id("side")).collect();
        let start = |id: &String| self.bed.ctr().start(&Run { image: &reference, id, initdata: Some(&annotation), ..Run::default() });
        let running = ids.iter().map(start).collect::<Result<Vec<_>>>()?;
        running.iter().try_for_each(|one| one.wait_output(BOOT * 4))?;
        for id in &ids {
            self.bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", id])?.succeeded()?;
        }
        for one in running {
            one.finish(BOOT * 4)?;
        }
        ids.iter().try_for_each(|id| self.bed.nothing_of(id))
    }

    /// A GiB through standard output, each byte in its place.
    fn flood(&self) -> Result<()> {
        let (reference, id) = (self.bed.plain(&flood::image()?, "flood")?, self.bed.id("flood"));
        println!("a GiB of output: {:?}", flood::run(self.bed, &reference, &id, FLOOD)?);
        self.bed.nothing_of(&id)
    }

    /// Processes come and go in a container that stays: the shim must not grow.
    fn execs(&self, count: usize) -> Result<Vec<Growth>> {
        let id = self.bed.id("execs");
        let reference = self.bed.plain(&Image::busybox("echo ready; sleep 36000")?, "execs")?;
        let running = self.bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?;
        running.wait_output(BOOT)?;
        let shim = [("shim", memory::process("containerd-shim-cloister-v2", &id)?), ("qemu", memory::process("qemu-system", &id)?)];
        let mut before = None;
        for n in 0..count + WARM {
            if n == WARM {
                before = Some(Census::of(&shim)?);
            }
            let said = self.bed.ctr().exec(&id, &format!("e{n}"), &[], &["/bin/echo", "x"], b"")?;
            ensure!(said.text() == "x\n", "exec {n}: {said:?}");
        }
        println!("{} execs in one container", count + WARM);
        let growth = before.context("no census")?.growth(&Census::of(&shim)?);
        self.bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
        running.finish(BOOT)?;
        self.bed.nothing_of(&id)?;
        Ok(growth)
    }
}
