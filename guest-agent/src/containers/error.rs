//! Everything that can go wrong with a container, in one line each.

use super::{
    cgroup::CgroupError, derive::DeriveError, host_spec::SpecError, launch::LaunchError, mounted::MountError, overlay::OverlayError,
    streams::StreamsError,
};
use crate::{boot::modules::ModuleError, pull::PullError, scratch::ScratchError, secrets::SecretError};
use attestation::EvidenceError;
use policy::Denial;
use std::io;
use thiserror::Error;

/// Why a request about a container was not done.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// No such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// No such exec.
    #[error("process {exec} of container {container} does not exist")]
    NoProcess {
        /// The container.
        container: String,
        /// The exec.
        exec: String,
    },
    /// The id is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// The order of requests.
    #[error("{0}")]
    State(String),
    /// Too many.
    #[error("at most {0} {1}")]
    Full(usize, &'static str),
    /// The owner's policy.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The host's spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The image's measurement.
    #[error(transparent)]
    Measure(#[from] EvidenceError),
    /// The image and the command line.
    #[error(transparent)]
    Derive(#[from] DeriveError),
    /// The image.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A sealed secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A disk.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The scratch space.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// Kernel modules.
    #[error(transparent)]
    Modules(#[from] ModuleError),
    /// The root file system.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// The process.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The streams.
    #[error(transparent)]
    Streams(#[from] StreamsError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A file, or a call.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl ContainerError {
    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
