//! Devices of the guest, for containers that ask for more than the usual ones. What counts is what the guest's own /dev has: a host's
//! numbers could name the scratch disk's plain side.

use super::{
    devices::Further,
    disks::Disk,
    host_spec::{SpecError, printable},
};
use nix::{
    libc,
    sys::stat::{SFlag, lstat},
};
use oci_spec::{
    OciSpecError,
    runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the guest's devices are.
const DEV: &str = "/dev";
/// Deepest directory below it, and most devices, that a privileged container gets.
const MAX_DEPTH: usize = 3;
const MAX_NODES: usize = 4096;
/// Not handed on: a container has its own terminals and shared memory.
const OWN: &[&str] = &["pts", "shm", "mqueue", "console", "ptmx", "tty"];

/// A device of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it is, in the guest as in the container.
    pub path: PathBuf,
    /// A disk, and not a character device.
    pub block: bool,
    /// Numbers.
    pub major: u32,
    /// Numbers.
    pub minor: u32,
    mode: u32,
}

impl Node {
    /// The character device at `path`, an absolute path in its shortest spelling; no link is followed.
    pub fn find(path: &str) -> Result<Self, SpecError> {
        match Self::at(Path::new(path)) {
            Some(node) if !node.block => Ok(node),
            _ => Err(SpecError::Device(printable(path))),
        }
    }

    /// A disk, for a place in the container.
    pub fn disk(disk: Disk, destination: &str) -> Self {
        Self { path: destination.into(), block: true, major: disk.major, minor: disk.minor, mode: 0o660 }
    }

    /// All devices of the guest but terminals.
    pub fn all() -> Vec<Self> {
        let mut nodes = Vec::new();
        walk(Path::new(DEV), 0, &mut nodes);
        nodes
    }

    fn at(path: &Path) -> Option<Self> {
        let found = lstat(path).ok()?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        let block = kind == SFlag::S_IFBLK;
        if !block && kind != SFlag::S_IFCHR {
            return None;
        }
        let (major, minor) = (libc::major(found.st_rdev), libc::minor(found.st_rdev));
        Some(Self { path: path.to_owned(), block, major, minor, mode: found.st_mode & 0o777 })
    }

    /// For the cgroup's filter.
    pub fn further(&self) -> Further {
        Further { block: self.block, major: self.major, minor: self.minor }
    }

    /// As libcontainer makes it.
    pub fn to_oci(&self) -> Result<LinuxDevice, OciSpecError> {
        LinuxDeviceBuilder::default()
            .path(&self.path)
            .typ(if self.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
            .major(self.major)
            .minor(self.minor)
            .file_mode(self.mode)
            .build()
    }
}

fn walk(directory: &Path, depth: usize, nodes: &mut Vec<Node>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let own = depth == 0 && name.to_str().is_some_and(|name| OWN.contains(&name) || name.starts_with("tty"));
        if own || nodes.len() >= MAX_NODES {
            continue;
        }
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => walk(&path, depth + 1, nodes),
            _ => nodes.extend(Node::at(&path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_the_guests_numbers() {
        let null = Node::find("/dev/null").unwrap();
        assert_eq!((null.major, null.minor, null.block), (1, 3, false));
        let device = null.to_oci().unwrap();
        assert_eq!((device.major(), device.minor(), device.file_mode()), (1, 3, Some(0o666)));
        for path in ["/dev/no-such-device", "/dev", "/dev/fd", "/etc/passwd"] {
            assert!(matches!(Node::find(path), Err(SpecError::Device(_))), "{path}");
        }
    }

    #[test]
    fn a_privileged_container_has_its_own_terminals() {
        let all = Node::all();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/null")));
        assert!(!all.iter().any(|node| node.path.starts_with("/dev/pts") || node.path == Path::new("/dev/tty")));
    }
}
