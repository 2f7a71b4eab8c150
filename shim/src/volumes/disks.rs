//! The disks of a container: block devices of its spec, and mounts that are disks. Below /dev each is a device; elsewhere the guest mounts it.
//!
//! A VM that is made for its container has them as disks of its own. A pod's VM runs before its containers are known: it is served theirs.

use super::{
    Plan, VolumeError,
    plan::{OWN, shortest},
    probe,
    server::DiskFile,
};
use crate::bundle::{Bundle, Device};
use nix::sys::stat::{major, minor};
use protobuf::EnumOrUnknown;
use protocol::{
    api::{self, VolumeKind},
    nbd::SECTOR,
};
use runtime::vmm;
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A disk that a container is to have.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    destination: String,
    /// On the host, without a link.
    path: PathBuf,
    /// Not a file.
    device: bool,
    readonly: bool,
}

/// The disks of a container.
pub fn disks(bundle: &Bundle) -> Result<Vec<Disk>, VolumeError> {
    let mut found = Vec::new();
    for mount in bundle.mounts().iter().filter(|mount| mount.is_bind()) {
        let place = shortest(&mount.destination).filter(|path| !OWN.contains(&path.as_str()));
        if let Some(destination) = place.filter(|path| probe::is_disk(mount, path)) {
            found.push(Disk::find(destination, &mount.source, mount.is_readonly())?);
        }
    }
    // A privileged container's list has every disk of the host; it gets those of its guest.
    for device in bundle.devices().iter().filter(|device| device.kind == "b" && !bundle.is_privileged()) {
        let Some(destination) = shortest(&device.path).filter(|path| !OWN.contains(&path.as_str())) else {
            let rule = "no place for a disk: give it an absolute path of its own, without '..' (devicePath)".to_owned();
            return Err(VolumeError::Refused { source_path: by_numbers(device), destination: device.path.clone(), rule });
        };
        let disk = Disk::find(destination, &by_numbers(device), bundle.is_readonly(device))?;
        disk.has_numbers(device)?;
        found.push(disk);
    }
    Ok(found)
}

/// Where the kernel has a device; the spec knows its numbers only.
fn by_numbers(device: &Device) -> PathBuf {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{}:{}/uevent", device.major, device.minor)).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).unwrap_or(&device.path);
    Path::new("/dev").join(name)
}

impl Disk {
    fn find(destination: String, source: &Path, readonly: bool) -> Result<Self, VolumeError> {
        let failed = |source_path: &Path, source| VolumeError::Read {
            source_path: source_path.to_owned(),
            destination: destination.clone(),
            source,
        };
        let path = fs::canonicalize(source).map_err(|error| failed(source, error))?;
        let device = fs::metadata(&path).map_err(|error| failed(&path, error))?.file_type().is_block_device();
        Ok(Self { destination, path, device, readonly })
    }

    /// Names in /dev may lie.
    fn has_numbers(&self, device: &Device) -> Result<(), VolumeError> {
        let numbers = fs::metadata(&self.path).map(|found| (found.rdev(), self.device));
        let right = numbers.is_ok_and(|(rdev, block)| block && (major(rdev) as i64, minor(rdev) as i64) == (device.major, device.minor));
        let rule = format!("not the block device {}:{} of the spec", device.major, device.minor);
        if right { Ok(()) } else { Err(self.refused(rule)) }
    }

    fn refused(&self, rule: String) -> VolumeError {
        VolumeError::Refused { source_path: self.path.clone(), destination: self.destination.clone(), rule }
    }

    fn volume(&self, kind: VolumeKind, name: String, size: u64) -> api::Volume {
        let (destination, readonly) = (self.destination.clone(), self.readonly);
        api::Volume { destination, kind: EnumOrUnknown::new(kind), readonly, name, size, ..Default::default() }
    }

    /// As the `number`th disk of the container's own VM.
    pub fn of_vm(self, number: usize) -> (Plan, vmm::Disk) {
        let serial = format!("disk{number}");
        let plan = Plan { volume: self.volume(VolumeKind::DISK, serial.clone(), 0), source: self.path.clone(), disk: None };
        (plan, vmm::Disk { path: self.path, device: self.device, readonly: self.readonly, serial })
    }

