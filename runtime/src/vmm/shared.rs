//! Directories of the host's that a guest without an enclave sees as they are, by virtio-fs: a virtiofsd for each.

use super::{Command, MissingError};
use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Where packages put it, newest first: one of its own, and QEMU's until 7.2.
const PLACES: &[&str] = &["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
pub enum SharedError {
    /// Nothing to serve it with.
    #[error(transparent)]
    Missing(#[from] MissingError),
    /// The directory, or its socket.
    #[error("guest.shared {path}: {source}")]
    Io {
        /// On the host.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A directory that is served.
#[derive(Debug)]
pub struct Shared {
    /// By which the guest finds it.
    pub tag: String,
    /// The monitor's end of the line to the one who serves it.
    pub socket: OwnedFd,
}

/// How a guest finds the directory with this number in the configuration.
pub fn tag(number: usize) -> String {
    format!("share{number}")
}

/// The devices, and what has to run beside the monitor to serve them. A socket is in `dir` for a moment.
pub fn serve(program: Option<&Path>, directories: &[PathBuf], dir: &Path) -> Result<(Vec<Shared>, Vec<Command>), SharedError> {
    if directories.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let usual = || PLACES.iter().map(Path::new).find(|path| path.is_file());
    let program = program.or_else(usual).filter(|path| path.is_file()).ok_or_else(|| MissingError::Helper {
        key: "vmm.virtiofsd",
        program: program.unwrap_or(Path::new("virtiofsd")).to_owned(),
        package: "virtiofsd",
    })?;
    let one = |(number, path): (usize, &PathBuf)| {
        let failed = |source| SharedError::Io { path: path.clone(), source };
        let path = std::fs::canonicalize(path).map_err(failed)?;
        let socket = dir.join(tag(number));
        // It takes the first who connects to a socket that is handed to it: the monitor has connected, and nobody can after it.
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        let connected = UnixStream::connect(&socket);
        std::fs::remove_file(&socket).map_err(failed)?;
        let shared = Shared { tag: tag(number), socket: connected.map_err(failed)?.into() };
        Ok((shared, daemon(program, &path, listener.into())))
    };
    directories.iter().enumerate().map(one).collect::<Result<Vec<_>, SharedError>>().map(|all| all.into_iter().unzip())
}

/// It ends when the monitor closes its end of the socket, and at the latest with its sandbox. It changes into the directory, which is its root
/// from then on, and keeps the descriptors that it may have.
fn daemon(program: &Path, directory: &Path, listener: OwnedFd) -> Command {
    let mut source = std::ffi::OsString::from("source=");
    source.push(directory);
    let mut arguments = vec![format!("--fd={}", listener.as_raw_fd()).into(), "--rlimit-nofile=0".into(), "-o".into(), source];
    // What another process of the host writes is seen at once.
    arguments.extend(["-o".into(), "cache=none".into()]);
    Command { program: program.to_owned(), arguments, inherited: vec![listener] }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_directory_has_a_process_that_nobody_else_can_reach() {
        let dir = std::env::temp_dir().join(format!("cloister-shared-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(serve(None, &[], &dir).unwrap().1.is_empty());
        let (shared, commands) = serve(Some(Path::new("/bin/true")), &["/usr".into(), "/etc".into()], &dir).unwrap();
        assert_eq!(shared.iter().map(|one| one.tag.as_str()).collect::<Vec<_>>(), ["share0", "share1"]);
        let text = commands[1].arguments.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        let fd = commands[1].inherited[0].as_raw_fd();
        assert_eq!(text, format!("--fd={fd} --rlimit-nofile=0 -o source=/etc -o cache=none"));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        let error = serve(Some(Path::new("/bin/true")), &["/nowhere".into()], &dir).unwrap_err().to_string();
        assert!(error.starts_with("guest.shared /nowhere: No such file"), "{error}");
        let error = serve(Some(Path::new("/nowhere/v")), &["/usr".into()], &dir).unwrap_err().to_string();
        assert!(error.contains("/nowhere/v not found") && error.contains("vmm.virtiofsd"), "{error}");
        std::fs::remove_dir(&dir).unwrap();
    }
}
