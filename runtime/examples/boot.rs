//! Boots one sandbox, shows what its guest says, and ends it: `boot <vmlinux> <initramfs> [seconds to stay]`.
//!
//! For whoever works on the guest: no containerd, no shim. Other settings come from the configuration file.

use runtime::{
    config::Config,
    sandbox::{Sandbox, SandboxSpec},
};
use std::{error::Error, path::PathBuf, time::Duration};
use tokio::time::Instant;

struct ToStderr(Instant);

impl log::Log for ToStderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &log::Record<'_>) {
        let source = record.key_values().get("source".into()).map_or(String::new(), |s| format!("{s}: "));
        eprintln!("{:8.3} {:5} {source}{}", self.0.elapsed().as_secs_f64(), record.level(), record.args());
    }

    fn flush(&self) {}
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(kernel), Some(initramfs)) = (arguments.next(), arguments.next()) else {
        return Err("usage: boot <vmlinux> <initramfs> [seconds to stay]".into());
    };
    let stay = arguments.next().and_then(|s| s.to_str()?.parse().ok()).unwrap_or(0);
    log::set_boxed_logger(Box::new(ToStderr(Instant::now())))?;
    log::set_max_level(log::LevelFilter::Debug);

    let mut config = Config::load()?;
    config.guest.kernel = PathBuf::from(kernel);
    config.guest.initramfs = PathBuf::from(initramfs);
    let id = format!("boot-{}", std::process::id());
    let sandbox = Sandbox::boot(&config, SandboxSpec { id, hostname: "boot".into(), ..SandboxSpec::default() }).await?;
    let info = sandbox.agent().guest_info(ttrpc::context::Context::default(), &protocol::api::Empty::new()).await?;
    log::info!("agent {} on Linux {}: {} KiB", info.agent_version, info.kernel_version, info.agent_rss_kib);
    for mark in &info.boot {
        log::info!("{:8.3} s since the kernel's start: {}", mark.micros as f64 / 1e6, mark.name);
    }
    let ended = tokio::time::timeout(Duration::from_secs(stay), sandbox.exited()).await;
    if let Ok(exit) = ended {
        log::warn!("{exit}");
    }
    sandbox.stop().await?;
    Ok(())
}
