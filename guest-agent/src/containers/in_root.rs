//! Files inside a container's root, reached without ever leaving it: the image is the owner's, but what runs in it need not be kind.

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Largest account file that is read, in bytes.
const MAX_READ: u64 = 4 << 20;

/// A root that paths are resolved in, symbolic links included (`RESOLVE_IN_ROOT`, openat2(2)).
pub struct InRoot(OwnedFd);

impl InRoot {
    /// Takes a directory of ours as the root.
    pub fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(root, flags, Mode::empty())?))
    }

    /// A regular file's text; `None` where there is no such file. What is not UTF-8 is replaced, what is too long is an error.
    pub fn read(&self, path: &str) -> io::Result<Option<String>> {
        // O_NONBLOCK: a FIFO of the image must not hold us up.
        let file = match self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(MAX_READ + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_READ {
            return Err(io::Error::other(format!("{path} in the image is longer than {MAX_READ} bytes")));
        }
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Writes a file where there is none; gives whether it did. A missing directory above it is made.
    pub fn write_absent(&self, path: &str, content: &str) -> io::Result<bool> {
        if let Some(parent) = Path::new(path).parent() {
            self.make_dirs(parent)?;
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
        match self.resolve(path, flags, Mode::from_bits_truncate(0o644)) {
            Ok(file) => File::from(file).write_all(content.as_bytes()).map(|()| true),
            Err(Errno::EEXIST | Errno::ELOOP) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes a file in place of what is there, if that is not a directory.
    pub fn replace(&self, path: &str, content: &str) -> io::Result<()> {
        let wanted = Path::new(path);
        let (Some(parent), Some(name)) = (wanted.parent(), wanted.file_name()) else { return Err(Errno::EINVAL.into()) };
        self.make_dirs(parent)?;
        let parent = self.resolve(&parent.display().to_string(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        match unlinkat(parent.as_fd(), Path::new(name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        self.write_absent(path, content).map(drop)
    }

    /// Makes a directory and those above it, where they are missing.
    pub fn make_dirs(&self, path: &Path) -> io::Result<()> {
        let mut so_far = PathBuf::new();
        for part in path.components().filter(|c| matches!(c, std::path::Component::Normal(_))) {
            let parent = self.resolve(&format!("/{}", so_far.display()), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
            match mkdirat(parent.as_fd(), Path::new(part.as_os_str()), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => so_far.push(part),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// A directory, made with this mode and owner where it is missing, as are those above it.
    pub fn make_directory(&self, path: &str, mode: Mode, owner: (Uid, Gid)) -> io::Result<OwnedFd> {
        let mut so_far = String::from("/");
        for part in path.split('/') {
            let above = self.resolve(&so_far, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
            match mkdirat(above.as_fd(), part, mode) {
                Ok(()) => {
                    let made = openat(above.as_fd(), part, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
                    // Whatever the umask is.
                    fchown(&made, Some(owner.0), Some(owner.1))?;
                    fchmod(&made, mode)?;
                }
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(e.into()),
            }
            so_far = format!("{}/{part}", so_far.trim_end_matches('/'));
        }
        Ok(self.resolve(&so_far, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?)
    }

    /// What is there, by a descriptor that can be bound.
    pub fn find(&self, path: &str) -> io::Result<OwnedFd> {
        Ok(self.resolve(&format!("/{path}"), OFlag::O_PATH, Mode::empty())?)
    }

    /// Where a directory really is, in the agent's own root.
    pub fn real_path(&self, path: &str) -> io::Result<PathBuf> {
        let directory = self.resolve(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
    }

    fn resolve(&self, path: &str, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(mode)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(self.0.as_fd(), path, how)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn root() -> (tempfile::TempDir, InRoot) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        let root = InRoot::open(&dir.path().join("root")).unwrap();
        (dir, root)
    }

    #[test]
    fn links_stay_inside() {
        let (dir, root) = root();
        symlink("../../secret", dir.path().join("root/relative")).unwrap();
        symlink(dir.path().join("secret"), dir.path().join("root/absolute")).unwrap();
        symlink("/inside", dir.path().join("root/good")).unwrap();
        fs::write(dir.path().join("root/inside"), "inside").unwrap();
        assert_eq!(root.read("/relative").unwrap(), None);
        assert_eq!(root.read("/absolute").unwrap(), None);
        assert_eq!(root.read("/../secret").unwrap(), None);
        assert_eq!(root.read("/good").unwrap().as_deref(), Some("inside"));
        fs::create_dir(dir.path().join("root/dir")).unwrap();
        symlink("/dir/../../dir", dir.path().join("root/link")).unwrap();
        assert_eq!(root.real_path("/link").unwrap(), dir.path().canonicalize().unwrap().join("root/dir"));
    }

    #[test]
    fn a_directory_is_made_inside_whatever_the_links_say() {
        let (dir, root) = root();
        symlink(dir.path(), dir.path().join("root/out")).unwrap();
        symlink("../../..", dir.path().join("root/up")).unwrap();
        let owner = (nix::unistd::getuid(), nix::unistd::getgid());
        let mode = Mode::from_bits_truncate(0o1777);
        let made = |path: &str| {
            let found = root.make_directory(path, mode, owner)?;
            std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        };
        let inside = dir.path().canonicalize().unwrap().join("root");
        assert_eq!(made("a/b").unwrap(), inside.join("a/b"));
        let permissions = fs::metadata(inside.join("a/b")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::mode(&permissions) & 0o7777, 0o1777);
        assert_eq!(made("a/b").unwrap(), inside.join("a/b"));
        // Up from the root is the root.
        assert_eq!(made("up/x").unwrap(), inside.join("x"));
        // The link's target is looked for inside, where it is not.
        assert!(made("out/y").is_err());
        assert!(!dir.path().join("y").exists() && !dir.path().join("x").exists());
        fs::write(inside.join("file"), "").unwrap();
        assert!(made("file").is_err() && made("file/z").is_err());
        let found = |path: &str| {
            let found = root.find(path)?;
            std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        };
        assert_eq!((found("up/file").unwrap(), found("").unwrap()), (inside.join("file"), inside));
        assert!(found("out/secret").is_err());
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (dir, root) = root();
        symlink(dir.path(), dir.path().join("root/etc")).unwrap();
        let written = root.write_absent("/etc/hosts", "x");
        assert!(written.is_err() || !dir.path().join("hosts").exists());
        assert!(!dir.path().join("hosts").exists());
        fs::write(dir.path().join("root/file"), "old").unwrap();
        assert!(!root.write_absent("/file", "new").unwrap());
        assert!(root.write_absent("/a/b/c", "new").unwrap());
        assert_eq!(fs::read_to_string(dir.path().join("root/a/b/c")).unwrap(), "new");
    }

    #[test]
    fn a_file_or_a_link_is_replaced_and_not_followed() {
        let (dir, root) = root();
        root.replace("/etc/resolv.conf", "one").unwrap();
        root.replace("/etc/resolv.conf", "two").unwrap();
        assert_eq!(root.read("/etc/resolv.conf").unwrap().as_deref(), Some("two"));
        fs::remove_file(dir.path().join("root/etc/resolv.conf")).unwrap();
        symlink(dir.path().join("secret"), dir.path().join("root/etc/resolv.conf")).unwrap();
        root.replace("/etc/resolv.conf", "three").unwrap();
        assert_eq!(root.read("/etc/resolv.conf").unwrap().as_deref(), Some("three"));
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "outside");
        assert!(root.replace("/etc", "x").is_err());
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let (dir, root) = root();
        nix::unistd::mkfifo(&dir.path().join("root/fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        fs::create_dir(dir.path().join("root/dir")).unwrap();
        for path in ["/fifo", "/dir", "/none"] {
            assert_eq!(root.read(path).unwrap(), None, "{path}");
        }
    }
}
