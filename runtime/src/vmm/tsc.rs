//! The rate of the time-stamp counter, for guests under emulation. A microvm has no timer that a kernel calibrates its counter against
//! reliably while the host is busy; without a rate it waits for a clock that never ticks. QEMU's emulated counter is the host's own.

use std::{
    arch::x86_64::_rdtsc,
    hint,
    time::{Duration, Instant},
};

/// How long the counter is watched: an error of a microsecond at either end is then one in a thousand at most.
const WATCH: Duration = Duration::from_millis(2);
/// Reading counter and clock takes less than this unless something came between.
const PROMPT: Duration = Duration::from_micros(1);
/// Attempts to read both without interruption.
const ATTEMPTS: usize = 100;

/// The counter's rate in kHz.
pub fn khz() -> u64 {
    let (tsc, began) = read();
    while began.elapsed() < WATCH {
        hint::spin_loop();
    }
    let (later, ended) = read();
    let nanos = (ended - began).as_nanos().max(1);
    u64::try_from(u128::from(later.wrapping_sub(tsc)) * 1_000_000 / nanos).unwrap_or(0)
}

/// Counter and clock at the same moment, as far as that can be had.
fn read() -> (u64, Instant) {
    let mut best = None;
    for _ in 0..ATTEMPTS {
        let before = Instant::now();
        // SAFETY: RDTSC reads a counter and nothing else; every x86-64 processor has it.
        let tsc = unsafe { _rdtsc() };
        let took = before.elapsed();
        if best.is_none_or(|(shortest, _, _)| took < shortest) {
            best = Some((took, tsc, before));
        }
        if took < PROMPT {
            break;
        }
    }
    best.map_or_else(|| (0, Instant::now()), |(_, tsc, at)| (tsc, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_a_processors_and_steady() {
        let (first, second) = (khz(), khz());
        assert!((100_000..=20_000_000).contains(&first), "{first}");
        assert!(first.abs_diff(second) < first / 50, "{first} {second}");
    }
}
