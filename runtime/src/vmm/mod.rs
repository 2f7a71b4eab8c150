//! Virtual machine monitors. A monitor is a program whose command line [`Launch`] describes; QEMU is the first.

pub mod accelerator;
mod process;
mod qemu;
pub mod tsc;

pub use process::{Process, SpawnError, VmExit};
pub use qemu::Qemu;

use accelerator::Accelerator;
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
    /// Uncompressed kernel with a PVH entry.
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
    /// The scratch disk's file, if there is one.
    pub scratch: Option<PathBuf>,
    /// Who serves the vsock device.
    pub vsock: VsockDevice,
    /// Network devices.
    pub taps: Vec<Tap>,
}

/// Who serves the guest's vsock device.
#[derive(Debug)]
pub enum VsockDevice {
    /// The host's kernel (`/dev/vhost-vsock`), under this context id.
    Kernel(u32),
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

/// A program with its arguments and the descriptors that it inherits, each under its own number.
#[derive(Debug)]
pub struct Command {
    /// Where the program is.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Numbers in the child, from 3 on, in order.
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

/// The kernel command line of a guest; `measurement` is the development stand-in of the launch measurement, in hexadecimal.
///
/// Each part is there for a reason:
/// - `quiet`: a line on an emulated serial port costs more than what it reports; errors still come.
/// - `panic=-1 reboot=t`: a kernel panic ends the VM at once instead of leaving it hanging.
/// - `cryptomgr.notests`: the self-tests of ciphers cost seconds under emulation.
/// - `i8042…`, `8250.nr_uarts=1`: probes of hardware that is not there.
/// - `audit=0 ipv6.autoconf=0`: no records that nobody reads; addresses come from the pod, not from router advertisements.
pub fn kernel_cmdline(measurement: Option<&str>, extra: &str) -> String {
    let mut cmdline = String::from(
        "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests i8042.noaux i8042.nokbd i8042.nopnp 8250.nr_uarts=1 audit=0 \
         ipv6.autoconf=0 random.trust_cpu=on",
    );
    if let Some(measurement) = measurement {
        cmdline.push_str(" cloister.measurement=");
        cmdline.push_str(measurement);
    }
    if !extra.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(extra);
    }
    cmdline
}

/// Finds a program by name in `PATH`, or by path.
pub fn find_program(program: &Path) -> Result<PathBuf, MissingError> {
    let missing = || MissingError::Vmm { program: program.to_owned() };
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned()).ok_or_else(missing);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file()).ok_or_else(missing)
}

/// A file that the configuration names under `key`.
pub fn find_guest_file(key: &'static str, path: &Path) -> Result<PathBuf, MissingError> {
    path.is_file().then(|| path.to_owned()).ok_or_else(|| MissingError::Guest { key, path: path.to_owned() })
}
