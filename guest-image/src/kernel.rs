//! Where things are in an unpacked kernel package of Debian or Ubuntu.

use std::{
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// The parts of one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelPackage {
    /// As in `uname -r`.
    pub version: String,
    /// `boot/vmlinuz-<version>`.
    pub bzimage: PathBuf,
    /// `[usr/]lib/modules/<version>`.
    pub modules: PathBuf,
}

/// Why a directory is no kernel package.
#[derive(Debug, Error)]
pub enum KernelError {
    /// A directory cannot be read.
    #[error("{path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No kernel, or more than one to choose from.
    #[error("{root}: holds {found} kernels (boot/vmlinuz-*), wanted exactly one; unpack a single linux-image package with dpkg-deb -x")]
    NotOne {
        /// The package's root.
        root: PathBuf,
        /// How many.
        found: usize,
    },
    /// A kernel without its modules.
    #[error("{root}: no lib/modules/{version} beside the kernel; unpack the whole linux-image package")]
    NoModules {
        /// The package's root.
        root: PathBuf,
        /// The kernel's version.
        version: String,
    },
}

impl KernelPackage {
    /// Finds the one kernel below `root`.
    pub fn find(root: &Path) -> Result<Self, KernelError> {
        let boot = root.join("boot");
        let unreadable = |source| KernelError::Directory { path: boot.clone(), source };
        let mut versions = Vec::new();
        for entry in fs::read_dir(&boot).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            versions.extend(name.to_str().and_then(|n| n.strip_prefix("vmlinuz-")).map(str::to_owned));
        }
        let [version] = &versions[..] else {
            return Err(KernelError::NotOne { root: root.to_owned(), found: versions.len() });
        };
        // Debian 13 moved them below /usr.
        let modules = ["usr/lib/modules", "lib/modules"].map(|dir| root.join(dir).join(version)).into_iter().find(|dir| dir.is_dir());
        let modules = modules.ok_or_else(|| KernelError::NoModules { root: root.to_owned(), version: version.clone() })?;
        Ok(Self { version: version.clone(), bzimage: boot.join(format!("vmlinuz-{version}")), modules })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_found() {
        for layout in ["usr/lib/modules", "lib/modules"] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("boot")).unwrap();
            assert!(matches!(KernelPackage::find(root.path()), Err(KernelError::NotOne { found: 0, .. })));
            fs::write(root.path().join("boot/vmlinuz-6.12.1-cloud"), b"").unwrap();
            assert!(matches!(KernelPackage::find(root.path()), Err(KernelError::NoModules { .. })));
            let modules = root.path().join(layout).join("6.12.1-cloud");
            fs::create_dir_all(&modules).unwrap();
            assert_eq!(KernelPackage::find(root.path()).unwrap().modules, modules);
            fs::write(root.path().join("boot/vmlinuz-6.13"), b"").unwrap();
            assert!(matches!(KernelPackage::find(root.path()), Err(KernelError::NotOne { found: 2, .. })));
        }
    }
}
