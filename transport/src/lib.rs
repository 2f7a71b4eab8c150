//! HTTP over whatever carries bytes: the guest reaches registries and brokers through the host's courier, a tool on the owner's
//! desk by TCP. The one thing that differs is the [`Dialer`]; TLS ends here, in our process, in both cases.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod http_client;
mod proxy;
mod upload;

pub use http_client::{Body, HttpClient, HttpError, Scheme, read_body};
pub use proxy::{Proxies, Proxy, ProxyError};
pub use upload::Upload;

use async_trait::async_trait;
use std::io;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A connection of any kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections to `host:port`.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// Connects to `authority` (`host:port`).
    async fn dial(&self, authority: &str) -> io::Result<Box<dyn Stream>>;
}

/// Plain TCP from this machine's network.
#[derive(Debug, Default, Clone, Copy)]
pub struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    async fn dial(&self, authority: &str) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
