//! Copies between the host's ends of a process's streams and the guest's. Each direction is a task with one small buffer; the flow
//! control of fifo and vsock does the rest.

use super::{Ends, StdioError, ends::Sink, logger::Logger};
use crate::guest::{Duplex, Guest};
use protocol::stream::{CHUNK, Kind, StreamId, grow};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

/// How long output may stand still after its process has ended, before the end is reported all the same.
const STALLED: Duration = Duration::from_secs(10);

/// A process's streams, being copied. Dropping it stops the copying.
pub struct Bridge {
    input: JoinSet<()>,
    output: JoinSet<()>,
    /// Bytes of output that have arrived, to tell slow from stuck.
    moved: Arc<AtomicU64>,
    logger: Option<Logger>,
}

impl Bridge {
    /// Connects the guest's ends of all streams that the host has, and starts to copy.
    pub async fn connect(guest: &dyn Guest, container_id: &str, exec_id: &str, ends: Ends) -> Result<Self, StdioError> {
        let connect = async |kind: Kind| {
            let id = StreamId { kind, container_id: container_id.to_owned(), exec_id: exec_id.to_owned() };
            guest.stream(&id).await.map_err(|source| StdioError::Guest { stream: kind, source })
        };
        let (stdin, stdout, stderr) = tokio::try_join!(
            with(ends.stdin, || connect(Kind::Stdin)),
            with(ends.stdout, || connect(Kind::Stdout)),
            with(ends.stderr, || connect(Kind::Stderr)),
        )?;
        let moved = Arc::new(AtomicU64::new(0));
        let (mut input, mut output) = (JoinSet::new(), JoinSet::new());
        if let Some((fifo, stream)) = stdin {
            input.spawn(copy_in(fifo, stream));
        }
        for (sink, stream) in [stdout, stderr].into_iter().flatten() {
            output.spawn(copy_out(stream, sink, moved.clone()));
        }
        Ok(Self { input, output, moved, logger: ends.logger })
    }

    /// The process has ended: waits until its output has arrived, or nothing of it has moved for some time. A reader that is only
    /// slow is waited for; one that has stopped reading does not hold up the news of the end.
    pub async fn drained(&mut self) {
        self.input.abort_all();
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            let joined = timeout(STALLED, async { while self.output.join_next().await.is_some() {} }).await;
            if joined.is_ok() {
                break;
            }
            if self.moved.load(Ordering::Relaxed) == before {
                return log::warn!("output is not being read: the end of its process is reported before its output");
            }
        }
        if let Some(logger) = self.logger.take() {
            logger.close().await;
        }
    }
}

/// Pairs an end with its connection, if there is an end.
async fn with<E, S, F: Future<Output = Result<S, StdioError>>>(
    end: Option<E>,
    connect: impl FnOnce() -> F,
) -> Result<Option<(E, S)>, StdioError> {
    match end {
        Some(end) => Ok(Some((end, connect().await?))),
        None => Ok(None),
    }
}

/// From the host to the process. The end of the input is the end of the stream.
async fn copy_in(mut fifo: impl AsyncRead + Unpin, mut stream: Box<dyn Duplex>) {
    let copied = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match fifo.read(&mut buffer).await? {
                0 => return stream.shutdown().await,
                n => {
                    stream.write_all(&buffer[..n]).await?;
                    grow(&mut buffer, n);
                }
            }
        }
    };
    let copied: io::Result<()> = copied.await;
    // A process that does not read its input to the end closes it: no error.
    if let Err(error) = copied {
        log::debug!("stdin: {error}");
    }
}

/// From the process to the host. Where the host's end fails (a full disk), output is read on and dropped: the process must not stand
/// still for it.
async fn copy_out(mut stream: Box<dyn Duplex>, mut sink: Sink, moved: Arc<AtomicU64>) {
    let mut buffer = vec![0; CHUNK];
    let mut failed = false;
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => {
                if !failed && let Err(error) = write(&mut sink, &buffer[..n]).await {
                    log::warn!("output is lost from here on: {error}");
                    failed = true;
                }
                moved.fetch_add(n as u64, Ordering::Relaxed);
                grow(&mut buffer, n);
            }
            Err(error) => {
                log::debug!("output: {error}");
                break;
            }
        }
    }
}

/// A file's writer only starts to write; flushing waits for it, and has its error.
async fn write(sink: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    sink.write_all(bytes).await?;
    sink.flush().await
}
