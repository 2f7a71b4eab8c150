//! kill -9 in the middle of the calls of a pod's life. `make soak` has every cell of the matrix.

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
    let tests = tests![
        the_daemon_dies_at_every_call_of_a_pod,
        the_shim_dies_in_a_create,
        the_vm_dies_in_an_exec,
        the_shim_dies_as_its_pod_is_stopped
    ];
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

fn the_shim_dies_in_a_create(bed: &Bed) -> Result<()> {
    Matrix::new(bed)?.cell(Step::StartContainer, Victim::Shim)
}

fn the_vm_dies_in_an_exec(bed: &Bed) -> Result<()> {
    Matrix::new(bed)?.cell(Step::Exec, Victim::Vm)
}

fn the_shim_dies_as_its_pod_is_stopped(bed: &Bed) -> Result<()> {
    Matrix::new(bed)?.cell(Step::StopPod, Victim::Shim)
}
