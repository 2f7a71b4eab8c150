//! Extended attributes. Those that overlayfs reads as its own are never taken from an archive: they could redirect a directory to
//! another place of the stack.

use super::{UnpackError, paths::EntryPath};
use nix::errno::Errno;
use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd},
};

/// Marks a directory as hiding what lower layers have in it (Linux, `fs/overlayfs/overlayfs.h`).
const OPAQUE: &str = "trusted.overlay.opaque";
/// overlayfs's own names, with and without the mount option `userxattr`.
const FOREIGN: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Longest value, in bytes (`XATTR_SIZE_MAX`, linux/limits.h).
pub(super) const MAX_VALUE: usize = 64 << 10;

/// Sets an archive's attributes, leaving out overlayfs's own and those that the file system does not know, as containerd does.
pub(super) fn apply(fd: &impl AsFd, attributes: &[(Vec<u8>, Vec<u8>)], path: &EntryPath) -> Result<(), UnpackError> {
    for (name, value) in attributes {
        if FOREIGN.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        if value.len() > MAX_VALUE {
            return Err(path.refused(format!("an extended attribute of {} bytes; at most {MAX_VALUE}", value.len())));
        }
        let name = CString::new(name.as_slice()).map_err(|_| path.refused("an attribute's name holds a NUL byte"))?;
        match set(fd, &name, value) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => (),
            Err(e) => return Err(path.system("set an extended attribute", e)),
        }
    }
    Ok(())
}

/// Marks a directory as opaque. Without the mark, files that the layer took away would be back: that it cannot be set is an error.
pub(super) fn set_opaque(fd: &impl AsFd, path: &EntryPath) -> Result<(), UnpackError> {
    let name = CString::new(OPAQUE).map_err(|_| path.refused(OPAQUE))?;
    set(fd, &name, b"y").map_err(|e| path.system("mark the directory as opaque", e))
}

/// All attributes of a directory below, for [`super::adopt_parents`].
pub(super) fn copy(from: &impl AsFd, to: &impl AsFd, path: &EntryPath) -> Result<(), UnpackError> {
    let mut names = vec![0; MAX_VALUE];
    let length = list(from, &mut names).map_err(|e| path.system("list extended attributes", e))?;
    let mut attributes = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).map_err(|_| path.refused("an attribute's name holds a NUL byte"))?;
        let mut value = vec![0; MAX_VALUE];
        let length = get(from, &c_name, &mut value).map_err(|e| path.system("read an extended attribute", e))?;
        value.truncate(length);
        attributes.push((name.to_vec(), value));
    }
    apply(to, &attributes, path)
}

fn set(fd: &impl AsFd, name: &CString, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the name ends with a NUL byte, and the value's pointer and length describe one slice; both outlive the call.
    let done = unsafe { libc::fsetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Errno::result(done).map(drop)
}

fn get(fd: &impl AsFd, name: &CString, value: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the name ends with a NUL byte, and the kernel writes at most the slice's length into it.
    let length = unsafe { libc::fgetxattr(fd.as_fd().as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    Errno::result(length).map(|n| n.unsigned_abs())
}

fn list(fd: &impl AsFd, names: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most the slice's length into it.
    let length = unsafe { libc::flistxattr(fd.as_fd().as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    match Errno::result(length) {
        Ok(n) => Ok(n.unsigned_abs()),
        Err(Errno::EOPNOTSUPP) => Ok(0),
        Err(e) => Err(e),
    }
}
