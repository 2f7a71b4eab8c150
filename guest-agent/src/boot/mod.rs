//! From the kernel's hand-over to a machine in which containers can run.

pub mod clock;
pub mod cmdline;
pub mod console;
pub mod marks;
pub mod modules;
pub mod mounts;
pub mod power;

use crate::{logger, network};
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
    network::raise_loopback().context("loopback")?;
    Ok(Arc::new(modules))
}
