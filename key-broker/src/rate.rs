//! How often one peer may begin a handshake: a bucket of tokens for each address, which fills with time. The table of buckets is bounded;
//! a full bucket is as good as none, and is forgotten first.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Buckets at once.
const MAX_PEERS: usize = 4096;

/// So many at once, and so many a second on the whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Handshakes that a peer may begin at once: pods of a node share its address.
    pub burst: u32,
    /// Handshakes a second that it may begin on the whole.
    pub per_second: f64,
}

impl Default for Rate {
    fn default() -> Self {
        Self { burst: 256, per_second: 50.0 }
    }
}

/// The buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    /// Tokens, and when they were counted.
    peers: Mutex<HashMap<IpAddr, (f64, Instant)>>,
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, peers: Mutex::default() }
    }

    /// Takes a token; else how long it takes until there is one.
    pub(crate) fn take(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let burst = f64::from(self.rate.burst);
        let filled =
            |(tokens, at): (f64, Instant)| (tokens + now.saturating_duration_since(at).as_secs_f64() * self.rate.per_second).min(burst);
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, bucket| filled(*bucket) < burst);
            if peers.len() >= MAX_PEERS {
                // So many peers at their limit are a flood: whoever is new waits.
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = peers.entry(peer).or_insert((burst, now));
        let tokens = filled(*bucket);
        let (result, left) = if tokens >= 1.0 {
            (Ok(()), tokens - 1.0)
        } else {
            (Err(Duration::from_secs_f64(((1.0 - tokens) / self.rate.per_second.max(0.001)).min(3600.0))), tokens)
        };
        *bucket = (left, now);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_its_burst_and_then_its_rate() {
        let limiter = Limiter::new(Rate { burst: 3, per_second: 2.0 });
        let (one, two, start) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), Instant::now());
        for _ in 0..3 {
            assert_eq!(limiter.take(one, start), Ok(()));
        }
        assert_eq!(limiter.take(one, start), Err(Duration::from_millis(500)));
        assert_eq!(limiter.take(two, start), Ok(()), "another peer has its own");
        assert_eq!(limiter.take(one, start + Duration::from_millis(500)), Ok(()));
        assert!(limiter.take(one, start + Duration::from_millis(500)).is_err());
    }

    #[test]
    fn the_table_is_bounded() {
        let limiter = Limiter::new(Rate { burst: 2, per_second: 1.0 });
        let start = Instant::now();
        let peer = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..u32::try_from(MAX_PEERS).unwrap() {
            assert_eq!(limiter.take(peer(n), start), Ok(()));
        }
        assert!(limiter.take(peer(u32::MAX), start).is_err());
        assert_eq!(limiter.take(peer(u32::MAX), start + Duration::from_secs(2)), Ok(()), "full buckets were forgotten");
        assert!(limiter.peers.lock().unwrap().len() < MAX_PEERS);
    }
}
