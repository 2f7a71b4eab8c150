//! When to ask a registry again: where it says so (429 and 503 with `Retry-After`, RFC 9110 §10.2.3), and after a bad moment.

use http::{Response, StatusCode, header};
use std::time::Duration;

/// Longest time that a server may have us wait at once; one that wants more is not waited for.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// In all, for one request.
const MAX_WAITS: Duration = Duration::from_secs(180);
/// Times that a request is sent again, a rate limit's, and those after a fault.
const MAX_LIMITED: u32 = 8;
const MAX_FAULTS: u32 = 3;
/// The first wait where the server names none; doubled each time.
const FIRST: Duration = Duration::from_millis(500);

/// What is left of our patience for one request.
#[derive(Debug, Default)]
pub(super) struct Patience {
    limited: u32,
    faults: u32,
    waited: Duration,
}

impl Patience {
    /// How long to wait before the request is sent again; nothing where the answer is to be taken.
    pub(super) fn after_answer<T>(&mut self, response: &Response<T>) -> Option<Duration> {
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE if self.limited < MAX_LIMITED => {
                let named = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
                // The other form, a date, is measured by a clock that may be wrong here.
                let Some(named) = named.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs) else {
                    return self.after_fault();
                };
                self.limited += 1;
                self.spend(named)
            }
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => self.after_fault(),
            _ => None,
        }
    }

    /// The same after a connection that broke before its answer.
    pub(super) fn after_fault(&mut self) -> Option<Duration> {
        if self.faults >= MAX_FAULTS {
            return None;
        }
        let wait = FIRST * 2u32.saturating_pow(self.faults);
        self.faults += 1;
        self.spend(wait)
    }

    fn spend(&mut self, wait: Duration) -> Option<Duration> {
        self.waited = self.waited.saturating_add(wait);
        (wait <= MAX_WAIT && self.waited <= MAX_WAITS).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, after: &str) -> Response<()> {
        let builder = Response::builder().status(status);
        let builder = if after.is_empty() { builder } else { builder.header(header::RETRY_AFTER, after) };
        builder.body(()).unwrap()
    }

    #[test]
    fn the_servers_word_counts_up_to_a_bound() {
        let mut patience = Patience::default();
        assert_eq!(patience.after_answer(&answer(429, "7")), Some(Duration::from_secs(7)));
        assert_eq!(patience.after_answer(&answer(429, "")), Some(FIRST));
        assert_eq!(patience.after_answer(&answer(503, "Wed, 21 Oct 2026 07:28:00 GMT")), Some(FIRST * 2));
        assert_eq!(patience.after_answer(&answer(429, "3600")), None);
        for status in [200, 206, 301, 401, 404] {
            assert_eq!(Patience::default().after_answer(&answer(status, "1")), None, "{status}");
        }
        let mut patience = Patience::default();
        let waits: Vec<_> = (0..10).map_while(|_| patience.after_answer(&answer(429, "50"))).collect();
        assert_eq!(waits.len(), 3, "at most three minutes in all");
    }

    #[test]
    fn a_server_that_keeps_failing_is_left() {
        let mut patience = Patience::default();
        let waits: Vec<_> = (0..10).map_while(|_| patience.after_answer(&answer(502, ""))).collect();
        assert_eq!(waits, [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(patience.after_fault(), None);
    }
}
