//! The device mapper's ioctls (include/uapi/linux/dm-ioctl.h), as far as encrypted disks need them.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};
use thiserror::Error;
use zeroize::Zeroizing;

const CONTROL: &str = "/dev/mapper/control";
/// `sizeof(struct dm_ioctl)`.
const HEADER: usize = 312;
/// `sizeof(struct dm_target_spec)`.
const TARGET: usize = 40;
/// `DM_VERSION_MAJOR`.
const VERSION: u32 = 4;
/// `DM_SECURE_DATA_FLAG`: the kernel wipes its copy of the buffer, which holds the key.
const SECURE_DATA: u32 = 1 << 15;

/// The commands (`DM_*_CMD`).
#[derive(Debug, Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Load = 9,
}

/// Why there is no mapped device.
#[derive(Debug, Error)]
pub enum DmError {
    /// The kernel's side is not there.
    #[error("{CONTROL}: {0}")]
    Control(#[source] io::Error),
    /// A command failed.
    #[error("device mapper, {name}, {command}: {source}")]
    Command {
        /// The device.
        name: String,
        /// The command.
        command: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A name or table that does not fit its field.
    #[error("device mapper: name {0:?} is too long")]
    Name(String),
}

/// A part of a device, behind the parts before it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Its length, in sectors of 512 bytes.
    pub sectors: u64,
    /// The kind of mapping: crypt, integrity, linear.
    pub kind: &'a str,
    /// Its parameters.
    pub table: &'a str,
}

impl DmError {
    /// Whether the device is in use.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Command { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
    }
}

/// The control device.
pub struct DeviceMapper(File);

impl DeviceMapper {
    /// Opens it; the module dm-mod must be loaded.
    pub fn open() -> Result<Self, DmError> {
        Ok(Self(OpenOptions::new().read(true).write(true).open(CONTROL).map_err(DmError::Control)?))
    }

    /// Makes and activates a device of these parts; gives its number, from which its node `/dev/dm-<minor>` follows.
    pub fn create(&self, name: &str, targets: &[Target<'_>]) -> Result<u64, DmError> {
        let mut header = buffer(name, 0)?;
        self.run(Command::Create, "create", name, &mut header)?;
        let device = u64::from_ne_bytes(header[40..48].try_into().unwrap_or_default());
        let loaded = self.activate(name, targets);
        if loaded.is_err() {
            let _ = self.remove(name);
        }
        loaded.map(|()| device)
    }

    fn activate(&self, name: &str, targets: &[Target<'_>]) -> Result<(), DmError> {
        let mut load = load_buffer(name, targets)?;
        self.run(Command::Load, "load table", name, &mut load)?;
        // Suspend without the suspend flag is resume: the table becomes live.
        self.run(Command::Suspend, "resume", name, &mut buffer(name, 0)?)
    }

    /// Removes a device that nobody uses.
    pub fn remove(&self, name: &str) -> Result<(), DmError> {
        self.run(Command::Remove, "remove", name, &mut buffer(name, 0)?)
    }

    fn run(&self, command: Command, what: &'static str, name: &str, buffer: &mut [u8]) -> Result<(), DmError> {
        // SAFETY: the kernel reads and writes at most data_size bytes of the buffer, and data_size is its length.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request(command), buffer.as_mut_ptr()) };
        if done < 0 {
            return Err(DmError::Command { name: name.to_owned(), command: what, source: io::Error::last_os_error() });
        }
        Ok(())
    }
}

/// `_IOWR(0xfd, command, struct dm_ioctl)`.
const fn request(command: Command) -> libc::c_ulong {
    (3 << 30) | ((HEADER as libc::c_ulong) << 16) | (0xfd << 8) | command as libc::c_ulong
}

/// `struct dm_ioctl` for `name`, with room for `payload` bytes behind it.
fn buffer(name: &str, payload: usize) -> Result<Zeroizing<Vec<u8>>, DmError> {
    // 128 bytes with the final NUL.
    if name.is_empty() || name.len() > 127 {
        return Err(DmError::Name(name.to_owned()));
    }
    let mut buffer = Zeroizing::new(vec![0u8; HEADER + payload]);
    let length = buffer.len() as u32;
    let mut put = |at: usize, value: u32| buffer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    put(0, VERSION);
    put(12, length);
    put(16, HEADER as u32);
    put(28, SECURE_DATA);
    buffer[48..48 + name.len()].copy_from_slice(name.as_bytes());
    Ok(buffer)
}

/// The header, and a `struct dm_target_spec` with its parameters for each part.
fn load_buffer(name: &str, targets: &[Target<'_>]) -> Result<Zeroizing<Vec<u8>>, DmError> {
    if let Some(target) = targets.iter().find(|target| target.kind.len() > 15) {
        return Err(DmError::Name(target.kind.to_owned()));
    }
    let size = |target: &Target<'_>| (TARGET + target.table.len() + 1).next_multiple_of(8);
    let mut buffer = buffer(name, targets.iter().map(size).sum())?;
    buffer[20..24].copy_from_slice(&(targets.len() as u32).to_ne_bytes());
    let (mut at, mut start) = (HEADER, 0u64);
    for target in targets {
        let (spec, table) = (&mut buffer[at..at + size(target)], target.table);
        spec[0..8].copy_from_slice(&start.to_ne_bytes());
        spec[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
        spec[20..24].copy_from_slice(&(size(target) as u32).to_ne_bytes());
        spec[24..24 + target.kind.len()].copy_from_slice(target.kind.as_bytes());
        spec[TARGET..TARGET + table.len()].copy_from_slice(table.as_bytes());
        (at, start) = (at + size(target), start + target.sectors);
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_the_headers_numbers() {
        // DM_DEV_CREATE and DM_TABLE_LOAD as a C compiler expands them.
        assert_eq!(request(Command::Create), 0xc138_fd03);
        assert_eq!(request(Command::Load), 0xc138_fd09);
    }

    #[test]
    fn a_table_follows_its_target() {
        let one = |kind| [Target { sectors: 2048, kind, table: "a b" }];
        let buffer = load_buffer("scratch", &one("crypt")).unwrap();
        assert_eq!(buffer.len(), HEADER + 48);
        assert_eq!(u32::from_ne_bytes(buffer[12..16].try_into().unwrap()) as usize, buffer.len());
        assert_eq!(&buffer[48..55], b"scratch");
        assert_eq!(&buffer[HEADER + 24..HEADER + 30], b"crypt\0");
        assert_eq!(&buffer[HEADER + TARGET..HEADER + TARGET + 4], b"a b\0");
        assert!(load_buffer(&"n".repeat(128), &one("crypt")).is_err());
        assert!(load_buffer("n", &one("a-target-too-long")).is_err());
        let two = load_buffer("n", &[one("linear")[0], one("linear")[0]]).unwrap();
        assert_eq!((two.len(), two[20], two[HEADER + 20]), (HEADER + 96, 2, 48));
        let second = &two[HEADER + 48..];
        assert_eq!(
            (&second[0..8], &second[TARGET..TARGET + 4]),
            (&2048u64.to_ne_bytes()[..], &b"a b\0"[..]),
            "it begins where the first ends"
        );
    }
}
