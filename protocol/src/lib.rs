//! The host-guest line of Cloister: every byte that crosses from the host into a guest is described here.
//!
//! - `api`: the messages and the ttrpc service, generated from `proto/agent.proto`.
//! - [`bounds`]: the bound of every field, checked by the agent before it looks at anything else.
//! - [`stream`]: the framing of stdio streams, one vsock connection each.
//! - [`forward`]: TCP connections of the host to ports of the guest's loopback.
//! - [`volume`]: what the host copies into the guest, one vsock connection for each copy.
//! - [`nbd`]: disks that the host serves to a guest that runs, one vsock connection each.
//! - [`courier`]: what the guest may ask of the host: blobs by digest, TCP tunnels.
//! - [`console`]: the first line of a guest that is up, and the agent's log lines after it.
//!
//! This crate imports nothing of ours.
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/agent/modules.rs"));
}

pub mod bounds;
pub mod console;
pub mod courier;
pub mod forward;
pub mod line;
pub mod nbd;
pub mod stream;
pub mod volume;

pub use generated::{agent as api, agent_ttrpc as service};

/// vsock context id of the host (`VMADDR_CID_HOST`, `include/uapi/linux/vm_sockets.h`).
pub const HOST_CID: u32 = 2;

/// Where the guest listens.
pub mod guest_port {
    /// ttrpc, the service `cloister.agent.v1.Agent`.
    pub const RPC: u32 = 1024;
    /// Stdio streams, see [`crate::stream`].
    pub const STREAM: u32 = 1025;
    /// See [`crate::forward`].
    pub const FORWARD: u32 = 1026;
    /// Copies of volumes, see [`crate::volume`]; and disks, see [`crate::nbd`].
    pub const VOLUME: u32 = 1027;
}

/// Where the host listens, for this guest only.
pub mod host_port {
    /// See [`crate::console`].
    pub const CONSOLE: u32 = 1024;
    /// See [`crate::courier`].
    pub const COURIER: u32 = 1025;

    /// Where the host listens for the guest with this context id. Ports of a kernel's vsock are shared by all guests of a host, so
    /// each guest calls a number of its own; a device that serves one guest only (context id 3) needs no such thing.
    pub const fn of(guest_cid: u32, port: u32) -> u32 {
        if guest_cid == crate::OWN_DEVICE_CID { port } else { guest_cid.wrapping_mul(16).wrapping_add(port - CONSOLE) }
    }
}

/// The uid and gid by which a host says "whom the image says": it knows the user's name from the image's config, and not the files that
/// give it a number. Sent by a host that means something else, it is the image's own user all the same.
pub const IMAGE_USER: u32 = 2_147_483_646;

/// Context id of a guest whose device serves it alone.
pub const OWN_DEVICE_CID: u32 = 3;
/// Context ids of guests on the host kernel's device lie below, so that [`host_port::of`] stays unique.
pub const MAX_KERNEL_CID: u32 = 1 << 27;
