//! Makes a container with libcontainer.

use super::{CreateJob, chain, program::Program};
use libcontainer::{
    container::builder::ContainerBuilder,
    error::LibcontainerError,
    oci_spec::runtime::Spec,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorValidationError},
};

/// What libcontainer says before the reason.
const DECORATION: &[&str] = &["failed to create container: ", "exec process failed with error ", "error in executing process : "];
/// Exit code of a process that could not become its program, as shells have it.
const CANNOT_EXECUTE: i32 = 126;

/// Gives the id of the container's first process, which waits for its start.
pub fn run(job: &CreateJob) -> Result<u32, String> {
    let pid = build(job).map_err(|e| undecorated(&chain(&e)))?;
    pid.ok_or_else(|| "libcontainer gave no process id".to_owned())
}

fn build(job: &CreateJob) -> Result<Option<u32>, LibcontainerError> {
    let container = ContainerBuilder::new(job.name.clone(), SyscallType::default())
        .with_root_path(&job.state)?
        .with_console_socket(job.console.as_ref())
        .with_executor(OwnWords)
        .validate_id()?
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    Ok(container.pid().map(|pid| pid.as_raw().cast_unsigned()))
}

fn undecorated(text: &str) -> String {
    let mut text = text;
    while let Some(rest) = DECORATION.iter().find_map(|words| text.strip_prefix(words)) {
        text = rest;
    }
    text.to_owned()
}

/// libcontainer's own executor takes only programs that everybody may run, and says nothing when exec fails after the start.
#[derive(Clone)]
struct OwnWords;

impl Executor for OwnWords {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        program(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let reason = program(spec).map_or_else(|e| e, |program| program.exec());
        // The host has been told that the process started: the process's own output is the only place left.
        eprintln!("{reason}");
        std::process::exit(CANNOT_EXECUTE);
    }
}

fn program(spec: &Spec) -> Result<Program, String> {
    Program::find(spec.process().as_ref().ok_or("exec: no process")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_remains() {
        let text = "failed to create container: exec process failed with error error in executing process : exec: \"x\": permission denied";
        assert_eq!(undecorated(text), "exec: \"x\": permission denied");
        assert_eq!(undecorated("other"), "other");
    }
}
