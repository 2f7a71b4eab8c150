//! Where things are: the repository, what it built, and what `make setup` unpacked.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Longest path of a Unix socket that the kernel and containerd both accept, in bytes (`sun_path` less its NUL, less one).
pub const MAX_SOCKET_PATH: usize = 106;

/// The versions of containerd that `make setup` unpacks, oldest first, as named below `build/deps`.
pub const CONTAINERD_VERSIONS: [&str; 3] = ["1.6", "1.7", "2"];

/// The newest of them; its `ctr` pulls through remote snapshotters by itself.
pub const CONTAINERD_NEWEST: &str = "2";

/// The version that is used where any will do.
pub const CONTAINERD_DEFAULT: &str = "1.7";

/// Top of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The build directory, without `..` in it: its length counts for socket paths.
pub fn build() -> Result<PathBuf> {
    Ok(root().canonicalize()?.join("build"))
}

/// Directory of the release binaries.
pub fn binaries() -> Result<PathBuf> {
    Ok(root().canonicalize()?.join("target/x86_64-unknown-linux-gnu/release"))
}

/// A binary of this repository.
pub fn ours(name: &str) -> Result<PathBuf> {
    existing(binaries()?.join(name), "make build")
}

/// The guest image's directory.
pub fn guest() -> Result<PathBuf> {
    existing(build()?.join("guest"), "make guest")
}

/// A file out of a package that `make setup` unpacked.
pub fn unpacked(package: &str, path: &str) -> Result<PathBuf> {
    existing(build()?.join("deps").join(package).join(path), "make setup")
}

/// nerdctl, which `make test` builds.
pub fn built_nerdctl() -> Result<PathBuf> {
    existing(build()?.join("deps/nerdctl/nerdctl"), "scripts/setup-nerdctl")
}

/// Debian's static busybox: in `/bin` on Debian 12, in `/usr/bin` from 13 on.
pub fn busybox() -> Result<PathBuf> {
    unpacked("busybox", "usr/bin/busybox").or_else(|_| unpacked("busybox", "bin/busybox"))
}

/// Debian's runc: in `/usr/sbin` on Debian 12, in `/usr/bin` in later ones.
pub fn runc() -> Result<PathBuf> {
    unpacked("runc", "usr/bin/runc").or_else(|_| unpacked("runc", "usr/sbin/runc"))
}

/// Refuses a socket path that would be cut off or refused later with an error that explains nothing.
pub fn socket(path: PathBuf) -> Result<PathBuf> {
    let length = path.as_os_str().len();
    ensure!(
        length <= MAX_SOCKET_PATH,
        "the socket {} would have {length} bytes, {MAX_SOCKET_PATH} is the most: move the repository to a shorter path",
        path.display()
    );
    Ok(path)
}

fn existing(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run `{remedy}`", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_socket_path_beyond_the_limit_is_refused_with_the_remedy() {
        assert!(socket(PathBuf::from("x".repeat(MAX_SOCKET_PATH))).is_ok());
        let text = socket(PathBuf::from("x".repeat(MAX_SOCKET_PATH + 1))).unwrap_err().to_string();
        assert!(text.contains("107 bytes") && text.contains("shorter path"), "{text}");
    }

    #[test]
    fn a_missing_file_names_the_command_that_makes_it() {
        let text = unpacked("no-such-package", "bin/x").unwrap_err().to_string();
        assert!(text.ends_with("run `make setup`"), "{text}");
    }
}
