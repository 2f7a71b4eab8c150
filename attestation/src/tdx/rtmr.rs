//! RTMR3 of a running guest, where the kernel offers it (Linux 6.16 and later,
//! `Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest`): what is written to the file, 48 bytes at once, is extended.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
};

/// Where it is.
pub const PATH: &str = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384";

/// Extends an event.
pub(super) fn extend(path: &Path, event: &[u8]) -> Result<(), String> {
    let write = || {
        let mut register = OpenOptions::new().write(true).open(path)?;
        // The kernel takes the whole or nothing; a rest would be another event.
        if register.write(event)? == event.len() { Ok(()) } else { Err(io::Error::other("not taken whole")) }
    };
    write().map_err(|e| format!("{}: {e}", path.display()))
}
