//! Volumes: nothing of the host's is shared with a guest, so what a container is to find of it is copied in, and what it leaves in its
//! termination log is copied out.
//!
//! - [`plan`]: what each bind mount of the spec becomes. - [`subpath`]: which part of a volume a mount is. - [`send`]: one copy. - [`attached`]: a container's volumes while it lives.
//! - [`probe`]: which mounts are disks. - [`disks`]: those that a container has. - [`server`]: one of them, as a guest asks for it. - [`served`]: those that are served.

mod attached;
mod disks;
mod plan;
mod probe;
mod send;
mod served;
mod server;
mod subpath;

pub use attached::Attached;
pub use disks::disks;
pub use plan::{Plan, plan};
pub use served::ServedDisks;

use protocol::line::LineError;
use std::{io, path::PathBuf};
use thiserror::Error;

/// A volume that cannot be had. One line: what was asked, why not, what works instead.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// What a guest cannot have.
    #[error("mount {source_path} at {destination}: {rule}")]
    Refused {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        destination: String,
        /// Why, and what instead.
        rule: String,
    },
    /// Reading on the host.
    #[error("mount {source_path} at {destination}: {source}")]
    Read {
        /// On the host.
        source_path: PathBuf,
        /// In the container.
        destination: String,
        /// The cause.
        source: io::Error,
    },
    /// The guest's answer to a copy.
    #[error("mount at {destination}: {source}")]
    Guest {
        /// In the container.
        destination: String,
        /// Its words.
        source: LineError,
    },
}
