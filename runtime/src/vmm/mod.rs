//! Virtual machine monitors. A monitor is a program whose command line [`Launch`] describes; QEMU is the first.

pub mod accelerator;
mod cmdline;
pub mod launcher;
mod output;
pub mod pidfd;
mod process;
mod qemu;
pub mod shared;
pub mod tsc;
mod version;

pub use cmdline::Cmdline;
pub use launcher::Launcher;
pub use process::{Process, SpawnError, VmExit};
pub use qemu::Qemu;
pub use version::{QemuVersion, QemuVersionError};

use crate::tee::Platform;
use accelerator::Accelerator;
use shared::Shared;
use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// What a VM is to be, whatever runs it.
#[derive(Debug)]
pub struct Launch {
    /// Names the process, for whoever looks at a list of them.
    pub sandbox_id: String,
    /// What the enclave asks for.
    pub platform: Platform,
    /// An uncompressed kernel with a PVH entry for a machine without firmware, else an EFI program.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Kernel command line.
    pub cmdline: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The scratch disk's file, open to read and write, if there is one.
    pub scratch: Option<OwnedFd>,
    /// Further disks.
    pub disks: Vec<Disk>,
    /// Directories of the host's.
    pub shared: Vec<Shared>,
    /// Who serves the vsock device.
    pub vsock: VsockDevice,
    /// Network devices.
    pub taps: Vec<Tap>,
}

/// A disk of the host's that a guest is to have: a block device, or a raw file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// On the host.
    pub path: PathBuf,
    /// Whether it is a block device.
    pub device: bool,
    /// Not to be written to.
    pub readonly: bool,
    /// By which the guest finds it; letters and digits, at most 20.
    pub serial: String,
}

/// Who serves the guest's vsock device.
#[derive(Debug)]
pub enum VsockDevice {
    /// The host's kernel.
    Kernel {
        /// The guest's context id.
        cid: u32,
        /// `/dev/vhost-vsock`, which holds that id.
        device: OwnedFd,
    },
    /// We do, at the other end of this connected socket (vhost-user).
    User(OwnedFd),
}

/// A network device: an open tap and the address that the guest finds it by.
#[derive(Debug)]
pub struct Tap {
    /// The tap.
    pub fd: OwnedFd,
    /// Its MAC address in the guest.
    pub mac: [u8; 6],
}

/// A program with its arguments and the descriptors that it inherits, each under the number that it has here.
#[derive(Debug)]
pub struct Command {
    /// Where the program is.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The arguments name them by number.
    pub inherited: Vec<OwnedFd>,
}

/// A file that a VM needs is not there.
#[derive(Debug, Error)]
pub enum MissingError {
    /// No monitor.
    #[error("QEMU {program} not found: install the package qemu-system-x86, or set vmm.qemu in the configuration")]
    Vmm {
        /// What was looked for.
        program: PathBuf,
    },
    /// No helper of an enclave.
    #[error("{program} not found: install the package {package}, or set {key} in the configuration")]
    Helper {
        /// The configuration's key.
        key: &'static str,
        /// What was looked for.
        program: PathBuf,
        /// Of Debian.
        package: &'static str,
    },
    /// No kernel or initramfs.
    #[error("{key} {path}: not found: build the guest with `cloister guest build`, or set {key} in the configuration")]
    Guest {
        /// The configuration's key.
        key: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
}

/// A virtual machine monitor: how a [`Launch`] becomes a [`Command`].
pub trait Vmm: Send + Sync {
    /// The command that starts this VM. Makes nothing.
    fn command(&self, launch: Launch) -> Command;
}

/// Finds a program by name in `PATH`, or by path; gives an absolute path, because the monitor runs in another folder.
pub fn find_program(program: &Path) -> Result<PathBuf, MissingError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).map(|dir| dir.join(program)).collect();
    if program.components().count() > 1 {
        places = vec![program.to_owned()];
    }
    let found = places.into_iter().find(|file| file.is_file()).and_then(|file| std::path::absolute(file).ok());
    found.ok_or_else(|| MissingError::Vmm { program: program.to_owned() })
}

/// A file that the configuration names under `key`, as an absolute path.
pub fn find_guest_file(key: &'static str, path: &Path) -> Result<PathBuf, MissingError> {
    let found = Some(path).filter(|path| path.is_file()).and_then(|path| std::path::absolute(path).ok());
    found.ok_or_else(|| MissingError::Guest { key, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let error = find_program(Path::new("no-such-qemu")).unwrap_err().to_string();
        assert!(error.contains("no-such-qemu") && error.contains("vmm.qemu"), "{error}");
        let error = find_guest_file("guest.kernel", Path::new("/nonexistent/vmlinux")).unwrap_err().to_string();
        assert!(error.contains("guest.kernel /nonexistent/vmlinux") && error.contains("cloister guest build"), "{error}");
    }

    #[test]
    fn what_is_found_is_absolute() {
        assert!(find_program(Path::new("sh")).unwrap().is_absolute());
        assert!(find_guest_file("guest.kernel", Path::new("Cargo.toml")).unwrap().ends_with("runtime/Cargo.toml"));
    }
}
