//! A container's root: its layers below, its own writes above, both on scratch.

use nix::mount::{MntFlags, umount2};
use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Most layers of one root (`OVL_MAX_STACK`, fs/overlayfs/params.c).
pub const MAX_LAYERS: usize = 500;

/// Why there is no root.
#[derive(Debug, Error)]
pub enum OverlayError {
    /// Too many layers.
    #[error("image has {0} layers, at most {MAX_LAYERS} can be stacked")]
    Layers(usize),
    /// A system call.
    #[error("overlay at {target}: {step}: {source}")]
    Mount {
        /// Where.
        target: String,
        /// What was done.
        step: String,
        /// The cause.
        source: io::Error,
    },
}

/// A mounted overlay; unmounted when dropped.
#[derive(Debug)]
pub struct Overlay {
    target: PathBuf,
}

impl Overlay {
    /// Mounts `layers`, the lowest first, below `upper` at `target`. All directories exist.
    ///
    /// By the file-descriptor calls: mount(2) takes one page of options, which fifty layers fill.
    pub fn mount(layers: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<Self, OverlayError> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(OverlayError::Layers(layers.len()));
        }
        let error = |step: &str, source| OverlayError::Mount { target: target.display().to_string(), step: step.to_owned(), source };
        let context = fsopen(c"overlay").map_err(|e| error("fsopen", e))?;
        let set = |key: &CStr, value: &Path| set_path(&context, key, value).map_err(|e| error(&format!("{key:?}"), e));
        for layer in layers.iter().rev() {
            set(c"lowerdir+", layer)?;
        }
        set(c"upperdir", upper)?;
        set(c"workdir", work)?;
        // What is on scratch is worth nothing after a crash: its key is gone. So nothing is ever synchronised.
        set_flag(&context, c"volatile").map_err(|e| error("volatile", e))?;
        create(&context).map_err(|e| error("create", e))?;
        // nodev: a container may make device nodes (CAP_MKNOD), and not open them; its /dev is a file system of its own.
        let mount = fsmount(&context, libc::MOUNT_ATTR_NODEV).map_err(|e| error("fsmount", e))?;
        move_mount(&mount, target).map_err(|e| error("move_mount", e))?;
        Ok(Self { target: target.to_owned() })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // Detached: a process that is still dying may hold it for a moment longer.
        if let Err(e) = umount2(&self.target, MntFlags::MNT_DETACH) {
            log::warn!(path:% = self.target.display(); "unmount: {e}");
        }
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn fsopen(fs: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that lives until the call returns.
    let fd = checked(unsafe { libc::syscall(libc::SYS_fsopen, fs.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn set_path(context: &OwnedFd, key: &CStr, value: &Path) -> io::Result<()> {
    let value = CString::new(value.as_os_str().as_encoded_bytes())?;
    let command = libc::FSCONFIG_SET_STRING;
    // SAFETY: key and value are C strings that live until the call returns.
    checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), value.as_ptr(), 0) }).map(drop)
}

fn set_flag(context: &OwnedFd, key: &CStr) -> io::Result<()> {
    let (command, none) = (libc::FSCONFIG_SET_FLAG, std::ptr::null::<libc::c_char>());
    // SAFETY: the key is a C string that lives until the call returns; a flag has no value.
    checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key.as_ptr(), none, 0) }).map(drop)
}

fn create(context: &OwnedFd) -> io::Result<()> {
    let (command, none) = (libc::FSCONFIG_CMD_CREATE, std::ptr::null::<libc::c_char>());
    // SAFETY: this command takes neither key nor value.
    checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, none, none, 0) }).map(drop)
}

fn fsmount(context: &OwnedFd, attributes: u64) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, attributes as libc::c_uint) })?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn move_mount(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_encoded_bytes())?;
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both paths are C strings that live until the call returns.
    checked(unsafe { libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_at_least_one_layer() {
        let none = Path::new("/none");
        assert!(matches!(Overlay::mount(&[], none, none, none), Err(OverlayError::Layers(0))));
        let many = vec![PathBuf::from("/x"); MAX_LAYERS + 1];
        assert!(matches!(Overlay::mount(&many, none, none, none), Err(OverlayError::Layers(501))));
    }
}
