//! Which bind mounts are disks. What is on one is only a hint here: the guest decides what it mounts.

use super::plan::is_termination_log;
use crate::bundle::Mount;
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
};

/// Bytes that a raw file consists of.
const SECTOR: u64 = 512;
/// How much of a raw file is looked at.
const BEGINNING: usize = 4096;
/// Where ext4 has its magic number (`s_magic`, fs/ext4/ext4.h), and which.
const EXT4: (usize, [u8; 2]) = (1024 + 0x38, [0x53, 0xef]);
/// How a sealed disk begins (`guest-agent`, sealed_disk::header).
const SEALED: &[u8] = b"cloister-sealed1";

/// Whether a mount is a disk: below /dev, where the usual files and directories make no sense but for a termination log, a disk or any raw file;
/// elsewhere a disk, or a raw file that is written to and looks like one: files that are only read are copied.
pub(super) fn is_disk(mount: &Mount, destination: &str) -> bool {
    if is_termination_log(&mount.source) {
        return false;
    }
    let Ok(found) = fs::metadata(&mount.source) else { return false };
    if found.file_type().is_block_device() {
        return true;
    }
    let raw = found.is_file() && found.len() > 0 && found.len().is_multiple_of(SECTOR);
    raw && (destination.starts_with("/dev/") || (!mount.is_readonly() && looks_like_one(&mount.source)))
}

/// A file system, a sealed disk, or nothing yet.
fn looks_like_one(source: &Path) -> bool {
    let mut beginning = [0; BEGINNING];
    let read = File::open(source).and_then(|file| file.read_exact_at(&mut beginning, 0));
    let blank = beginning.iter().all(|byte| *byte == 0);
    read.is_ok() && (blank || beginning.starts_with(SEALED) || beginning[EXT4.0..EXT4.0 + 2] == EXT4.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_file_that_looks_like_a_disk_is_mounted_where_it_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("raw");
        let is = |content: &[u8], destination: &str, option: &str| {
            fs::write(&source, content).unwrap();
            let options = vec!["rbind".to_owned(), option.to_owned()];
            is_disk(&Mount { destination: destination.into(), kind: "bind".into(), source: source.clone(), options }, destination)
        };
        let blank = vec![0; 8192];
        let with = |at: usize, bytes: &[u8]| {
            let mut content = blank.clone();
            content[at..at + bytes.len()].copy_from_slice(bytes);
            content
        };
        for disk in [&blank, &with(1080, &[0x53, 0xef]), &with(0, SEALED)] {
            assert!(is(disk, "/data", "rw") && is(disk, "/dev/x", "ro") && !is(disk, "/data", "ro"));
            assert!(!is(&disk[..8191], "/data", "rw"), "not in whole sectors");
        }
        let text = with(7, b"text");
        assert!(!is(&text, "/data", "rw") && is(&text, "/dev/x", "rw"));
        assert!(!is(&[], "/data", "rw") && !is(&[0; 512], "/data", "rw"), "less than the first block");
    }
}
