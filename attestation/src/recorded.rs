//! Recorded evidence of real hardware, from `CLOISTER_VECTORS` or `../shared/vectors` beside the checkout. Where the folder is absent,
//! a test says that it was not run; tests on evidence of our own making cover the same code.
#![allow(clippy::print_stdout)]

use std::{fs, path::PathBuf};

/// The folder, if it is there.
pub(crate) fn folder() -> Option<PathBuf> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let folder = std::env::var_os("CLOISTER_VECTORS").map_or(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("NOT RUN: {} is absent; set CLOISTER_VECTORS", folder.display());
    None
}

/// A file of a folder that is there.
pub(crate) fn read(folder: &std::path::Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
