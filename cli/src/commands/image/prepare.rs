//! `cloister image prepare`: does for `ctr` what clients with the remote-snapshot path do by themselves. It tells containerd, through
//! the labelled `Prepare` that a proxy snapshotter answers with "already there", that each layer of an image needs no unpacking.
//! See `snapshotter` for why the snapshotter alone cannot.

use crate::{
    containerd_image, input, output,
    snapshotter::{LABEL_TARGET, messages as pb},
};
use anyhow::{Context, Result, bail};
use http::uri::PathAndQuery;
use image::digest::Digest;
use protobuf::MessageField;
use runtime::containerd::{Client, ContainerdError};
use std::{
    collections::HashMap,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};
use tonic::Code;

const SNAPSHOTS: &str = "/containerd.services.snapshots.v1.Snapshots/";
/// How often it is begun anew.
const ATTEMPTS: usize = 10;
const CONTENT_UPDATE: &str = "/containerd.services.content.v1.Content/Update";

/// Tell containerd that an image's layers need no unpacking on this host
///
/// For `ctr`, which unpacks by itself what it pulls, and so fails on an encrypted layer. Once for each image, after fetching it:
///
///   ctr content fetch registry.example/app:1
///   cloister image prepare registry.example/app:1
///   ctr run --rm --snapshotter cloister --runtime io.containerd.cloister.v2 registry.example/app:1 app-1
///
/// A pull that was refused with `layers are not unpacked on this host` has fetched the image too.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The image's name, as `ctr image ls` shows it
    image: String,
    /// containerd's socket
    #[arg(long, short, env = "CONTAINERD_ADDRESS", default_value = "/run/containerd/containerd.sock", value_name = "SOCKET")]
    address: PathBuf,
    /// containerd's namespace
    #[arg(long, short, env = "CONTAINERD_NAMESPACE", default_value = "default", value_name = "NAME")]
    namespace: String,
    /// Name of `cloister snapshotter` in containerd's configuration
    #[arg(long, default_value = "cloister", value_name = "NAME")]
    snapshotter: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let layers = input::block_on(prepare(args)).with_context(|| args.image.clone())?;
    output::line(&format!("{}: {layers} layers are there for snapshotter {:?}", args.image, args.snapshotter))
}

async fn prepare(args: &Args) -> Result<usize> {
    let client = Client::connect(&args.address, &args.namespace).await?;
    let Some(target) = client.image(&args.image).await? else {
        bail!("containerd's namespace {:?} has no such image: fetch it with `ctr content fetch`", args.namespace);
    };
    let (manifest, config) = containerd_image::read(&client, &target).await?;
    let chain = containerd_image::chain_ids(&config.rootfs.diff_ids);
    let (Some(lowest), Some(top)) = (chain.first(), chain.last()) else { bail!("the image has no layers") };
    // Before anything is changed: whether this snapshotter answers at all, and is ours.
    announce(&client, &args.snapshotter, "", lowest).await?;
    // Then the reference, then what it refers to: the other way round containerd's garbage collector could come in between.
    refer(&client, &manifest.config.digest, &args.snapshotter, top).await?;
    for _ in 0..ATTEMPTS {
        if announce_all(&client, &args.snapshotter, &chain).await? {
            return Ok(chain.len());
        }
    }
    bail!("containerd's garbage collector took the snapshots away {ATTEMPTS} times while they were made: run the command again")
}

/// Whether all are there. What the image refers to is the last: until it is made, the garbage collector may take those below it.
async fn announce_all(client: &Client, snapshotter: &str, chain: &[String]) -> Result<bool> {
    let mut parent = "";
    for id in chain {
        if !announce(client, snapshotter, parent, id).await? {
            return Ok(false);
        }
        parent = id;
    }
    Ok(true)
}

/// The label by which an image keeps its snapshots from containerd's garbage collector; clients put it on the config too.
async fn refer(client: &Client, config: &Digest, snapshotter: &str, top: &str) -> Result<()> {
    let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
    let mask = pb::FieldMask { paths: vec![format!("labels.{label}")], ..Default::default() };
    let info = pb::ContentInfo { digest: config.to_string(), labels: HashMap::from([(label, top.to_owned())]), ..Default::default() };
    let request = pb::UpdateContentRequest { info: MessageField::some(info), update_mask: MessageField::some(mask), ..Default::default() };
    let path = PathAndQuery::from_static(CONTENT_UPDATE);
    let answer: Option<pb::UpdateContentResponse> = client.get("Content.Update", &config.to_string(), path, request).await?;
    answer.map(drop).with_context(|| format!("{config} is not in containerd's content store: fetch the image anew"))
}

/// Makes a snapshot, unless it is there; false if its parent is not.
async fn announce(client: &Client, snapshotter: &str, parent: &str, chain_id: &str) -> Result<bool> {
    let key = extraction_key(chain_id);
    let request = pb::PrepareRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.clone(),
        parent: parent.to_owned(),
        labels: HashMap::from([(LABEL_TARGET.to_owned(), chain_id.to_owned())]),
        ..Default::default()
    };
    let path = PathAndQuery::try_from(format!("{SNAPSHOTS}Prepare"))?;
    let answer: Result<Option<pb::MountsResponse>, _> = client.get("Snapshots.Prepare", chain_id, path, request).await;
    match answer {
        Err(ContainerdError::Call { status, .. }) if status.code() == Code::AlreadyExists => Ok(true),
        Err(error) => Err(error.into()),
        Ok(None) => Ok(false),
        Ok(Some(_)) => {
            // Another kind of snapshotter took it for an order to make a snapshot.
            let request = pb::KeyRequest { snapshotter: snapshotter.to_owned(), key, ..Default::default() };
            let path = PathAndQuery::try_from(format!("{SNAPSHOTS}Remove"))?;
            let _: Option<pb::Empty> = client.get("Snapshots.Remove", chain_id, path, request).await?;
            bail!("snapshotter {snapshotter:?} unpacks layers itself: name the one that is `cloister snapshotter`")
        }
    }
}

/// Unique, and of the form that containerd gives to the keys of its own (`snapshots.UnpackKeyFormat`).
fn extraction_key(chain_id: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("extract-{now}-{} {chain_id}", std::process::id())
}
