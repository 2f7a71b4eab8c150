//! `cloister snapshotter`.

use crate::{input, logger, places::RegistryArgs, snapshotter};
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Where it keeps its records unless it is told otherwise.
pub(crate) const ROOT: &str = "/var/lib/cloister/snapshotter";

/// Serve containerd as a remote snapshotter that unpacks nothing on the host
///
/// containerd's configuration:
///
///   [proxy_plugins.cloister]
///   type = "snapshot"
///   address = "/run/cloister/snapshotter.sock"
///
/// Clients that know remote snapshots (CRI, nerdctl; ctr of containerd 2.x, whose transfer plugin needs the snapshotter in its
/// unpack_config) fetch an image's manifest and config only. For an encrypted image and `ctr` of containerd 1.6 and 1.7:
///
///   ctr content fetch IMAGE
///   cloister image prepare IMAGE
///   ctr run --snapshotter cloister --runtime io.containerd.cloister.v2 IMAGE ID
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Socket to listen on, for root alone
    #[arg(long, alias = "socket", value_name = "SOCKET", default_value = "/run/cloister/snapshotter.sock")]
    address: PathBuf,
    /// Directory of the snapshots' records
    #[arg(long, value_name = "DIR", default_value = ROOT)]
    root: PathBuf,
    /// Socket of the containerd that this serves: asked for the users that images name
    #[arg(long, env = "CONTAINERD_ADDRESS", default_value = "/run/containerd/containerd.sock", value_name = "SOCKET")]
    containerd: PathBuf,
    /// Unpack plain images as overlayfs would: where this is the snapshotter of other runtimes too, as in CRI of containerd 1.6
    #[arg(long)]
    unpack_plain: bool,
    /// For layers of plain images that an encrypted image had first, so that containerd did not fetch them
    #[command(flatten, next_help_heading = "With --unpack-plain, registries of plain images that share layers with encrypted ones")]
    registry: RegistryArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    logger::install();
    let mut registry = args.registry.clone();
    if args.unpack_plain {
        registry = registry.and_plain_http(runtime::config::Config::load()?.courier.plain_http);
        // Once more for each image, as credentials change; but what cannot be read is said now.
        registry.client().context("registries")?;
    }
    let options = snapshotter::Options {
        address: args.address.clone(),
        root: args.root.clone(),
        containerd: args.containerd.clone(),
        unpack_plain: args.unpack_plain,
        registry,
    };
    input::block_on(async move { snapshotter::serve(&options, input::asked_to_stop()?).await })
}
