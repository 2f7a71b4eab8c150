//! The host's ends of a process's streams.

use super::{Paths, Place, StdioError, Uri, logger::Logger};
use std::{
    fs::DirBuilder,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};
use tokio::{
    io::AsyncWrite,
    net::unix::pipe::{OpenOptions, Receiver},
};

/// Where output goes.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// The host's ends, open and not yet connected to the guest.
#[derive(Default)]
pub struct Ends {
    /// What the process is to read.
    pub stdin: Option<Receiver>,
    /// Holds the stdin fifo open for writing, where a client may go and another come: input then ends when CloseIO was asked for
    /// *and* the last writer is gone, as with containerd's own shim.
    pub stdin_hold: Option<OwnedFd>,
    /// Where its output goes.
    pub stdout: Option<Sink>,
    /// Where its errors go.
    pub stderr: Option<Sink>,
    /// The program that takes the output, if there is one.
    pub logger: Option<Logger>,
}

impl Ends {
    /// Opens the host's ends of a process's streams. `namespace` and `id` are what a logger is told.
    ///
    /// With `reattach`, input outlives its writer. Without, it ends with its last writer: `ctr` asks for CloseIO only if its own
    /// input has not ended before the container was created, so that waiting for it would be waiting for ever.
    pub async fn open(paths: &Paths, reattach: bool, namespace: &str, id: &str) -> Result<Self, StdioError> {
        let mut ends = Self::default();
        if !paths.stdin.is_empty() {
            let Place::Fifo(path) = Uri::parse(&paths.stdin)?.place else {
                return Err(StdioError::Address { uri: paths.stdin.clone(), rule: "standard input has to be a fifo" });
            };
            let failed = |source| StdioError::Open { stream: "stdin", path: path.clone(), source };
            // Without waiting for a writer; the first end of file comes after the last one has gone.
            ends.stdin = Some(OpenOptions::new().open_receiver(&path).map_err(failed)?);
            ends.stdin_hold = reattach.then(|| hold(&path)).transpose().map_err(failed)?;
        }
        if !paths.stdout.is_empty() {
            match Uri::parse(&paths.stdout)?.place {
                Place::Logger(program, words, readiness) => {
                    let with_stderr = !paths.terminal && !paths.stderr.is_empty();
                    let mut logger = Logger::start(program, &words, readiness, namespace, id).await?;
                    ends.stdout = logger.stdout.take().map(|pipe| Box::new(pipe) as Sink);
                    ends.stderr = logger.stderr.take().filter(|_| with_stderr).map(|pipe| Box::new(pipe) as Sink);
                    ends.logger = Some(logger);
                }
                place => ends.stdout = Some(open_sink("stdout", place)?),
            }
        }
        if ends.stderr.is_none() && !paths.terminal && !paths.stderr.is_empty() {
            ends.stderr = Some(open_sink("stderr", Uri::parse(&paths.stderr)?.place)?);
        }
        Ok(ends)
    }
}

fn open_sink(stream: &'static str, place: Place) -> Result<Sink, StdioError> {
    let failed = |path: PathBuf| move |source| StdioError::Open { stream, path, source };
    match place {
        // For reading as well: a reader that vanishes does then not end the writer, and one that is not there yet is waited for.
        Place::Fifo(path) => {
            let fifo = OpenOptions::new().read_write(true).open_sender(&path).map_err(failed(path))?;
            Ok(Box::new(fifo))
        }
        Place::File(path) => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed(path.clone()))?;
            let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o644).open(&path).map_err(failed(path))?;
            Ok(Box::new(tokio::fs::File::from_std(file)))
        }
        Place::Logger(path, ..) => Err(StdioError::Logger { path, reason: "a logger has to be at standard output as well".to_owned() }),
    }
}

fn hold(fifo: &Path) -> io::Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{sys::stat::Mode, unistd::mkfifo};
    use std::{fs, io::Write, time::Duration};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn paths(stdin: &str, stdout: &str, stderr: &str) -> Paths {
        Paths { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into(), terminal: false }
    }

    #[tokio::test]
    async fn input_ends_when_it_was_closed_and_the_writer_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut ends = Ends::open(&paths(path.to_str().unwrap(), "", ""), true, "n", "c").await.unwrap();
        let mut stdin = ends.stdin.take().unwrap();
        let mut writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(b"one").unwrap();
        drop(writer);
        let mut bytes = [0; 8];
        assert_eq!(stdin.read(&mut bytes).await.unwrap(), 3);
        // The client has gone, and nobody asked to close: it may come back.
        let more = tokio::time::timeout(Duration::from_millis(50), stdin.read(&mut bytes)).await;
        assert!(more.is_err(), "{more:?}");
        drop(ends.stdin_hold.take());
        assert_eq!(stdin.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn input_that_nobody_comes_back_to_ends_with_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut ends = Ends::open(&paths(path.to_str().unwrap(), "", ""), false, "n", "c").await.unwrap();
        let mut stdin = ends.stdin.take().unwrap();
        let mut bytes = [0; 8];
        // Nobody has come yet: that is not the end.
        assert!(tokio::time::timeout(Duration::from_millis(50), stdin.read(&mut bytes)).await.is_err());
        let mut writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(b"one").unwrap();
        drop(writer);
        assert_eq!(stdin.read(&mut bytes).await.unwrap(), 3);
        assert_eq!(stdin.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_vanishes_does_not_end_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut ends = Ends::open(&paths("", path.to_str().unwrap(), ""), false, "n", "c").await.unwrap();
        let mut stdout = ends.stdout.take().unwrap();
        let reader = OpenOptions::new().open_receiver(&path).unwrap();
        stdout.write_all(b"a").await.unwrap();
        drop(reader);
        stdout.write_all(b"b").await.unwrap();
        let mut reader = OpenOptions::new().open_receiver(&path).unwrap();
        drop(stdout);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"ab");
    }

    #[tokio::test]
    async fn files_are_made_and_written_at_their_end() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/logs/c.log", dir.path().display());
        for _ in 0..2 {
            let mut ends = Ends::open(&paths("", &uri, &uri), false, "n", "c").await.unwrap();
            for mut sink in [ends.stdout.take().unwrap(), ends.stderr.take().unwrap()] {
                sink.write_all(b"x").await.unwrap();
                sink.flush().await.unwrap();
            }
        }
        assert_eq!(fs::read(dir.path().join("logs/c.log")).unwrap(), b"xxxx");
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let missing = Ends::open(&paths("", "/nowhere/out", ""), false, "n", "c").await.err().unwrap();
        assert!(missing.to_string().contains("stdout /nowhere/out"), "{missing}");
        assert!(Ends::open(&paths("file:///dev/null", "", ""), false, "n", "c").await.is_err());
        assert!(Ends::open(&paths("", "", "binary:///x"), false, "n", "c").await.is_err());
    }
}
