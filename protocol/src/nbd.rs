//! Disks that the host serves: the transmission phase of NBD with simple replies (NetworkBlockDevice/nbd, `doc/proto.md`;
//! `include/uapi/linux/nbd.h`), and nothing else of that protocol. There is no handshake: size and mode stand in `PrepareVolumes`.
//!
//! The host connects to [`crate::guest_port::VOLUME`] with the greeting of a volume (see [`crate::volume`]). The guest answers `OK`, makes the
//! device, and answers `OK` or `NO <reason>`. From there on the guest asks and the host answers; numbers are big-endian:
//!
//! | request | reply |
//! |---|---|
//! | magic u32, flags u16, type u16, cookie u64, offset u64, length u32; for a write that many bytes | magic u32, error u32, cookie u64; for a read without error that many bytes |
//!
//! What a hostile host gains: it reads and changes what is on a disk of its own, at any time, as with any disk of a VM. It may answer late,
//! never, twice, what nobody asked, too little, or break off. The agent looks at every reply before the kernel does: what is not the answer
//! to a request that is open ends the connection. Then, and once a request is older than [`ANSWER`], every request of the disk fails (EIO)
//! for good; nothing else of the guest waits for it.

use std::time::Duration;
use thiserror::Error;

/// Length of a request without its data.
pub const REQUEST: usize = 28;
/// Length of a reply without its data.
pub const REPLY: usize = 16;
/// Most bytes of one read or write: what Linux asks for at most, since 6.15 (`BLK_DEF_MAX_SECTORS_CAP`).
pub const MAX_LENGTH: u32 = 4 << 20;
/// How long the host may take for an answer: what Linux gives a SCSI disk.
pub const ANSWER: Duration = Duration::from_secs(30);
/// A disk has whole sectors of this many bytes.
pub const SECTOR: u64 = 512;
/// Most disks that a guest is served at a time.
pub const MAX_DISKS: usize = 64;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Force unit access: a write is answered when it is on the medium.
const FUA: u16 = 1;

/// Numbers of errors, as of errno(3) on Linux.
pub mod error {
    /// The disk is read-only.
    pub const EPERM: u32 = 1;
    /// The medium failed.
    pub const EIO: u32 = 5;
    /// A request that makes no sense.
    pub const EINVAL: u32 = 22;
    /// A write beyond the end, or the medium is full.
    pub const ENOSPC: u32 = 28;
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Give these bytes.
    Read,
    /// Take these bytes.
    Write,
    /// The guest needs the disk no more. There is no reply.
    Disconnect,
    /// What has been written goes to the medium.
    Flush,
    /// These bytes are needed no more; what they read is anybody's guess.
    Trim,
    /// None of these.
    Other(u16),
}

/// A request without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub command: Command,
    /// Whether it is to be on the medium when it is answered.
    pub fua: bool,
    /// By which the reply is known.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

/// A reply without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Zero, or one of [`error`].
    pub error: u32,
    /// Of the request.
    pub cookie: u64,
}

/// What is not of the protocol.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NbdError {
    /// Neither a request nor a reply.
    #[error("disk: {0:#x} where a message begins")]
    Magic(u32),
    /// Flags that nobody announced.
    #[error("disk: unknown flags {0:#x} of a request")]
    Flags(u16),
    /// Longer than the bound.
    #[error("disk: a request for {0} bytes, at most {MAX_LENGTH}")]
    TooLong(u32),
    /// The answer to no open request.
    #[error("disk: an answer with cookie {0:#x}, which nobody waits for")]
    Unasked(u64),
}

impl Request {
    /// Parses one; reads and writes are within [`MAX_LENGTH`].
    pub fn parse(bytes: &[u8; REQUEST]) -> Result<Self, NbdError> {
        let [m0, m1, m2, m3, f0, f1, t0, t1, c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = *bytes;
        match u32::from_be_bytes([m0, m1, m2, m3]) {
            REQUEST_MAGIC => {}
            other => return Err(NbdError::Magic(other)),
        }
        let flags = u16::from_be_bytes([f0, f1]);
        if flags & !FUA != 0 {
            return Err(NbdError::Flags(flags));
        }
        let command = match u16::from_be_bytes([t0, t1]) {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            other => Command::Other(other),
        };
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if matches!(command, Command::Read | Command::Write) && length > MAX_LENGTH {
            return Err(NbdError::TooLong(length));
        }
        let cookie = u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
        let offset = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
        Ok(Self { command, fua: flags & FUA != 0, cookie, offset, length })
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> [u8; REQUEST] {
        let command = match self.command {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Other(number) => number,
        };
        let mut bytes = [0; REQUEST];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&u16::from(self.fua).to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// How many bytes follow it.
    pub fn payload(&self) -> usize {
        if self.command == Command::Write { self.length as usize } else { 0 }
    }

    /// How many bytes follow its reply, where that is no error.
    pub fn answer(&self) -> usize {
        if self.command == Command::Read { self.length as usize } else { 0 }
    }
}

impl Reply {
    /// Parses one.
    pub fn parse(bytes: &[u8; REPLY]) -> Result<Self, NbdError> {
        let [m0, m1, m2, m3, e0, e1, e2, e3, c0, c1, c2, c3, c4, c5, c6, c7] = *bytes;
        match u32::from_be_bytes([m0, m1, m2, m3]) {
            REPLY_MAGIC => {}
            other => return Err(NbdError::Magic(other)),
        }
        Ok(Self { error: u32::from_be_bytes([e0, e1, e2, e3]), cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]) })
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> [u8; REPLY] {
        let mut bytes = [0; REPLY];
        bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        let write = Request { command: Command::Write, fua: true, cookie: 0x0102_0304_0506_0708, offset: 1 << 32, length: 512 };
        let bytes = write.to_bytes();
        assert_eq!(&bytes[..12], [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4]);
        assert_eq!(&bytes[12..], [5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!((write.payload(), write.answer()), (512, 0));
        for command in [Command::Read, Command::Disconnect, Command::Flush, Command::Trim, Command::Other(6)] {
            let request = Request { command, fua: false, ..write };
            assert_eq!(Request::parse(&request.to_bytes()), Ok(request));
            assert_eq!(request.payload(), 0);
        }
        let reply = Reply { error: error::EIO, cookie: 7 };
        assert_eq!(reply.to_bytes(), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(Reply::parse(&reply.to_bytes()), Ok(reply));
    }

    #[test]
    fn what_is_not_of_the_protocol_is_refused() {
        let read = Request { command: Command::Read, fua: false, cookie: 1, offset: 0, length: MAX_LENGTH };
        assert_eq!(Request::parse(&read.to_bytes()), Ok(read));
        let long = Request { length: MAX_LENGTH + 1, ..read };
        assert_eq!(Request::parse(&long.to_bytes()), Err(NbdError::TooLong(MAX_LENGTH + 1)));
        let trim = Request { command: Command::Trim, length: u32::MAX, ..read };
        assert_eq!(Request::parse(&trim.to_bytes()), Ok(trim), "it carries nothing");
        let mut flags = read.to_bytes();
        flags[5] = 4;
        assert_eq!(Request::parse(&flags), Err(NbdError::Flags(4)));
        assert!(matches!(Request::parse(&[0; REQUEST]), Err(NbdError::Magic(0))));
        // Structured replies have another magic, and are not asked for.
        let mut structured = Reply { error: 0, cookie: 1 }.to_bytes();
        structured[..4].copy_from_slice(&0x668e_33efu32.to_be_bytes());
        assert!(matches!(Reply::parse(&structured), Err(NbdError::Magic(0x668e_33ef))));
    }
}
