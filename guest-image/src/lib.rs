//! Builds the guest: an uncompressed kernel, and an initramfs that holds the agent as `/init`, the kernel modules it needs,
//! and nothing else.
//!
//! Both come out of a distribution's kernel package that was unpacked, not installed. The same inputs give the same bytes on any
//! machine: the archive's times, owners, inode numbers and order are our own (see [`cpio`]), so that anyone can rebuild the
//! measurement that a broker's rule names.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cpio;
mod elf;
pub mod initramfs;
pub mod kernel;
pub mod manifest;
pub mod modinfo;
pub mod modules;
pub mod vmlinux;

#[cfg(test)]
mod fixture;

use std::{
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error;

pub use manifest::GuestManifest;

/// Largest initramfs, in bytes. The guest's memory holds it twice while it boots.
pub const MAX_INITRAMFS: usize = 16 << 20;
/// Largest agent binary, in bytes.
pub const MAX_AGENT: u64 = 64 << 20;

/// File name of the kernel in the output directory.
pub const KERNEL_FILE: &str = "vmlinux";
/// File name of the kernel as the package has it, a bzImage: firmware starts it (it is an EFI program), and measures it.
pub const EFI_KERNEL_FILE: &str = "vmlinuz";
/// File name of the initramfs, compressed or not: the kernel tells by its first bytes.
pub const INITRAMFS_FILE: &str = "initramfs.cpio";
/// File name of the manifest.
pub const MANIFEST_FILE: &str = "guest.json";

/// What a guest is built from.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    /// Root of an unpacked kernel package: holds `boot/vmlinuz-<version>` and `[usr/]lib/modules/<version>`.
    pub kernel_package: PathBuf,
    /// The agent, a static ELF executable.
    pub agent: PathBuf,
    /// Firmware of enclaves, out of its package: what it is decides on the measurement, so a guest keeps its own. Each under its own name.
    pub firmware: Vec<PathBuf>,
    /// Directory that receives [`KERNEL_FILE`], [`EFI_KERNEL_FILE`], [`INITRAMFS_FILE`] and [`MANIFEST_FILE`]; made if missing.
    pub out: PathBuf,
}

/// Why a guest could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A file of the inputs or outputs.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Firmware that cannot be part of a guest.
    #[error("{0}: no firmware: wanted a file NAME.fd of 1 to 16 MiB")]
    Firmware(PathBuf),
    /// The agent is not something a kernel can start as `/init` in an initramfs without libraries.
    #[error("{0}: not a static x86-64 ELF executable of at most 64 MiB; build the agent for x86_64-unknown-linux-gnu with +crt-static")]
    Agent(PathBuf),
    /// The kernel package.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// The kernel image.
    #[error("{path}: {source}")]
    Vmlinux {
        /// The bzImage.
        path: PathBuf,
        /// The cause.
        source: vmlinux::VmlinuxError,
    },
    /// A module.
    #[error(transparent)]
    Modules(#[from] modules::ModulesError),
    /// The archive.
    #[error(transparent)]
    Initramfs(#[from] initramfs::InitramfsError),
}

/// Builds the guest and writes its four files, each under a temporary name first: a build that ends halfway leaves no file
/// that looks finished.
pub fn build(spec: &BuildSpec) -> Result<GuestManifest, BuildError> {
    let package = kernel::KernelPackage::find(&spec.kernel_package)?;
    let agent = read_agent(&spec.agent)?;
    let bzimage = read(&package.bzimage)?;
    let vmlinux = vmlinux::extract(&bzimage).map_err(|source| BuildError::Vmlinux { path: package.bzimage.clone(), source })?;
    let modules = modules::resolve(&package.modules, modules::WANTED)?;
    let archive = initramfs::archive(&agent, &modules)?;
    let (initramfs, compression) = initramfs::compress(archive)?;
    let firmware = spec.firmware.iter().map(|path| read_firmware(path)).collect::<Result<Vec<_>, _>>()?;
    let manifest = GuestManifest::new(
        &package.version,
        &manifest::Images { kernel: &vmlinux, efi_kernel: &bzimage, initramfs: &initramfs, firmware: &firmware },
        compression,
        &modules,
        &agent,
    );

    fs::create_dir_all(&spec.out).map_err(|source| BuildError::File { path: spec.out.clone(), source })?;
    write(&spec.out.join(KERNEL_FILE), &vmlinux)?;
    write(&spec.out.join(EFI_KERNEL_FILE), &bzimage)?;
    write(&spec.out.join(INITRAMFS_FILE), &initramfs)?;
    for (name, bytes) in &firmware {
        write(&spec.out.join(name), bytes)?;
    }
    write(&spec.out.join(MANIFEST_FILE), &manifest.to_json())?;
    log::info!(kernel = package.version.as_str(), measurement = manifest.measurement.as_str(); "guest built");
    Ok(manifest)
}

/// Name and contents of a firmware.
fn read_firmware(path: &Path) -> Result<(String, Vec<u8>), BuildError> {
    let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".fd"));
    let name = name.ok_or_else(|| BuildError::Firmware(path.to_owned()))?;
    let bytes = read(path)?;
    let size = bytes.len();
    if (1 << 20..=16 << 20).contains(&size) { Ok((name.to_owned(), bytes)) } else { Err(BuildError::Firmware(path.to_owned())) }
}

