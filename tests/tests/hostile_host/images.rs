//! Images that the policy does not list, that have nothing in them, or that are not what they are called.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use ttrpc::Code;

use crate::bed::HostileBed;
use crate::host::{done, refused, valid};

pub fn other_images_and_other_bytes_are_refused(bed: &HostileBed) -> Result<()> {
    let (closed, open, images) = (bed.closed()?, bed.open()?, &bed.images);
    bed.runtime.block_on(async {
        // One that verifies: the policy is what stops it.
        refused(closed.create("other", &images.other, &valid()).await?, Code::PERMISSION_DENIED, "no [[container]] has this digest")?;
        done(open.create("other", &images.other, &valid()).await?).context("another image without the check")?;
        done(open.delete("other").await?)?;

        // The host serves other bytes under a digest: with the guest's own check of it neither door opens.
        bed.lie(Some((&images.app, &images.other)));
        for host in [closed, open] {
            let message = host.create("swapped", &images.app, &valid()).await?.err().context("another image's bytes were taken")?;
            ensure!(message.message().contains(&images.app[..20]), "not about the digest: {}", message.message());
        }
        bed.lie(None);
        let nobody = "sha256:".to_owned() + &"0".repeat(64);
        ensure!(closed.create("nobody", &nobody, &valid()).await?.is_err(), "a digest that nobody has");
        refused(closed.create("path", "sha256:../../x", &valid()).await?, Code::INVALID_ARGUMENT, "image_digest_hint")?;

        // Without a layer there is an empty root, and nothing of the guest's own in its place.
        let mut spec = valid();
        spec["process"]["env"] = json!([]);
        for host in [closed, open] {
            if host.create("layerless", &images.layerless, &spec).await?.is_ok() {
                ensure!(host.start("layerless").await?.is_err(), "an image without a file ran something");
                done(host.delete("layerless").await?)?;
            }
            refused(host.start("layerless").await?, Code::NOT_FOUND, "layerless")?;
        }
        anyhow::Ok(())
    })
}
