//! Unpacked layers, each once per machine. A layer is known by the chain of blobs up to it, so that one is used again only over the
//! layers that it was unpacked over.

use super::{
    PullError,
    source::{BlobReader, Source, both},
};
use crate::{scratch::Scratch, stages::Stages};
use futures_util::{StreamExt, TryStreamExt, stream};
use image::{
    layer::{self, UnpackStats},
    ocicrypt::LayerKey,
    plan::LayerPlan,
    spool,
    unpack::{self, Limits},
};
use log::{debug, warn};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};
use tokio::task::spawn_blocking;

/// Layers that are fetched at the same time.
const PARALLEL: usize = 4;

/// The layers on scratch.
#[derive(Default)]
pub struct LayerStore {
    /// Two containers of one image do not unpack it twice, nor see it half unpacked.
    turn: tokio::sync::Mutex<()>,
}

/// A layer that is being unpacked; its directory goes unless it is kept.
struct Fresh {
    directory: PathBuf,
    stats: UnpackStats,
    kept: bool,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.directory);
        }
    }
}

fn remove(directory: &Path) {
    if let Err(e) = fs::remove_dir_all(directory)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        warn!(path:% = directory.display(); "remove unpacked layer: {e}");
    }
}

impl LayerStore {
    /// The directories of the planned layers, the lowest first; what is not there yet is fetched and unpacked.
    pub async fn unpack(
        &self,
        source: &Source,
        plans: &[LayerPlan],
        keys: Vec<Option<LayerKey>>,
        scratch: &Scratch,
        stages: &mut Stages,
    ) -> Result<Vec<PathBuf>, PullError> {
        let _turn = self.turn.lock().await;
        let (started, fetched) = (Instant::now(), Mutex::new(Instant::now()));
        let directories: Vec<PathBuf> = chain_names(plans).iter().map(|name| scratch.layers().join(name)).collect();
        let jobs = plans.iter().zip(keys).zip(&directories);
        let jobs = jobs.map(|((plan, key), directory)| one(source, plan.clone(), key, directory, scratch, &fetched));
        // Dropping the stream on an error drops what was unpacked, and with it its directories.
        let mut layers: Vec<Option<Fresh>> = stream::iter(jobs).buffered(PARALLEL).try_collect().await?;
        let all_fetched = *fetched.lock().unwrap_or_else(PoisonError::into_inner);
        stages.add("fetch", all_fetched.saturating_duration_since(started));
        settle(&directories, &mut layers)?;
        stages.add("unpack", Instant::now().saturating_duration_since(all_fetched));
        stages.restart();
        Ok(directories)
    }
}

/// One layer; `None` if it is there already.
async fn one(
    source: &Source,
    plan: LayerPlan,
    key: Option<LayerKey>,
    directory: &Path,
    scratch: &Scratch,
    fetched: &Mutex<Instant>,
) -> Result<Option<Fresh>, PullError> {
    if directory.is_dir() {
        debug!(layer:% = plan.descriptor.digest; "layer is here already");
        return Ok(None);
    }
    let file = spooled(source, &plan, key.as_ref(), scratch).await?;
    *fetched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    let digest = plan.descriptor.digest.clone();
    let fresh = directory.with_extension("new");
    let unpacking = spawn_blocking(move || {
        fs::create_dir(&fresh).map_err(|e| e.to_string())?;
        // On an error this removes what was unpacked so far.
        let mut layer = Fresh { directory: fresh, stats: UnpackStats::default(), kept: false };
        layer.stats = layer::unpack_layer(file, &plan, key.as_ref(), &layer.directory, &Limits::default()).map_err(|e| e.to_string())?;
        Ok::<_, String>(layer)
    });
    let unpacked = unpacking.await.unwrap_or_else(|e| Err(e.to_string()));
    unpacked.map(Some).map_err(|reason| source.invalid("layer", digest, reason))
}

/// The verified blob in a file without a name, from the host or else from the registry.
async fn spooled(source: &Source, plan: &LayerPlan, key: Option<&LayerKey>, scratch: &Scratch) -> Result<File, PullError> {
    let attempt = async |reader: Result<BlobReader, String>| -> Result<File, String> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(scratch.spool());
        let file = file.map_err(|e| format!("scratch: {e}"))?;
        spool::spool(reader?, plan, key, file).await.map_err(|e| e.to_string())
    };
    let descriptor = &plan.descriptor;
    let courier = match attempt(source.layer_from_courier(descriptor).await).await {
        Ok(file) => return Ok(file),
        Err(reason) => reason,
    };
    debug!(layer:% = descriptor.digest; "not from the host: {courier}");
    let registry = attempt(source.layer_from_registry(descriptor).await).await;
    registry.map_err(|e| source.failed("layer", &descriptor.digest, both(&courier, &e)))
}

/// Gives directories that a layer implied the look that they have below, then the layers their final names.
fn settle(directories: &[PathBuf], layers: &mut [Option<Fresh>]) -> Result<(), PullError> {
    if layers.iter().all(Option::is_none) {
        return Ok(());
    }
    let none = UnpackStats::default();
    let roots: Vec<(&Path, &[PathBuf])> = directories
        .iter()
        .zip(layers.iter())
        .map(|(directory, layer)| match layer {
            Some(fresh) => (fresh.directory.as_path(), fresh.stats.implied.as_slice()),
            None => (directory.as_path(), none.implied.as_slice()),
        })
        .collect();
    unpack::adopt_parents(&roots).map_err(|e| PullError::io("layers")(std::io::Error::other(e.to_string())))?;
    for (directory, layer) in directories.iter().zip(layers.iter_mut()) {
        if let Some(fresh) = layer {
            fs::rename(&fresh.directory, directory).map_err(PullError::io("layer directory"))?;
            fresh.kept = true;
        }
    }
    Ok(())
}

/// A name for each layer: the hash of the digests up to it.
fn chain_names(plans: &[LayerPlan]) -> Vec<String> {
    let mut chain = Sha256::new();
    let name = |plan: &LayerPlan| {
        chain.update(plan.descriptor.digest.to_string());
        chain.update(b"\n");
        hex::encode(chain.clone().finalize())
    };
    plans.iter().map(name).collect()
}
