//! Volumes: what the host copies into the guest, one vsock connection for each copy.
//!
//! The host connects to [`crate::guest_port::VOLUME`] and writes one line, `VOLUME <container> <number>`: a volume that
//! `PrepareVolumes` announced, counted from 0. The guest answers `OK` or `NO <reason>`. Then come entries, the volume's root first
//! (its path is empty), a directory before what is in it, and [`Entry::End`]; numbers are big-endian:
//!
//! | kind | then |
//! |---|---|
//! | 1 directory | mode u16, uid u32, gid u32, path |
//! | 2 file | mode u16, uid u32, gid u32, path, size u64, and that many bytes |
//! | 3 symbolic link | path, target |
//! | 0 end | nothing |
//!
//! A path or target is its length as u16 and its bytes. The guest answers `OK` once all of it is in its place, or `NO <reason>`, and then
//! nothing of it is there. No tar: a name like `.wh.x` means nothing special here, and there are no two sizes to disagree.
//!
//! What a hostile host gains: the content of the volumes that the owner's policy lets it fill, and nothing else of the container. It may
//! lie in sizes, send endless entries, paths with `..`, links that lead out, the same name twice, a second copy, or nothing: each ends the
//! copy, within the bounds below.

use crate::{
    bounds::{self, BoundError},
    line::{self, LineError},
};
use std::{io, time::Duration};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most volumes of a container.
pub const MAX_VOLUMES: usize = 128;
/// Most bytes of all files of one copy. A ConfigMap or Secret ends at 1 MiB.
pub const MAX_BYTES: u64 = 32 << 20;
/// Most entries of one copy.
pub const MAX_ENTRIES: usize = 4096;
/// Most components of a path.
pub const MAX_DEPTH: usize = 32;
/// Longest path or link target, in bytes (`PATH_MAX`).
pub const MAX_PATH: usize = 4096;
/// Longest name (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// How long one copy may take.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Most bytes that the host reads back of a volume; the kubelet takes 4096 of a termination log.
pub const MAX_READ_BACK: usize = 16 << 10;

/// Which volume a connection carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VolumeId {
    /// The container.
    pub container_id: String,
    /// Place in the list of `PrepareVolumes`.
    pub number: usize,
}

/// An entry of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory(Attributes),
    /// A file; its bytes follow.
    File(Attributes, u64),
    /// A symbolic link: its path and where it leads, which is a matter of the container's own root.
    Link(String, String),
    /// There is no more.
    End,
}

/// What directories and files have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Relative to the volume's root; empty is the root itself.
    pub path: String,
    /// Permissions, with the sticky and the setgid bit.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Why a copy cannot go on.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// The greeting.
    #[error(transparent)]
    Line(#[from] LineError),
    /// An id in it.
    #[error(transparent)]
    Bound(#[from] BoundError),
    /// Not of the protocol.
    #[error("unknown volume greeting {0:?}")]
    Unknown(String),
    /// The connection.
    #[error("volume's connection: {0}")]
    Io(#[from] io::Error),
    /// An entry that breaks a rule.
    #[error("volume: {0}")]
    Entry(String),
}

impl VolumeId {
    /// The greeting line.
    pub fn to_line(&self) -> String {
        format!("VOLUME {} {}", self.container_id, self.number)
    }

    /// Parses a greeting.
    pub fn parse(text: &str) -> Result<Self, VolumeError> {
        let unknown = || VolumeError::Unknown(text.to_owned());
        let words: Vec<&str> = text.split(' ').collect();
        let ["VOLUME", container, number] = words[..] else { return Err(unknown()) };
        bounds::check_id("container_id", container)?;
        let number = number.parse().ok().filter(|number| *number < MAX_VOLUMES).ok_or_else(unknown)?;
        Ok(Self { container_id: container.to_owned(), number })
    }

    /// The host's side: greets and waits for the guest's answer.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Result<(), LineError> {
        line::write_line(stream, &self.to_line()).await?;
        line::read_answer(stream).await.map(drop)
    }
}

impl Entry {
    /// Writes it. A file's bytes are the caller's to follow with.
    pub async fn write<W: AsyncWrite + Unpin>(&self, writer: &mut W) -> Result<(), VolumeError> {
        let mut bytes = Vec::with_capacity(64);
        match self {
            Self::End => bytes.push(0),
            Self::Directory(attributes) => {
                bytes.push(1);
                attributes.encode(&mut bytes)?;
            }
            Self::File(attributes, size) => {
                bytes.push(2);
                attributes.encode(&mut bytes)?;
                bytes.extend(size.to_be_bytes());
            }
            Self::Link(path, target) => {
                bytes.push(3);
                encode_text(path, &mut bytes)?;
                encode_text(target, &mut bytes)?;
            }
        }
        Ok(writer.write_all(&bytes).await?)
    }

    /// Reads one, each field within its bound; the guest's side.
    pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, VolumeError> {
        Ok(match reader.read_u8().await? {
            0 => Self::End,
            1 => Self::Directory(Attributes::read(reader).await?),
            2 => {
                let attributes = Attributes::read(reader).await?;
                Self::File(attributes, reader.read_u64().await?)
            }
            3 => {
                let path = read_text(reader).await?;
                check_path(&path)?;
                Self::Link(path, read_text(reader).await?)
            }
            other => return Err(VolumeError::Entry(format!("kind {other} of an entry is not known"))),
        })
    }
}

impl Attributes {
    fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), VolumeError> {
        bytes.extend(self.mode.to_be_bytes());
        bytes.extend(self.uid.to_be_bytes());
        bytes.extend(self.gid.to_be_bytes());
        encode_text(&self.path, bytes)
    }

    async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, VolumeError> {
        // Never setuid: what a host brings in has no owner's rights in the guest.
        let mode = reader.read_u16().await? & 0o3777;
        let (uid, gid) = (reader.read_u32().await?, reader.read_u32().await?);
        let path = read_text(reader).await?;
        check_path(&path)?;
        Ok(Self { path, mode, uid, gid })
    }
}

