//! From the kernel's hand-over to a machine in which containers can run.

pub mod clock;
pub mod cmdline;
pub mod console;
pub mod marks;
pub mod modules;
mod mounts;
pub mod power;

use crate::logger;
use anyhow::{Context, Result};
use modules::{Modules, Stage};
use std::sync::Arc;

/// Makes the agent's world: root, mounts, log, the modules that lead to the host, loopback. Runs before any thread exists.
pub fn prepare() -> Result<Arc<Modules>> {
    marks::mark("init");
    let initramfs = mounts::move_to_tmpfs_root()?;
    mounts::mount_world()?;
    console::occupy_stdio().context("standard descriptors")?;
    logger::install(cmdline::log_level());
    marks::mark("mounts");
    let modules = Modules::open(&initramfs)?;
    modules.load(Stage::Boot)?;
    marks::mark("modules");
    raise_loopback().context("loopback")?;
    Ok(Arc::new(modules))
}

/// `lo` up: containers share the guest's network, and 127.0.0.1 is part of what they expect.
fn raise_loopback() -> std::io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: socket(2) takes no pointers; the result is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: SIOCSIFFLAGS reads one ifreq (netdevice(7)), which lives until the call returns.
    let done = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &request) };
    let result = if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: the descriptor is ours and not used after this.
    unsafe { libc::close(socket) };
    result
}
