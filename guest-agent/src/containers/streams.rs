//! Standard streams: the host connects each one that was announced (`protocol::stream`), and the bytes go from there on between its
//! connection and the process, without any RPC.

use crate::vsock;
use log::{debug, warn};
use protocol::{
    api,
    line::{self, LineError},
    stream::{self, Kind, StreamId},
};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Mutex, Semaphore, watch},
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use tokio_vsock::{VsockListener, VsockStream};

/// How long the host may take for its greeting.
const GREETING: Duration = Duration::from_secs(10);
/// Connections that may be greeting at the same time.
const MAX_GREETING: usize = 64;

/// Why streams could not be used.
#[derive(Debug, Error)]
pub enum StreamsError {
    /// The host announced a stream and did not connect it.
    #[error("{0} was announced and is not connected; connect it before the process is started")]
    NotConnected(String),
}

/// A stream that may be connected, or has been.
type Slot = Arc<Mutex<Option<VsockStream>>>;

/// The streams that the host may connect.
#[derive(Default)]
pub struct Streams {
    // Never held across an await.
    slots: std::sync::Mutex<HashMap<StreamId, Slot>>,
}

impl Streams {
    /// Lets the host connect the streams of a process.
    pub fn announce(&self, container_id: &str, exec_id: &str, stdio: &api::Stdio) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in kinds(stdio) {
            slots.insert(id(container_id, exec_id, kind), Slot::default());
        }
    }

    /// Takes the connected streams of a process that is about to start. One that is missing is an error, and nothing is taken.
    pub async fn take(&self, container_id: &str, exec_id: &str, stdio: &api::Stdio) -> Result<HashMap<Kind, VsockStream>, StreamsError> {
        let mut locked = Vec::new();
        for kind in kinds(stdio) {
            let id = id(container_id, exec_id, kind);
            let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
            // Waits for a connection that is just being accepted.
            let guard = match slot {
                Some(slot) => slot.lock_owned().await,
                None => return Err(StreamsError::NotConnected(id.to_line())),
            };
            if guard.is_none() {
                return Err(StreamsError::NotConnected(id.to_line()));
            }
            locked.push((kind, guard));
        }
        let taken = locked.into_iter().filter_map(|(kind, mut slot)| Some((kind, slot.take()?))).collect();
        self.withdraw(container_id, exec_id);
        Ok(taken)
    }

    /// Forgets the streams of a process; the host can connect them no more.
    pub fn withdraw(&self, container_id: &str, exec_id: &str) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|id, _| id.container_id != container_id || id.exec_id != exec_id);
    }

    /// Accepts connections for ever.
    pub async fn serve(self: Arc<Self>, listener: VsockListener) {
        let greeting = Arc::new(Semaphore::new(MAX_GREETING));
        loop {
            let stream = match vsock::accept(&listener).await {
                Ok(stream) => stream,
                Err(e) => {
                    warn!("stream port: {e}");
                    continue;
                }
            };
            let Ok(permit) = greeting.clone().acquire_owned().await else { return };
            let streams = self.clone();
            tokio::spawn(async move {
                match timeout(GREETING, streams.greet(stream)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => debug!("stream refused: {e}"),
                    Err(_) => debug!("stream without a greeting closed"),
                }
                drop(permit);
            });
        }
    }

    async fn greet(&self, mut stream: VsockStream) -> Result<(), LineError> {
        let greeting = line::read_line(&mut stream).await?;
        let id = match StreamId::parse(&greeting) {
            Ok(id) => id,
            Err(e) => return line::refuse(&mut stream, &e.to_string()).await,
        };
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let Some(slot) = slot else {
            return line::refuse(&mut stream, "no such stream is announced").await;
        };
        // Held while the answer is written: the host may start the process as soon as it has read it.
        let mut slot = slot.lock().await;
        if slot.is_some() {
            return line::refuse(&mut stream, "this stream is connected already").await;
        }
        line::accept(&mut stream).await?;
        *slot = Some(stream);
        Ok(())
    }
}

/// The streams that a process has.
fn kinds(stdio: &api::Stdio) -> Vec<Kind> {
    let wanted = [(Kind::Stdin, stdio.stdin), (Kind::Stdout, stdio.stdout), (Kind::Stderr, stdio.stderr && !stdio.terminal)];
    wanted.into_iter().filter_map(|(kind, wanted)| wanted.then_some(kind)).collect()
}

