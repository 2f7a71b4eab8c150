//! The end of the machine: orderly, or with a last word. Never a hang.

use crate::{boot::console, logger};
use nix::sys::reboot::{RebootMode, reboot};
use std::{
    panic::{self, PanicHookInfo},
    process,
    sync::atomic::{AtomicBool, Ordering},
};

static ENDING: AtomicBool = AtomicBool::new(false);

/// Ends the machine now. Nothing is flushed: scratch is encrypted with a key that ends here too, and whoever ends the machine in order has
/// written other disks before.
///
/// A reset rather than a power-off: a microvm without ACPI cannot be switched off and would only halt, while every VMM that
/// is started with "no reboot" ends on a reset (RB_AUTOBOOT, reboot(2)).
pub fn end_machine() -> ! {
    // Only PID 1 may: in a re-executed child or a test, reset would take down whoever lent us its machine.
    if process::id() == 1 {
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
    process::exit(1)
}

/// Says why and ends the machine. The text goes wherever it may be read: kernel log, console, and the host's log.
pub fn fatal(reason: &str) -> ! {
    // A failure while failing must not go round in circles.
    if !ENDING.swap(true, Ordering::SeqCst) {
        console::shout(&format!("FATAL cloister-agent: {reason}"));
        logger::last_words(&format!("FATAL {reason}"));
    }
    end_machine()
}

/// A panic anywhere in PID 1 ends the machine with its text: a half-alive agent would hold its pod for ever.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| fatal(&describe(info))));
}

/// One line of a panic: its message and its place.
pub fn describe(info: &PanicHookInfo<'_>) -> String {
    let text = info
        .payload()
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| info.payload().downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned());
    match info.location() {
        Some(at) => format!("{text} at {}:{}", at.file(), at.line()),
        None => text,
    }
}
