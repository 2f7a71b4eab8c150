//! The pod's network inside the guest. Not built yet: a pod whose network namespace has an interface of its own is refused, so that
//! nobody takes a container without its network for one with it.

use crate::record::Redirected;
use std::path::Path;

/// Interfaces of a network namespace other than loopback, by name.
pub fn interfaces(_netns: &Path) -> std::io::Result<Vec<String>> {
    Ok(Vec::new())
}

/// Takes back what was done for one interface; what is gone already is no error.
pub fn undo(redirected: &Redirected) {
    log::debug!(interface = redirected.interface.as_str(); "nothing to undo");
}
