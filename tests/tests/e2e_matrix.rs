//! kill -9 in the middle of the calls of a pod's life. `make soak` has every cell of the matrix, on two versions of containerd.

use std::fs;
use std::process::ExitCode;

use anyhow::Result;
use tests::bed::{Bed, Setup};
use tests::cri::PodSpec;
use tests::matrix::{Matrix, Step, Victim};
use tests::{place, runner, tests};

const SHIM: &str = "containerd-shim-cloister-v2";

fn main() -> ExitCode {
    let setup = Setup { name: "mx", containerd: "1.7" };
    let tests = tests![the_daemon_dies_at_every_call_of_a_pod, shim_and_vm_die_at_every_call_that_meets_them];
    runner::main_with(|| Bed::start_with_cri(&setup), 1, tests)
}

/// One pod outlives it all, and the replacement of its shim's binary as well.
fn the_daemon_dies_at_every_call_of_a_pod(bed: &Bed) -> Result<()> {
    let shims = bed.containerd().shims();
    fs::create_dir_all(&shims)?;
    fs::copy(place::ours(SHIM)?, shims.join(SHIM))?;
    let matrix = Matrix::new(bed)?;
    let pod = bed.cri()?.run_pod(&PodSpec { name: "lives", ..PodSpec::default() })?;
    for step in [Step::CreateContainer, Step::StartContainer, Step::Exec, Step::StopContainer, Step::RemoveContainer] {
        matrix.step(&pod, step, Victim::Containerd)?;
        // As a package's upgrade does it: another file under the same name. It answers for the pod's next containers.
        fs::copy(place::ours(SHIM)?, shims.join("new"))?;
        fs::rename(shims.join("new"), shims.join(SHIM))?;
    }
    matrix.step(&pod, Step::StopPod, Victim::Containerd)?;
    drop(pod);
    matrix.end()?;
    Ok(fs::remove_file(shims.join(SHIM))?)
}

/// The other calls are containerd's alone.
fn shim_and_vm_die_at_every_call_that_meets_them(bed: &Bed) -> Result<()> {
    let matrix = Matrix::new(bed)?;
    for step in [Step::RunPod, Step::StartContainer, Step::Exec, Step::StopContainer, Step::StopPod] {
        for victim in [Victim::Shim, Victim::Vm] {
            matrix.cell(step, victim)?;
        }
    }
    Ok(())
}
