//! The shim's socket with its connections counted: the end of the shim waits until its callers have hung up, and a shim that nobody
//! is connected to and that has nothing ends by itself.

use futures_util::stream::{self, Stream};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::watch,
};

/// One caller's connection; counted while it lives.
pub struct Connection {
    stream: UnixStream,
    _place: Place,
}

struct Place(Arc<watch::Sender<usize>>);

impl Place {
    fn take(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The connections that come in, and how many of them there are.
pub fn accept(listener: UnixListener) -> (impl Stream<Item = io::Result<Connection>> + Send, watch::Receiver<usize>) {
    let (count, counted) = watch::channel(0);
    let count = Arc::new(count);
    let incoming = stream::unfold((listener, count), |(listener, count)| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Connection { stream, _place: Place::take(&count) });
        if accepted.is_err() {
            // Out of descriptors, most likely: the listener stays readable, and without a pause this would spin.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Some((accepted, (listener, count)))
    });
    (incoming, counted)
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn connections_are_counted_while_they_live() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (incoming, mut count) = accept(UnixListener::bind(&path).unwrap());
        let mut incoming = Box::pin(incoming);
        let _client = UnixStream::connect(&path).await.unwrap();
        let connection = incoming.next().await.unwrap().unwrap();
        assert_eq!(*count.borrow_and_update(), 1);
        drop(connection);
        assert_eq!(*count.borrow_and_update(), 0);
    }
}