/// Reads the agent and checks that it needs no loader: a dynamic one would end in a kernel panic at boot that names no cause.
fn read_agent(path: &Path) -> Result<Vec<u8>, BuildError> {
    let size = fs::metadata(path).map_err(|source| BuildError::File { path: path.to_owned(), source })?.len();
    if size > MAX_AGENT {
        return Err(BuildError::Agent(path.to_owned()));
    }
    let bytes = read(path)?;
    if vmlinux::is_static_executable(&bytes) { Ok(bytes) } else { Err(BuildError::Agent(path.to_owned())) }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| BuildError::File { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|source| BuildError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fixture::Package;
    use std::os::unix::fs::PermissionsExt;

    const FILES: [&str; 4] = [KERNEL_FILE, EFI_KERNEL_FILE, INITRAMFS_FILE, MANIFEST_FILE];

    fn spec(package: &Package, out: &str) -> BuildSpec {
        BuildSpec { kernel_package: package.root().to_owned(), agent: package.agent(), firmware: Vec::new(), out: package.root().join(out) }
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        let first = Package::new();
        let a = spec(&first, "a");
        build(&a).unwrap();

        // Another directory, written in another order, with other times and modes.
        let second = Package::reversed();
        second.touch_everything(1_000_000_000, 0o755);
        let b = spec(&second, "b");
        build(&b).unwrap();

        for file in FILES {
            assert_eq!(fs::read(a.out.join(file)).unwrap(), fs::read(b.out.join(file)).unwrap(), "{file}");
        }
    }

    #[test]
    fn another_agent_is_another_measurement() {
        let package = Package::new();
        let before = build(&spec(&package, "a")).unwrap();
        let mut agent = fs::read(package.agent()).unwrap();
        agent.push(0);
        fs::write(package.agent(), agent).unwrap();
        let after = build(&spec(&package, "b")).unwrap();
        assert_eq!(before.kernel.sha384, after.kernel.sha384);
        assert_ne!(before.measurement, after.measurement);
    }

    #[test]
    fn the_files_are_what_the_manifest_says() {
        let package = Package::new();
        let spec = spec(&package, "out");
        let built = build(&spec).unwrap();
        let loaded = GuestManifest::load(&spec.out.join(MANIFEST_FILE)).unwrap();
        assert_eq!(built, loaded);
        loaded.verify(&spec.out).unwrap();
        fs::write(spec.out.join(INITRAMFS_FILE), b"another").unwrap();
        let error = loaded.verify(&spec.out).unwrap_err().to_string();
        assert!(error.contains("initramfs.cpio") && error.contains("cloister guest build"), "{error}");
    }

    #[test]
    fn a_dynamic_or_foreign_agent_is_refused() {
        let package = Package::new();
        for agent in [&b"#!/bin/sh\n"[..], b"", b"\x7fELF"] {
            fs::write(package.agent(), agent).unwrap();
            fs::set_permissions(package.agent(), fs::Permissions::from_mode(0o755)).unwrap();
            assert!(matches!(build(&spec(&package, "out")), Err(BuildError::Agent(_))));
        }
        fs::write(package.agent(), fixture::executable(true)).unwrap();
        assert!(matches!(build(&spec(&package, "out")), Err(BuildError::Agent(_))));
        assert!(!package.root().join("out").exists(), "a refused build leaves nothing");
    }

    #[test]
    fn firmware_becomes_part_of_the_guest() {
        let package = Package::new();
        let mut spec = spec(&package, "out");
        let firmware = package.root().join("OVMF.amdsev.fd");
        spec.firmware = vec![firmware.clone()];
        fs::write(&firmware, b"too short").unwrap();
        assert!(matches!(build(&spec), Err(BuildError::Firmware(_))));
        fs::write(&firmware, vec![7; 1 << 20]).unwrap();
        let manifest = build(&spec).unwrap();
        assert_eq!(manifest.firmware[0].name, "OVMF.amdsev.fd");
        manifest.verify(&spec.out).unwrap();
        fs::write(spec.out.join("OVMF.amdsev.fd"), vec![8; 1 << 20]).unwrap();
        assert!(manifest.verify(&spec.out).unwrap_err().to_string().contains("OVMF.amdsev.fd"));
    }

    #[test]
    fn a_missing_input_is_named() {
        let package = Package::new();
        let mut spec = spec(&package, "out");
        spec.agent = "/nonexistent/agent".into();
        assert!(build(&spec).unwrap_err().to_string().contains("/nonexistent/agent"));
        spec.kernel_package = "/nonexistent/package".into();
        assert!(build(&spec).unwrap_err().to_string().contains("/nonexistent/package"));
    }
}
