//! Generated from `proto/snapshots.proto`.
#![allow(missing_docs, clippy::all, clippy::unwrap_used)]

include!(concat!(env!("OUT_DIR"), "/snapshots_pb/modules.rs"));
