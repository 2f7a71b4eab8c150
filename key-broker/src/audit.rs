//! The audit log: what was released to whom, what was refused, and what the administrator changed. One JSON object per line, each with the
//! hash of the line before it, so that a line that is changed, left out or put in breaks the chain from there on.
//!
//! ```json
//! {"n":2,"at":1764061583,"event":"released","resource":"acme/api/db","session":"…","prev":"<hash of line 1>","hash":"<SHA-256>"}
//! ```
//! `hash` is SHA-256 over the line without its last member and the closing brace. The first line's `prev` is 64 zeros. A log that was cut at
//! its end is a valid shorter log: who wants to notice that keeps the number and hash of the last line elsewhere (`verify` compares).
//!
//! A release is on disk before the secret leaves: what cannot be logged is not released. What a full disk took of a line is cut off again,
//! so that the log is whole lines at any time. Refusals, which whoever reaches the broker can have written, have a quota, or they would fill the
//! disk and with it end all releases: beyond it they are counted, and the next line says `"unwritten":N`.

use crate::rate::{Bucket, Rate};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use thiserror::Error;

/// `prev` of the first line.
const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Longest line, in bytes: a reason of 4096 characters, escaped, and what is around it.
const MAX_LINE: u64 = 64 * 1024;

/// Refusals that are written at once, and in each second on the whole: at some 600 bytes, 100 MB in a day.
const REFUSALS: Rate = Rate { burst: 4096, per_second: 2.0 };

/// Why the log is not one.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file.
    #[error("audit log {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The chain is broken.
    #[error("audit log {path}: line {line}: {reason}; it was changed after it was written")]
    Broken {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// How.
        reason: &'static str,
    },
}

/// The last line of a log: its number, from 1, and its hash. Number 0 is an empty log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// How many lines there are.
    pub n: u64,
    /// The hash of the last.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { n: 0, hash: BEGINNING.into() }
    }
}

/// An open log.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    head: Head,
    /// Where the last whole line ends.
    end: u64,
    /// Whether a part of another may follow there.
    torn: bool,
    refusals: Bucket,
    /// Refusals that were not written since the last line.
    unwritten: u64,
}

impl State {
    /// Appends a line, or nothing of it.
    fn append(&mut self, line: &[u8], sync: Sync) -> io::Result<()> {
        self.mend()?;
        // Until all of it is there.
        self.torn = true;
        let written = self.file.write_all(line).and_then(|()| if sync == Sync::Now { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            // Where that fails too, the next line tries it again, and is not written before.
            return self.mend().and(Err(error));
        }
        self.torn = false;
        self.end += line.len() as u64;
        Ok(())
    }

    fn mend(&mut self) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.end)?;
            self.torn = false;
        }
        Ok(())
    }
}

/// Whether a line must be on disk before one goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Releases and changes.
    Now,
    /// What can be repeated.
    Later,
    /// Likewise, and only within the quota of refusals.
    Quota,
}

impl Audit {
    /// Opens a log, and makes it if there is none. What a kill left of a last line is removed; a broken chain is not gone on with.
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let error = |source| AuditError::File { path: path.to_owned(), source };
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path).map_err(error)?;
        let (head, end) = read_chain(path, &file)?;
        if file.metadata().map_err(error)?.len() > end {
            log::warn!(path:% = path.display(); "the last line of the audit log was not finished and is removed");
            file.set_len(end).map_err(error)?;
        }
        file.seek(SeekFrom::End(0)).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State { file, head, end, torn: false, refusals: Bucket::full(REFUSALS, Instant::now()), unwritten: 0 }),
        })
    }

    /// Appends an event; where that fails, the log is as it was. Blocks for the disk where it must.
    pub(crate) fn write(&self, event: &str, members: &[(&str, &str)], sync: Sync) -> Result<(), AuditError> {
        let error = |source| AuditError::File { path: self.path.clone(), source };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if sync == Sync::Quota && state.refusals.take(REFUSALS, Instant::now()).is_err() {
            state.unwritten += 1;
            return Ok(());
        }
        let head = &state.head;
        let mut line = Map::new();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        line.insert("n".into(), (head.n + 1).into());
        line.insert("at".into(), at.into());
        line.insert("event".into(), event.into());
        line.extend(members.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
        if state.unwritten > 0 {
            line.insert("unwritten".into(), state.unwritten.into());
        }
        line.insert("prev".into(), head.hash.clone().into());
        let open = Value::Object(line).to_string();
        let open = &open[..open.len() - 1];
        let hash = hex::encode(Sha256::digest(open));
        let n = head.n + 1;
        state.append(format!("{open},\"hash\":\"{hash}\"}}\n").as_bytes(), sync).map_err(error)?;
        state.head = Head { n, hash };
        state.unwritten = 0;
        Ok(())
    }

    /// The last line.
    pub(crate) fn head(&self) -> Head {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).head.clone()
    }
}

