//! How a refusal reads: which claim, what it is, what the rule wants, what to change. One line.

use std::fmt::Display;

/// Entries of a list that a refusal repeats.
const MAX_SHOWN: usize = 4;

/// A refusal because `claim` is `found` where the rule names `wanted`, any of which would do.
pub fn mismatch(claim: &str, found: &dyn Display, wanted: &[impl Display], remedy: &str) -> String {
    let list: Vec<String> = wanted.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
    let more = if wanted.len() > MAX_SHOWN { format!(" or one of {} more", wanted.len() - MAX_SHOWN) } else { String::new() };
    format!("{claim} is {found}, the release rule wants {}{more}; {remedy}", list.join(" or "))
}

/// A digest or id as a refusal shows it.
pub fn shown(bytes: &[u8]) -> String {
    if bytes.iter().all(|b| *b == 0) { "none".into() } else { hex::encode(bytes) }
}
