//! A sandbox on the host's side: one VM, its vsock, its courier, its network, and the record from which it is removed.

pub mod containerd;
pub mod courier;
