//! This program as a container's: what the bare vsock device carries, without agent, RPC or pipe in between; and how long the arithmetic of an
//! image takes there by itself.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Instant;

use aes::Aes256;
use anyhow::{Context, Result, ensure};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use flate2::read::GzDecoder;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, listen, socket};
use sha2::{Digest, Sha256};

/// Its word on the command line: serve the bare device.
pub const SERVE: &str = "--serve-vsock";
/// Its word on the command line: write [`FLOOD`] bytes to standard output.
pub const WRITE: &str = "--write-stdout";
/// Its word on the command line: do the arithmetic of the gzip layer on standard input, and say how many microseconds it took.
pub const COMPUTE: &str = "--compute";
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
        COMPUTE => Some(compute()),
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

/// What every byte of an encrypted layer has to go through, in one thread: digest and HMAC of the ciphertext, decryption, digest of the
/// compressed layer, decompression, digest of the tar. An HMAC is a digest and two blocks.
fn compute() -> Result<()> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let started = Instant::now();
    // What was sent is compressed and not encrypted: the keystream is the same work on it.
    let (mut cipher, mut again) = (Ctr128BE::<Aes256>::new((&[7; 32]).into(), (&[0; 16]).into()), bytes.clone());
    cipher.apply_keystream(&mut again);
    let digests = [Sha256::digest(&again), Sha256::digest(&again), Sha256::digest(&bytes)];
    let (mut tar, mut hash, mut piece) = (GzDecoder::new(bytes.as_slice()), Sha256::new(), vec![0; 64 << 10]);
    while let count @ 1.. = tar.read(&mut piece)? {
        hash.update(&piece[..count]);
    }
    let whole = hash.finalize();
    let taken = started.elapsed();
    ensure!(digests[0] == digests[1] && digests[2] != whole, "the arithmetic is wrong");
    println!("{}", taken.as_micros());
    Ok(())
}
