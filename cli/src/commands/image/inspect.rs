//! `cloister image inspect`.

use crate::{
    input, output,
    places::{Parts, Place, RegistryArgs},
};
use anyhow::{Context, Result};
use image::{
    encrypt::key_ids,
    plan::{Mixed, plan_layers},
};
use serde::Serialize;

/// Show an image: its layers, how each is encrypted and for whom
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// docker://REGISTRY/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE
    #[arg(value_name = "IMAGE")]
    image: Place,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Description {
    digest: String,
    arguments: Vec<String>,
    user: String,
    /// Whom the layers are encrypted for: names of the broker's keys, and `jwe`.
    keys: Vec<String>,
    layers: Vec<LayerDescription>,
}

#[derive(Debug, Serialize)]
struct LayerDescription {
    digest: String,
    media_type: String,
    size: u64,
    encrypted: bool,
    diff_id: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let description = input::block_on(describe(args)).with_context(|| args.image.to_string())?;
    if args.json {
        return output::json(&description);
    }
    let user = if description.user.is_empty() { "root" } else { &description.user };
    let mut rows = vec![
        vec!["manifest".to_owned(), description.digest.clone()],
        vec!["command".to_owned(), format!("{:?}", description.arguments)],
        vec!["user".to_owned(), user.to_owned()],
    ];
    rows.extend(description.keys.iter().map(|key| vec!["key".to_owned(), key.clone()]));
    rows.extend(description.layers.iter().map(|layer| {
        let state = if layer.encrypted { "encrypted" } else { "plain" };
        vec!["layer".to_owned(), layer.digest.clone(), output::size(layer.size), state.to_owned()]
    }));
    output::table(&rows)
}

async fn describe(args: &Args) -> Result<Description> {
    let local = args.image.fetch(&args.registry, Parts::Documents).await?;
    let image = local.layout.image(local.tag.as_deref())?;
    let layer = |plan: image::LayerPlan| LayerDescription {
        digest: plan.descriptor.digest.to_string(),
        media_type: plan.descriptor.media_type,
        size: plan.descriptor.size,
        encrypted: plan.envelope.is_some(),
        diff_id: plan.diff_id.to_string(),
    };
    Ok(Description {
        digest: image.descriptor.digest.to_string(),
        arguments: image.config.arguments(),
        user: image.config.config.user.clone(),
        keys: key_ids(&image.manifest, &image.config)?,
        layers: plan_layers(&image.manifest, &image.config, Mixed::Allowed)?.into_iter().map(layer).collect(),
    })
}
