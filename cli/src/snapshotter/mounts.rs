//! How a snapshot is mounted: a directory, or an overlay where layers were unpacked below it (as containerd's overlayfs snapshotter has it).

use std::path::{Path, PathBuf};

/// A mount that containerd or its client is to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mounts {
    /// The snapshot's own directory, writable or not: there is nothing below it.
    Own(PathBuf, bool),
    /// The one layer below a view, read-only.
    Layer(PathBuf),
    /// Layers, the topmost first, and what is written over them: directory and work directory.
    Overlay { lower: Vec<PathBuf>, upper: Option<(PathBuf, PathBuf)> },
}

/// Of the snapshot in `directory`, over the unpacked layers `lower`.
pub(crate) fn of(directory: PathBuf, work: PathBuf, mut lower: Vec<PathBuf>, writable: bool) -> Mounts {
    match (lower.len(), writable) {
        (0, _) => Mounts::Own(directory, writable),
        (_, true) => Mounts::Overlay { lower, upper: Some((directory, work)) },
        // An overlay of one directory is none.
        (1, false) => Mounts::Layer(lower.swap_remove(0)),
        (_, false) => Mounts::Overlay { lower, upper: None },
    }
}

impl Mounts {
    /// Type, source and options of the mount.
    pub(crate) fn mount(&self) -> (String, String, Vec<String>) {
        let text = |path: &Path| path.display().to_string();
        match self {
            Self::Own(path, true) => ("bind".into(), text(path), vec!["rbind".into(), "rw".into()]),
            Self::Own(path, false) | Self::Layer(path) => ("bind".into(), text(path), vec!["rbind".into(), "ro".into()]),
            Self::Overlay { lower, upper } => {
                let lower: Vec<String> = lower.iter().map(|path| text(path)).collect();
                let mut options = Vec::new();
                if let Some((upper, work)) = upper {
                    options.extend([format!("workdir={}", text(work)), format!("upperdir={}", text(upper))]);
                }
                options.push(format!("lowerdir={}", lower.join(":")));
                ("overlay".into(), "overlay".into(), options)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_those_of_overlayfs() {
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let of = |lower: &[&str], writable| of("/d".into(), "/w".into(), paths(lower), writable).mount();
        assert_eq!(of(&[], true), ("bind".into(), "/d".into(), vec!["rbind".into(), "rw".into()]));
        assert_eq!(of(&["/l"], false), ("bind".into(), "/l".into(), vec!["rbind".into(), "ro".into()]));
        let options = |text: &[&str]| text.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(of(&["/b", "/a"], false).2, options(&["lowerdir=/b:/a"]));
        assert_eq!(of(&["/b", "/a"], true).2, options(&["workdir=/w", "upperdir=/d", "lowerdir=/b:/a"]));
    }
}
