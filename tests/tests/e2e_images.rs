//! Images as kubelet has them pulled, by the CRI: an encrypted one with manifest and config alone, where the runtimes of a node have a
//! snapshotter each. No VM.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::oci::{Image, Layout};
use tests::{runner, tests};

fn main() -> ExitCode {
    // 1.6 has no snapshotter for a single runtime. One bed after the other: the versions do not share one.
    let codes = ["1.7", "2"].map(|version| {
        let setup = Setup { name: &format!("j{version}"), containerd: version };
        runner::main_with(|| Bed::start_as_installed(&setup), 1, tests![an_annotation_chooses_the_snapshotter])
    });
    codes.into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// A node whose runtimes have a snapshotter each. Kubelet does not say which runtime it pulls for; the pod's annotation does.
fn an_annotation_chooses_the_snapshotter(bed: &Bed) -> Result<()> {
    let image = Image::busybox("true")?.with_file("srv/sealed", "decrypted inside\n");
    let layout = bed.encrypt(&image, "sealed", &bed.initdata(""))?;
    let sealed = bed.registry.push(&layout, "sealed", "1")?;
    bed.cri()?.pull_for(&sealed, [("io.containerd.cri.runtime-handler".to_owned(), "cloister".to_owned())].into())?;
    only_what_the_node_needs_was_fetched(bed, &layout)?;
    ensure!(snapshots(bed)?.len() == 2, "{:?}", snapshots(bed)?);
    bed.cri()?.remove_image(&sealed)?;
    ensure!(snapshots(bed)?.is_empty(), "{:?}", snapshots(bed)?);

    // Without it the node would unpack as for any runtime: it has no key, and says so instead of running something else.
    let refused = bed.cri()?.pull(&sealed).err().context("the node has unpacked an encrypted image")?.to_string();
    ensure!(refused.contains("failed to pull and unpack image"), "{refused}");
    let plain = bed.registry.push(&bed.layout(&image, "plain")?, "plain", "1")?;
    bed.cri()?.pull(&plain)?;
    ensure!(snapshots(bed)?.is_empty(), "{:?}", snapshots(bed)?);
    bed.cri()?.remove_image(&plain)
}

fn only_what_the_node_needs_was_fetched(bed: &Bed, layout: &Layout) -> Result<()> {
    let digests = layout.digests()?;
    for fetched in [&digests.manifest, &digests.config] {
        ensure!(bed.containerd().blob(fetched)?.exists(), "{fetched} was not fetched");
    }
    for layer in &digests.layers {
        ensure!(!bed.containerd().blob(layer)?.exists(), "layer {layer} was fetched");
    }
    Ok(())
}

/// All of the snapshotter's records, whatever namespace they are of.
fn snapshots(bed: &Bed) -> Result<Vec<String>> {
    let records = bed.base().join("snap/records");
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string());
    fs::read_dir(&records)?.flatten().map(read).collect()
}
