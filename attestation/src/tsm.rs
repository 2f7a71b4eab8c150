//! The kernel's interface to the reports of any confidential guest: one directory per request in configfs (Linux,
//! `Documentation/ABI/testing/configfs-tsm-report`).
//!
//! ```text
//! mkdir R; write R/inblob (64 bytes); read R/outblob, R/auxblob, R/provider; R/generation unchanged; rmdir R
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use thiserror::Error;

/// Where it is once configfs is mounted and the module is loaded.
pub const ROOT: &str = "/sys/kernel/config/tsm/report";

/// Longest attribute that is read, in bytes: the kernel's own bound for either blob.
const MAX_BLOB: u64 = 32 << 10;

/// Why there is no report.
#[derive(Debug, Error)]
pub enum TsmError {
    /// A file or directory of it.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// More than it may be.
    #[error("{0}: longer than {MAX_BLOB} bytes")]
    TooLong(PathBuf),
    /// Somebody else wrote to our request while we read its answer.
    #[error("{0}: changed while it was read")]
    Raced(PathBuf),
}

/// A report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TsmReport {
    /// Who made it: `sev_guest`, `tdx_guest`, …
    pub provider: String,
    /// The report or quote.
    pub outblob: Vec<u8>,
    /// What the host handed over beside it; mostly nothing.
    pub auxblob: Vec<u8>,
}

/// The interface.
#[derive(Debug, Clone)]
pub struct Tsm {
    root: PathBuf,
    /// Makes a request's directory; the kernel fills it with files.
    make: fn(&Path) -> io::Result<()>,
}

/// A request, until it goes out of scope.
struct Request(PathBuf);

impl Drop for Request {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            log::debug!(path:% = self.0.display(); "request not removed: {error}");
        }
    }
}

impl Tsm {
    /// The interface below this directory, [`ROOT`] but for tests.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), make: |path| fs::create_dir(path) }
    }

    #[cfg(test)]
    pub(crate) fn with_maker(root: &Path, make: fn(&Path) -> io::Result<()>) -> Self {
        Self { root: root.to_owned(), make }
    }

    /// Whether the kernel offers it.
    pub fn is_there(&self) -> bool {
        self.root.is_dir()
    }

    /// Who would make reports, without making one.
    pub fn provider(&self) -> Result<String, TsmError> {
        let request = self.request()?;
        text(&request.0.join("provider"))
    }

    /// A report with this data in it. May take seconds: a quote goes through the host.
    pub fn report(&self, data: &[u8; 64]) -> Result<TsmReport, TsmError> {
        let request = self.request()?;
        let file = |name: &str| request.0.join(name);
        let inblob = file("inblob");
        let written = OpenOptions::new().write(true).open(&inblob).and_then(|mut file| file.write_all(data));
        written.map_err(|source| TsmError::File { path: inblob, source })?;
        let generation = text(&file("generation"))?;
        let outblob = read(&file("outblob"))?;
        let auxblob = match read(&file("auxblob")) {
            Ok(blob) => blob,
            // Not every provider has it.
            Err(TsmError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let provider = text(&file("provider"))?;
        if text(&file("generation"))? != generation {
            return Err(TsmError::Raced(request.0.clone()));
        }
        Ok(TsmReport { provider, outblob, auxblob })
    }

    fn request(&self) -> Result<Request, TsmError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("cloister-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = self.root.join(name);
        (self.make)(&path).map_err(|source| TsmError::File { path: path.clone(), source })?;
        Ok(Request(path))
    }
}

fn text(path: &Path) -> Result<String, TsmError> {
    Ok(String::from_utf8_lossy(&read(path)?).trim().to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, TsmError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BLOB + 1).read_to_end(&mut bytes));
    read.map_err(|source| TsmError::File { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_BLOB { Err(TsmError::TooLong(path.to_owned())) } else { Ok(bytes) }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A directory that behaves as configfs does: making a request fills it, and reading `outblob` runs the "kernel".

    use super::*;
    use nix::{sys::stat::Mode, unistd::mkfifo};

    /// Fills a request whose report is what `answer` makes of the data; `raced` has the generation change meanwhile.
    pub(crate) fn fill(path: &Path, provider: &str, auxblob: Option<&[u8]>, raced: bool, answer: fn(&[u8]) -> Vec<u8>) -> io::Result<()> {
        fs::create_dir(path)?;
        fs::write(path.join("inblob"), b"")?;
        fs::write(path.join("provider"), format!("{provider}\n"))?;
        fs::write(path.join("generation"), "1\n")?;
        if let Some(blob) = auxblob {
            fs::write(path.join("auxblob"), blob)?;
        }
        mkfifo(&path.join("outblob"), Mode::S_IRUSR | Mode::S_IWUSR)?;
        let path = path.to_owned();
        std::thread::spawn(move || {
            // Opens when a reader does.
            let Ok(mut out) = OpenOptions::new().write(true).open(path.join("outblob")) else { return };
            if raced {
                fs::write(path.join("generation"), "2\n").unwrap();
            }
            let data = fs::read(path.join("inblob")).unwrap();
            // A reader with a bound goes away early.
            let _ = out.write_all(&answer(&data));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(data: &[u8]) -> Vec<u8> {
        [b"report of ".as_slice(), data].concat()
    }

    #[test]
    fn a_report_is_of_the_data_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let tsm = Tsm::with_maker(dir.path(), |path| fake::fill(path, "some_guest", Some(b"aux"), false, echo));
        assert!(tsm.is_there());
        let report = tsm.report(&[7; 64]).unwrap();
        assert_eq!(report, TsmReport { provider: "some_guest".into(), outblob: echo(&[7; 64]), auxblob: b"aux".to_vec() });
        assert_eq!(tsm.report(&[8; 64]).unwrap().outblob, echo(&[8; 64]), "each request has a directory of its own");
        let bare = Tsm::with_maker(dir.path(), |path| fake::fill(path, "g", None, false, echo));
        assert_eq!(bare.report(&[7; 64]).unwrap().auxblob, b"");
    }

    #[test]
    fn a_request_that_somebody_else_changed_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let tsm = Tsm::with_maker(dir.path(), |path| fake::fill(path, "some_guest", None, true, echo));
        assert!(matches!(tsm.report(&[7; 64]), Err(TsmError::Raced(_))));
    }

    #[test]
    fn an_answer_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let tsm = Tsm::with_maker(dir.path(), |path| fake::fill(path, "some_guest", None, false, |_| vec![0; MAX_BLOB as usize + 1]));
        assert!(matches!(tsm.report(&[7; 64]), Err(TsmError::TooLong(_))));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Tsm::new(&dir.path().join("gone"));
        assert!(!gone.is_there());
        assert!(gone.report(&[0; 64]).unwrap_err().to_string().contains("gone"));
        // A kernel without the files, which is how an ordinary directory looks; the request is removed.
        let empty = Tsm::new(dir.path());
        assert!(empty.report(&[0; 64]).unwrap_err().to_string().contains("inblob"));
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
