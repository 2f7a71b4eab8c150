//! The node's cache of blobs: one download for each blob, however many guests of however many shims want it at once.
//!
//! ```text
//! <dir>/<hex>        a whole blob, whose digest was right
//! <dir>/<hex>.part   what has come of one so far
//! <dir>/<hex>.lock   locked (flock) by who downloads it; holds the size that the registry announced
//! ```
//!
//! The lock is the kernel's, so it ends with its process, however that ends: what is left is then nobody's, and the next who wants the blob
//! begins anew. A blob gets its name by a rename once it is whole and its digest is right. Who comes while it is on its way reads along.
//!
//! Nothing here is trusted by a guest. It holds what a registry gives to anybody who asks: of an encrypted image ciphertext, of a plain
//! image what is public (see [`super::upstream`]).

use super::{Blob, BlobSource};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};

/// How often a reader looks for more of a blob that another process downloads. A file says nothing of itself to a process that does not
/// write it; a fiftieth of a second is nothing beside a download.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a download may take to say how large the blob is.
const ANNOUNCE: Duration = Duration::from_secs(60);
/// Bytes on their way between the file and the guest, for each reader; and per write of a download.
const CHUNK: usize = 64 << 10;

/// A directory of blobs that all shims of a node share.
#[derive(Debug)]
pub struct BlobCache {
    dir: PathBuf,
    max_bytes: u64,
}

/// What is there of a blob.
enum Found {
    Whole(File, u64),
    /// Ours to download: nobody else does while this lock is held.
    Ours(Lock),
    /// Somebody else's.
    Theirs(File),
}

