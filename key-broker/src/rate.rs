//! How often something may be done: a bucket of tokens, which fills with time. A peer has one for the handshakes that it begins; the table of
//! those is bounded, and a full bucket, which is as good as none, is forgotten first.

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

/// Tokens, and when they were counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst.into(), at: now }
    }

    fn tokens(&self, rate: Rate, now: Instant) -> f64 {
        let filled = self.tokens + now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        filled.min(rate.burst.into())
    }

    /// Takes a token; else how long it takes until there is one.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let tokens = self.tokens(rate, now);
        let (result, left) = if tokens >= 1.0 {
            (Ok(()), tokens - 1.0)
        } else {
            (Err(Duration::from_secs_f64(((1.0 - tokens) / rate.per_second.max(0.001)).min(3600.0))), tokens)
        };
        *self = Self { tokens: left, at: now };
        result
    }
}

/// The buckets.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    peers: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, peers: Mutex::default() }
    }

    /// Takes a token; else how long it takes until there is one.
    pub(crate) fn take(&self, peer: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= MAX_PEERS && !peers.contains_key(&peer) {
            peers.retain(|_, bucket| bucket.tokens(self.rate, now) < self.rate.burst.into());
            if peers.len() >= MAX_PEERS {
                // So many peers at their limit are a flood: whoever is new waits.
                return Err(Duration::from_secs(1));
            }
        }
        peers.entry(peer).or_insert(Bucket::full(self.rate, now)).take(self.rate, now)
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