/// Reads a log from its beginning; gives its last line, if every line is as it was written.
pub fn verify(path: &Path) -> Result<Head, AuditError> {
    let error = |source| AuditError::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    let length = file.metadata().map_err(error)?.len();
    let (head, end) = read_chain(path, &file)?;
    if end < length {
        return Err(AuditError::Broken { path: path.to_owned(), line: head.n + 1, reason: "not finished" });
    }
    Ok(head)
}

/// The hash of line `n` of a log that has been verified; `None` where it ends before.
pub fn hash_of(path: &Path, n: u64) -> Result<Option<String>, AuditError> {
    let error = |source| AuditError::File { path: path.to_owned(), source };
    let index = usize::try_from(n.saturating_sub(1)).unwrap_or(usize::MAX);
    let line = BufReader::new(File::open(path).map_err(error)?).lines().nth(index).transpose().map_err(error)?;
    let hash = line.and_then(|line| serde_json::from_str::<Value>(&line).ok()?.get("hash")?.as_str().map(Into::into));
    Ok(if n == 0 { Some(BEGINNING.into()) } else { hash })
}

/// The last whole line, and where it ends.
fn read_chain(path: &Path, file: &File) -> Result<(Head, u64), AuditError> {
    let error = |source| AuditError::File { path: path.to_owned(), source };
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0)).map_err(error)?;
    let (mut head, mut end) = (Head::default(), 0);
    loop {
        let mut line = Vec::new();
        let count = io::Read::take(&mut reader, MAX_LINE).read_until(b'\n', &mut line).map_err(error)? as u64;
        let broken = |reason| AuditError::Broken { path: path.to_owned(), line: head.n + 1, reason };
        if count == 0 || (line.last() != Some(&b'\n') && count < MAX_LINE) {
            return Ok((head, end));
        }
        head = next(&head, &line).map_err(broken)?;
        end += count;
    }
}