    /// As one that a running VM is served: it is opened here, once.
    pub fn served(self) -> Result<Plan, VolumeError> {
        let opened = DiskFile::open(&self.path, self.readonly);
        let failed = |source| VolumeError::Read { source_path: self.path.clone(), destination: self.destination.clone(), source };
        let disk = opened.map_err(failed)?;
        if disk.bytes() == 0 || !disk.bytes().is_multiple_of(SECTOR) {
            return Err(failed(io::Error::other(format!("{} bytes, which are no disk: whole sectors of {SECTOR}", disk.bytes()))));
        }
        let volume = self.volume(VolumeKind::SERVED_DISK, disk.name().to_owned(), disk.bytes());
        Ok(Plan { volume, source: self.path.clone(), disk: Some(Arc::new(disk)) })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::plan, *};
    use serde_json::{Value, json};

    fn bundle(dir: &Path, spec: &Value) -> Bundle {
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        Bundle::read(dir).unwrap()
    }

    #[test]
    fn disks_are_bound_below_dev() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, text) = (dir.path().join("raw.img"), dir.path().join("text"));
        fs::File::create(&raw).unwrap().set_len(1 << 20).unwrap();
        fs::write(&text, "not a disk").unwrap();
        let mounts = json!([
            {"destination": "/dev/data", "type": "bind", "source": raw, "options": ["rbind", "ro"]},
            {"destination": "/dev/text", "type": "bind", "source": text, "options": ["rbind", "ro"]},
            {"destination": "/data", "type": "bind", "source": raw, "options": ["rbind", "ro"]},
        ]);
        let bundle = bundle(dir.path(), &json!({"mounts": mounts}));
        let (own, disk) = disks(&bundle).unwrap().pop().unwrap().of_vm(0);
        assert_eq!((own.volume.destination.as_str(), own.volume.name.as_str()), ("/dev/data", "disk0"));
        assert_eq!((disk.serial.as_str(), disk.readonly, disk.device), ("disk0", true, false));
        let mut served = disks(&bundle).unwrap();
        assert_eq!(served.len(), 1);
        let served = served.remove(0).served().unwrap();
        assert_eq!((served.volume.size, served.volume.readonly, served.disk.unwrap().bytes()), (1 << 20, true, 1 << 20));
        protocol::bounds::Bounded::check(&served.volume).unwrap();
        assert_eq!(plan(bundle.mounts(), &[]).unwrap().len(), 2, "the others are files");
        // What has changed since.
        let disk = disks(&bundle).unwrap().remove(0);
        fs::File::options().write(true).open(&raw).unwrap().set_len(513).unwrap();
        let error = disk.served().unwrap_err().to_string();
        assert!(error.contains("raw.img") && error.contains("whole sectors") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_device_is_the_one_with_its_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let device = json!({"path": "/dev/null", "type": "b", "major": 4000, "minor": 3});
        let bundle = bundle(dir.path(), &json!({"linux": {"devices": [device]}}));
        let error = disks(&bundle).unwrap_err().to_string();
        assert!(error.contains("/dev/null") && error.contains("4000:3"), "a character device: {error}");
    }

    #[test]
    fn a_disk_without_a_place_of_its_own_is_refused_with_what_to_change() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/dev/../data", "dev/x", "/dev", "/proc"] {
            let device = json!({"path": path, "type": "b", "major": 7, "minor": 0});
            let error = disks(&bundle(dir.path(), &json!({"linux": {"devices": [device]}}))).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains("devicePath") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_block_volume_is_as_writable_as_its_rule_says() {
        let dir = tempfile::tempdir().unwrap();
        let device = Device { path: "/dev/xvda".into(), kind: "b".into(), major: 7, minor: 1 };
        for (rules, readonly) in [
            (json!([]), false),
            (json!([{"allow": true, "type": "b", "major": 7, "minor": 1, "access": "r"}]), true),
            (json!([{"allow": true, "type": "b", "major": 7, "minor": 1, "access": "mrw"}]), false),
            (json!([{"allow": true, "type": "b", "major": 7, "minor": 2, "access": "r"}]), false),
            (json!([{"allow": true, "type": "c", "major": 7, "minor": 1, "access": "r"}]), false),
            (json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 7, "minor": 1, "access": "rm"}]), true),
        ] {
            let bundle = bundle(dir.path(), &json!({"linux": {"resources": {"devices": rules}}}));
            assert_eq!(bundle.is_readonly(&device), readonly, "{rules}");
        }
    }
}
