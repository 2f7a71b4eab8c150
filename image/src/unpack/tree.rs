//! The directory that a layer is unpacked into. Nothing is named by an absolute path or by one that the kernel does not resolve
//! inside that directory.

use super::{
    UnpackError,
    archive::{Entry, Kind},
    header::Time,
    paths::EntryPath,
    whiteout, xattr,
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    rc::Rc,
};

/// A directory inside the tree.
pub(super) type DirFd = Rc<OwnedFd>;

/// Longest target of a symbolic link, in bytes.
const MAX_LINK: usize = 4095;
/// How often a resolution that the kernel could not finish (a rename elsewhere) is tried again.
const RESOLVE_TRIES: usize = 64;

/// The tree, and the directory that was last used in it: entries of one directory follow each other.
pub(super) struct Tree {
    root: DirFd,
    last: Option<(EntryPath, DirFd)>,
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, UnpackError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fail = |e: Errno| UnpackError::System { path: root.display().to_string(), what: "open", source: e.into() };
        Ok(Self { root: Rc::new(open(root, flags, Mode::empty()).map_err(fail)?), last: None })
    }

    /// The directory at `path`, links resolved inside the tree; nothing where there is none.
    pub(super) fn open_dir(&mut self, path: &EntryPath) -> Result<Option<DirFd>, UnpackError> {
        if path.is_root() {
            return Ok(Some(self.root.clone()));
        }
        if let Some((last, directory)) = &self.last
            && last == path
        {
            return Ok(Some(directory.clone()));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let found = match resolve(&self.root, path.as_os_str(), flags, ResolveFlag::RESOLVE_NO_SYMLINKS) {
            Ok(directory) => {
                // Only a path without links is remembered: no entry replaces a directory, but one may replace a link.
                let directory = Rc::new(directory);
                self.last = Some((path.clone(), directory.clone()));
                return Ok(Some(directory));
            }
            Err(Errno::ELOOP) => resolve(&self.root, path.as_os_str(), flags, ResolveFlag::empty()),
            Err(e) => Err(e),
        };
        match found {
            Ok(directory) => Ok(Some(Rc::new(directory))),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(e) => Err(path.system("open the directory", e)),
        }
    }

    /// As [`Self::open_dir`], but makes what is missing; gives what it made.
    pub(super) fn open_or_make_dir(&mut self, path: &EntryPath) -> Result<(DirFd, Vec<EntryPath>), UnpackError> {
        if let Some(directory) = self.open_dir(path)? {
            return Ok((directory, Vec::new()));
        }
        let (mut directory, mut made) = (self.root.clone(), Vec::new());
        for (prefix, name) in path.prefixes().zip(path.components()) {
            if let Some(next) = self.open_dir(&prefix)? {
                directory = next;
                continue;
            }
            let replaced = make_dir(&directory, name, &prefix, Replace::Whiteouts)?;
            directory = Rc::new(open_child_dir(&directory, name, &prefix)?);
            if replaced == Replaced::Whiteout {
                xattr::set_opaque(&directory, &prefix)?;
            }
            made.push(prefix);
        }
        Ok((directory, made))
    }

    /// Of the tree.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }
}

/// Opens `path` with every link in it, absolute ones and `..` included, resolved inside `root`; across no mount and through none of
/// `/proc`'s magic links. `more` forbids more.
pub(super) fn resolve(root: &impl AsFd, path: &OsStr, flags: OFlag, more: ResolveFlag) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(inside | more);
    for _ in 0..RESOLVE_TRIES {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            done => return done,
        }
    }
    Err(Errno::EAGAIN)
}

/// What stood where a directory was to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Replaced {
    /// Nothing, or something that is no directory and is gone now.
    Nothing,
    /// A directory, which stays.
    Directory,
    /// A whiteout of this layer, which is gone now.
    Whiteout,
}

/// What [`make_dir`] may put a directory in the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
    /// Anything: an entry for the directory says so.
    Anything,
    /// A whiteout only: the directory is merely implied.
    Whiteouts,
}

/// Makes a directory, mode 755, owner root; one that is there stays.
pub(super) fn make_dir(parent: &impl AsFd, name: &[u8], path: &EntryPath, replace: Replace) -> Result<Replaced, UnpackError> {
    let mode = Mode::from_bits_truncate(0o755);
    match mkdirat(parent, OsStr::from_bytes(name), mode) {
        Ok(()) => return Ok(Replaced::Nothing),
        Err(Errno::EEXIST) => (),
        Err(e) => return Err(path.system("make the directory", e)),
    }
    let stat = fstatat(parent, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| path.system("stat", e))?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        return Ok(Replaced::Directory);
    }
    let replaced = if whiteout::is_whiteout(&stat) { Replaced::Whiteout } else { Replaced::Nothing };
    if replace == Replace::Whiteouts && replaced != Replaced::Whiteout {
        // A link to a directory that is not in this layer, or a file: whatever it is, the archive contradicts itself.
        return Err(path.refused("has entries in it, and is a link that leads nowhere in this layer or no directory"));
    }
    unlinkat(parent, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir).map_err(|e| path.system("replace", e))?;
    mkdirat(parent, OsStr::from_bytes(name), mode).map_err(|e| path.system("make the directory", e))?;
    Ok(replaced)
}

/// Opens a directory that is not a link.
pub(super) fn open_child_dir(parent: &impl AsFd, name: &[u8], path: &EntryPath) -> Result<OwnedFd, UnpackError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, OsStr::from_bytes(name), flags, Mode::empty()).map_err(|e| path.system("open the directory", e))
}

