//! A sandbox on the host's side: one VM, its vsock, its courier, its network, and the record from which it is removed.

pub mod config;
pub mod containerd;
pub mod courier;
pub mod network;
mod rate;
pub mod record;
pub mod sandbox;
pub mod tee;
pub mod vmm;
pub mod vsock;

pub use protocol::IMAGE_USER;
