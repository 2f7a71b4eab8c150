//! A blob on its way, as a reader.

use bytes::{Buf, Bytes};
use hyper::body::Body as _;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};
use transport::Body;

/// How long a registry may send nothing in the middle of a blob.
const IDLE: Duration = Duration::from_secs(60);

/// Reads a response's body. Ends with an error where the connection does, and after a minute of silence.
pub struct BlobReader {
    body: Body,
    chunk: Bytes,
    idle: Pin<Box<Sleep>>,
}

impl BlobReader {
    pub(super) fn new(body: Body) -> Self {
        Self { body, chunk: Bytes::new(), idle: Box::pin(sleep(IDLE)) }
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(io::Error::other(e))),
                // Trailers mean nothing to us.
                Poll::Ready(Some(Ok(frame))) => this.chunk = frame.into_data().unwrap_or_default(),
                Poll::Pending => {
                    ready!(this.idle.as_mut().poll(cx));
                    let text = format!("the registry has sent nothing for {} s", IDLE.as_secs());
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
                }
            }
            this.idle.as_mut().reset(Instant::now() + IDLE);
        }
        let n = this.chunk.len().min(out.remaining());
        out.put_slice(&this.chunk[..n]);
        this.chunk.advance(n);
        Poll::Ready(Ok(()))
    }
}