/// Checks one line against the one before it.
fn next(head: &Head, line: &[u8]) -> Result<Head, &'static str> {
    let text = std::str::from_utf8(line).map_err(|_| "not UTF-8")?.trim_end_matches('\n');
    let (open, rest) = text.rsplit_once(",\"hash\":\"").ok_or("without a hash")?;
    let hash = rest.strip_suffix("\"}").ok_or("not of our form")?;
    if hex::encode(Sha256::digest(open)) != hash {
        return Err("its hash is another");
    }
    let value: Value = serde_json::from_str(text).map_err(|_| "not JSON")?;
    if value["prev"] != head.hash.as_str() {
        return Err("the line before it is another");
    }
    if value["n"] != head.n + 1 {
        return Err("its number is another");
    }
    Ok(Head { n: head.n + 1, hash: hash.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn log(directory: &Path) -> PathBuf {
        let path = directory.join("audit");
        let audit = Audit::open(&path).unwrap();
        for name in ["one", "two \"quoted\"\n", "three"] {
            audit.write("released", &[("resource", name)], Sync::Later).unwrap();
        }
        assert_eq!(verify(&path).unwrap(), audit.head());
        path
    }

    #[test]
    fn the_chain_goes_on_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = log(directory.path());
        let before = verify(&path).unwrap();
        assert_eq!(before.n, 3);
        Audit::open(&path).unwrap().write("stored", &[], Sync::Now).unwrap();
        assert_eq!(verify(&path).unwrap().n, 4);
        let text = fs::read_to_string(&path).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((last["prev"].as_str(), last["event"].as_str()), (Some(before.hash.as_str()), Some("stored")));
    }

    #[test]
    fn every_change_of_a_byte_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = log(directory.path());
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(verify(&path).is_err(), "byte {at}");
        }
    }

    #[test]
    fn lines_that_are_missing_swapped_or_repeated_are_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = log(directory.path());
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for order in [&[1, 2][..], &[0, 2], &[1, 0, 2], &[0, 1, 1, 2]] {
            let bad: String = order.iter().map(|n| format!("{}\n", lines[*n])).collect();
            fs::write(&path, bad).unwrap();
            assert!(matches!(verify(&path), Err(AuditError::Broken { .. })), "{order:?}");
            assert!(Audit::open(&path).is_err(), "and not gone on with: {order:?}");
        }
        // Cut at the end it is a shorter log, which only its head tells.
        fs::write(&path, format!("{}\n", lines[0])).unwrap();
        assert_eq!(verify(&path).unwrap().n, 1);
    }

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        let audit = Audit::open(&path).unwrap();
        let flood = u64::from(REFUSALS.burst) + 1000;
        for _ in 0..flood {
            audit.write("refused", &[("reason", "no evidence")], Sync::Quota).unwrap();
        }
        audit.write("released", &[], Sync::Now).unwrap();
        audit.write("attested", &[], Sync::Later).unwrap();
        let lines: Vec<Value> = fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(verify(&path).unwrap().n, lines.len() as u64);
        // None is lost from the count, however long the flood took.
        let refused = lines.iter().filter(|line| line["event"] == "refused").count() as u64;
        let unwritten: u64 = lines.iter().filter_map(|line| line["unwritten"].as_u64()).sum();
        assert_eq!(refused + unwritten, flood);
        assert!(unwritten > 0 && refused >= REFUSALS.burst.into(), "{refused} written");
        assert_eq!(
            (lines[lines.len() - 2]["event"].as_str(), lines.last().unwrap()["event"].as_str()),
            (Some("released"), Some("attested"))
        );
    }

    const CHILD: &str = "CLOISTER_TEST_AUDIT";

    /// The child of the test below, whose files may not grow beyond 1 KiB: a write that would cross that gets as far as there.
    #[test]
    #[ignore = "run by what_a_full_disk_took_of_a_line_is_cut_off"]
    fn a_full_disk() {
        let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
        let audit = Audit::open(&path).unwrap();
        audit.write("released", &[("resource", "one")], Sync::Now).unwrap();
        let before = audit.head();
        for sync in [Sync::Now, Sync::Later] {
            let error = audit.write("released", &[("resource", &"x".repeat(2000))], sync).unwrap_err().to_string();
            assert!(error.contains("too large"), "{error}");
            assert_eq!((audit.head(), verify(&path).unwrap()), (before.clone(), before.clone()), "as it was");
        }
        audit.write("released", &[("resource", "two")], Sync::Now).unwrap();
        assert_eq!((verify(&path).unwrap(), audit.head().n), (audit.head(), 2), "there is room for a short one");
    }

    #[test]
    fn what_a_full_disk_took_of_a_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit");
        // Blocks of 512 bytes; without the signal, the write ends short and the next fails, as on a full disk.
        let mut child = std::process::Command::new("sh");
        child.args(["-c", "trap '' XFSZ; ulimit -f 2; exec \"$@\"", "sh"]).arg(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "audit::tests::a_full_disk"]).env(CHILD, &path);
        let output = child.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(verify(&path).unwrap().n, 2);
    }

    #[test]
    fn a_kill_in_the_middle_of_a_line_loses_that_line_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = log(directory.path());
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"n\":4,\"at\":1");
        fs::write(&path, &text).unwrap();
        assert!(verify(&path).is_err());
        let audit = Audit::open(&path).unwrap();
        assert_eq!(audit.head().n, 3);
        audit.write("released", &[], Sync::Now).unwrap();
        assert_eq!(verify(&path).unwrap().n, 4);
    }
}
