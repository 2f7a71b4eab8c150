//! An image that is larger than its guest's memory: does it start?

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::ctr::Run;
use crate::oci::{Entry, Image, LayerBytes, busybox_layer, tar};

/// Runs an image of `bytes`, at least half as much again as its guest has memory, within `limit`.
pub fn starts(bed: &Bed, bytes: u64, limit: Duration) -> Result<()> {
    let large = LayerBytes::streamed(&[("srv/large", bytes)])?;
    ensure!(
        large.compressed.len() as u64 <= bytes / 16,
        "{} bytes compressed: this test would be about the network",
        large.compressed.len()
    );
    let layers = [
        LayerBytes::honest(&tar(&busybox_layer()?)?)?,
        large,
        LayerBytes::honest(&tar(&[Entry::File("srv/end", 0o644, b"end\n".to_vec())])?)?,
    ];
    let image = Image::busybox("grep MemTotal /proc/meminfo; stat -c %s /srv/large; cat /srv/end")?;
    let layout = image.write_layers(&bed.base().join("images/large"), "1", &layers)?;
    let (reference, id) = (bed.provide(&layout, "large")?, bed.id("large"));
    let finished = bed.ctr().start(&Run { image: &reference, id: &id, ..Run::default() })?.finish(limit)?;
    let text = finished.text();
    let memory = text.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).with_context(|| format!("{finished:?}"))?;
    ensure!(memory << 10 <= bytes / 3 * 2, "the guest has {memory} KiB, so the image is not larger than its memory");
    ensure!(text.ends_with(&format!("{bytes}\nend\n")), "{finished:?}");
    bed.nothing_of(&id)
}