impl BlobCache {
    /// Opens the cache in `dir`, which is made, and removes what processes that are gone have left unfinished.
    pub fn open(dir: &Path, max_bytes: u64) -> io::Result<Arc<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let cache = Self { dir: dir.to_owned(), max_bytes };
        cache.sweep()?;
        Ok(Arc::new(cache))
    }

    /// A blob out of the cache, or out of `upstream` through it. `None` where neither has it, or it is larger than the cache.
    pub async fn get(self: &Arc<Self>, digest: &str, upstream: &dyn BlobSource) -> io::Result<Option<Blob>> {
        let Some(hex) = digest.strip_prefix("sha256:").filter(|_| protocol::bounds::is_digest(digest)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a digest"));
        };
        loop {
            match self.find(hex)? {
                Found::Whole(file, size) => return Ok(Some((size, Box::new(tokio::fs::File::from_std(file))))),
                Found::Ours(lock) => return self.download(hex, lock, digest, upstream).await,
                Found::Theirs(lock) => {
                    if let Some(blob) = self.follow(hex, lock).await? {
                        return Ok(Some(blob));
                    }
                    // Its download ended without it. Whoever is first now tries by himself.
                }
            }
        }
    }

    fn find(&self, hex: &str) -> io::Result<Found> {
        loop {
            if let Some((file, size)) = self.whole(hex)? {
                return Ok(Found::Whole(file, size));
            }
            let path = self.path(hex, ".lock");
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            match file.try_lock() {
                // Between open and lock its last holder may have removed the file: then this lock keeps nobody out.
                Ok(()) if file.metadata()?.nlink() == 0 => {}
                Ok(()) => {
                    let lock = Lock { file, path, part: self.path(hex, ".part") };
                    // Or he finished in between.
                    match self.whole(hex)? {
                        Some((file, size)) => return Ok(Found::Whole(file, size)),
                        None => {
                            // Of a process that is gone; whoever still reads it keeps the old file.
                            lock.file.set_len(0)?;
                            remove(&lock.part)?;
                            return Ok(Found::Ours(lock));
                        }
                    }
                }
                Err(TryLockError::WouldBlock) => return Ok(Found::Theirs(file)),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// A finished blob. Its time says when it was wanted last, by which the oldest goes first.
    fn whole(&self, hex: &str) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(hex, "")) {
            Ok(file) => {
                let size = file.metadata()?.len();
                file.set_modified(SystemTime::now())?;
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Begins a download that goes on whatever becomes of the guest that asked first: others read along.
    async fn download(self: &Arc<Self>, hex: &str, mut lock: Lock, digest: &str, upstream: &dyn BlobSource) -> io::Result<Option<Blob>> {
        let Some((size, body)) = upstream.open(digest).await? else { return Ok(None) };
        if size > self.max_bytes {
            log::debug!(digest, size; "larger than the node's cache");
            return Ok(None);
        }
        self.make_room(size)?;
        let part = File::options().read(true).write(true).create_new(true).mode(0o600).open(&lock.part)?;
        let reader = File::open(&lock.part)?;
        lock.file.rewind()?;
        lock.file.write_all(format!("{size}\n").as_bytes())?;
        let watched = File::open(&lock.path)?;
        let (cache, hex) = (self.clone(), hex.to_owned());
        tokio::spawn(async move {
            match fill(body, size, &hex, part).await {
                Ok(()) => cache.finish(&hex, &lock),
                Err(error) => log::warn!(digest = hex, size; "download: {error}"),
            }
            drop(lock);
        });
        Ok(Some(reading(reader, size, watched)))
    }

    fn finish(&self, hex: &str, lock: &Lock) {
        let named = fs::rename(&lock.part, self.path(hex, ""));
        // From here on it counts as a blob and not as a download.
        let named = named.and_then(|()| lock.file.set_len(0)).and_then(|()| self.make_room(0));
        match named {
            Ok(()) => log::debug!(digest = hex; "blob cached"),
            Err(error) => log::warn!(digest = hex; "cache: {error}"),
        }
    }

    /// Reads along with somebody else's download; `None` where it ended before it said how large the blob is.
    async fn follow(&self, hex: &str, lock: File) -> io::Result<Option<Blob>> {
        let since = tokio::time::Instant::now();
        loop {
            let ended = is_free(&lock)?;
            if let Some(size) = announced(&self.path(hex, ".lock"))? {
                match File::open(self.path(hex, ".part")) {
                    Ok(part) => return Ok(Some(reading(part, size, lock))),
                    // Done in this moment, or failed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
            if ended {
                return Ok(None);
            }
            if since.elapsed() > ANNOUNCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process asks for this blob and gets no answer"));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Removes the blobs that were wanted longest ago, until `more` bytes have room beside what is there and what is on its way. A reader
    /// of one keeps it until he is done.
    fn make_room(&self, more: u64) -> io::Result<()> {
        let (mut blobs, mut total) = (Vec::new(), more);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another process may make room at the same time.
            let Ok(metadata) = entry.metadata() else { continue };
            let name = entry.file_name();
            if name.to_str().is_some_and(is_hex) {
                total += metadata.len();
                blobs.push((metadata.modified()?, metadata.len(), entry.path()));
            } else if entry.path().extension().is_some_and(|e| e == "lock") {
                total += announced(&entry.path())?.unwrap_or(0);
            }
        }
        blobs.sort();
        for (_, size, path) in blobs {
            if total <= self.max_bytes {
                break;
            }
            log::debug!(path:% = path.display(), size; "blob removed from the cache to make room");
            remove(&path)?;
            total -= size;
        }
        Ok(())
    }

    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let unfinished = path.extension().is_some_and(|e| e == "lock" || e == "part");
            let Some(hex) = path.file_stem().and_then(|stem| stem.to_str()).filter(|hex| unfinished && is_hex(hex)) else { continue };
            // Dropping the lock removes both files; who holds it keeps them.
            drop(self.find(hex)?);
        }
        Ok(())
    }

    fn path(&self, hex: &str, suffix: &str) -> PathBuf {
        self.dir.join(format!("{hex}{suffix}"))
    }
}

/// The right to download one blob. Dropping it gives it up and removes what was not finished; the end of the process gives it up too.
struct Lock {
    file: File,
    path: PathBuf,
    part: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While the lock is still held: nobody can have begun anew under these names.
        for path in [&self.part, &self.path] {
            if let Err(error) = remove(path) {
                log::warn!(path:% = path.display(); "cache: {error}");
            }
        }
    }
}

/// Writes a download to its file, and compares it with its digest.
async fn fill(body: Box<dyn AsyncRead + Send + Unpin>, size: u64, hex: &str, part: File) -> io::Result<()> {
    let mut part = tokio::fs::File::from_std(part);
    // One byte more than announced, so that too much is seen.
    let (mut body, mut hash, mut seen) = (body.take(size + 1), Sha256::new(), 0);
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = body.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        seen += n as u64;
        hash.update(&buffer[..n]);
        part.write_all(&buffer[..n]).await?;
        // To the file, where others look for it.
        part.flush().await?;
    }
    let actual = hex::encode(hash.finalize());
    if seen != size || actual != hex {
        return Err(io::Error::other(format!("{seen} of {size} bytes came, of digest sha256:{actual}; not kept")));
    }
    // On disk before it gets its name: a power failure leaves no name over half of a blob, which no guest would take, now or ever again.
    part.sync_all().await
}

/// A reader of a file that grows to `size` while its download holds `lock`.
fn reading(part: File, size: u64, lock: File) -> Blob {
    // Not a simplex stream, whose ends do not notice when the other is dropped.
    let (reader, writer) = tokio::io::duplex(CHUNK);
    tokio::spawn(async move {
        // An error ends the stream early, which its reader sees by the size.
        if let Err(error) = read_along(tokio::fs::File::from_std(part), size, lock, writer).await {
            log::debug!("reading along: {error}");
        }
    });
    (size, Box::new(reader))
}

async fn read_along(mut part: tokio::fs::File, size: u64, lock: File, mut writer: DuplexStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let (mut left, mut ended) = (size, false);
    while left > 0 {
        let n = part.read(&mut buffer).await?;
        let n = n.min(usize::try_from(left).unwrap_or(usize::MAX));
        if n == 0 && ended {
            return Err(io::Error::other("the download ended early"));
        }
        if n == 0 {
            // Once more after its end: what it wrote last may have come after our read.
            ended = is_free(&lock)?;
            if !ended {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            continue;
        }
        writer.write_all(&buffer[..n]).await?;
        left -= n as u64;
    }
    writer.shutdown().await
}

/// Whether nobody downloads any more: a shared lock can be had.
fn is_free(lock: &File) -> io::Result<bool> {
    match lock.try_lock_shared() {
        Ok(()) => lock.unlock().map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The size in a lock file, once it is there.
fn announced(path: &Path) -> io::Result<Option<u64>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.strip_suffix('\n').and_then(|size| size.parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_hex(name: &str) -> bool {
    protocol::bounds::is_digest(&format!("sha256:{name}"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