fn encode_text(text: &str, bytes: &mut Vec<u8>) -> Result<(), VolumeError> {
    let length = u16::try_from(text.len()).ok().filter(|length| usize::from(*length) <= MAX_PATH);
    let length = length.ok_or_else(|| VolumeError::Entry(format!("a path has {} bytes, at most {MAX_PATH} are taken", text.len())))?;
    bytes.extend(length.to_be_bytes());
    bytes.extend(text.as_bytes());
    Ok(())
}

async fn read_text<R: AsyncRead + Unpin>(reader: &mut R) -> Result<String, VolumeError> {
    let length = usize::from(reader.read_u16().await?);
    if length > MAX_PATH {
        return Err(VolumeError::Entry(format!("a path has {length} bytes, at most {MAX_PATH} are taken")));
    }
    let mut bytes = vec![0; length];
    reader.read_exact(&mut bytes).await?;
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| VolumeError::Entry("a path must be UTF-8 without a NUL".to_owned()))
}

/// Relative, without `.` and `..`, names and depth within their bounds; empty is the root.
pub fn check_path(path: &str) -> Result<(), VolumeError> {
    let shown: String = path.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
    let rule = |rule: String| Err(VolumeError::Entry(format!("path {shown:?}: {rule}")));
    if path.is_empty() {
        return Ok(());
    }
    if path.split('/').any(|name| name.is_empty() || name == "." || name == ".." || name.len() > MAX_NAME) {
        return rule(format!("must be relative, without '.' and '..', and its names at most {MAX_NAME} bytes"));
    }
    if path.split('/').count() > MAX_DEPTH {
        return rule(format!("deeper than {MAX_DEPTH}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(path: &str) -> Attributes {
        Attributes { path: path.to_owned(), mode: 0o2750, uid: 7, gid: 8 }
    }

    #[tokio::test]
    async fn entries_round_trip() {
        let entries = [
            Entry::Directory(attributes("")),
            Entry::File(attributes("a/b"), 5),
            Entry::Link("..data".into(), "..2026_11_25/x".into()),
            Entry::End,
        ];
        let mut wire = Vec::new();
        for entry in &entries {
            entry.write(&mut wire).await.unwrap();
        }
        let mut wire = &wire[..];
        for entry in &entries {
            assert_eq!(&Entry::read(&mut wire).await.unwrap(), entry);
        }
        assert!(wire.is_empty());
    }

    #[tokio::test]
    async fn hostile_entries_are_refused() {
        let deep = "d/".repeat(MAX_DEPTH) + "x";
        for path in ["..", "a/../b", "/etc/passwd", "a//b", "a/", ".", "a/./b", &"n".repeat(256), &deep] {
            let mut wire = Vec::new();
            Entry::File(attributes(path), 0).write(&mut wire).await.unwrap();
            assert!(matches!(Entry::read(&mut &wire[..]).await, Err(VolumeError::Entry(_))), "{path}");
        }
        let long = "x".repeat(MAX_PATH + 1);
        assert!(Entry::Link("a".into(), long).write(&mut Vec::new()).await.is_err());
        for wire in [&b"\x04"[..], b"\x03\xff\xff", b"\x03\x00\x01\xff\x00\x00", b"\x03\x00\x03a\x00b", b"\x01\x0f", b""] {
            assert!(Entry::read(&mut &wire[..]).await.is_err(), "{wire:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_setuid() {
        let mut wire = Vec::new();
        Entry::File(Attributes { mode: 0o6755, ..attributes("x") }, 0).write(&mut wire).await.unwrap();
        let Entry::File(read, _) = Entry::read(&mut &wire[..]).await.unwrap() else { panic!("no file") };
        assert_eq!(read.mode, 0o2755);
    }

    #[test]
    fn greetings_round_trip_and_are_bounded() {
        let id = VolumeId { container_id: "web-1".into(), number: 3 };
        assert_eq!(VolumeId::parse(&id.to_line()).unwrap(), id);
        for text in ["", "VOLUME", "VOLUME c", "VOLUME ../c 1", "VOLUME c -1", "VOLUME c 128", "VOLUME c 1 2", "STDIO stdin c -"] {
            assert!(VolumeId::parse(text).is_err(), "{text:?}");
        }
    }
}
