//! The last refusals, for the administrator's question why a guest did not get what it asked for. Bounded; what is older is in the audit log.

use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

/// How many are kept.
const MAX: usize = 1024;

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Seconds since 1970.
    pub at: u64,
    /// Who asked, as the log names the session.
    pub session: String,
    /// The address that asked.
    pub peer: String,
    /// Path of what was asked for; empty where the handshake itself was refused.
    pub resource: String,
    /// Kind of the evidence.
    pub tee: String,
    /// Hex; empty where nothing was proved.
    pub launch_measurement: String,
    /// Hex; empty where nothing was proved.
    pub init_data: String,
    /// The rule's own words: what the claim was, what the rule wants, what to change.
    pub reason: String,
}

/// A ring of them.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    pub(crate) fn add(&self, refusal: Refusal) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX {
            all.pop_front();
        }
        all.push_back(refusal);
    }

    /// Those of a resource, and of handshakes that did not get so far; the newest first.
    pub(crate) fn of(&self, resource: &str) -> Vec<Refusal> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().filter(|refusal| refusal.resource.is_empty() || refusal.resource == resource).cloned().collect()
    }
}
