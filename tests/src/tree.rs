//! Everything that can be known about a tree of files, so that two of them can be compared; and trees as layers.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::oci;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// What it is, with a link's target, a device's number, or the digest of a file's content.
    pub kind: Kind,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first of the names of this file, if it has several.
    pub hard_link: Option<PathBuf>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file, by size and digest.
    File(u64, String),
    /// A symbolic link.
    Link(PathBuf),
    /// A FIFO.
    Fifo,
    /// A character device.
    Character(u64),
    /// A block device.
    Block(u64),
}

/// A tree by path, without its root, which belongs to whoever mounted it.
pub type Tree = BTreeMap<PathBuf, Look>;

/// Looks at everything below `root`.
pub fn look(root: &Path) -> Result<Tree> {
    let (mut tree, mut inodes) = (Tree::new(), BTreeMap::new());
    walk(root, Path::new(""), &mut tree, &mut inodes)?;
    Ok(tree)
}

fn walk(directory: &Path, prefix: &Path, tree: &mut Tree, inodes: &mut BTreeMap<(u64, u64), PathBuf>) -> Result<()> {
    let mut names: Vec<_> = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let (path, short) = (directory.join(&name), prefix.join(&name));
        let metadata = path.symlink_metadata().with_context(|| path.display().to_string())?;
        let file = metadata.file_type();
        let kind = if file.is_dir() {
            Kind::Directory
        } else if file.is_symlink() {
            Kind::Link(fs::read_link(&path)?)
        } else if file.is_fifo() {
            Kind::Fifo
        } else if file.is_char_device() {
            Kind::Character(metadata.rdev())
        } else if file.is_block_device() {
            Kind::Block(metadata.rdev())
        } else {
            Kind::File(metadata.len(), oci::digest(&fs::read(&path)?))
        };
        let several = metadata.nlink() > 1 && !file.is_dir();
        let first = several.then(|| inodes.entry((metadata.dev(), metadata.ino())).or_insert_with(|| short.clone()).clone());
        let look = Look {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            xattrs: xattrs(&path)?,
            hard_link: first,
        };
        tree.insert(short.clone(), look);
        if file.is_dir() {
            walk(&path, &short, tree, inodes)?;
        }
    }
    Ok(())
}

/// The attributes of a file itself, not of what a link leads to.
fn xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: the path ends with NUL, and the kernel writes at most the buffer's length.
    let length = unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error()).with_context(|| path.display().to_string())?);
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name)?;
        let mut value = vec![0_u8; 64 << 10];
        // SAFETY: as above.
        let length = unsafe { libc::lgetxattr(c_path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
        found.insert(OsStr::from_bytes(name).to_string_lossy().into_owned(), value);
    }
    Ok(found)
}

/// What is not the same in two trees, one line each, at most twenty. A directory that a layer only implies has the time of its unpacking in the
/// second tree, where `since` is before that: then its time is not compared.
pub fn differences(one: &Tree, other: &Tree, since: SystemTime) -> Vec<String> {
    let since = since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    let paths: std::collections::BTreeSet<&PathBuf> = one.keys().chain(other.keys()).collect();
    let line = |path: &&PathBuf| match (one.get(*path), other.get(*path)) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) if b.kind == Kind::Directory && b.mtime.0 >= since && *a == Look { mtime: a.mtime, ..b.clone() } => None,
        (Some(a), Some(b)) => Some(format!("{}: {a:?} / {b:?}", path.display())),
        (Some(a), None) => Some(format!("{}: {a:?} / not there", path.display())),
        (None, b) => Some(format!("{}: not there / {b:?}", path.display())),
    };
    paths.iter().filter_map(line).take(20).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tree_is_itself_and_a_changed_mode_is_seen() {
        let root = std::env::temp_dir().join(format!("cloister-tree-{}", std::process::id()));
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("d/f"), "x").unwrap();
        fs::hard_link(root.join("d/f"), root.join("g")).unwrap();
        let before = look(&root).unwrap();
        assert!(before.len() == 3 && differences(&before, &look(&root).unwrap(), SystemTime::UNIX_EPOCH).is_empty());
        assert_eq!(before[Path::new("g")].hard_link.as_deref(), Some(Path::new("d/f")));
        fs::remove_file(root.join("g")).unwrap();
        fs::copy(root.join("d/f"), root.join("g")).unwrap();
        assert_eq!(
            differences(&before, &look(&root).unwrap(), SystemTime::now()).len(),
            2,
            "d (its time) aside, both names are no longer one file"
        );
        fs::remove_dir_all(root).unwrap();
    }
}
