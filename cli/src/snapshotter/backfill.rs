//! Plain images whose layers an encrypted one had first (`--unpack-plain`).
//!
//! containerd knows layers by what is in them, plain or encrypted. While an encrypted image is on the node, its layers count as present:
//! those that a plain image shares with it are neither fetched nor unpacked again, and nobody asks us. To Cloister that is all the same, but
//! a container of another runtime would begin without its base. So when a container, or a layer above, is about to be put on such layers,
//! they are unpacked here first: out of containerd's content store, or else out of the repository that the plain image was pulled from.
//! What is fetched is public to this node already: the plain image is on it.

use super::{
    images::{Images, Plain},
    store::{Link, Store},
};
use crate::places::RegistryArgs;
use anyhow::{Context, Result, anyhow, bail};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use image::{
    layer::unpack_layer,
    plan::LayerPlan,
    reference::Reference,
    registry::Registry,
    spool::spool,
    unpack::{Devices, Limits, Whiteouts, adopt_parents},
};
use runtime::courier::BlobSource;
use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex as Turn, time::timeout};

/// How long an answer to containerd may wait for layers. kubelet gives a container two minutes, and then asks again; and meanwhile containerd
/// cannot collect the garbage of this snapshotter. The work goes on.
const PATIENCE: Duration = Duration::from_secs(90);

/// The unpacking of one chain, for all who wait for it.
type Job = Shared<BoxFuture<'static, Result<(), String>>>;

/// Unpacks what was promised.
pub(crate) struct Backfill {
    store: Arc<Store>,
    images: Arc<Images>,
    registry: RegistryArgs,
    /// By the name of the chain's topmost layer.
    running: Mutex<HashMap<String, Job>>,
    /// Chains share layers, and a layer is unpacked once.
    turn: Turn<()>,
}

impl Backfill {
    pub(crate) fn new(store: Arc<Store>, images: Arc<Images>, registry: RegistryArgs) -> Arc<Self> {
        Arc::new(Self { store, images, registry, running: Mutex::default(), turn: Turn::default() })
    }

    /// Has the layers up to `parent` unpacked, if a plain image has them, before the snapshot `key` is put on them. The error is one line for
    /// whoever wanted that image.
    pub(crate) async fn complete(self: &Arc<Self>, key: &str, parent: &str) -> Result<(), String> {
        if self.store.is_whole(parent) {
            return Ok(());
        }
        let (chain, images) = self.images.plain(key, parent).await.map_err(|error| {
            format!("whether its layers are encrypted is not known, as containerd does not list its images: {error:#}: try again")
        })?;
        let Some(image) = images.first().map(|image| image.name.clone()) else { return Ok(()) };
        let job = self.running().entry(parent.to_owned()).or_insert_with(|| self.clone().start(key, parent, images)).clone();
        let done = timeout(PATIENCE, job).await.unwrap_or_else(|_| {
            Err(format!(
                "{image}: its layers are still being fetched and unpacked, as an encrypted image had them first: try again in a minute"
            ))
        });
        match done {
            // Whose container it is, nobody says. The encrypted image's needs no layers, and must not suffer from the plain one.
            Err(why) if chain.whole_of_encrypted => {
                log::warn!(snapshot = key, parent; "runs with Cloister only: {why}");
                Ok(())
            }
            done => done,
        }
    }

    fn start(self: Arc<Self>, key: &str, parent: &str, images: Vec<Plain>) -> Job {
        let (key, running) = (key.to_owned(), Running { backfill: self, parent: parent.to_owned() });
        // A task of its own: containerd gives up asking long before a large layer is here.
        let task = tokio::spawn(async move {
            let Running { backfill, parent } = &running;
            let filled = async {
                let content = backfill.images.store_of(&key).await?;
                backfill.fill(parent, &images, &content, &backfill.registry.client()?).await
            };
            filled.await.map_err(|error| format!("{error:#}"))
        });
        task.map(|ended| ended.unwrap_or_else(|error| Err(format!("unpacking: {error}")))).boxed().shared()
    }

