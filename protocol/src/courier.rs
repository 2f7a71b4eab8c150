//! The courier: what a guest may ask of its host, on [`crate::host_port::COURIER`]. One request per connection.
//!
//! - `GET <sha256:hex>` is answered `OK <size>` and the blob's bytes, or `NO <reason>`. The host may lie in both; the guest
//!   counts and hashes, and goes to the registry where the courier fails.
//! - `CONNECT <host:port>` is answered `OK` and becomes a TCP connection from the node's network, or `NO <reason>`. The shim
//!   tunnels only to the registries of the sandbox's images and to the broker of its initdata: a container that speaks
//!   vsock by itself gains no way into the node's network.

use crate::line::{self, LineError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// A guest's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A blob by digest, `sha256:` and 64 lower-case hexadecimal digits.
    Get(String),
    /// A TCP connection to `host:port`.
    Connect(String),
}

/// Why a request was refused before anything was done for it.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The line itself.
    #[error(transparent)]
    Line(#[from] LineError),
    /// Not of the protocol.
    #[error("unknown courier request {0:?}")]
    Unknown(String),
}

impl Request {
    /// Parses a request line.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let unknown = || RequestError::Unknown(text.to_owned());
        let (verb, rest) = text.split_once(' ').ok_or_else(unknown)?;
        match verb {
            "GET" if crate::bounds::is_digest(rest) => Ok(Self::Get(rest.to_owned())),
            "CONNECT" if is_authority(rest) => Ok(Self::Connect(rest.to_owned())),
            _ => Err(unknown()),
        }
    }

    /// The request line.
    pub fn to_line(&self) -> String {
        match self {
            Self::Get(digest) => format!("GET {digest}"),
            Self::Connect(authority) => format!("CONNECT {authority}"),
        }
    }

    /// Reads a request; the host's side.
    pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, RequestError> {
        Self::parse(&line::read_line(reader).await?)
    }

    /// Sends the request and waits for its answer; the guest's side. For a blob, the text is its size.
    pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Result<String, LineError> {
        line::write_line(stream, &self.to_line()).await?;
        line::read_answer(stream).await
    }
}

/// `host:port` or `[v6]:port`, at most 255 bytes, port 1 to 65535.
fn is_authority(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
    };
    text.len() <= 255 && host_ok && port.parse::<u16>().is_ok_and(|p| p > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for request in [Request::Get(digest), Request::Connect("[::1]:5000".into()), Request::Connect("ghcr.io:443".into())] {
            assert_eq!(Request::parse(&request.to_line()).unwrap(), request);
        }
    }

    #[test]
    fn hostile_requests_are_refused() {
        let long = format!("CONNECT {}:1", "a".repeat(300));
        for text in
            ["", "GET", "GET sha256:../../x", "GET sha512:00", "PUT x", "CONNECT x", "CONNECT x:0", "CONNECT :1", "CONNECT a b:1", &long]
        {
            assert!(Request::parse(text).is_err(), "{text:?}");
        }
    }
}
