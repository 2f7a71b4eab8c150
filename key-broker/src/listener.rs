//! A listener that is bounded: so many connections at once, and so long for each. A peer that opens connections and says nothing
//! costs no more than its share; with TLS, neither does one that begins a handshake: it is made by the connection's own task.

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};

/// Connections at once; others wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;

/// Life of a connection. A client makes one request on each.
const LIFETIME: Duration = Duration::from_secs(60);

/// Who called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Connected<IncomingStream<'_, BoundedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// See the module.
pub(crate) struct BoundedListener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
    lifetime: Duration,
}

impl BoundedListener {
    /// Bounds `listener`; with `tls`, nothing else is spoken.
    pub(crate) fn new(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        Self { listener, tls, places: Arc::new(Semaphore::new(MAX_CONNECTIONS)), lifetime: LIFETIME }
    }
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.ok();
        // axum's own accept waits out errors such as "too many open files".
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let io = match &self.tls {
            None => Io::Plain(stream),
            Some(tls) => Io::Handshake(Box::new(tls.accept(stream))),
        };
        (Connection { io, end: Box::pin(sleep(self.lifetime)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What is spoken on a connection.
enum Io {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection with its end.
pub(crate) struct Connection {
    io: Io,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

/// Both kinds of streams.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Connection {
    /// The stream, when its handshake has been made.
    fn poll_stream(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut dyn Both>> {
        if let Io::Handshake(accept) = &mut self.io {
            let stream = ready!(Pin::new(accept).poll(context))?;
            self.io = Io::Tls(Box::new(stream));
        }
        Poll::Ready(match &mut self.io {
            Io::Plain(stream) => Ok(stream),
            Io::Tls(stream) => Ok(stream),
            // Left above.
            Io::Handshake(_) => Err(io::ErrorKind::InvalidData.into()),
        })
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(ready!(self.poll_stream(context))?).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(ready!(self.poll_stream(context))?).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(ready!(self.poll_stream(context))?).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A peer that never made its handshake is not waited for.
        if let Io::Handshake(_) = self.io {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(ready!(self.poll_stream(context))?).poll_shutdown(context))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_silent_connection_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut listener = BoundedListener { lifetime: Duration::from_millis(100), ..BoundedListener::new(listener, None) };
        assert_eq!(listener.local_addr().unwrap(), address);
        let mut peer = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = listener.accept().await;
        peer.write_all(b"x").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'x');
        assert_eq!(listener.places.available_permits(), MAX_CONNECTIONS - 1);
        assert_eq!(connection.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert_eq!(listener.places.available_permits(), MAX_CONNECTIONS);
    }
}
