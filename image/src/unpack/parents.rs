//! Directories that a layer implies: it has `usr/bin/app` and no entry for `usr/bin`. In its own directory one was made with mode 755
//! and owner root; merged, it would hide the look of the directory that lower layers have there. So it takes that look over, as
//! containerd does (`mkparent`, pkg/archive/tar.go).

use super::{
    UnpackError,
    paths::EntryPath,
    tree::{self, Tree, resolve},
    xattr,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, ResolveFlag},
    sys::stat::{Mode, SFlag, fchmod, fstat},
    unistd::{Gid, Uid, fchown},
};
use std::{
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

/// Gives each implied directory the owner, mode, attributes and time of the topmost directory below it. `layers` are the roots of
/// the unpacked layers with [`super::Stats::implied`], lowest first; call it once all are unpacked.
pub fn adopt_parents(layers: &[(&Path, &[PathBuf])]) -> Result<(), UnpackError> {
    let mut trees: Vec<Tree> = layers.iter().map(|(root, _)| Tree::open(root)).collect::<Result<_, _>>()?;
    // From the lowest up, so that what is copied from is right itself.
    for (at, (_, implied)) in layers.iter().enumerate() {
        let (lower, this) = trees.split_at_mut(at);
        let Some(this) = this.first_mut() else { break };
        for path in *implied {
            let path = EntryPath::parse(path.as_os_str().as_bytes(), usize::MAX)?;
            let Some(directory) = this.open_dir(&path)? else { continue };
            if let Some(source) = topmost(lower, &path)? {
                copy_look(&source, &directory, &path)?;
            }
        }
    }
    Ok(())
}

/// The topmost directory at `path`; nothing if the topmost thing there is none, for then it was replaced or taken away.
fn topmost(lower: &[Tree], path: &EntryPath) -> Result<Option<OwnedFd>, UnpackError> {
    for tree in lower.iter().rev() {
        let found = match resolve(tree.root(), path.as_os_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW, ResolveFlag::empty()) {
            Ok(found) => found,
            Err(Errno::ENOENT) => continue,
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(e) => return Err(path.system("look into a lower layer", e)),
        };
        let stat = fstat(&found).map_err(|e| path.system("stat in a lower layer", e))?;
        if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFDIR {
            return Ok(None);
        }
        // An O_PATH descriptor has no attributes to read.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        return resolve(tree.root(), path.as_os_str(), flags, ResolveFlag::empty())
            .map(Some)
            .map_err(|e| path.system("open in a lower layer", e));
    }
    Ok(None)
}

fn copy_look(from: &OwnedFd, to: &OwnedFd, path: &EntryPath) -> Result<(), UnpackError> {
    let stat = fstat(from).map_err(|e| path.system("stat", e))?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).map_err(|e| path.system("set the owner", e))?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777)).map_err(|e| path.system("set the mode", e))?;
    // overlayfs's own marks stay behind: that a lower layer hides what is below it says nothing about this one.
    xattr::copy(from, to, path)?;
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    tree::set_times(to, (stat.st_mtime, nanos), path)
}
