//! Finds the disk that the host gave for scratch. Nothing that the host says about it is trusted but its size: whatever is on it is
//! never read, and whatever is written to it is encrypted.

use std::{fs, path::Path};
use thiserror::Error;

/// The serial by which the disk is known where there are several (`virtio_blk`, at most 20 bytes).
const SERIAL: &str = "scratch";
/// How the serials of volumes begin (`VolumeKind::DISK`).
const VOLUME: &str = "disk";
const SECTOR: u64 = 512;

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `major:minor`.
    pub device: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Why no disk was chosen.
#[derive(Debug, Error)]
pub enum DiskError {
    /// sysfs could not be read.
    #[error("{path}: {source}")]
    Sysfs {
        /// Which file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Several disks and none of them named.
    #[error("{0} disks and none with the serial {SERIAL:?}; the host must give one scratch disk")]
    Ambiguous(usize),
}

/// The disk with the serial `scratch`, else the only virtio disk, else none.
pub fn find() -> Result<Option<Disk>, DiskError> {
    find_below(Path::new("/sys/block"))
}

fn find_below(sysfs: &Path) -> Result<Option<Disk>, DiskError> {
    let error = |path: &Path, source| DiskError::Sysfs { path: path.display().to_string(), source };
    let mut disks = Vec::new();
    for entry in fs::read_dir(sysfs).map_err(|e| error(sysfs, e))? {
        let path = entry.map_err(|e| error(sysfs, e))?.path();
        if !path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("vd")) {
            continue;
        }
        let read = |name: &str| {
            let file = path.join(name);
            fs::read_to_string(&file).map(|t| t.trim().to_owned()).map_err(|e| error(&file, e))
        };
        let bytes = read("size")?.parse::<u64>().unwrap_or(0).saturating_mul(SECTOR);
        let serial = read("serial").unwrap_or_default();
        // A volume of the workload's: whoever gave only that gave no scratch, and nothing on it may be lost.
        if serial.starts_with(VOLUME) {
            continue;
        }
        let named = serial == SERIAL;
        disks.push((named, Disk { device: read("dev")?, bytes }));
    }
    let count = disks.len();
    if let Some(index) = disks.iter().position(|(named, _)| *named) {
        return Ok(Some(disks.swap_remove(index).1));
    }
    match count {
        0 | 1 => Ok(disks.pop().map(|(_, disk)| disk)),
        _ => Err(DiskError::Ambiguous(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(disks: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (index, (name, serial)) in disks.iter().enumerate() {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("size"), "2048\n").unwrap();
            fs::write(path.join("dev"), format!("254:{index}\n")).unwrap();
            fs::write(path.join("serial"), serial).unwrap();
        }
        dir
    }

    #[test]
    fn the_named_disk_or_the_only_one() {
        let find = |disks: &[(&str, &str)]| find_below(sysfs(disks).path());
        assert_eq!(find(&[("ram0", ""), ("vda", "")]).unwrap().unwrap(), Disk { device: "254:1".into(), bytes: 1 << 20 });
        assert_eq!(find(&[("vda", "data"), ("vdb", "scratch")]).unwrap().unwrap().device, "254:1");
        assert_eq!(find(&[("ram0", "")]).unwrap(), None);
        assert_eq!(find(&[("vda", "disk0")]).unwrap(), None);
        assert_eq!(find(&[("vda", "disk0"), ("vdb", "")]).unwrap().unwrap().device, "254:1");
        assert!(matches!(find(&[("vda", ""), ("vdb", "")]), Err(DiskError::Ambiguous(2))));
    }
}
