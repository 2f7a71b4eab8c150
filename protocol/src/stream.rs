//! Stdio: each stream is a vsock connection of its own, with the kernel's own flow control.
//!
//! The host connects to [`crate::guest_port::STREAM`] and writes one line, `STDIO <stdin|stdout|stderr> <container> <exec or ->`.
//! The guest answers `OK` or `NO <reason>`; from there on the connection carries the stream's bytes and nothing else. Half-closing
//! it is end of file, in either direction. A stream can be connected once, after `CreateContainer` or `ExecProcess` has announced
//! it and before `StartProcess`. With a terminal, `stdout` carries the terminal's output and there is no `stderr`.

use crate::{
    bounds::{self, BoundError},
    line::{self, LineError},
};
use std::fmt;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes of a stream that are in somebody's hands at a time: few for the many that say a line now and then.
pub const CHUNK: usize = 4 << 10;
/// The same of a stream that had more to say: what a pipe holds (pipe(7)).
const LARGE_CHUNK: usize = 64 << 10;

/// Enlarges a stream's buffer once it was full: each chunk costs a wait of the process and two system calls on either side.
pub fn grow(chunk: &mut Vec<u8>, filled: usize) {
    if filled == chunk.len() && filled < LARGE_CHUNK {
        chunk.resize(LARGE_CHUNK, 0);
    }
}

/// One of a process's standard streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// From the host to the process.
    Stdin,
    /// From the process to the host; the terminal's output if it has one.
    Stdout,
    /// From the process to the host.
    Stderr,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// Which stream a connection is to carry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamId {
    /// The stream.
    pub kind: Kind,
    /// The container.
    pub container_id: String,
    /// The exec, empty for the container's first process.
    pub exec_id: String,
}

/// Why a stream's greeting was refused.
#[derive(Debug, Error)]
pub enum StreamError {
    /// The line itself.
    #[error(transparent)]
    Line(#[from] LineError),
    /// An id in it.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// Not of the protocol.
    #[error("unknown stream greeting {0:?}")]
    Unknown(String),
}

impl StreamId {
    /// The greeting line.
    pub fn to_line(&self) -> String {
        let exec = if self.exec_id.is_empty() { "-" } else { &self.exec_id };
        format!("STDIO {} {} {exec}", self.kind, self.container_id)
    }

    /// Parses a greeting; ids are checked against their bounds.
    pub fn parse(text: &str) -> Result<Self, StreamError> {
        let unknown = || StreamError::Unknown(text.to_owned());
        let words: Vec<&str> = text.split(' ').collect();
        let ["STDIO", kind, container, exec] = words[..] else { return Err(unknown()) };
        let kind = match kind {
            "stdin" => Kind::Stdin,
            "stdout" => Kind::Stdout,
            "stderr" => Kind::Stderr,
            _ => return Err(unknown()),
        };
        bounds::check_id("container_id", container)?;
        let exec_id = if exec == "-" {
            String::new()
        } else {
            bounds::check_id("exec_id", exec)?;
            exec.to_owned()
        };
        Ok(Self { kind, container_id: container.to_owned(), exec_id })
    }

    /// The host's side: greets and waits for the guest's answer.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Result<(), LineError> {
        line::write_line(stream, &self.to_line()).await?;
        line::read_answer(stream).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_round_trip() {
        for exec_id in ["", "e1"] {
            let id = StreamId { kind: Kind::Stderr, container_id: "web-1".into(), exec_id: exec_id.into() };
            assert_eq!(StreamId::parse(&id.to_line()).unwrap(), id);
        }
    }

    #[test]
    fn hostile_greetings_are_refused() {
        for text in ["", "STDIO", "STDIO stdin c", "STDIO stdlog c -", "STDIO stdin ../c -", "STDIO stdin c - -", "STDIO stdin  -"] {
            assert!(StreamId::parse(text).is_err(), "{text:?}");
        }
    }
}
