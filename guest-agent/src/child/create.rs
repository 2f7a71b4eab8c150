//! Makes a container with libcontainer.

use super::{CreateJob, chain};
use libcontainer::{container::builder::ContainerBuilder, error::LibcontainerError, syscall::syscall::SyscallType};

/// Gives the id of the container's first process, which waits for its start.
pub fn run(job: &CreateJob) -> Result<u32, String> {
    let pid = build(job).map_err(|e| chain(&e))?;
    pid.ok_or_else(|| "libcontainer gave no process id".to_owned())
}

fn build(job: &CreateJob) -> Result<Option<u32>, LibcontainerError> {
    let container = ContainerBuilder::new(job.name.clone(), SyscallType::default())
        .with_root_path(&job.state)?
        .with_console_socket(job.console.as_ref())
        .validate_id()?
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    Ok(container.pid().map(|pid| pid.as_raw().cast_unsigned()))
}
