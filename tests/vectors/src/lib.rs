//! What others recorded (evidence of real machines, event logs, encrypted and signed images), from `CLOISTER_VECTORS` or
//! `../shared/vectors` beside the checkout. Where the folder is absent a test says that it was not run: fixtures of our own making cover
//! the same code, and `.ci/run` demands the folder.
#![allow(clippy::print_stdout, reason = "a test that does not run has to say so")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The folder, if it is there.
pub fn folder() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let folder = env::var_os("CLOISTER_VECTORS").map_or(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("NOT RUN: {} is absent; set CLOISTER_VECTORS", folder.display());
    None
}

/// A file of the folder, by its path there.
///
/// # Panics
///
/// If it cannot be read: where the folder is, its files are.
pub fn read(folder: &Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
