//! `guest.json`: what a guest consists of, and the measurement that a broker's rule names.

use crate::{
    EFI_KERNEL_FILE, INITRAMFS_FILE, KERNEL_FILE,
    initramfs::{self, Compression},
    modules::{Module, Stage},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha384};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// A guest, described. Written beside its kernel and initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestManifest {
    /// Of the kernel, as in `uname -r`.
    pub kernel_version: String,
    /// The uncompressed kernel.
    pub kernel: File,
    /// The same kernel as a bzImage, for machines with firmware.
    pub efi_kernel: File,
    /// The initramfs as it is handed to the VMM.
    pub initramfs: File,
    /// Firmware of enclaves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firmware: Vec<File>,
    /// How the initramfs is stored.
    pub compression: Compression,
    /// The agent inside.
    pub agent: File,
    /// The modules inside, in load order.
    pub modules: Vec<ModuleEntry>,
    /// Hexadecimal SHA-384 over the kernel's SHA-384 and the initramfs's: what the guest reports as its launch measurement where
    /// there is no TEE (`tee = "none"`). A development stand-in: a host that lies can report any value.
    pub measurement: String,
}

/// A file of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// In the directory of the manifest, or `init` in the initramfs.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Hexadecimal.
    pub sha384: String,
}

/// A module of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleEntry {
    /// When it is loaded.
    pub stage: Stage,
    /// Below `/lib/modules` in the guest.
    pub file: String,
    /// In bytes.
    pub size: u64,
}

/// Why a manifest or the guest that it describes cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not a manifest.
    #[error("{path}: not a guest manifest: {source}")]
    Json {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// A file is not the one that was built.
    #[error("{0}: differs from guest.json; build the guest again with `cloister guest build`")]
    Differs(PathBuf),
}

/// The contents of a guest's files.
pub(crate) struct Images<'a> {
    pub(crate) kernel: &'a [u8],
    pub(crate) efi_kernel: &'a [u8],
    pub(crate) initramfs: &'a [u8],
    pub(crate) firmware: &'a [(String, Vec<u8>)],
}

impl GuestManifest {
    pub(crate) fn new(kernel_version: &str, images: &Images<'_>, compression: Compression, modules: &[Module], agent: &[u8]) -> Self {
        let entry = |(number, module): (usize, &Module)| ModuleEntry {
            stage: module.stage,
            file: initramfs::file_name(number, module),
            size: module.data.len() as u64,
        };
        Self {
            kernel_version: kernel_version.to_owned(),
            kernel: File::of(KERNEL_FILE, images.kernel),
            efi_kernel: File::of(EFI_KERNEL_FILE, images.efi_kernel),
            initramfs: File::of(INITRAMFS_FILE, images.initramfs),
            firmware: images.firmware.iter().map(|(name, bytes)| File::of(name, bytes)).collect(),
            compression,
            agent: File::of("init", agent),
            modules: modules.iter().enumerate().map(entry).collect(),
            measurement: measure(images.kernel, images.initramfs),
        }
    }

    /// Reads a manifest.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let failed = |source| ManifestError::File { path: path.to_owned(), source };
        if fs::metadata(path).map_err(failed)?.len() > MAX_MANIFEST {
            return Err(failed(io::Error::other("larger than 1 MiB")));
        }
        let bytes = fs::read(path).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|source| ManifestError::Json { path: path.to_owned(), source })
    }

    /// Checks that the kernels, the initramfs and the firmware in `directory` are the ones described.
    pub fn verify(&self, directory: &Path) -> Result<(), ManifestError> {
        let fixed = [(KERNEL_FILE, &self.kernel), (EFI_KERNEL_FILE, &self.efi_kernel), (INITRAMFS_FILE, &self.initramfs)];
        // A manifest that was tampered with names no file elsewhere.
        let firmware =
            self.firmware.iter().map(|file| (Path::new(&file.name).file_name().and_then(|n| n.to_str()).unwrap_or_default(), file));
        for (name, file) in fixed.into_iter().chain(firmware) {
            let path = directory.join(name);
            let bytes = fs::read(&path).map_err(|source| ManifestError::File { path: path.clone(), source })?;
            if File::of(name, &bytes) != *file {
                return Err(ManifestError::Differs(path));
            }
        }
        Ok(())
    }

    /// As written to `guest.json`.
    pub fn to_json(&self) -> Vec<u8> {
        // Serializing plain structures into memory has no way to fail.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

impl File {
    fn of(name: &str, bytes: &[u8]) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, sha384: hex::encode(Sha384::digest(bytes)) }
    }
}

/// The development stand-in for a launch measurement, hexadecimal: SHA-384 over the two files' SHA-384.
pub fn measure(kernel: &[u8], initramfs: &[u8]) -> String {
    let mut digest = Sha384::new();
    digest.update(Sha384::digest(kernel));
    digest.update(Sha384::digest(initramfs));
    hex::encode(digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_is_that_of_sha384sum() {
        // { printf a | sha384sum; printf b | sha384sum; } | cut -c-96 | xxd -r -p | sha384sum
        let expected = "03f4842cf39605e9f5eb3fdddffa6c3a4d70dcb60b39a9270747c3745a4a9198a7c96ab0fd4b7e628623f68a0a73452b";
        assert_eq!(measure(b"a", b"b"), expected);
        assert_ne!(measure(b"b", b"a"), expected);
    }

    #[test]
    fn a_malformed_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.json");
        for text in ["", "{}", "[]", r#"{"kernel_version":"1","extra":1}"#] {
            fs::write(&path, text).unwrap();
            assert!(GuestManifest::load(&path).unwrap_err().to_string().contains("guest.json"), "{text}");
        }
        fs::write(&path, vec![b' '; MAX_MANIFEST as usize + 1]).unwrap();
        assert!(matches!(GuestManifest::load(&path), Err(ManifestError::File { .. })));
    }
}
