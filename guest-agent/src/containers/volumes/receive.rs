//! One copy of a volume, from the host's stream into a directory that nobody else uses yet. Every byte of it is hostile: names are made
//! below the root by descriptors, through no link, and each exactly once.

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{Gid, Uid, fchown, fchownat, symlinkat},
};
use policy::CopiedEntry;
use protocol::volume::{Attributes, Entry, MAX_BYTES, MAX_ENTRIES, VolumeError};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a file that are in our hands at a time.
const CHUNK: u64 = 64 << 10;
/// Most bytes of all names of a copy that a policy is asked about. Kubelet's have a few hundred keys.
const MAX_NAMES: usize = 256 << 10;

/// Reads a whole copy and makes it at `target`, where there must be nothing. What was made of a copy that fails is the caller's to remove.
/// `closed` says that a policy will be asked: then it is given what has come, and of what content.
pub async fn receive(reader: &mut (impl AsyncRead + Unpin), target: &Path, closed: bool) -> Result<Vec<CopiedEntry>, VolumeError> {
    let mut bytes = 0;
    let mut seen = Seen { closed, ..Seen::default() };
    let root = match Entry::read(reader).await? {
        Entry::Directory(attributes) if attributes.path.is_empty() => {
            fs::create_dir(target)?;
            let root = OwnedFd::from(File::open(target)?);
            own(&root, &attributes)?;
            Some(root)
        }
        Entry::File(attributes, size) if attributes.path.is_empty() => {
            let file = File::options().write(true).create_new(true).open(target)?;
            let digest = fill(reader, file, &attributes, size, &mut bytes, closed).await?;
            seen.note(CopiedEntry::File { path: String::new(), digest }, 0)?;
            None
        }
        _ => return Err(rule("the first entry must be its root".into())),
    };
    let mut entries = 1;
    loop {
        let entry = Entry::read(reader).await?;
        let root = match (&entry, &root) {
            (Entry::End, _) => return Ok(seen.list),
            (_, Some(root)) => root,
            (_, None) => return Err(rule("there is nothing below a file".into())),
        };
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(rule(format!("more than {MAX_ENTRIES} entries")));
        }
        match entry {
            Entry::Directory(attributes) => {
                let (parent, name) = parent(root, &attributes.path)?;
                mkdirat(parent.as_fd(), name, Mode::S_IRWXU).map_err(|e| made(&attributes.path, e))?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                own(&openat(parent.as_fd(), name, flags, Mode::empty()).map_err(io::Error::from)?, &attributes)?;
                let length = attributes.path.len();
                seen.note(CopiedEntry::Directory(attributes.path), length)?;
            }
            Entry::File(attributes, size) => {
                let (parent, name) = parent(root, &attributes.path)?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(parent.as_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| made(&attributes.path, e))?;
                let digest = fill(reader, File::from(file), &attributes, size, &mut bytes, closed).await?;
                let length = attributes.path.len();
                seen.note(CopiedEntry::File { path: attributes.path, digest }, length)?;
            }
            Entry::Link(path, target) => {
                let (parent, name) = parent(root, &path)?;
                symlinkat(target.as_str(), parent.as_fd(), name).map_err(|e| made(&path, e))?;
                let (root, none) = (Uid::from_raw(0), AtFlags::AT_SYMLINK_NOFOLLOW);
                // Only root can give it away, and only root need.
                let _ = fchownat(parent.as_fd(), name, Some(root), Some(Gid::from_raw(0)), none);
                let length = path.len() + target.len();
                seen.note(CopiedEntry::Link { path, target }, length)?;
            }
            Entry::End => {}
        }
    }
}

/// What has come, for a policy to be asked about.
#[derive(Default)]
struct Seen {
    closed: bool,
    list: Vec<CopiedEntry>,
    names: usize,
}

impl Seen {
    fn note(&mut self, entry: CopiedEntry, length: usize) -> Result<(), VolumeError> {
        if !self.closed {
            return Ok(());
        }
        self.names += length;
        if self.names > MAX_NAMES {
            return Err(rule(format!("names of more than {} KiB", MAX_NAMES >> 10)));
        }
        self.list.push(entry);
        Ok(())
    }
}

/// The directory that an entry is to be in, and its name there. No link is followed, whatever came before.
fn parent<'a>(root: &OwnedFd, path: &'a str) -> Result<(OwnedFd, &'a str), VolumeError> {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    if name.is_empty() {
        return Err(rule("its root comes once".into()));
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
    let parent = openat2(root.as_fd(), directory, how).map_err(|e| made(path, e))?;
    Ok((parent, name))
}

/// Reads a file's bytes, and not one more than the volume may still have. A host that says too much has sent too little: an error. Gives
/// the digest of what was written, `sha256:…`, where it is asked for.
async fn fill(
    reader: &mut (impl AsyncRead + Unpin),
    mut file: File,
    attributes: &Attributes,
    size: u64,
    bytes: &mut u64,
    digested: bool,
) -> Result<String, VolumeError> {
    *bytes = bytes.saturating_add(size);
    if *bytes > MAX_BYTES {
        return Err(rule(format!("more than {} MiB", MAX_BYTES >> 20)));
    }
    let mut left = size;
    // Within its bound, it fits.
    let mut chunk = vec![0; usize::try_from(CHUNK.min(size)).unwrap_or(0)];
    let mut hash = Sha256::new();
    while left > 0 {
        let part = usize::try_from(left.min(CHUNK)).unwrap_or(0);
        reader.read_exact(&mut chunk[..part]).await?;
        if digested {
            hash.update(&chunk[..part]);
        }
        file.write_all(&chunk[..part])?;
        left -= part as u64;
    }
    own(&OwnedFd::from(file), attributes)?;
    Ok(if digested { format!("sha256:{}", hex::encode(hash.finalize())) } else { String::new() })
}

