//! Errors as the host sees them: a gRPC code, and one line.

use crate::{containers::ContainerError, sandbox::SandboxError, sysctl::SysctlError};
use policy::Denial;
use ttrpc::{Code, Error, get_status};

/// Longest message that leaves the guest, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Why a request was not done.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    /// A failure with this code; the message becomes one line.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let mut line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if line.len() > MAX_MESSAGE {
            let cut = (0..=MAX_MESSAGE).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
            line.truncate(cut);
        }
        Self { code, message: line }
    }

    /// A request in the wrong order.
    pub fn state(message: &str) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    /// As it is sent.
    pub fn into_status(self) -> ttrpc::Status {
        log::warn!(code:? = self.code; "request refused: {}", self.message);
        get_status(self.code, self.message)
    }

    /// Its code.
    #[cfg(test)]
    pub fn code(&self) -> Code {
        self.code
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::RpcStatus(failure.into_status())
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        Self::new(Code::PERMISSION_DENIED, denial.to_string())
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        let code = match &error {
            SandboxError::Denied(_) => Code::PERMISSION_DENIED,
            SandboxError::Initdata(_) | SandboxError::Policy(_) | SandboxError::Broker(_) => Code::INVALID_ARGUMENT,
            SandboxError::Sysctl(SysctlError::Unsafe(_)) => Code::PERMISSION_DENIED,
            SandboxError::Sysctl(SysctlError::NotOurs(_)) => Code::INVALID_ARGUMENT,
            SandboxError::Sysctl(SysctlError::Kernel { .. })
            | SandboxError::Http(_)
            | SandboxError::Network(_)
            | SandboxError::Aborted(_)
            | SandboxError::Hostname(_)
            | SandboxError::Bind(_) => Code::INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Self {
        use ContainerError as E;
        let code = match &error {
            E::NoContainer(_) | E::NoProcess { .. } => Code::NOT_FOUND,
            E::Exists(_) => Code::ALREADY_EXISTS,
            E::State(_) | E::Streams(_) => Code::FAILED_PRECONDITION,
            E::Full(..) => Code::RESOURCE_EXHAUSTED,
            E::Denied(_) => Code::PERMISSION_DENIED,
            E::Spec(_) | E::Derive(_) => Code::INVALID_ARGUMENT,
            // Unknown is what runtimes answer where a program or an image cannot be run.
            E::Pull(_) | E::Secret(_) | E::Launch(_) => Code::UNKNOWN,
            E::Mount(_) => Code::FAILED_PRECONDITION,
            E::Measure(_) | E::Scratch(_) | E::Modules(_) | E::Overlay(_) | E::Cgroup(_) | E::Io { .. } => Code::INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_bounded_line() {
        let failure = Failure::new(Code::INTERNAL, format!("a\nb{}", "ü".repeat(MAX_MESSAGE)));
        assert!(failure.message.starts_with("a b") && failure.message.len() <= MAX_MESSAGE);
    }

    #[test]
    fn codes_say_what_kind_of_failure() {
        let code = |error: ContainerError| Failure::from(error).code();
        assert_eq!(code(ContainerError::NoContainer("c".into())), Code::NOT_FOUND);
        assert_eq!(code(ContainerError::Exists("c".into())), Code::ALREADY_EXISTS);
        assert_eq!(code(ContainerError::State("s".into())), Code::FAILED_PRECONDITION);
    }
}
