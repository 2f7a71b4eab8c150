//! Standard streams on this host: where containerd wants them, and how their bytes get between there and the guest.
//!
//! - [`ends`]: the host's end of a stream by its address: a fifo, a file, a logger.
//! - [`logger`]: `binary://`, a program that takes the output.
//! - [`bridge`]: the copying between a host's end and the guest's.

mod bridge;
mod ends;
mod logger;
mod uri;

pub use bridge::Bridge;
pub use ends::Ends;
pub use uri::{Place, Uri};

use protocol::api;
use std::{io, path::PathBuf};
use thiserror::Error;

/// A stream that cannot be had.
#[derive(Debug, Error)]
pub enum StdioError {
    /// An address of no known kind.
    #[error("stream {uri:?}: {rule}")]
    Address {
        /// As it was given.
        uri: String,
        /// What is expected.
        rule: &'static str,
    },
    /// The host's end.
    #[error("{stream} {path}: {source}")]
    Open {
        /// Which stream.
        stream: &'static str,
        /// Where.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The logger's program.
    #[error("logger {path}: {reason}")]
    Logger {
        /// The program.
        path: PathBuf,
        /// What it did.
        reason: String,
    },
    /// The guest's end.
    #[error("{stream} of the guest: {source}")]
    Guest {
        /// Which stream.
        stream: protocol::stream::Kind,
        /// The cause.
        source: protocol::line::LineError,
    },
}

/// Where a process's streams are, as containerd said; an empty address is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    /// What the process reads.
    pub stdin: String,
    /// What it writes, and with a terminal all of its output.
    pub stdout: String,
    /// Its errors; not used with a terminal.
    pub stderr: String,
    /// Whether it has a terminal.
    pub terminal: bool,
}

impl Paths {
    /// Which streams the guest is to expect.
    pub fn announce(&self) -> api::Stdio {
        api::Stdio {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
            terminal: self.terminal,
            ..Default::default()
        }
    }
}
