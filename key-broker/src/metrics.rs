//! Counters in Prometheus' text form. They are also how a test sees that a VM attested once.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
};

/// What the broker has done since its start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Challenges not given, for a peer's sake that begins too often.
    pub(crate) limited: Counter,
    /// Requests of the protocol: the round trips of guests.
    pub(crate) requests: Counter,
    /// Challenges given.
    pub(crate) challenges: Counter,
    /// Handshakes that ended with a token.
    pub(crate) handshakes: Counter,
    /// Handshakes whose evidence did not count.
    pub(crate) handshake_failures: Counter,
    /// Resources handed out.
    pub(crate) released: Counter,
    /// Resources withheld.
    pub(crate) refused: Counter,
}

/// Only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// The text, with the present number of sessions.
    pub(crate) fn text(&self, sessions: usize, development: bool) -> String {
        let counters = [
            ("requests_total", "Requests of the protocol: auth, attest, resource.", &self.requests),
            ("rate_limited_total", "Challenges not given because the peer begins too often.", &self.limited),
            ("challenges_total", "Challenges given.", &self.challenges),
            ("handshakes_total", "Handshakes that ended with a token.", &self.handshakes),
            ("handshake_failures_total", "Handshakes whose evidence did not count.", &self.handshake_failures),
            ("resources_released_total", "Resources handed out.", &self.released),
            ("refusals_total", "Resources withheld by rule.", &self.refused),
        ];
        let mut out = String::new();
        for (name, help, counter) in counters {
            let value = counter.0.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "# HELP cloister_broker_{name} {help}\n# TYPE cloister_broker_{name} counter\ncloister_broker_{name} {value}"
            );
        }
        let gauges = [
            ("sessions", "Sessions that are open.", sessions),
            ("development", "1 if sample evidence, which proves nothing, is accepted.", usize::from(development)),
        ];
        for (name, help, value) in gauges {
            let _ =
                writeln!(out, "# HELP cloister_broker_{name} {help}\n# TYPE cloister_broker_{name} gauge\ncloister_broker_{name} {value}");
        }
        out
    }
}
