//! One shim serves one group of containers: a pod, or one container. What it owns on the host is named after the group.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Longest path of a unix socket (`sun_path` of unix(7), less the NUL and a reserve as containerd's tests have it).
const MAX_SOCKET_PATH: usize = 106;
/// Digits of the digest in a sandbox's name: enough to keep apart the namespaces and daemons of one host.
const SHORT: usize = 8;

/// A group, by the daemon and the namespace that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    id: String,
    digest: String,
}

impl Group {
    /// The group `id` in `namespace` of the containerd at `address`.
    pub fn new(address: &str, namespace: &str, id: &str) -> Self {
        let digest = hex::encode(Sha256::digest(format!("{address}\0{namespace}\0{id}")));
        Self { id: id.to_owned(), digest }
    }

    /// The shim's socket, in `dir`. `Err` has the path that is too long for the kernel.
    pub fn socket(&self, dir: &Path) -> Result<PathBuf, PathBuf> {
        let path = dir.join(&self.digest[..32]);
        if path.as_os_str().len() > MAX_SOCKET_PATH { Err(path) } else { Ok(path) }
    }

    /// Name of the sandbox in the state directory: the group's, made unique on this host.
    pub fn sandbox_id(&self) -> String {
        format!("{}.{}", self.id, &self.digest[..SHORT])
    }
}

/// Where sockets are, by the configuration.
pub fn socket_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_and_daemons_are_kept_apart() {
        let one = Group::new("/run/c.sock", "default", "demo");
        assert_eq!(one, Group::new("/run/c.sock", "default", "demo"));
        for other in [Group::new("/run/c.sock", "k8s.io", "demo"), Group::new("/run/d.sock", "default", "demo")] {
            assert_ne!(one.sandbox_id(), other.sandbox_id());
            assert_ne!(one.socket(Path::new("/s")), other.socket(Path::new("/s")));
        }
        assert!(one.sandbox_id().starts_with("demo."));
    }

    #[test]
    fn a_path_too_long_for_the_kernel_is_told() {
        let group = Group::new("", "default", &"a".repeat(76));
        let path = group.socket(&socket_dir(Path::new("/run/cloister"))).unwrap();
        assert!(path.as_os_str().len() < 60, "{}", path.display());
        assert!(group.socket(Path::new(&format!("/{}", "x".repeat(74)))).is_err());
        assert!(protocol::bounds::check_id("sandbox_id", &group.sandbox_id()).is_ok());
    }
}
