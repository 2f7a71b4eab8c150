//! Looking for a secret in everything that the host has stored.
//!
//! A file is searched as it is and, where it is gzip, decompressed, since a layer of a plain image hides its text from a plain search. The
//! secret is looked for as it is, in base64 and in hexadecimal. Holes of sparse files are skipped, so a 10 GiB scratch file costs what was
//! written to it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use flate2::read::MultiGzDecoder;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Shorter ones would be found by chance.
const SHORTEST_SECRET: usize = 12;
const PIECE: usize = 1 << 20;

/// What a search looked at and found.
#[derive(Debug, Default)]
pub struct Found {
    /// Files that hold the secret in one of its forms.
    pub files: Vec<PathBuf>,
    /// How many files were read.
    pub searched: u64,
    /// How many bytes were read, before decompression.
    pub bytes: u64,
}

/// Searches every regular file below `places`, each a directory or a file.
pub fn search(places: &[&Path], secret: &[u8]) -> Result<Found> {
    ensure!(secret.len() >= SHORTEST_SECRET, "a secret of {} bytes would be found by chance", secret.len());
    let forms = [secret.to_vec(), inner_base64(secret), hex::encode(secret).into_bytes()];
    let mut found = Found::default();
    for place in places {
        let looked = if place.is_dir() { walk(place, &forms, &mut found) } else { look(place, &forms, &mut found) };
        looked.with_context(|| format!("searching {}", place.display()))?;
    }
    Ok(found)
}

/// Base64 of the secret wherever it stands in a longer text: of the three alignments the middle is the same only for the first, so the tail that
/// depends on what follows is cut.
fn inner_base64(secret: &[u8]) -> Vec<u8> {
    let whole = secret.len() / 3 * 3;
    base64::engine::general_purpose::STANDARD.encode(&secret[..whole]).into_bytes()
}

fn walk(directory: &Path, forms: &[Vec<u8>], found: &mut Found) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        // Daemons are alive while we look: what has gone meanwhile stores nothing.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            walk(&path, forms, found)?;
        } else if metadata.is_file() {
            look(&path, forms, found)?;
        }
    }
    Ok(())
}

fn look(path: &Path, forms: &[Vec<u8>], found: &mut Found) -> Result<()> {
    let Ok(mut file) = File::open(path) else { return Ok(()) };
    found.searched += 1;
    let size = file.metadata()?.len();
    if in_data(&mut file, size, forms, &mut found.bytes)? || in_gzip(&mut file, forms)? {
        found.files.push(path.to_owned());
    }
    Ok(())
}

/// Searches the stretches of data between holes.
fn in_data(file: &mut File, size: u64, forms: &[Vec<u8>], bytes: &mut u64) -> Result<bool> {
    let mut at = 0;
    while at < size {
        let start = match lseek(&*file, i64::try_from(at)?, Whence::SeekData) {
            Ok(start) => u64::try_from(start)?,
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = u64::try_from(lseek(&*file, i64::try_from(start)?, Whence::SeekHole)?)?;
        file.seek(SeekFrom::Start(start))?;
        *bytes += end - start;
        if in_stream(&mut file.take(end - start), forms)? {
            return Ok(true);
        }
        at = end.max(start + 1);
    }
    Ok(false)
}

/// What is no gzip, or ends early, holds nothing more for us: the plain search has been over it.
fn in_gzip(file: &mut File, forms: &[Vec<u8>]) -> Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    let mut magic = [0; 2];
    if file.read_exact(&mut magic).is_err() || magic != [0x1f, 0x8b] {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(in_stream(&mut MultiGzDecoder::new(file), forms).unwrap_or(false))
}

fn in_stream(stream: &mut impl Read, forms: &[Vec<u8>]) -> Result<bool> {
    let longest = forms.iter().map(Vec::len).max().unwrap_or(1);
    let mut window = Vec::with_capacity(PIECE + longest);
    let mut piece = vec![0; PIECE];
    loop {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(false);
        }
        window.extend_from_slice(&piece[..count]);
        if forms.iter().any(|form| contains(&window, form)) {
            return Ok(true);
        }
        // Keep what may be the beginning of a find across the border of two pieces.
        let keep = window.len().min(longest - 1);
        window.drain(..window.len() - keep);
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(&first) = needle.first() else { return false };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|&byte| byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    const SECRET: &[u8] = b"the launch code is 0000";

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-search-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn the_secret_is_found_plain_packed_and_encoded() {
        let directory = scratch("found");
        fs::write(directory.join("plain"), [b"xx", SECRET].concat()).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&[&vec![7; PIECE - 5], SECRET].concat()).unwrap();
        fs::write(directory.join("packed"), gzip.finish().unwrap()).unwrap();
        fs::write(directory.join("hex"), hex::encode(SECRET)).unwrap();
        fs::write(directory.join("base64"), base64::engine::general_purpose::STANDARD.encode(SECRET)).unwrap();
        fs::write(directory.join("nothing"), b"the launch code is 0001").unwrap();
        let found = search(&[&directory], SECRET).unwrap();
        assert_eq!((found.files.len(), found.searched), (4, 5), "{found:?}");
        assert!(!found.files.contains(&directory.join("nothing")));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_sparse_file_costs_what_was_written_to_it() {
        let directory = scratch("sparse");
        let file = File::create(directory.join("disk")).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(SECRET, 1 << 39).unwrap();
        let found = search(&[&directory], SECRET).unwrap();
        assert_eq!(found.files.len(), 1);
        assert!(found.bytes < 1 << 20, "{} bytes read", found.bytes);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(search(&[], b"short").is_err());
    }
}
