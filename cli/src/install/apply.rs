//! One change to one file. A file appears, changes or goes in one step: who has the old one open or runs it keeps it.

use super::{Action, Change, InstallError};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// Ends the name of a configuration file as it was before our last change.
pub(super) const BACKUP: &str = ".cloister-backup";

/// Does it.
pub(super) fn apply(change: &Change) -> Result<(), InstallError> {
    let path = &change.path;
    let done = match &change.action {
        Action::Write { old, new } => write(path, old.as_deref(), new),
        Action::Copy { from, mode } => copy(path, from, *mode),
        Action::Remove => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    };
    done.map_err(|source| InstallError::Io { path: path.clone(), source })
}

fn write(path: &Path, old: Option<&str>, new: &str) -> io::Result<()> {
    let existing = fs::metadata(path).ok();
    let mode = existing.as_ref().map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777);
    if let Some(old) = old {
        replace(&beside(path, BACKUP), mode, |file| file.write_all(old.as_bytes()))?;
    }
    replace(path, mode, |file| {
        if let Some(metadata) = &existing {
            use std::os::unix::fs::MetadataExt;
            // Who may not keep the owner is the owner already.
            let _ = chown(beside(path, NEW), Some(metadata.uid()), Some(metadata.gid()));
        }
        file.write_all(new.as_bytes())
    })
}

fn copy(path: &Path, from: &Path, mode: u32) -> io::Result<()> {
    let mut source = File::open(from)?;
    replace(path, mode, |file| io::copy(&mut source, file).map(drop))
}

/// Ends the name of a file that is being written.
const NEW: &str = ".cloister-new";

/// Writes a new file beside the old one and puts it in its place.
fn replace(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let new = beside(path, NEW);
    // Left by an interrupted run, perhaps.
    let _ = fs::remove_file(&new);
    let written = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).and_then(|mut file| {
        fill(&mut file)?;
        // The umask does not decide on the mode of what everyone has to run.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// The path with more at the end of its name.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(end);
    name.into()
}
