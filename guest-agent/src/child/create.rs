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
    let builder = ContainerBuilder::new(job.name.clone(), SyscallType::default())
        .with_root_path(&job.state)?
        .with_console_socket(job.console.as_ref());
    let builder = if job.hold { builder.with_executor(HoldStill) } else { builder.with_executor(OwnWords) };
    let container = builder.validate_id()?.as_init(&job.bundle).with_systemd(false).with_detach(true).build()?;
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

/// In place of a program: the first process of a namespace that others share. It reaps what they leave, and does nothing else.
#[derive(Clone)]
struct HoldStill;

impl Executor for HoldStill {
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        // SAFETY: system calls with integers only. Nothing executes another program here, so what is open would stay open; and the
        // kernel reaps the children of a process that ignores their end (wait(2)).
        unsafe {
            libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0);
            libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        }
        loop {
            nix::unistd::pause();
        }
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
