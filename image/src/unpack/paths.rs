//! Paths of entries: relative to the layer's root, cleaned of what means nothing, free of what means trouble.

use super::UnpackError;
use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::PathBuf};

/// Longest path, in bytes (`PATH_MAX`, linux/limits.h, with its NUL byte).
const PATH_MAX: usize = 4095;
/// Longest component, in bytes (`NAME_MAX`, linux/limits.h).
const NAME_MAX: usize = 255;
/// Bytes of paths that an unpacker keeps until its end, for the times of directories.
const MAX_REMEMBERED: usize = 64 << 20;

/// `a/b/c`: no leading slash, no empty component, no `.`, no `..`, no NUL byte. Empty for the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryPath(Vec<u8>);

impl EntryPath {
    /// From an archive. A leading `/` or `./` is taken off, as every unpacker does. `..` is refused: some resolve it before, some
    /// after links, and no tool writes it.
    pub(super) fn parse(raw: &[u8], max_depth: usize) -> Result<Self, UnpackError> {
        let refuse = |why: String| Err(Self(raw.to_vec()).refused(why));
        if raw.is_empty() || raw.len() > PATH_MAX {
            return refuse(format!("a path of {} bytes; want 1 to {PATH_MAX}", raw.len()));
        }
        if raw.contains(&0) {
            return refuse("a path with a NUL byte".into());
        }
        let parts: Vec<&[u8]> = raw.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        if parts.contains(&&b".."[..]) {
            return refuse("a path with '..'".into());
        }
        if parts.len() > max_depth {
            return refuse(format!("a path of {} components; at most {max_depth}", parts.len()));
        }
        if parts.iter().any(|part| part.len() > NAME_MAX) {
            return refuse(format!("a component longer than {NAME_MAX} bytes"));
        }
        Ok(Self(parts.join(&b'/')))
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory and the name in it; nothing for the root.
    pub(super) fn split(&self) -> Option<(Self, &[u8])> {
        let slash = self.0.iter().rposition(|b| *b == b'/');
        match slash {
            Some(at) => Some((Self(self.0[..at].to_vec()), &self.0[at + 1..])),
            None if self.is_root() => None,
            None => Some((Self(Vec::new()), &self.0)),
        }
    }

    /// Every component from the top.
    pub(super) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|part| !part.is_empty())
    }

    /// The path and each directory above it below the root, from the top.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Self> + '_ {
        let ends = self.0.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        ends.chain((!self.is_root()).then_some(self.0.len())).map(|end| Self(self.0[..end].to_vec()))
    }

    /// For the kernel: the root is `.`.
    pub(super) fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(if self.is_root() { b"." } else { &self.0 })
    }

    pub(super) fn to_path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(&self.0))
    }

    /// An error about what the entry asks for.
    pub(super) fn refused(&self, why: impl Into<String>) -> UnpackError {
        UnpackError::Entry { path: self.display(), why: why.into() }
    }

    /// An error of the system.
    pub(super) fn system(&self, what: &'static str, source: impl Into<io::Error>) -> UnpackError {
        UnpackError::System { path: self.display(), what, source: source.into() }
    }

    fn display(&self) -> String {
        String::from_utf8_lossy(&self.0).chars().take(256).collect()
    }
}

/// Counts what is kept, so that an archive of nothing but long directory names cannot fill the guest's memory.
#[derive(Default)]
pub(super) struct Remembered(usize);

impl Remembered {
    pub(super) fn add(&mut self, path: &EntryPath) -> Result<(), UnpackError> {
        self.0 += path.0.len() + size_of::<EntryPath>() * 4;
        if self.0 > MAX_REMEMBERED {
            return Err(path.refused(format!("the paths of the archive's directories take more than {MAX_REMEMBERED} bytes")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned() {
        for (raw, clean) in [("a/b", "a/b"), ("/a", "a"), ("./a//b/./", "a/b"), ("./", ""), ("/", ""), ("..a/b..", "..a/b..")] {
            assert_eq!(EntryPath::parse(raw.as_bytes(), 10).unwrap().0, clean.as_bytes(), "{raw}");
        }
        let path = EntryPath::parse(b"a/b/c", 10).unwrap();
        assert_eq!(path.split().map(|(parent, name)| (parent.0, name.to_vec())), Some((b"a/b".to_vec(), b"c".to_vec())));
        assert_eq!(path.prefixes().map(|p| p.display()).collect::<Vec<_>>(), ["a", "a/b", "a/b/c"]);
        let root = EntryPath::parse(b".", 10).unwrap();
        assert!(root.is_root() && root.split().is_none() && root.prefixes().next().is_none() && root.as_os_str() == ".");
    }

    #[test]
    fn hostile_paths_are_refused() {
        let (deep, long, wide) = ("d/".repeat(11), "x".repeat(256), "x/".repeat(2048));
        for raw in ["", "..", "../a", "a/../b", "a/..", "/..", "a\0b", &deep, &long, &wide] {
            assert!(EntryPath::parse(raw.as_bytes(), 10).is_err(), "{raw:?}");
        }
    }

    #[test]
    fn memory_for_paths_ends() {
        let mut remembered = Remembered::default();
        let path = EntryPath::parse(&b"x/".repeat(100), 200).unwrap();
        let taken = (0..MAX_REMEMBERED).take_while(|_| remembered.add(&path).is_ok()).count();
        assert!((100_000..MAX_REMEMBERED / 199).contains(&taken), "{taken}");
    }
}
