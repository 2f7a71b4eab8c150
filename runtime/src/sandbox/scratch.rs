//! The file behind a guest's scratch disk. It has no name: whatever happens to the shim, to QEMU or to the host, it goes with the last process
//! that has it open, and nobody has to remember it.

use super::SandboxError;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
};

/// A sparse file below `dir`: it takes on disk what the guest writes. Ciphertext only; the key never leaves the guest.
pub(super) fn make(dir: &Path, size_mib: u64) -> Result<Option<OwnedFd>, SandboxError> {
    if size_mib == 0 {
        return Ok(None);
    }
    let made = || {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = unnamed(dir)?;
        file.set_len(size_mib << 20)?;
        Ok(file)
    };
    match made() {
        Ok(file) => Ok(Some(file.into())),
        Err(source) => Err(SandboxError::Scratch { dir: dir.to_owned(), source }),
    }
}

fn unnamed(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(dir) {
        // A file system without O_TMPFILE (open(2)): named for a moment.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
            let path = dir.join(format!("{}.new", std::process::id()));
            let file = options.create(true).truncate(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn it_has_a_size_and_no_name() {
        let dir = std::env::temp_dir().join(format!("cloister-scratch-{}", std::process::id()));
        let file = File::from(make(&dir, 64).unwrap().unwrap());
        let found = file.metadata().unwrap();
        assert_eq!((found.len(), found.blocks(), found.nlink()), (64 << 20, 0, 0));
        file.write_all_at(b"x", 0).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        assert!(make(&dir, 0).unwrap().is_none());
        fs::remove_dir(&dir).unwrap();
        let error = make(Path::new("/proc/none"), 64).unwrap_err().to_string();
        assert!(error.contains("/proc/none"), "{error}");
    }
}
