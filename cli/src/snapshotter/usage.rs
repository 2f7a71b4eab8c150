//! What a snapshot's own files take up, as containerd's overlayfs counts it (`fs.DiskUsage` of containerd/continuity): each inode once, by
//! its blocks. Of a promised layer that is nothing.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Bytes in one of `stat`'s blocks, whatever the file system's are (stat(2)).
const BLOCK: u64 = 512;

/// Bytes on the disk, and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// Of everything below `root`, and of itself. What goes meanwhile does not count: containers write while this looks. Blocks.
pub(crate) fn of(root: &Path) -> io::Result<Usage> {
    let (mut usage, mut seen, mut left) = (Usage::default(), HashSet::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let Some(metadata) = there(fs::symlink_metadata(&path))? else { continue };
        if seen.insert((metadata.dev(), metadata.ino())) {
            usage.bytes += metadata.blocks() * BLOCK;
            usage.inodes += 1;
        }
        if metadata.is_dir() {
            left.extend(there(children(&path))?.unwrap_or_default());
        }
    }
    Ok(usage)
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_counts_once_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(&dir.path().join("nowhere")).unwrap(), Usage::default());
        let root = dir.path().join("fs");
        fs::create_dir_all(root.join("d")).unwrap();
        let empty = of(&root).unwrap();
        assert_eq!(empty.inodes, 2);
        fs::write(root.join("d/file"), [7; 10_000]).unwrap();
        fs::hard_link(root.join("d/file"), root.join("same")).unwrap();
        std::os::unix::fs::symlink("/usr", root.join("elsewhere")).unwrap();
        let full = of(&root).unwrap();
        assert_eq!(full.inodes, 4);
        assert!((10_000..50_000).contains(&(full.bytes - empty.bytes)), "{full:?} after {empty:?}");
    }
}
