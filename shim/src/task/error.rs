//! Why a request about a task was not done, with the code that containerd expects for it.

use super::state::Illegal;
use crate::{bundle::BundleError, hooks::HookError, pod::PodError, stdio::StdioError, volumes::VolumeError};
use thiserror::Error;
use ttrpc::{Code, get_status};

/// Longest text that is answered, in bytes.
const MAX_MESSAGE: usize = 4096;

/// A request that was not done.
#[derive(Debug, Error)]
pub enum TaskError {
    /// No such container. The text is what containerd's own shim says.
    #[error("container not created")]
    NotCreated,
    /// No such exec.
    #[error("process {0} of the container does not exist")]
    NoExec(String),
    /// A signal to a process that has ended.
    #[error("process already finished")]
    Finished,
    /// An id that is in use.
    #[error("{0} exists already")]
    Exists(String),
    /// A transition that the task's state does not have.
    #[error(transparent)]
    State(#[from] Illegal),
    /// An exec in a container that does not run.
    #[error("container {0} init process is not running")]
    InitNotRunning(String),
    /// A member of a pod whose VM is not there.
    #[error("sandbox {0} is not running in this shim")]
    NoSandbox(String),
    /// A second VM for one shim.
    #[error("this shim has a sandbox already; a container by itself needs a shim of its own")]
    SecondSandbox,
    /// A pod that the Sandbox service does not know.
    #[error("sandbox {0} not found")]
    UnknownSandbox(String),
    /// A pod's life has no such step.
    #[error("sandbox {0} {1}")]
    SandboxState(String, &'static str),
    /// What no VM can be.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The request itself.
    #[error("{0}")]
    Invalid(String),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A stream's address or its other end.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A hook of the container's spec.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What this runtime does not offer.
    #[error("{0} is not supported by the runtime cloister")]
    Unsupported(&'static str),
    /// What the agent answered.
    #[error("{message}")]
    Agent {
        /// Its code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// The guest does not answer.
    #[error("the guest does not answer: {0}")]
    Silent(String),
    /// The VM did not start, or ended meanwhile.
    #[error("{0}")]
    Sandbox(String),
    /// The caller went away, or its deadline passed.
    #[error("cancelled by the caller")]
    Cancelled,
}

impl TaskError {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::NotCreated | Self::NoExec(_) | Self::Finished | Self::UnknownSandbox(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State(_) | Self::InitNotRunning(_) | Self::NoSandbox(_) | Self::SecondSandbox | Self::SandboxState(..) => {
                Code::FAILED_PRECONDITION
            }
            Self::Invalid(_) | Self::Bundle(_) | Self::Pod(_) | Self::Hook(HookError::Invalid { .. }) => Code::INVALID_ARGUMENT,
            Self::Volume(VolumeError::Refused { .. }) => Code::INVALID_ARGUMENT,
            Self::Stdio(_) | Self::Volume(_) | Self::Sandbox(_) | Self::Hook(_) => Code::UNKNOWN,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Agent { code, .. } => *code,
            Self::Silent(_) => Code::UNAVAILABLE,
            Self::Cancelled => Code::CANCELLED,
        }
    }
}

impl From<ttrpc::Error> for TaskError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            // A container that the guest has forgotten is not one that containerd may forget: that is ours to say.
            ttrpc::Error::RpcStatus(status) => {
                let code = match status.code() {
                    Code::UNIMPLEMENTED | Code::NOT_FOUND => Code::UNKNOWN,
                    code => code,
                };
                Self::Agent { code, message: status.message }
            }
            other => Self::Silent(other.to_string()),
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(get_status(error.code(), one_line(&error.to_string())))
    }
}

/// The text becomes a line at a user's terminal; what a guest says is in it.
fn one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_one_bounded_line() {
        let hostile = TaskError::Agent { code: Code::INTERNAL, message: format!("a\nb\u{1b}[2J{}", "ü".repeat(MAX_MESSAGE)) };
        let ttrpc::Error::RpcStatus(status) = hostile.into() else { panic!("not a status") };
        assert!(status.message.starts_with("a b [2J") && status.message.len() <= MAX_MESSAGE);
    }

    #[test]
    fn an_agent_cannot_say_that_a_container_is_unknown() {
        for code in [Code::NOT_FOUND, Code::UNIMPLEMENTED] {
            assert_eq!(TaskError::from(ttrpc::Error::RpcStatus(get_status(code, "no"))).code(), Code::UNKNOWN);
        }
        let denied = TaskError::from(ttrpc::Error::RpcStatus(get_status(Code::PERMISSION_DENIED, "no")));
        assert_eq!(denied.code(), Code::PERMISSION_DENIED);
        assert_eq!(TaskError::from(ttrpc::Error::RemoteClosed).code(), Code::UNAVAILABLE);
    }
}
