//! A part of a directory that containers write to (`subPath` of an empty one, what is below a shared one). Whatever they have made of it
//! meanwhile, a link that leads out of it above all, the part is in it (CVE-2017-1002101 of kubelet): it is resolved within, and bound by the
//! descriptor that this gave.

use crate::containers::in_root::InRoot;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fstat},
    unistd::{Gid, Uid},
};
use policy::{Denial, Policy};
use protocol::api;
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Where parts are bound: not below the volumes, which are removed with all that is in them.
const PARTS: &str = "/run/cloister/parts";

/// A part that is bound. Dropping it takes the mount off; the directory keeps what is in it.
pub struct Part(PathBuf);

/// Which container has what of whose directory is the owner's to say, and a policy knows whole directories only.
pub fn admit(policy: &Policy, volume: &api::Volume) -> Result<(), Denial> {
    if policy.is_open() {
        return Ok(());
    }
    let asked = format!("part {} of a directory at {}", volume.path, volume.destination);
    let rule = "a sandbox with initdata has whole directories only".to_owned();
    Err(Denial { asked, rule, remedy: "mount the whole emptyDir, without subPath".to_owned() })
}

impl Part {
    /// Binds the volume's part of an empty directory, and makes it first where it is missing, as `whole` was made.
    pub fn of_empty(whole: &Path, volume: &api::Volume, number: u64) -> io::Result<Self> {
        let owner = (Uid::from_raw(volume.uid), Gid::from_raw(volume.gid));
        Self::bind(&InRoot::open(whole)?.make_directory(&volume.path, Mode::from_bits_truncate(volume.mode), owner)?, number)
    }

    /// Binds the file or directory that is there.
    pub fn found(whole: &Path, path: &str, number: u64) -> io::Result<Self> {
        Self::bind(&InRoot::open(whole)?.find(path)?, number)
    }

    fn bind(found: &OwnedFd, number: u64) -> io::Result<Self> {
        let place = Path::new(PARTS).join(number.to_string());
        fs::create_dir_all(PARTS)?;
        match SFlag::from_bits_truncate(fstat(found)?.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => fs::create_dir(&place)?,
            _ => drop(File::create_new(&place)?),
        }
        let source = format!("/proc/self/fd/{}", found.as_raw_fd());
        let mounted = mount(Some(source.as_str()), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        mounted.inspect_err(|_| drop(remove(&place)))?;
        Ok(Self(place))
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        &self.0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let taken = umount2(&self.0, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from);
        // Of the place alone: were it still a mount, this would fail.
        if let Err(error) = taken.and_then(|()| remove(&self.0)) {
            log::warn!(path:% = self.0.display(); "part of a directory: {error}");
        }
    }
}

/// Of the place where a part was, which is empty.
fn remove(place: &Path) -> io::Result<()> {
    if place.is_dir() { fs::remove_dir(place) } else { fs::remove_file(place) }
}