/// Owner first: a change of owner takes the setgid bit away.
fn own(file: &OwnedFd, attributes: &Attributes) -> Result<(), VolumeError> {
    fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid))).map_err(io::Error::from)?;
    fchmod(file, Mode::from_bits_truncate(attributes.mode.into())).map_err(io::Error::from)?;
    Ok(())
}

fn made(path: &str, error: Errno) -> VolumeError {
    rule(format!("{path:?}: {}", error.desc()))
}

fn rule(rule: String) -> VolumeError {
    VolumeError::Entry(rule)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use nix::unistd::{getegid, geteuid};
    use std::os::unix::fs::{PermissionsExt, symlink};

    pub fn at(path: &str) -> Attributes {
        Attributes { path: path.into(), mode: 0o750, uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// A stream of these entries; a file's content is its own path.
    pub async fn stream(entries: &[Entry]) -> Vec<u8> {
        let mut wire = Vec::new();
        for entry in entries {
            entry.write(&mut wire).await.unwrap();
            if let Entry::File(attributes, _) = entry {
                wire.extend(attributes.path.as_bytes());
            }
        }
        wire
    }

    pub fn file(path: &str) -> Entry {
        Entry::File(at(path), path.len() as u64)
    }

    async fn receive_all(entries: &[Entry]) -> (tempfile::TempDir, Result<Vec<CopiedEntry>, VolumeError>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        let wire = stream(entries).await;
        let result = receive(&mut &wire[..], &dir.path().join("volume"), true).await;
        (dir, result)
    }

    #[tokio::test]
    async fn a_volume_arrives_as_it_is() {
        let root = Entry::Directory(at(""));
        let (dir, result) = receive_all(&[
            root,
            Entry::Directory(at("..1")),
            file("..1/key"),
            Entry::Link("..data".into(), "..1".into()),
            Entry::Link("key".into(), "..data/key".into()),
            Entry::End,
        ])
        .await;
        result.unwrap();
        let volume = dir.path().join("volume");
        assert_eq!(fs::read_to_string(volume.join("key")).unwrap(), "..1/key");
        assert_eq!(fs::metadata(volume.join("..1/key")).unwrap().permissions().mode() & 0o7777, 0o750);
        let (dir, result) = receive_all(&[Entry::File(at(""), 0), Entry::End]).await;
        result.unwrap();
        assert!(dir.path().join("volume").is_file());
    }

    #[tokio::test]
    async fn a_policy_is_told_all_that_came_and_of_what_content() {
        let (_dir, result) = receive_all(&[
            Entry::Directory(at("")),
            Entry::Directory(at("d")),
            file("d/x"),
            Entry::Link("l".into(), "d".into()),
            Entry::End,
        ])
        .await;
        let digest = format!("sha256:{}", hex::encode(Sha256::digest("d/x")));
        let link = CopiedEntry::Link { path: "l".into(), target: "d".into() };
        assert_eq!(result.unwrap(), [CopiedEntry::Directory("d".into()), CopiedEntry::File { path: "d/x".into(), digest }, link]);
        let long = |n: usize| Entry::Link(n.to_string(), "x".repeat(4000));
        let many: Vec<Entry> = std::iter::once(Entry::Directory(at(""))).chain((0..100).map(long)).collect();
        assert!(receive_all(&many).await.1.unwrap_err().to_string().contains("KiB"));
    }

    #[tokio::test]
    async fn nothing_is_made_outside() {
        let outside = ["../outside", "/", "."].map(|target| Entry::Link("out".into(), target.into()));
        for link in outside {
            for last in [file("out/x"), Entry::Directory(at("out/x")), Entry::Link("out/x".into(), "y".into()), file("out")] {
                let (dir, result) = receive_all(&[Entry::Directory(at("")), link.clone(), last, Entry::End]).await;
                assert!(result.is_err());
                assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
            }
        }
    }

    #[tokio::test]
    async fn a_host_that_lies_is_refused() {
        let root = || Entry::Directory(at(""));
        let huge = Entry::File(at("a"), MAX_BYTES + 1);
        let overflow = Entry::File(at("b"), u64::MAX);
        for (what, entries) in [
            ("no root", vec![file("a"), Entry::End]),
            ("end at once", vec![Entry::End]),
            ("root twice", vec![root(), root(), Entry::End]),
            ("below a file", vec![Entry::File(at(""), 0), file("a"), Entry::End]),
            ("the same twice", vec![root(), file("a"), file("a"), Entry::End]),
            ("no parent", vec![root(), file("a/b"), Entry::End]),
            ("parent is a file", vec![root(), file("a"), file("a/b"), Entry::End]),
            ("too large", vec![root(), huge, Entry::End]),
            ("a sum that overflows", vec![root(), file("a"), overflow, Entry::End]),
            ("less than it says", vec![root(), Entry::File(at("a"), 100), Entry::End]),
            ("no end", vec![root(), file("a")]),
        ] {
            assert!(receive_all(&entries).await.1.is_err(), "{what}");
        }
        let many: Vec<Entry> = std::iter::once(root()).chain((0..MAX_ENTRIES).map(|n| Entry::Link(n.to_string(), "x".into()))).collect();
        assert!(receive_all(&many).await.1.unwrap_err().to_string().contains("entries"));
    }

    #[tokio::test]
    async fn a_target_that_exists_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink(dir.path().join("secret"), dir.path().join("volume")).unwrap();
        let wire = stream(&[Entry::File(at(""), 0), Entry::End]).await;
        assert!(receive(&mut &wire[..], &dir.path().join("volume"), true).await.is_err());
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "x");
    }
}