fn id(container_id: &str, exec_id: &str, kind: Kind) -> StreamId {
    StreamId { kind, container_id: container_id.to_owned(), exec_id: exec_id.to_owned() }
}

/// The copying of one process's streams; ends with the process's deletion.
#[derive(Debug)]
pub struct Copies {
    open_outputs: watch::Receiver<usize>,
    tasks: Vec<AbortHandle>,
}

impl Copies {
    /// Waits until every output has ended and was handed over, for at most `longest`: a grandchild in the background may hold
    /// an output open for ever.
    pub async fn drained(&self, longest: Duration) {
        let mut open = self.open_outputs.clone();
        let _ = timeout(longest, open.wait_for(|count| *count == 0)).await;
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Collects the copying tasks of a process.
pub struct CopiesBuilder {
    open: watch::Sender<usize>,
    tasks: Vec<AbortHandle>,
}

impl Default for CopiesBuilder {
    fn default() -> Self {
        Self { open: watch::Sender::new(0), tasks: Vec::new() }
    }
}

impl CopiesBuilder {
    /// Carries what the process writes to the host.
    pub fn output(&mut self, from: impl AsyncRead + Unpin + Send + 'static, to: VsockStream) {
        self.open.send_modify(|count| *count += 1);
        let open = self.open.clone();
        self.keep(tokio::spawn(async move {
            copy_output(from, to).await;
            open.send_modify(|count| *count -= 1);
        }));
    }

    /// Carries what the host writes to the process.
    pub fn input(&mut self, from: VsockStream, to: impl AsyncWrite + Unpin + Send + 'static) {
        self.keep(tokio::spawn(copy_input(from, to)));
    }

    fn keep(&mut self, task: JoinHandle<()>) {
        self.tasks.push(task.abort_handle());
    }

    /// Done.
    pub fn finish(self) -> Copies {
        Copies { open_outputs: self.open.subscribe(), tasks: self.tasks }
    }
}

/// Reads to the end even when the host has gone: a process must not die of SIGPIPE because of its host.
async fn copy_output(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut chunk = vec![0; stream::CHUNK];
    let mut host_listens = true;
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        if host_listens && to.write_all(&chunk[..count]).await.is_err() {
            host_listens = false;
        }
        stream::grow(&mut chunk, count);
    }
    let _ = to.shutdown().await;
}

/// Ends at the host's half-close, which closes the process's input.
async fn copy_input(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut chunk = vec![0; stream::CHUNK];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
        stream::grow(&mut chunk, count);
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_standard_error() {
        let stdio = api::Stdio { stdin: true, stdout: true, stderr: true, terminal: true, ..Default::default() };
        assert_eq!(kinds(&stdio), [Kind::Stdin, Kind::Stdout]);
        assert_eq!(kinds(&api::Stdio::default()), []);
    }

    #[tokio::test]
    async fn a_stream_that_is_not_connected_stops_the_start() {
        let streams = Streams::default();
        let stdio = api::Stdio { stdout: true, ..Default::default() };
        assert!(streams.take("c", "", &stdio).await.is_err());
        streams.announce("c", "", &stdio);
        assert!(streams.take("c", "", &stdio).await.unwrap_err().to_string().contains("STDIO stdout c -"));
        assert!(streams.take("c", "", &api::Stdio::default()).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn output_is_read_to_its_end_without_a_host() {
        let (mut process, from) = tokio::io::duplex(64);
        let (to, host) = tokio::io::duplex(64);
        drop(host);
        let copying = tokio::spawn(copy_output(from, to));
        process.write_all(&[7; 100_000]).await.unwrap();
        drop(process);
        copying.await.unwrap();
    }

    #[tokio::test]
    async fn a_half_close_is_the_end_of_input() {
        let (mut host, from) = tokio::io::duplex(64);
        let (to, mut process) = tokio::io::duplex(64);
        let copying = tokio::spawn(copy_input(from, to));
        host.write_all(b"data").await.unwrap();
        host.shutdown().await.unwrap();
        let mut seen = Vec::new();
        process.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"data");
        copying.await.unwrap();
    }

    #[tokio::test]
    async fn draining_is_bounded() {
        let (sender, open_outputs) = watch::channel(1);
        let copies = Copies { open_outputs, tasks: Vec::new() };
        copies.drained(Duration::from_millis(5)).await;
        sender.send_replace(0);
        copies.drained(Duration::from_secs(3600)).await;
    }
}
