//! The agent's own world: a tmpfs as root, and the kernel's file systems in it.

use crate::{boot::console, containers::cgroup};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sys::stat::Mode,
    unistd::{chdir, chroot},
};
use std::{fs, io, os::fd::OwnedFd, os::unix::fs::symlink, path::Path};
use thiserror::Error;

/// Why the agent's world could not be made.
#[derive(Debug, Error)]
pub enum MountError {
    /// A file system.
    #[error("cannot mount {fs} on {target}: {source}")]
    Mount {
        /// Its type.
        fs: &'static str,
        /// Where.
        target: String,
        /// The cause.
        source: Errno,
    },
    /// A directory or file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The way to the new root.
    #[error("cannot move to a tmpfs root: {0}")]
    Root(#[source] Errno),
}

const COMMON: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What is mounted, in this order: type, target, flags, data.
const WORLD: &[(&str, &str, MsFlags, &str)] = &[
    ("proc", "/proc", COMMON, ""),
    ("sysfs", "/sys", COMMON, ""),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0755"),
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", COMMON, "mode=1777"),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
    ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("cgroup2", cgroup::ROOT, COMMON, ""),
];

/// Leaves the initramfs for a tmpfs: `pivot_root` refuses to leave the initial root, and every container needs it. Gives a
/// descriptor of the old root, for the kernel modules in it.
pub fn move_to_tmpfs_root() -> Result<OwnedFd, MountError> {
    let old = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(MountError::Root)?;
    let old = console::above_stdio(old).map_err(|source| MountError::Io { path: "/".into(), source })?;
    make_dir("/newroot")?;
    // Bundles and state live here; layers and scratch have their own file system.
    mount_fs("tmpfs", "/newroot", MsFlags::MS_NOSUID, "mode=0755,size=64m")?;
    for dir in ["proc", "sys", "dev", "run", "tmp"] {
        make_dir(&format!("/newroot/{dir}"))?;
    }
    chdir("/newroot").map_err(MountError::Root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(MountError::Root)?;
    chroot(".").map_err(MountError::Root)?;
    chdir("/").map_err(MountError::Root)?;
    Ok(old)
}

/// Mounts the kernel's file systems and switches on the cgroup controllers that containers use.
pub fn mount_world() -> Result<(), MountError> {
    for (fs, target, flags, data) in WORLD {
        make_dir(target)?;
        mount_fs(fs, target, *flags, data)?;
    }
    // devtmpfs knows no symbolic links.
    for (link, target) in [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "/proc/self/fd/0")] {
        let _ = symlink(target, link);
    }
    let containers = format!("{}/{}", cgroup::ROOT, cgroup::PARENT);
    make_dir(&containers)?;
    enable_controllers(cgroup::ROOT);
    enable_controllers(&containers);
    Ok(())
}

/// Mounts what holds the firmware's event log; only a machine with a TPM has one.
pub fn mount_securityfs() -> Result<(), MountError> {
    mount_fs("securityfs", "/sys/kernel/security", COMMON.union(MsFlags::MS_RDONLY), "")
}

/// Mounts what holds the kernel's interface to reports of an enclave; the place is there once its module is loaded.
pub fn mount_configfs() -> Result<(), MountError> {
    mount_fs("configfs", "/sys/kernel/config", COMMON, "")
}

/// Gives children of `cgroup` every controller that the kernel has; one that is missing is missed when a limit asks for it.
fn enable_controllers(cgroup: &str) {
    let available = fs::read_to_string(format!("{cgroup}/cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        let _ = fs::write(format!("{cgroup}/cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn mount_fs(fs: &'static str, target: &str, flags: MsFlags, data: &str) -> Result<(), MountError> {
    mount(Some(fs), target, Some(fs), flags, Some(data)).map_err(|source| MountError::Mount { fs, target: target.to_owned(), source })
}

fn make_dir(path: &str) -> Result<(), MountError> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|source| MountError::Io { path: path.to_owned(), source })
}
