//! What guests of one node share: the ciphertext of their image, downloaded once.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, POLICY, Setup};
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::search::search;
use tests::{place, runner, tests};

/// More than processors, and few enough to boot in a test.
const PODS: usize = 3;

fn main() -> ExitCode {
    runner::main(&Setup { name: "shr", containerd: place::CONTAINERD_NEWEST }, 1, tests![several_pods_are_one_download])
}

/// Guests of several shims want the same encrypted layers at the same time; containerd has manifest and config only.
fn several_pods_are_one_download(bed: &Bed) -> Result<()> {
    let secret = "what every one of them reads and the node does not";
    // Noise, so that the download is long enough for the others to come while it lasts.
    let noise: Vec<u8> = (0..8_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761).rotate_left(at % 31) >> 24) as u8).collect();
    let image = Image::busybox("cat /srv/secret; wc -c < /srv/noise")?.with_file("srv/secret", secret).with_file("srv/noise", noise);
    let initdata = bed.initdata(POLICY);
    let layout = bed.encrypt(&image, "shared", &initdata)?;
    fs::remove_dir_all(layout.directory.with_file_name("shared"))?;
    let reference = bed.registry.push(&layout, "shared", "1")?;
    bed.ctr().pull_lazily(&reference)?;
    let layers = layout.digests()?.layers;
    for layer in &layers {
        ensure!(!bed.containerd().blob(layer)?.exists(), "containerd has fetched {layer}: there is nothing to share");
    }

    let annotation = initdata.annotation()?;
    let ids: Vec<String> = (0..PODS).map(|_| bed.id("shared")).collect();
    let start = |id| bed.ctr().start(&Run { image: &reference, id, initdata: Some(&annotation), ..Run::default() });
    let running = ids.iter().map(|id| start(id)).collect::<Result<Vec<_>>>()?;
    for pod in running {
        let finished = pod.finish(BOOT)?.succeeded()?;
        ensure!(finished.text() == format!("{secret}{}\n", 8 << 20), "{finished:?}");
    }
    for layer in &layers {
        let requests = bed.registry.downloads(layer)?;
        ensure!(requests.len() == 1, "{layer} was asked for {} times: {requests:#?}", requests.len());
        let cached = bed.configuration.cache.join(layer.strip_prefix("sha256:").context(layer.clone())?);
        ensure!(fs::read(&cached)? == fs::read(bed.registry.blob(layer)?)?, "{} is not what the registry has", cached.display());
    }
    let unfinished: Vec<_> =
        fs::read_dir(&bed.configuration.cache)?.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect();
    ensure!(unfinished.is_empty(), "left unfinished: {unfinished:?}");
    let found = search(&[&bed.configuration.cache], secret.as_bytes())?;
    ensure!(found.files.is_empty() && found.searched >= 3, "{found:?}");
    ids.iter().try_for_each(|id| bed.nothing_of(id))
}
