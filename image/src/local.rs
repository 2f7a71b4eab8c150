//! An image of a layout, unpacked as a guest unpacks it: to see what a guest would see, and to measure what it takes.

use crate::{
    digest::Digest,
    layer::{self, LayerError},
    layout::{Layout, LayoutError},
    ocicrypt::{Kek, LayerKey, OcicryptError},
    plan::{self, LayerPlan, PlanError},
    spool::{self, SpoolError},
    unpack::{self, Limits, Stats, UnpackError, Whiteouts},
};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;
use tokio::{sync::Semaphore, task::JoinSet};

/// Layers that are unpacked at the same time.
const PARALLEL: usize = 4;

/// Why an image was not unpacked. What is in the directory is of unknown state then.
#[derive(Debug, Error)]
pub enum LocalError {
    /// The layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Manifest and config.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An encrypted layer.
    #[error("layer {layer}: {source}")]
    Key {
        /// Its digest.
        layer: Digest,
        /// What is wrong.
        source: OcicryptError,
    },
    /// Encrypted, and no key was given.
    #[error("layer {layer} is encrypted with key {key}: give that key")]
    NoKey {
        /// Its digest.
        layer: Digest,
        /// The key's name.
        key: String,
    },
    /// The first pass.
    #[error("layer {layer}: {source}")]
    Spool {
        /// Its digest.
        layer: Digest,
        /// What is wrong.
        source: SpoolError,
    },
    /// The second.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Its digest.
        layer: Digest,
        /// What is wrong.
        source: LayerError,
    },
    /// What layers imply.
    #[error(transparent)]
    Parents(#[from] UnpackError),
    /// The directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A panic.
    #[error("a thread ended without its result")]
    Aborted,
}

/// Unpacks the image `tag` of `layout` into `<target>/0`, `<target>/1`, … for its layers, the lowest first, and gives those paths: the
/// directories of an overlay. `target` is an existing directory without entries of those names.
pub async fn unpack_image(
    layout: &Layout,
    tag: Option<&str>,
    kek: Option<&Kek>,
    target: &Path,
    limits: &Limits,
) -> Result<Vec<PathBuf>, LocalError> {
    let image = layout.image(tag)?;
    let plans = plan::plan_layers(&image.manifest, &image.config, plan::Mixed::Allowed)?;
    let places = Arc::new(Semaphore::new(PARALLEL));
    let mut jobs = JoinSet::new();
    for (number, plan) in plans.into_iter().enumerate() {
        let key = open_key(&plan, kek)?;
        let blob = layout.blob(&plan.descriptor.digest)?;
        let limits = Limits { whiteouts: Whiteouts::of_layer(number), ..limits.clone() };
        let (target, places) = (target.to_owned(), places.clone());
        jobs.spawn(async move {
            let _place = places.acquire().await;
            one_layer(number, plan, key, blob, &target, limits).await
        });
    }
    let mut layers = Vec::new();
    while let Some(done) = jobs.join_next().await {
        layers.push(done.map_err(|_| LocalError::Aborted)??);
    }
    layers.sort_by_key(|(number, ..)| *number);
    let implied: Vec<(&Path, &[PathBuf])> = layers.iter().map(|(_, root, stats)| (root.as_path(), stats.implied.as_slice())).collect();
    unpack::adopt_parents(&implied)?;
    // overlayfs does not look for the mark of opaqueness on a layer's own root.
    let first = layers.iter().rposition(|(.., stats)| stats.opaque_root).unwrap_or(0);
    Ok(layers.split_off(first).into_iter().map(|(_, root, _)| root).collect())
}

async fn one_layer(
    number: usize,
    plan: LayerPlan,
    key: Option<LayerKey>,
    blob: File,
    target: &Path,
    limits: Limits,
) -> Result<(usize, PathBuf, Stats), LocalError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| LocalError::Io { path, source }
    };
    let digest = plan.descriptor.digest;
    let file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(target);
    let spooled = spool::spool(tokio::fs::File::from_std(blob), &plan, key.as_ref(), file.map_err(io_error(target))?).await;
    let file = spooled.map_err(|source| LocalError::Spool { layer: digest, source })?;
    let root = target.join(number.to_string());
    fs::create_dir(&root).map_err(io_error(&root))?;
    let unpacked = tokio::task::spawn_blocking(move || {
        let unpacked = layer::unpack_layer(file, &plan, key.as_ref(), &root, &limits);
        let stats = unpacked.map_err(|source| LocalError::Layer { layer: digest, source })?;
        Ok((number, root, stats))
    });
    unpacked.await.map_err(|_| LocalError::Aborted)?
}

fn open_key(plan: &LayerPlan, kek: Option<&Kek>) -> Result<Option<LayerKey>, LocalError> {
    let layer = plan.descriptor.digest;
    let Some(envelope) = &plan.envelope else { return Ok(None) };
    let Some(packet) = envelope.packets().first() else { return Ok(None) };
    let kek = kek.ok_or_else(|| LocalError::NoKey { layer, key: packet.key_id().to_owned() })?;
    envelope.open(packet, kek).map(Some).map_err(|source| LocalError::Key { layer, source })
}
