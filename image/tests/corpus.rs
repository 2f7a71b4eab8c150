//! The fuzz targets over their kept corpus, and over mutations of it: a short run for every change. The long one is `scripts/fuzz`,
//! guided by coverage; an input that it finds goes into the corpus, and is run here from then on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../fuzz/src/targets.rs"]
mod targets;

#[path = "../../fuzz/src/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn tar() {
    replay("tar", targets::tar);
}

#[test]
fn manifest() {
    replay("manifest", targets::manifest);
}

#[test]
fn config() {
    replay("config", targets::config);
}

#[test]
fn ocicrypt() {
    replay("ocicrypt", targets::ocicrypt);
}

#[test]
fn whiteouts() {
    replay("whiteouts", targets::whiteouts);
}
