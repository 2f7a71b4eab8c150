//! What decides on trust, from the fuzz targets' kept corpus and mutations of it: a short run for every change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../fuzz/src/trust.rs"]
mod targets;

#[path = "../../fuzz/src/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn evidence() {
    replay("evidence", targets::evidence);
}

#[test]
fn quote() {
    replay("quote", targets::quote);
}

#[test]
fn certificate() {
    replay("certificate", targets::certificate);
}

#[test]
fn kbs() {
    replay("kbs", targets::kbs);
}

#[test]
fn initdata() {
    replay("initdata", targets::initdata);
}

#[test]
fn policy() {
    replay("policy", targets::policy);
}

#[test]
fn rule() {
    replay("rule", targets::rule);
}

#[test]
fn secret() {
    replay("secret", targets::secret);
}
