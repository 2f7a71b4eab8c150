//! The disks that containers get of the host: of whichever kind one is, from here on it is its numbers and its size, as this kernel has them.

use std::{fs, io, path::Path};

/// Where the kernel says what it has (Documentation/ABI/stable/sysfs-block).
const SYSFS: &str = "/sys/block";
/// Of sysfs' sizes, whatever the disk's own blocks are.
const SECTOR: u64 = 512;
/// Where the kernel says it by number.
const BY_NUMBER: &str = "/sys/dev/block";

/// A disk of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Number.
    pub major: u32,
    /// Number.
    pub minor: u32,
    /// Its size in bytes, as the host says.
    pub bytes: u64,
    /// Whether the kernel refuses to write to it.
    pub readonly: bool,
}

impl Disk {
    /// The disk that was given to the machine at its start with this serial.
    pub fn with_serial(serial: &str) -> Option<Self> {
        Self::with_serial_below(Path::new(SYSFS), serial)
    }

    /// `major:minor`.
    pub fn number(&self) -> String {
        format!("{}:{}", self.major, self.minor)
    }

    /// Its node in the guest's /dev.
    pub fn node(&self) -> io::Result<String> {
        let text = fs::read_to_string(Path::new(BY_NUMBER).join(self.number()).join("uevent"))?;
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.map(|name| format!("/dev/{name}")).ok_or_else(|| io::Error::other("the kernel has no name for it"))
    }

    fn with_serial_below(sysfs: &Path, serial: &str) -> Option<Self> {
        let mut disks = fs::read_dir(sysfs).ok()?.flatten().map(|entry| entry.path());
        Self::at(&disks.find(|path| attribute(path, "serial").as_deref() == Some(serial))?)
    }

    /// The disk that the kernel has under this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::at(&Path::new(SYSFS).join(name))
    }

    /// The disk whose directory of sysfs this is.
    fn at(directory: &Path) -> Option<Self> {
        let numbers = attribute(directory, "dev")?;
        let (major, minor) = numbers.split_once(':')?;
        let sectors: u64 = attribute(directory, "size")?.parse().ok()?;
        let readonly = attribute(directory, "ro")? != "0";
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()?, bytes: sectors.checked_mul(SECTOR)?, readonly })
    }
}

fn attribute(directory: &Path, name: &str) -> Option<String> {
    fs::read_to_string(directory.join(name)).map(|text| text.trim().to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_found_by_their_serial() {
        let dir = tempfile::tempdir().unwrap();
        for (name, serial, numbers) in [("vda", "scratch", "254:0"), ("vdb", "disk0", "254:16"), ("vdc", "disk1", "broken")] {
            let disk = dir.path().join(name);
            fs::create_dir(&disk).unwrap();
            for (attribute, value) in [("serial", serial), ("dev", numbers), ("size", "2048"), ("ro", "1")] {
                fs::write(disk.join(attribute), format!("{value}\n")).unwrap();
            }
        }
        let find = |serial| Disk::with_serial_below(dir.path(), serial);
        assert_eq!(find("disk0"), Some(Disk { major: 254, minor: 16, bytes: 1 << 20, readonly: true }));
        assert_eq!((find("disk1"), find("disk2")), (None, None));
        fs::remove_file(dir.path().join("vdb/size")).unwrap();
        assert_eq!(find("disk0"), None, "of a size that nobody knows");
    }
}
