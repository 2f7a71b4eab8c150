//! The archive that an initramfs is: cpio in its "newc" form, `Documentation/driver-api/early-userspace/buffer-format.rst` of the
//! kernel. Written by ourselves because the bytes are measured: sorted entries, inode numbers in order, no owner but root, and
//! every time zero.

use std::collections::BTreeMap;
use thiserror::Error;

/// Longest path, in bytes (`PATH_MAX` of the kernel's unpacker).
const MAX_PATH: usize = 4095;

const MODE_DIR: u32 = 0o040_000;
const MODE_FILE: u32 = 0o100_000;
const MODE_CHAR: u32 = 0o020_000;

/// Why an entry was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CpioError {
    /// A path that is empty, absolute, too long, or climbs.
    #[error("{0:?}: not a relative path of plain components")]
    Path(String),
    /// The same path twice.
    #[error("{0}: twice in the archive")]
    Twice(String),
    /// The format holds 32-bit sizes.
    #[error("{0}: larger than 4 GiB")]
    TooLarge(String),
}

struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

/// An archive in the making. The order of the calls does not matter.
#[derive(Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Adds a directory and its missing parents, mode 0755.
    pub fn directory(&mut self, path: &str) -> Result<(), CpioError> {
        check(path)?;
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let entry = Entry { mode: MODE_DIR | 0o755, device: (0, 0), data: Vec::new() };
            self.entries.entry(path[..end].to_owned()).or_insert(entry);
        }
        Ok(())
    }

    /// Adds a regular file with the permissions `mode`, and its missing parents.
    pub fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) -> Result<(), CpioError> {
        if u32::try_from(data.len()).is_err() {
            return Err(CpioError::TooLarge(path.to_owned()));
        }
        self.add(path, Entry { mode: MODE_FILE | (mode & 0o7777), device: (0, 0), data })
    }

    /// Adds a character device, and its missing parents.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<(), CpioError> {
        self.add(path, Entry { mode: MODE_CHAR | (mode & 0o7777), device: (major, minor), data: Vec::new() })
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<(), CpioError> {
        check(path)?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        match self.entries.insert(path.to_owned(), entry) {
            None => Ok(()),
            Some(_) => Err(CpioError::Twice(path.to_owned())),
        }
    }

    /// The archive's bytes. A parent sorts before its children, as the unpacker needs it.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, entry)) in (1u32..).zip(&self.entries) {
            write_entry(&mut out, inode, path, entry);
        }
        write_entry(&mut out, 0, "TRAILER!!!", &Entry { mode: 0, device: (0, 0), data: Vec::new() });
        out
    }
}

fn check(path: &str) -> Result<(), CpioError> {
    let plain = path.len() <= MAX_PATH && !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain { Ok(()) } else { Err(CpioError::Path(path.to_owned())) }
}

/// Thirteen fields of eight hexadecimal digits after the magic: ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin,
/// namesize with its NUL, chksum.
fn write_entry(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & MODE_DIR == MODE_DIR { 2 } else { 1 };
    let (major, minor) = entry.device;
    let (size, name) = (entry.data.len() as u32, path.len() as u32 + 1);
    out.extend_from_slice(b"070701");
    for field in [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.data);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_calls_does_not_matter() {
        let mut a = Archive::default();
        a.file("lib/modules/x.ko", 0o644, vec![1, 2, 3]).unwrap();
        a.directory("dev").unwrap();
        a.char_device("dev/console", 0o600, 5, 1).unwrap();
        let mut b = Archive::default();
        b.char_device("dev/console", 0o600, 5, 1).unwrap();
        b.file("lib/modules/x.ko", 0o644, vec![1, 2, 3]).unwrap();
        assert_eq!(a.finish(), b.finish());
    }

    #[test]
    fn an_entry_is_as_the_kernel_reads_it() {
        let mut archive = Archive::default();
        archive.char_device("console", 0o600, 5, 1).unwrap();
        let bytes = archive.finish();
        let head = "070701\
                    00000001000021800000000000000000000000010000000000000000\
                    0000000000000000000000050000000100000008\
                    00000000console\0";
        assert!(bytes.starts_with(head.as_bytes()), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }

    #[test]
    fn parents_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o644, vec![]).unwrap();
        archive.file("a/b/d", 0o644, vec![]).unwrap();
        let text = String::from_utf8(archive.finish()).unwrap();
        let at = |name: &str| text.find(&format!("{name}\0")).unwrap();
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c"));
        assert_eq!(text.matches("070701").count(), 5);
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let mut archive = Archive::default();
        for path in ["", "/init", "a//b", "../x", "a/./b", "a\0b", &"a".repeat(MAX_PATH + 1)] {
            assert!(archive.file(path, 0o644, vec![]).is_err(), "{path:?}");
        }
        archive.file("init", 0o755, vec![]).unwrap();
        assert_eq!(archive.file("init", 0o755, vec![]), Err(CpioError::Twice("init".into())));
    }
}
