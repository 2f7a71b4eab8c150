//! Enclaves: what each asks of the monitor's command line, of the firmware, and of processes beside it.
//!
//! A [`Tee`] turns the node's configuration and the digest of the owner's initdata into a [`Platform`], which the monitor writes into
//! its command line, and [`Helper`]s. Nothing here is trusted by anyone: a host that launches otherwise is found out by the
//! measurement.

mod firmware;
mod none;
mod settings;
mod snp;
mod tdx;
mod vtpm;

pub use settings::{QuoteService, SettingError, SnpSettings, TdxSettings, VtpmSettings};

use crate::{
    config::{self, Config},
    vmm::{self, Cmdline, Command, MissingError, QemuVersion, QemuVersionError, accelerator::Accelerator},
};
use std::{
    fmt, fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Why a guest cannot be launched in this enclave.
#[derive(Debug, Error)]
pub enum TeeError {
    /// A file or program that is not there.
    #[error(transparent)]
    Missing(#[from] MissingError),
    /// No firmware.
    #[error("firmware for tee = \"{tee}\" not found ({looked}): {remedy}, or set vmm.firmware in the configuration")]
    Firmware {
        /// The enclave.
        tee: &'static str,
        /// Where it was looked for.
        looked: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The processor or its configuration.
    #[error("tee = \"{tee}\": {reason}; `cloister check` says what this machine has")]
    Hardware {
        /// The enclave.
        tee: &'static str,
        /// What is missing.
        reason: String,
    },
    /// What was asked for cannot be had in this enclave.
    #[error("tee = \"{tee}\": {reason}")]
    Unsupported {
        /// The enclave.
        tee: &'static str,
        /// What, and what to change.
        reason: String,
    },
    /// QEMU is too old.
    #[error("tee = \"{tee}\" needs QEMU {wanted} or newer, this one is {found}: install a newer qemu-system-x86, or set vmm.qemu")]
    OldQemu {
        /// The enclave.
        tee: &'static str,
        /// The oldest that has it.
        wanted: QemuVersion,
        /// What is installed.
        found: QemuVersion,
    },
    /// QEMU does not say its version.
    #[error(transparent)]
    Version(#[from] QemuVersionError),
    /// A helper's file or socket.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What a guest is to be, as far as an enclave asks.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The sandbox's folder, for files that live as long as it does.
    pub dir: &'a Path,
    /// The digest of the initdata; empty without one.
    pub initdata: &'a [u8],
    /// Virtual CPUs.
    pub vcpus: u32,
}

/// Which of QEMU's machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// No firmware, no PCI: the fastest start.
    Microvm,
    /// A PC with firmware, which measures.
    Q35,
}

/// The part of a machine that decides what is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// The machine.
    pub machine: Machine,
    /// The processor's model, where it is measured; else the accelerator's best.
    pub cpu: Option<String>,
    /// The firmware's file.
    pub firmware: Option<PathBuf>,
    /// Whether the guest's kernel may use ACPI.
    pub acpi: bool,
}

/// What an enclave asks of the monitor.
#[derive(Debug)]
pub struct Platform {
    /// What is measured.
    pub shape: Shape,
    /// Options of the machine, each after a comma.
    pub machine_options: &'static str,
    /// Objects of the monitor, in its syntax for `-object`.
    pub objects: Vec<String>,
    /// The guest's memory is encrypted: devices reach what the guest shares, and nothing else.
    pub private_memory: bool,
    /// Control channel of a TPM's emulator.
    pub tpm: Option<OwnedFd>,
}

/// A process that runs beside the monitor, and ends with the sandbox.
#[derive(Debug)]
pub struct Helper {
    /// Its command.
    pub command: Command,
}

/// An enclave.
pub trait Tee: fmt::Debug + Send + Sync {
    /// As the configuration names it.
    fn name(&self) -> &'static str;

    /// The oldest QEMU that can launch it.
    fn oldest_qemu(&self) -> QemuVersion;

    /// What is measured of a guest with so many CPUs. Needs none of the enclave's hardware.
    fn shape(&self, vcpus: u32) -> Result<Shape, TeeError>;

    /// What it asks of the monitor, and the processes that it needs. May make files in the request's folder.
    fn prepare(&self, request: &Request<'_>) -> Result<(Platform, Vec<Helper>), TeeError>;
}

/// The enclave that the configuration asks for.
pub fn of(config: &Config) -> Box<dyn Tee> {
    let firmware = config.vmm.firmware.clone();
    match resolve(config.tee) {
        config::Tee::Snp => Box::new(snp::Snp { settings: config.snp.clone(), firmware, acpi: config.guest.acpi }),
        config::Tee::Tdx => Box::new(tdx::Tdx { settings: config.tdx.clone(), firmware }),
        config::Tee::Vtpm => Box::new(vtpm::Vtpm { settings: config.vtpm.clone(), firmware }),
        config::Tee::None | config::Tee::Auto => Box::new(none::NoTee),
    }
}

/// What `auto` means on this machine; others are themselves.
pub fn resolve(tee: config::Tee) -> config::Tee {
    if tee != config::Tee::Auto {
        return tee;
    }
    let on = |path: &str| fs::read_to_string(path).is_ok_and(|value| matches!(value.trim(), "Y" | "1"));
    available(on("/sys/module/kvm_amd/parameters/sev_snp"), on("/sys/module/kvm_intel/parameters/tdx"))
}

fn available(snp: bool, tdx: bool) -> config::Tee {
    match (snp, tdx) {
        (true, _) => config::Tee::Snp,
        (false, true) => config::Tee::Tdx,
        (false, false) => config::Tee::None,
    }
}

/// What a guest of the present configuration is launched from: all that its measurement depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// The machine.
    pub shape: Shape,
    /// The kernel that this machine starts.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The kernel command line. On a machine without firmware it ends with what is only known at launch.
    pub cmdline: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// What the configuration launches, without launching it and without the hardware for it.
pub fn inputs(config: &Config, vcpus: u32, memory_mib: u32) -> Result<Inputs, TeeError> {
    let shape = of(config).shape(vcpus)?;
    let kernel = kernel(config, shape.machine)?;
    let initramfs = vmm::find_guest_file("guest.initramfs", &config.guest.initramfs)?;
    let cmdline = Cmdline {
        // An enclave's command line does not depend on it.
        accelerator: Accelerator::Kvm,
        machine: shape.machine,
        acpi: shape.acpi,
        measurement: None,
        extra: &config.guest.cmdline_extra,
    };
    let cmdline = cmdline.to_text(|| 0);
    Ok(Inputs { shape, kernel, initramfs, cmdline, vcpus, memory_mib })
}

/// The kernel's file for this machine.
pub(crate) fn kernel(config: &Config, machine: Machine) -> Result<PathBuf, MissingError> {
    match machine {
        Machine::Microvm => vmm::find_guest_file("guest.kernel", &config.guest.kernel),
        Machine::Q35 => vmm::find_guest_file("guest.efi_kernel", &config.guest.efi_kernel),
    }
}

/// The digest in a field of `LEN` bytes: cut at its end, or padded with zeros (initdata 0.1.0).
fn fitted<const LEN: usize>(digest: &[u8]) -> [u8; LEN] {
    let mut field = [0; LEN];
    let common = digest.len().min(LEN);
    field[..common].copy_from_slice(&digest[..common]);
    field
}

/// A platform of each kind, for the golden tests of the command line.
#[cfg(test)]
pub(crate) fn example(name: &str) -> Platform {
    match name {
        "snp" => snp::tests::example(),
        "tdx" => tdx::tests::example(),
        "vtpm" => vtpm::tests::example(),
        _ => none::platform(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_the_best_that_the_machine_has() {
        assert_eq!(available(true, false), config::Tee::Snp);
        assert_eq!(available(false, true), config::Tee::Tdx);
        assert_eq!(available(false, false), config::Tee::None);
        assert_eq!(resolve(config::Tee::Vtpm), config::Tee::Vtpm);
    }

    #[test]
    fn a_digest_is_cut_or_padded_to_its_field() {
        assert_eq!(fitted::<32>(&[7; 48]), [7; 32]);
        assert_eq!(fitted::<48>(&[7; 32])[30..34], [7, 7, 0, 0]);
        assert_eq!(fitted::<32>(&[]), [0; 32]);
    }
}
