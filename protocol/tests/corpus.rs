//! Every message and greeting of the line, from the fuzz targets' kept corpus and mutations of it: a short run for every change. The long one
//! is `scripts/fuzz`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../fuzz/src/line.rs"]
mod targets;

#[path = "../../fuzz/src/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn requests() {
    replay("request", targets::request);
}

#[test]
fn answers() {
    replay("answer", targets::answer);
}

#[test]
fn greetings() {
    replay("greeting", targets::greeting);
}

#[test]
fn entries() {
    replay("entries", targets::entries);
}
