//! A bound on what a guest may write into the host's log.

use std::time::{Duration, Instant};

/// Lines at once, after a pause.
const BURST: u32 = 500;
/// One more line each.
const PER_LINE: Duration = Duration::from_millis(20);

/// Lets [`BURST`] lines pass, then one each [`PER_LINE`]; counts what it holds back.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Lines that may still pass.
    left: u32,
    since: Instant,
    held_back: u64,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now, held_back: 0 }
    }

    /// Whether a line may pass; if so, the number of lines held back before it.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        let more = u32::try_from(now.duration_since(self.since).as_nanos() / PER_LINE.as_nanos()).unwrap_or(BURST).min(BURST);
        if more > 0 {
            self.left = (self.left + more).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.held_back += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let passed = (0..10_000).filter(|_| rate.pass(start).is_some()).count();
        assert_eq!(passed, BURST as usize);
        assert_eq!(rate.pass(start + PER_LINE), Some(10_000 - u64::from(BURST)));
        assert_eq!(rate.pass(start + PER_LINE), None);
        assert_eq!(rate.pass(start + Duration::from_secs(3600)), Some(1));
    }
}
