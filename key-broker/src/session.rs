//! Sessions, bounded in number and in time. A challenge is for one attempt: it is taken out before the evidence is looked at, so that
//! two requests side by side cannot both use it, and a failed attempt leaves nothing to try again with.

use attestation::{Tee, token::Ear};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use thiserror::Error;

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum SessionError {
    /// The bound is reached and none is old enough to go.
    #[error("too many handshakes at once, try again in a minute")]
    Full,
    /// Not ours, or forgotten.
    #[error("session unknown or expired; start again with auth")]
    Unknown,
    /// The challenge has been used.
    #[error("this challenge has been used; start again with auth")]
    Used,
    /// Not yet.
    #[error("session has not attested")]
    NotAttested,
}

/// A guest that has attested.
#[derive(Debug)]
pub(crate) struct Attested {
    /// What it got.
    pub(crate) token: String,
    /// What it says.
    pub(crate) ear: Ear,
}

/// What a session gives to `attest`.
#[derive(Debug)]
pub(crate) enum Turn {
    /// A challenge to answer, now used up.
    Challenge {
        /// As it was sent.
        nonce: String,
        /// As was announced.
        tee: Tee,
    },
    /// Done before: the same token again.
    Attested(Arc<Attested>),
}

#[derive(Debug)]
enum State {
    Challenged { nonce: String, tee: Tee },
    Verifying,
    Attested(Arc<Attested>),
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<String, State>,
    /// By age; the lifetime is the same for all, so the oldest expires first.
    order: VecDeque<(Instant, String)>,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: Mutex<Table>,
    max: usize,
    lifetime: Duration,
}

impl Sessions {
    /// At most `max` sessions of `lifetime`.
    pub(crate) fn new(max: usize, lifetime: Duration) -> Self {
        Self { table: Mutex::default(), max, lifetime }
    }

    /// A new session for a challenge.
    pub(crate) fn open(&self, id: String, nonce: String, tee: Tee, now: Instant) -> Result<(), SessionError> {
        self.with(now, |table| {
            // The order keeps the ids of closed sessions until they are old, so it is what is bounded.
            if table.order.len() >= self.max {
                return Err(SessionError::Full);
            }
            table.order.push_back((now, id.clone()));
            table.sessions.insert(id, State::Challenged { nonce, tee });
            Ok(())
        })
    }

    /// Takes the challenge out of a session.
    pub(crate) fn take(&self, id: &str, now: Instant) -> Result<Turn, SessionError> {
        self.with(now, |table| {
            let state = table.sessions.get_mut(id).ok_or(SessionError::Unknown)?;
            if let State::Attested(attested) = state {
                return Ok(Turn::Attested(attested.clone()));
            }
            match std::mem::replace(state, State::Verifying) {
                State::Challenged { nonce, tee } => Ok(Turn::Challenge { nonce, tee }),
                _ => Err(SessionError::Used),
            }
        })
    }

    /// The attempt succeeded.
    pub(crate) fn attest(&self, id: &str, attested: Arc<Attested>, now: Instant) -> Result<(), SessionError> {
        self.with(now, |table| {
            *table.sessions.get_mut(id).ok_or(SessionError::Unknown)? = State::Attested(attested);
            Ok(())
        })
    }

    /// The attempt failed.
    pub(crate) fn close(&self, id: &str, now: Instant) {
        self.with(now, |table| table.sessions.remove(id));
    }

    /// Who has this session.
    pub(crate) fn attested(&self, id: &str, now: Instant) -> Result<Arc<Attested>, SessionError> {
        self.with(now, |table| match table.sessions.get(id) {
            Some(State::Attested(attested)) => Ok(attested.clone()),
            Some(_) => Err(SessionError::NotAttested),
            None => Err(SessionError::Unknown),
        })
    }

    /// How many are open.
    pub(crate) fn count(&self, now: Instant) -> usize {
        self.with(now, |table| table.sessions.len())
    }

    /// Works on the table without what has expired.
    fn with<T>(&self, now: Instant, work: impl FnOnce(&mut Table) -> T) -> T {
        // No code under this lock leaves the table half changed, so a panic elsewhere does not spoil it.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        while table.order.front().is_some_and(|(opened, _)| now.saturating_duration_since(*opened) >= self.lifetime) {
            if let Some((_, id)) = table.order.pop_front() {
                table.sessions.remove(&id);
            }
        }
        work(&mut table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attestation::{Claims, Details, TeeKey};

    const LIFETIME: Duration = Duration::from_secs(300);

    fn attested() -> Arc<Attested> {
        let claims =
            Claims { tee: Tee::Sample, launch_measurement: vec![], init_data: vec![], report_data: vec![], details: Details::None };
        let key = TeeKey::generate().unwrap().public();
        Arc::new(Attested { token: "t".into(), ear: Ear { issued: 0, expires: 1, development: true, claims, key } })
    }

    #[test]
    fn a_challenge_is_for_one_attempt() {
        let (sessions, now) = (Sessions::new(10, LIFETIME), Instant::now());
        sessions.open("a".into(), "nonce".into(), Tee::Sample, now).unwrap();
        assert_eq!(sessions.attested("a", now).unwrap_err(), SessionError::NotAttested);
        assert!(matches!(sessions.take("a", now), Ok(Turn::Challenge { nonce, tee: Tee::Sample }) if nonce == "nonce"));
        assert_eq!(sessions.take("a", now).unwrap_err(), SessionError::Used);
        sessions.attest("a", attested(), now).unwrap();
        assert!(matches!(sessions.take("a", now), Ok(Turn::Attested(_))));
        assert_eq!(sessions.attested("a", now).unwrap().token, "t");
        sessions.open("b".into(), "nonce".into(), Tee::Sample, now).unwrap();
        sessions.take("b", now).unwrap();
        sessions.close("b", now);
        assert_eq!(sessions.take("b", now).unwrap_err(), SessionError::Unknown);
        assert_eq!(sessions.attest("b", attested(), now), Err(SessionError::Unknown));
    }

    #[test]
    fn sessions_are_bounded_in_number_and_time() {
        let (sessions, now) = (Sessions::new(2, LIFETIME), Instant::now());
        let open = |id: &str, now| sessions.open(id.into(), "n".into(), Tee::Sample, now);
        open("a", now).unwrap();
        open("b", now + Duration::from_secs(1)).unwrap();
        assert_eq!(open("c", now + Duration::from_secs(2)), Err(SessionError::Full));
        // Closing does not make room at once: a flood of failing attempts must not drive memory either.
        sessions.close("a", now + Duration::from_secs(2));
        assert_eq!(open("c", now + Duration::from_secs(2)), Err(SessionError::Full));
        open("c", now + LIFETIME).unwrap();
        assert_eq!(sessions.count(now + LIFETIME), 2);
        assert_eq!(sessions.take("b", now + Duration::from_secs(301)).unwrap_err(), SessionError::Unknown);
        assert_eq!(sessions.count(now + LIFETIME + LIFETIME), 0);
    }
}
