//! A blob on its way, as a reader: a connection that breaks is taken up again where it ended, a peer that makes no progress is left.

use super::{RegistryError, endpoint::At};
use crate::manifest::Descriptor;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};
use transport::Body;

/// A peer has to send this much, in bytes, within [`super::Options::stall`]. A slow line does; one that only keeps the connection open
/// does not.
const MIN_PROGRESS: u64 = 16 << 10;
/// Times that a blob is taken up again without any progress in between, and in all.
const MAX_IDLE_RESUMES: u32 = 4;
const MAX_RESUMES: u32 = 64;
/// Pieces on their way; each is at most what one read of the connection gives.
const IN_FLIGHT: usize = 2;

/// Reads a blob of a registry.
pub struct BlobReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl BlobReader {
    /// Reads from `body`, the answer of `at` for the blob `descriptor`.
    pub(super) fn new(at: At, descriptor: Descriptor, body: Body) -> Self {
        let (sender, pieces) = mpsc::channel(IN_FLIGHT);
        // Ends with the reader: its next piece finds nobody.
        tokio::spawn(async move {
            let mut download = Download { at, descriptor, position: 0, sender };
            if let Err(error) = download.run(body).await {
                download.sender.send(Err(error)).await.ok();
            }
        });
        Self { pieces, piece: Bytes::new() }
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.piece.is_empty() {
            match ready!(this.pieces.poll_recv(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(piece) => this.piece = piece?,
            }
        }
        let n = this.piece.len().min(out.remaining());
        out.put_slice(&this.piece[..n]);
        this.piece.advance(n);
        Poll::Ready(Ok(()))
    }
}

struct Download {
    at: At,
    descriptor: Descriptor,
    /// Bytes that were handed on.
    position: u64,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

/// How one connection ended.
enum End {
    /// All is there, or nobody wants more.
    Done,
    /// It broke, stalled, or ended early.
    Broken(io::Error),
}

impl Download {
    async fn run(&mut self, first: Body) -> io::Result<()> {
        let (mut body, mut idle) = (first, 0);
        for _ in 0..=MAX_RESUMES {
            let before = self.position;
            let End::Broken(mut fault) = self.drain(body, 0).await else { return Ok(()) };
            idle = if self.position > before { 0 } else { idle + 1 };
            body = loop {
                if idle > MAX_IDLE_RESUMES {
                    return Err(fault);
                }
                log::debug!(blob:% = self.descriptor.digest, position = self.position; "taken up again: {fault}");
                sleep(Duration::from_millis(200) * 2u32.pow(idle)).await;
                match self.resume().await {
                    Ok(Some(body)) => break body,
                    Ok(None) => return Ok(()),
                    Err(e) => fault = e,
                }
                idle += 1;
            };
        }
        Err(io::Error::other(format!("the connection broke {MAX_RESUMES} times")))
    }

    /// A new connection from where the last one ended; nothing where nobody wants more.
    async fn resume(&mut self) -> io::Result<Option<Body>> {
        let answer = self.at.blob_from(&self.descriptor, self.position).await.map_err(other)?;
        let Some(skip) = answer.skip else { return Ok(Some(answer.body)) };
        // The registry begins anew; what is there already is compared by the digest over all of it.
        match self.drain(answer.body, skip).await {
            End::Done => Ok(None),
            End::Broken(fault) => Err(fault),
        }
    }

    /// Hands on what `body` has behind its first `skip` bytes.
    async fn drain(&mut self, mut body: Body, mut skip: u64) -> End {
        let (mut progress, mut deadline) = (0, Instant::now() + self.at.stall());
        while self.position < self.descriptor.size {
            let frame = match timeout_at(deadline, body.frame()).await {
                Err(_) => return End::Broken(io::Error::new(io::ErrorKind::TimedOut, self.stalled())),
                Ok(None) => return End::Broken(io::Error::new(io::ErrorKind::UnexpectedEof, "the registry ended before the blob did")),
                Ok(Some(Err(e))) => return End::Broken(io::Error::other(e)),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers mean nothing to us.
            let Ok(mut piece) = frame.into_data() else { continue };
            progress += piece.len() as u64;
            if progress >= MIN_PROGRESS {
                (progress, deadline) = (0, Instant::now() + self.at.stall());
            }
            let skipped = skip.min(piece.len() as u64);
            piece.advance(usize::try_from(skipped).unwrap_or(piece.len()));
            skip -= skipped;
            if piece.is_empty() {
                continue;
            }
            self.position += piece.len() as u64;
            // Waiting for a reader that is busy is no fault of the peer's.
            let waiting = Instant::now();
            if self.sender.send(Ok(piece)).await.is_err() {
                return End::Done;
            }
            deadline += waiting.elapsed();
        }
        End::Done
    }

    fn stalled(&self) -> String {
        format!("the registry has sent less than {} KiB in {} s", MIN_PROGRESS >> 10, self.at.stall().as_secs())
    }
}

fn other(error: RegistryError) -> io::Error {
    io::Error::other(error)
}
