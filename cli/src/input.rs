//! What several commands read in the same way.

use anyhow::{Context, Result, bail};
use policy::{Initdata, InitdataDigest};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};

/// Longest text file that is read, in bytes.
pub(crate) const MAX_TEXT: u64 = 1 << 20;

/// Reads a file of at most `max` bytes; `-` is standard input.
pub(crate) fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(fs::File::open(path).with_context(|| path.display().to_string())?)
    };
    reader.take(max + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    if bytes.len() as u64 > max {
        bail!("{}: longer than {max} bytes", path.display());
    }
    Ok(bytes)
}

/// Reads a text file.
pub(crate) fn text(path: &Path) -> Result<String> {
    String::from_utf8(read(path, MAX_TEXT)?).with_context(|| format!("{}: not UTF-8", path.display()))
}

/// Reads initdata from its TOML file.
pub(crate) fn initdata(path: &Path) -> Result<(Initdata, InitdataDigest)> {
    Initdata::parse_toml(&text(path)?).with_context(|| path.display().to_string())
}

/// A runtime for the commands that wait for the network.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("start the asynchronous runtime")?.block_on(future)
}

/// Ends when the process is asked to: SIGINT or SIGTERM.
pub(crate) fn asked_to_stop() -> Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_bound_and_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(read(&path, 4).unwrap_err().to_string().contains("longer than 4"));
        let missing = format!("{:#}", read(&dir.path().join("none"), 4).unwrap_err());
        assert!(missing.contains("none"), "{missing}");
    }
}
