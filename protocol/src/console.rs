//! The guest's first sign of life: it connects to [`crate::host_port::CONSOLE`] once its own ports are open, writes
//! [`READY`], and then its log, a line at a time. The end of the connection is the end of the guest.

/// The first line.
pub const READY: &str = "READY cloister.agent.v1";
