//! Sessions, bounded in number and in time. A challenge is for one attempt: it is taken out before the evidence is looked at, so that
//! two requests side by side cannot both use it, and a failed attempt leaves nothing to try again with.
//!
//! Challenges and attested sessions have a bound each. At its bound the oldest goes: a flood of challenges costs other guests at most a
//! handshake that takes longer than the flood needs to fill the table, and never those that have attested.

use attestation::{Tee, token::Ear};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use thiserror::Error;

/// How long a challenge may wait for its answer: hardware that is asked by many takes its time.
const CHALLENGE: Duration = Duration::from_secs(120);

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum SessionError {
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
    /// By age; the lifetime is the same for all of a queue, so the oldest expires first. The queues keep the ids of closed sessions until
    /// they are old or pushed out, so it is they that are bounded.
    challenges: VecDeque<(Instant, String)>,
    attested: VecDeque<(Instant, String)>,
}

impl Table {
    /// Forgets the oldest challenge, unless it has become an attested session meanwhile.
    fn drop_challenge(&mut self) {
        if let Some((_, id)) = self.challenges.pop_front()
            && !matches!(self.sessions.get(&id), Some(State::Attested(_)))
        {
            self.sessions.remove(&id);
        }
    }

    fn drop_attested(&mut self) {
        if let Some((_, id)) = self.attested.pop_front() {
            self.sessions.remove(&id);
        }
    }
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    table: Mutex<Table>,
    max: usize,
    lifetime: Duration,
}

impl Sessions {
    /// At most `max` challenges, and as many attested sessions of `lifetime`.
    pub(crate) fn new(max: usize, lifetime: Duration) -> Self {
        Self { table: Mutex::default(), max, lifetime }
    }

    /// A new session for a challenge.
    pub(crate) fn open(&self, id: String, nonce: String, tee: Tee, now: Instant) {
        self.with(now, |table| {
            while table.challenges.len() >= self.max {
                table.drop_challenge();
            }
            table.challenges.push_back((now, id.clone()));
            table.sessions.insert(id, State::Challenged { nonce, tee });
        });
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
            while table.attested.len() >= self.max {
                table.drop_attested();
            }
            table.attested.push_back((now, id.to_owned()));
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
        let old = |queue: &VecDeque<(Instant, String)>, lifetime: Duration| {
            queue.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= lifetime)
        };
        while old(&table.challenges, self.lifetime.min(CHALLENGE)) {
            table.drop_challenge();
        }
        while old(&table.attested, self.lifetime) {
            table.drop_attested();
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
        sessions.open("a".into(), "nonce".into(), Tee::Sample, now);
        assert_eq!(sessions.attested("a", now).unwrap_err(), SessionError::NotAttested);
        assert!(matches!(sessions.take("a", now), Ok(Turn::Challenge { nonce, tee: Tee::Sample }) if nonce == "nonce"));
        assert_eq!(sessions.take("a", now).unwrap_err(), SessionError::Used);
        sessions.attest("a", attested(), now).unwrap();
        assert!(matches!(sessions.take("a", now), Ok(Turn::Attested(_))));
        assert_eq!(sessions.attested("a", now).unwrap().token, "t");
        sessions.open("b".into(), "nonce".into(), Tee::Sample, now);
        sessions.take("b", now).unwrap();
        sessions.close("b", now);
        assert_eq!(sessions.take("b", now).unwrap_err(), SessionError::Unknown);
        assert_eq!(sessions.attest("b", attested(), now), Err(SessionError::Unknown));
    }

    #[test]
    fn sessions_are_bounded_in_number_and_time() {
        let (sessions, now) = (Sessions::new(2, LIFETIME), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        let open = |id: &str, now| sessions.open(id.into(), "n".into(), Tee::Sample, now);
        let attest = |id: &str, now| sessions.take(id, now).and_then(|_| sessions.attest(id, attested(), now));
        open("a", now);
        attest("a", later(1)).unwrap();
        for id in ["b", "c", "d", "e"] {
            open(id, later(2));
        }
        assert_eq!(sessions.take("b", later(2)).unwrap_err(), SessionError::Unknown, "the oldest challenges went");
        assert!(sessions.attested("a", later(2)).is_ok(), "a flood of challenges does not push out who has attested");
        assert_eq!(sessions.count(later(2)), 3);
        attest("d", later(3)).unwrap();
        attest("e", later(3)).unwrap();
        assert_eq!(sessions.attested("a", later(3)).unwrap_err(), SessionError::Unknown, "the oldest of more than two");
        open("f", later(3));
        assert_eq!(sessions.take("f", later(3) + CHALLENGE).unwrap_err(), SessionError::Unknown);
        assert!(sessions.attested("e", later(3) + CHALLENGE).is_ok());
        assert_eq!(sessions.count(later(3) + LIFETIME), 0);
        // Closing and opening again and again grows nothing.
        for n in 0..100 {
            open(&n.to_string(), later(400));
            sessions.close(&n.to_string(), later(400));
        }
        assert_eq!(sessions.table.lock().unwrap().challenges.len(), 2);
    }
}
