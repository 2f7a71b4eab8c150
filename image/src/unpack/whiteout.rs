//! Whiteouts: what a layer takes away (OCI image-spec 1.1, `layer.md`, "Whiteouts"), in overlayfs's form (Linux,
//! `Documentation/filesystems/overlayfs.rst`): a character device 0:0 hides a name, `trusted.overlay.opaque` a directory's content.

use super::{UnpackError, paths::EntryPath, tree, xattr};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FileStat, Mode, SFlag, fstatat, mknodat},
};
use std::{
    ffi::OsStr,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

const PREFIX: &[u8] = b".wh.";
/// AUFS's own files, of which one means something.
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry with a whiteout's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout {
    /// Hide this name in the entry's directory.
    Name(Vec<u8>),
    /// Hide what lower layers have in the entry's directory.
    Opaque,
    /// AUFS's bookkeeping.
    Ignored,
}

/// Whether `path` is a whiteout, and which.
pub(super) fn parse(path: &EntryPath) -> Result<Option<Whiteout>, UnpackError> {
    let components: Vec<&[u8]> = path.components().collect();
    let Some((name, directories)) = components.split_last() else { return Ok(None) };
    if directories.iter().any(|part| part.starts_with(META_PREFIX)) {
        return Ok(Some(Whiteout::Ignored));
    }
    if directories.iter().any(|part| part.starts_with(PREFIX)) {
        return Err(path.refused("lies in a directory with a whiteout's name"));
    }
    if *name == OPAQUE {
        return Ok(Some(Whiteout::Opaque));
    }
    if name.starts_with(META_PREFIX) {
        return Ok(Some(Whiteout::Ignored));
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(path.refused("a whiteout of nothing, '.' or '..'")),
        Some(hidden) => Ok(Some(Whiteout::Name(hidden.to_vec()))),
    }
}

/// Hides `name`. Whiteouts concern lower layers only: what this layer itself has under that name stays.
pub(super) fn make(directory: &impl AsFd, name: &[u8], path: &EntryPath) -> Result<(), UnpackError> {
    let os_name = OsStr::from_bytes(name);
    match mknodat(directory, os_name, SFlag::S_IFCHR, Mode::empty(), 0) {
        Ok(()) => return Ok(()),
        Err(Errno::EEXIST) => (),
        Err(e) => return Err(path.system("make the whiteout", e)),
    }
    let stat = fstatat(directory, os_name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| path.system("stat", e))?;
    if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFDIR {
        return Ok(());
    }
    xattr::set_opaque(&tree::open_child_dir(directory, name, path)?, path)
}

/// Whether a file is a whiteout in overlayfs's form.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFCHR && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(path: &str) -> Result<Option<Whiteout>, UnpackError> {
        parse(&EntryPath::parse(path.as_bytes(), 10).unwrap())
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        assert_eq!(parse_text("a/.wh.b").unwrap(), Some(Whiteout::Name(b"b".to_vec())));
        assert_eq!(parse_text("a/.wh..wh..opq").unwrap(), Some(Whiteout::Opaque));
        assert_eq!(parse_text(".wh..wh.plnk/x").unwrap(), Some(Whiteout::Ignored));
        assert_eq!(parse_text(".wh..wh.aufs").unwrap(), Some(Whiteout::Ignored));
        for file in ["a/b", "a/wh.b", "a/.wh", "a/b.wh.c"] {
            assert_eq!(parse_text(file).unwrap(), None, "{file}");
        }
        for bad in ["a/.wh.", "a/.wh..", "a/.wh...", ".wh.a/b"] {
            assert!(parse_text(bad).is_err(), "{bad}");
        }
    }
}
