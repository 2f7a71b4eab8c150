//! Makes the agent smaller: it lives in the guest's memory, once as a file of the initramfs and once more as its mapped pages.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Relative relocations in their packed form (DT_RELR): a position-independent executable of this size has 30000 of them.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    // One copy of functions that compile to the same code, as instances of generics do.
    println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
}
