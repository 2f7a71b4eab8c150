//! A remote snapshotter for containerd (a proxy plugin): it says that every layer is there, so that the host neither fetches nor
//! unpacks what only the guest can read.
//!
//! containerd's metadata store stands between a client and a proxy plugin, and decides what reaches us:
//!
//! - A client that knows remote snapshots (CRI, nerdctl, `ctr` of containerd 2.x through the transfer service) labels its
//!   `Prepare` with the chain id that it is about to unpack. We record that chain id as committed and answer `AlreadyExists`;
//!   containerd looks the record up through `List`, and the client never fetches the layer.
//! - `Stat` of a chain id that the metadata store has never heard of is answered by the store itself, without asking us. So
//!   `ctr` of containerd 1.6 and 1.7, which only ever asks `Stat` and then unpacks by itself, and CRI that makes a container of an image
//!   which another snapshotter had first, unpack whatever we say. A plain image they may: what they write goes when they commit it. The
//!   layers of an encrypted one they cannot: that `Prepare` without a label is refused, instead of failing later for want of a decoder,
//!   with the advice to run `cloister image prepare`, which does the labelled `Prepare` in their place; from then on `Stat` succeeds.
//! - A container's directory is empty but for the names of users that its image runs as (`images`).
//! - With `--unpack-plain`, for CRI of containerd 1.6, which has one snapshotter for all runtimes, the layers of plain images are unpacked as
//!   overlayfs would have them (`mounts`): other runtimes on the node go on working. Layers that an encrypted image had first count as present
//!   for containerd; they are unpacked when a plain image needs them (`backfill`).
//! - `Stat` of a chain id that the metadata store knows and we do not (our directory was lost) is answered with "committed": there
//!   was nothing in it to lose.

mod backfill;
mod images;
mod mounts;
mod pb;
mod server;
mod service;
mod store;
mod usage;

pub(crate) use pb::snapshots as messages;
pub(crate) use server::{Options, serve};
pub(crate) use store::LABEL_TARGET;
