//! A volume that kubelet has changed: what a reader in the container sees goes from the old to the new in one step, as on a node.
//!
//! Kubelet writes ConfigMaps, Secrets and projected volumes into a directory of their own, `..2026_11_25_…`, to which the link `..data`
//! leads, and to `..data/KEY` the links that readers use (kubernetes pkg/volume/util/atomic_writer.go). It swaps `..data` last.

use std::{collections::BTreeSet, ffi::OsString, fs, io, path::Path};

/// The link whose swap is the change.
const DATA: &str = "..data";

/// Whether a copy can be put in place of another in one step.
pub fn is_swappable(directory: &Path) -> bool {
    fs::symlink_metadata(directory.join(DATA)).is_ok_and(|found| found.is_symlink())
}

/// Puts what is in `staging` in place of what is in `volume`; both have `..data`, and are on one file system. What the container sees in
/// between is the old content, or the new.
pub fn swap(volume: &Path, staging: &Path) -> io::Result<()> {
    let (new, old) = (names(staging)?, names(volume)?);
    for name in new.iter().filter(|name| *name != DATA) {
        let (from, to) = (staging.join(name), volume.join(name));
        // The directory of a change that was here before: it never changes.
        let kept = old.contains(name) && fs::symlink_metadata(&from)?.is_dir();
        if !kept {
            fs::rename(from, to)?;
        }
    }
    fs::rename(staging.join(DATA), volume.join(DATA))?;
    for name in old.difference(&new) {
        let path = volume.join(name);
        // Neither follows a link.
        let removed = if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed?;
    }
    Ok(())
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn version(directory: &Path, stamp: &str, keys: &[(&str, &str)]) {
        fs::create_dir_all(directory.join(stamp)).unwrap();
        symlink(stamp, directory.join(DATA)).unwrap();
        for (key, value) in keys {
            fs::write(directory.join(stamp).join(key), value).unwrap();
            symlink(format!("{DATA}/{key}"), directory.join(key)).unwrap();
        }
    }

    #[test]
    fn keys_change_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, staging) = (dir.path().join("volume"), dir.path().join("staging"));
        version(&volume, "..1", &[("a", "old"), ("gone", "x")]);
        version(&staging, "..2", &[("a", "new"), ("b", "more")]);
        assert!(is_swappable(&volume) && is_swappable(&staging));
        let held = fs::File::open(&volume).unwrap();
        swap(&volume, &staging).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(volume.join("b")).unwrap(), "more");
        assert!(!volume.join("..1").exists() && fs::symlink_metadata(volume.join("gone")).is_err());
        // The directory is the one that the container has mounted.
        use std::os::unix::fs::MetadataExt;
        assert_eq!(held.metadata().unwrap().ino(), fs::metadata(&volume).unwrap().ino());
        // The same once more, as after a shim's restart.
        let staging = dir.path().join("again");
        version(&staging, "..2", &[("a", "new"), ("b", "more")]);
        swap(&volume, &staging).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "new");
    }

    #[test]
    fn a_link_that_leads_out_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, staging, outside) = (dir.path().join("volume"), dir.path().join("staging"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        version(&volume, "..1", &[]);
        symlink(&outside, volume.join("evil")).unwrap();
        version(&staging, "..2", &[]);
        swap(&volume, &staging).unwrap();
        assert!(outside.join("kept").exists() && fs::symlink_metadata(volume.join("evil")).is_err());
        assert!(!is_swappable(&outside));
    }
}