    /// Unpacks what is missing of the chain up to `top`, from the lowest up: each of `images` has all of it.
    async fn fill(&self, top: &str, images: &[Plain], content: &dyn BlobSource, registry: &Registry) -> Result<()> {
        let _turn = self.turn.lock().await;
        let name = images.first().map_or("the image", |image| &image.name);
        let chain = self.store.chain(top).filter(|chain| images.iter().all(|image| image.layers.len() == chain.len()));
        let chain =
            chain.with_context(|| format!("{name}: what the snapshotter knew of its layers is lost: remove it and pull it again"))?;
        for number in (0..chain.len()).filter(|number| !chain[*number].unpacked) {
            let mut faults = Vec::new();
            for image in images {
                let plan = &image.layers[number];
                let fetched = fetch(&self.store, plan, &image.sources, content, registry).await;
                let unpacked = match fetched {
                    Ok(file) => self.unpack(number, &chain, plan, file).await,
                    Err(error) => Err(error),
                };
                match unpacked {
                    Ok(()) => {
                        log::info!(image = image.name.as_str(), layer:% = plan.descriptor.digest; "unpacked, as an encrypted image had it first");
                        faults.clear();
                        break;
                    }
                    Err(error) => faults.push(format!("{}: layer {}: {error:#}", image.name, plan.descriptor.digest)),
                }
            }
            if !faults.is_empty() {
                bail!(
                    "{}: an encrypted image had this layer first, so that it is still to be unpacked: give `cloister snapshotter` what the \
                     registry asks for (--authfile, --registry-ca, --plain-http), or remove the encrypted image and pull this one again",
                    faults.join("; ")
                );
            }
        }
        Ok(())
    }

    async fn unpack(&self, number: usize, chain: &[Link], plan: &LayerPlan, file: File) -> Result<()> {
        let (store, chain, plan) = (self.store.clone(), chain.to_vec(), plan.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            let layer = &chain[number];
            store.begin(layer)?;
            let kept = into_directory(number, &chain, &plan, file).and_then(|hides| Ok(store.keep(layer, hides)?));
            if kept.is_err() {
                store.abandon(layer)?;
            }
            kept
        });
        unpacked.await.context("unpacking")?
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Job>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry of [`Backfill::running`], which goes when the work ends, however it does.
struct Running {
    backfill: Arc<Backfill>,
    parent: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.backfill.running().remove(&self.parent);
    }
}

/// A layer's blob, compared with its digest: whoever has it.
async fn fetch(store: &Store, plan: &LayerPlan, sources: &[Reference], content: &dyn BlobSource, registry: &Registry) -> Result<File> {
    let digest = plan.descriptor.digest;
    let mut faults = Vec::new();
    match content.open(&digest.to_string()).await {
        Ok(Some((_, blob))) => match spool(blob, plan, None, store.unnamed_file()?).await {
            Ok(file) => return Ok(file),
            Err(error) => faults.push(format!("containerd's content store: {error}")),
        },
        Ok(None) => (),
        Err(error) => faults.push(format!("containerd's content store: {error}")),
    }
    for source in sources {
        match registry.blob(source, &plan.descriptor).await {
            Ok(blob) => match spool(blob, plan, None, store.unnamed_file()?).await {
                Ok(file) => return Ok(file),
                Err(error) => faults.push(error.to_string()),
            },
            Err(error) => faults.push(error.reason()),
        }
    }
    if sources.is_empty() {
        faults.push("it is not in containerd's content store, and the image was not pulled from a registry".to_owned());
    }
    Err(anyhow!(faults.join("; ")))
}

/// Into the layer's own directory, as overlayfs takes it; and whether it hides all that is below it. What containerd makes of a device node
/// or of a directory that the layer does not describe, this makes of it too.
fn into_directory(number: usize, chain: &[Link], plan: &LayerPlan, file: File) -> Result<bool> {
    let limits = Limits { devices: Devices::Create, whiteouts: Whiteouts::of_layer(number), ..Limits::default() };
    let stats = unpack_layer(file, plan, None, &chain[number].directory, &limits)?;
    let mut layers: Vec<(&Path, &[PathBuf])> = chain[..number].iter().map(|below| (below.directory.as_path(), &[][..])).collect();
    layers.push((&chain[number].directory, &stats.implied));
    adopt_parents(&layers)?;
    Ok(stats.opaque_root)
}

#[cfg(test)]
mod tests;
