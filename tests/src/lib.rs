//! The test bed: a released containerd, a registry, the key broker and the snapshotter of this repository, on loopback and
//! below the build directory, and the means to ask whether anything of them is left.
//!
//! The end-to-end tests, `make demo` and `make bench` stand on it. Nothing here is linked into the product, and nothing
//! of the product is linked in here: the tests see what a user sees.
//!
//! Whatever is missing is an error that names the command to run; no test skips itself.

#![allow(clippy::print_stdout, reason = "the harness reports to the terminal")]

pub mod bed;
pub mod broker;
pub mod command;
pub mod configuration;
pub mod containerd;
pub mod cri;
pub mod crio;
pub mod crowd;
pub mod ctr;
pub mod daemon;
pub mod flood;
pub mod large;
pub mod layer;
pub mod leaks;
pub mod matrix;
pub mod memory;
pub mod nerdctl;
pub mod oci;
pub mod place;
pub mod pod;
pub mod private_registry;
pub mod pty;
pub mod raw;
pub mod recorder;
pub mod registry;
pub mod runner;
pub mod scratch_file;
pub mod search;
pub mod stages;
pub mod tree;
