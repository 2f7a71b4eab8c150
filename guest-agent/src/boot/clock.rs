//! The guest's clock. A microvm has no battery-backed one: it begins in 1970, and every certificate would be of the future.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use std::time::{SystemTime, UNIX_EPOCH};

/// Puts the clock forward to the host's `seconds` since 1970; never back, so that a host cannot revive what has expired since
/// the guest's own clock was right. Zero leaves it alone.
pub fn set_forward(seconds: i64) -> nix::Result<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if u64::try_from(seconds).is_ok_and(|s| s > now) {
        clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, 0))?;
        return Ok(true);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_never_put_back() {
        assert_eq!(set_forward(0), Ok(false));
        assert_eq!(set_forward(1), Ok(false));
        assert_eq!(set_forward(-1), Ok(false));
    }
}