/// Makes an empty file. It is always a new one: writing into an old one could reach another name of it.
pub(super) fn make_file(parent: &impl AsFd, name: &[u8], path: &EntryPath) -> Result<File, UnpackError> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file =
        replacing(parent, name, path, "make the file", || openat(parent, OsStr::from_bytes(name), flags, Mode::from_bits_truncate(0o600)))?;
    Ok(File::from(file))
}

pub(super) fn make_symlink(parent: &impl AsFd, name: &[u8], entry: &Entry, path: &EntryPath) -> Result<(), UnpackError> {
    // Where it leads is of no concern here: nothing is ever resolved outside the tree, and the container resolves it in its own.
    if entry.link.is_empty() || entry.link.len() > MAX_LINK || entry.link.contains(&0) {
        return Err(path.refused(format!("a link target must be 1 to {MAX_LINK} bytes without NUL")));
    }
    let name_os = OsStr::from_bytes(name);
    replacing(parent, name, path, "make the link", || symlinkat(OsStr::from_bytes(&entry.link), parent, name_os))?;
    own(parent, name, entry, path)?;
    touch(parent, name, entry, path)
}

/// Gives the file `target_name` in `target` another name. The target's last component is not followed.
pub(super) fn make_hard_link(
    parent: &impl AsFd,
    name: &[u8],
    target: &impl AsFd,
    target_name: &[u8],
    path: &EntryPath,
) -> Result<(), UnpackError> {
    let (from, to) = (OsStr::from_bytes(target_name), OsStr::from_bytes(name));
    if let Ok(existing) = fstatat(parent, to, AtFlags::AT_SYMLINK_NOFOLLOW)
        && let Ok(wanted) = fstatat(target, from, AtFlags::AT_SYMLINK_NOFOLLOW)
        && (existing.st_dev, existing.st_ino) == (wanted.st_dev, wanted.st_ino)
    {
        // Replacing a name by itself would lose the file.
        return Ok(());
    }
    match replacing(parent, name, path, "make the hard link", || linkat(target, from, parent, to, LinkatFlags::empty())) {
        Err(UnpackError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(path.refused("a hard link to nothing in this layer"))
        }
        done => done,
    }
}

/// Makes a FIFO or a device node.
pub(super) fn make_node(parent: &impl AsFd, name: &[u8], entry: &Entry, path: &EntryPath) -> Result<(), UnpackError> {
    let kind = match entry.kind {
        Kind::Char => SFlag::S_IFCHR,
        Kind::Block => SFlag::S_IFBLK,
        _ => SFlag::S_IFIFO,
    };
    let device = makedev(entry.device.0.into(), entry.device.1.into());
    let name_os = OsStr::from_bytes(name);
    replacing(parent, name, path, "make the node", || mknodat(parent, name_os, kind, Mode::from_bits_truncate(0o600), device))?;
    own(parent, name, entry, path)?;
    let mode = Mode::from_bits_truncate(entry.mode);
    fchmodat(parent, name_os, mode, FchmodatFlags::FollowSymlink).map_err(|e| path.system("set the mode", e))?;
    touch(parent, name, entry, path)
}

/// Runs `make`; where something stands in its place, that is removed unless it is a directory.
fn replacing<T>(
    parent: &impl AsFd,
    name: &[u8],
    path: &EntryPath,
    what: &'static str,
    make: impl Fn() -> Result<T, Errno>,
) -> Result<T, UnpackError> {
    match make() {
        Err(Errno::EEXIST) => (),
        done => return done.map_err(|e| path.system(what, e)),
    }
    match unlinkat(parent, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir) {
        Ok(()) => make().map_err(|e| path.system(what, e)),
        Err(Errno::EISDIR | Errno::EPERM) => Err(path.refused("replaces a directory of the same layer by something else")),
        Err(e) => Err(path.system("replace", e)),
    }
}

/// Owner, mode and attributes, in this order: a change of owner takes set-user-id bits and capabilities away.
pub(super) fn apply_to_file(file: &File, entry: &Entry, path: &EntryPath) -> Result<(), UnpackError> {
    apply_to_dir(file, entry, path)?;
    set_times(file, entry.mtime, path)
}

/// As [`apply_to_file`] without the time, which later entries would change.
pub(super) fn apply_to_dir(fd: &impl AsFd, entry: &Entry, path: &EntryPath) -> Result<(), UnpackError> {
    fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(|e| path.system("set the owner", e))?;
    fchmod(fd, Mode::from_bits_truncate(entry.mode)).map_err(|e| path.system("set the mode", e))?;
    xattr::apply(fd, &entry.xattrs, path)
}

pub(super) fn set_times(fd: &impl AsFd, time: Time, path: &EntryPath) -> Result<(), UnpackError> {
    let time = timespec(time);
    futimens(fd, &time, &time).map_err(|e| path.system("set the time", e))
}

fn own(parent: &impl AsFd, name: &[u8], entry: &Entry, path: &EntryPath) -> Result<(), UnpackError> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(parent, OsStr::from_bytes(name), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|e| path.system("set the owner", e))
}

fn touch(parent: &impl AsFd, name: &[u8], entry: &Entry, path: &EntryPath) -> Result<(), UnpackError> {
    let time = timespec(entry.mtime);
    utimensat(parent, OsStr::from_bytes(name), &time, &time, UtimensatFlags::NoFollowSymlink).map_err(|e| path.system("set the time", e))
}

fn timespec((seconds, nanos): Time) -> TimeSpec {
    TimeSpec::new(seconds, nanos.into())
}
