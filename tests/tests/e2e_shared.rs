//! What pods of one node share: the ciphertext of their image, downloaded once.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::search::search;
use tests::{crowd, place, runner, tests};

/// More than processors, and few enough to boot in a test; `make soak` and `make bench` have as many as the memory holds.
const PODS: usize = 4;

fn main() -> ExitCode {
    let setup = Setup { name: "shr", containerd: place::CONTAINERD_NEWEST };
    runner::main_with(|| Bed::start_with_cri(&setup), 1, tests![several_pods_are_one_download])
}

/// Guests of several shims want the same encrypted layers at the same time; containerd has manifest and config only.
fn several_pods_are_one_download(bed: &Bed) -> Result<()> {
    let crowd = crowd::run(bed, "shared", PODS)?;
    for layer in &crowd.layers {
        let cached = bed.configuration.cache.join(layer.strip_prefix("sha256:").context(layer.clone())?);
        ensure!(fs::read(&cached)? == fs::read(bed.registry.blob(layer)?)?, "{} is not what the registry has", cached.display());
    }
    let unfinished: Vec<_> =
        fs::read_dir(&bed.configuration.cache)?.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect();
    ensure!(unfinished.is_empty(), "left unfinished: {unfinished:?}");
    let found = search(&[&bed.configuration.cache], crowd::SECRET.as_bytes())?;
    ensure!(found.files.is_empty() && found.searched >= 3, "{found:?}");
    Ok(())
}
