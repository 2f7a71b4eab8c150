//! This program as a container's: what the bare vsock device carries, without agent, RPC or pipe in between.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};

/// Its word on the command line: serve the bare device.
pub const SERVE: &str = "--serve-vsock";
/// Its word on the command line: write [`FLOOD`] bytes to standard output.
pub const WRITE: &str = "--write-stdout";
/// The port of the guest that it serves.
pub const PORT: u32 = 4242;
/// First byte of a connection: every byte that follows is sent back.
pub const ECHO: u8 = b'e';
/// First byte of a connection: [`FLOOD`] bytes are sent.
pub const SEND: u8 = b's';
/// Bytes that are sent to measure a rate.
pub const FLOOD: usize = 64 << 20;

/// Does what `word` asks for; `None` if it is none of ours.
pub fn run(word: &str) -> Option<Result<()>> {
    match word {
        SERVE => Some(serve()),
        WRITE => Some(flood(std::io::stdout().lock())),
        _ => None,
    }
}

fn serve() -> Result<()> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("vsock")?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT)).context("vsock port")?;
    listen(&listener, Backlog::new(8)?)?;
    println!("serving");
    loop {
        let connection = accept(listener.as_raw_fd())?;
        // SAFETY: accept has just returned the descriptor, and nobody else has it.
        let connection = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(connection) };
        // One after the other: nothing else is to take time from what is measured. A host that hangs up has what it wanted.
        answer(connection).ok();
    }
}

fn answer(mut connection: File) -> Result<()> {
    let mut byte = [0];
    connection.read_exact(&mut byte)?;
    match byte[0] {
        SEND => flood(connection),
        _ => loop {
            connection.read_exact(&mut byte)?;
            connection.write_all(&byte)?;
        },
    }
}

fn flood(mut output: impl Write) -> Result<()> {
    let piece = vec![b'x'; 64 << 10];
    for _ in 0..FLOOD / piece.len() {
        output.write_all(&piece)?;
    }
    Ok(output.flush()?)
}
