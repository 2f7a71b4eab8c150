//! Recorded evidence of real machines, from `CLOISTER_VECTORS` or `../shared/vectors` beside the checkout.

use std::path::{Path, PathBuf};

/// The folder of one kind of vectors. Where it is absent the caller's test has not run, and says so; the same code is covered by
/// evidence that the tests make themselves.
#[allow(clippy::print_stdout)]
pub(crate) fn directory(kind: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let directory = std::env::var_os("CLOISTER_VECTORS").map_or(beside, PathBuf::from).join(kind);
    if directory.is_dir() {
        return Some(directory);
    }
    println!("NOT RUN: {} is absent; set CLOISTER_VECTORS", directory.display());
    None
}
