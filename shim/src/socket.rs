//! The shim's socket: bound by `start`, handed to the daemon, unlinked at its end.
//!
//! A daemon that is killed leaves its socket to `delete`. One that is killed before containerd has connected to it leaves it to nobody:
//! containerd then removes the bundle and runs no `delete`. Every `start` therefore removes what it finds dead.

use nix::fcntl::{Flock, FlockArg};
use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};
use thiserror::Error;

/// The unix sockets of this network namespace, a line each, whose last word is the path it is bound to (proc(5)).
const BOUND: &str = "/proc/net/unix";

/// The socket cannot be had.
#[derive(Debug, Error)]
#[error("socket {path}: {source}")]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// What [`claim`] found.
#[derive(Debug)]
pub enum Claim {
    /// The socket is ours; the group has no shim yet.
    Bound(UnixListener),
    /// The group's shim answers on it.
    Served,
}

/// Binds the group's socket, unless its shim is there.
///
/// The folder is locked meanwhile: of two `start`s that find a dead shim's socket, the second would else unlink what the first
/// has just bound, and the group would have two shims. Other groups' dead sockets go too.
pub fn claim(path: &Path) -> Result<Claim, SocketError> {
    let failed = |source| SocketError { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let folder = File::open(dir).map_err(failed)?;
    let _lock = Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(Claim::Served);
            }
            fs::remove_file(path).and_then(|()| UnixListener::bind(path)).map_err(failed)?
        }
        Err(e) => return Err(failed(e)),
    };
    // A pathname, never an abstract name (CVE-2020-15257), and for nobody but us.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    sweep(dir);
    Ok(Claim::Bound(listener))
}

/// Unlinks a socket on which nobody answers.
pub fn remove_dead(path: &Path) {
    if UnixStream::connect(path).is_err() {
        // Gone already is what was wanted.
        let _ = fs::remove_file(path);
    }
}

/// Unlinks every socket in `dir` on which nobody answers.
pub fn remove_all_dead(dir: &Path) {
    // Locked, as by `claim`: what is bound and does not listen yet answers nobody either.
    let Ok(folder) = File::open(dir) else { return };
    let Ok(_lock) = Flock::lock(folder, FlockArg::LockExclusive) else { return };
    sweep(dir);
}

/// The same, with the lock held.
fn sweep(dir: &Path) {
    // One reading of the kernel's list spares every living shim a caller that hangs up at once. The list is that of our network
    // namespace, so that a socket which is not in it is dead only if nobody answers either.
    let list = fs::read_to_string(BOUND).unwrap_or_default();
    let bound: HashSet<&Path> = list.lines().filter_map(|line| line.split_whitespace().last().map(Path::new)).collect();
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if !bound.contains(path.as_path()) {
            remove_dead(&path);
        }
    }
}

/// The address as callers take it.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_shim_is_found_and_a_dead_ones_socket_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s/socket");
        let Claim::Bound(listener) = claim(&path).unwrap() else { panic!("served by nobody") };
        assert!(matches!(claim(&path).unwrap(), Claim::Served));
        remove_dead(&path);
        assert!(path.exists());
        drop(listener);
        assert!(matches!(claim(&path).unwrap(), Claim::Bound(_)));
        remove_dead(&path);
        assert!(!path.exists());
        let Claim::Bound(living) = claim(&path).unwrap() else { panic!("served by nobody") };
        let dead = dir.path().join("s/dead");
        drop(UnixListener::bind(&dead).unwrap());
        remove_all_dead(&dir.path().join("s"));
        assert!(path.exists() && !dead.exists());
        // A shim that nobody deletes leaves its socket to the next one's start.
        drop(UnixListener::bind(&dead).unwrap());
        let Claim::Bound(other) = claim(&dir.path().join("s/other")).unwrap() else { panic!("served by nobody") };
        assert!(path.exists() && !dead.exists());
        drop((living, other));
        remove_dead(&path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let Claim::Bound(_listener) = claim(&path).unwrap() else { panic!("served by nobody") };
        assert_eq!((mode(&path), mode(&dir.path().join("s"))), (0o600, 0o700));
    }

    #[test]
    fn side_by_side_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let claims: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| claim(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().filter(|claim| matches!(claim, Claim::Bound(_))).count(), 1);
    }
}
