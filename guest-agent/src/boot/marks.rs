//! Time marks of the start, for `GuestInfo`: where the time between the kernel's first instruction and the first container goes.

use nix::time::{ClockId, clock_gettime};
use std::sync::{Mutex, PoisonError};

static MARKS: Mutex<Vec<(&'static str, u64)>> = Mutex::new(Vec::new());

/// Most marks that are kept; names are static, so this only ends a mistake of ours.
const MAX_MARKS: usize = 64;

/// Microseconds since the kernel started its clocks (`CLOCK_BOOTTIME`, clock_gettime(2)).
pub fn micros_since_boot() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |t| u64::try_from(t.tv_sec()).unwrap_or(0).saturating_mul(1_000_000) + u64::try_from(t.tv_nsec()).unwrap_or(0) / 1000)
}

/// Records that `name` has been reached.
pub fn mark(name: &'static str) {
    let mut marks = MARKS.lock().unwrap_or_else(PoisonError::into_inner);
    if marks.len() < MAX_MARKS {
        marks.push((name, micros_since_boot()));
    }
}

/// All marks so far, in order: name and microseconds since the kernel's start.
pub fn all() -> Vec<(&'static str, u64)> {
    MARKS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_keep_their_order() {
        mark("first");
        mark("second");
        let marks = all();
        let at = |name| marks.iter().position(|(n, _)| *n == name).unwrap();
        assert!(at("first") < at("second"));
        assert!(marks[at("first")].1 <= marks[at("second")].1);
    }
}
