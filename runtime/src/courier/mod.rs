//! The courier: answers what the guest asks of its host (`protocol::courier`), a request per vsock connection.
//!
//! Blobs come out of containerd's content store, else out of the cache that all shims of the node share ([`cache`]), which downloads them
//! once ([`upstream`]); what neither has the guest fetches itself, through a tunnel.
//! Tunnels lead only to the registries of the sandbox's images and to the broker of its initdata: a container that speaks vsock
//! by itself must not gain a way into the node's network.

pub mod cache;
pub mod upstream;

use crate::config;
use async_trait::async_trait;
use cache::BlobCache;
use protocol::{
    courier::Request,
    line::{self, LineError},
};
use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use upstream::Upstream;

/// Most requests of one guest that are served side by side; more wait.
const MAX_SIDE_BY_SIDE: usize = 64;
/// Most images of one sandbox whose repositories are asked.
const MAX_UPSTREAMS: usize = 64;
/// Most authorities that one sandbox may reach.
const MAX_ALLOWED: usize = 256;
/// How long a guest may take for its request line.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a TCP connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// What is read at once from a blob or a tunnel. Small, because every stream holds one.
const CHUNK: usize = 32 << 10;

/// Size and bytes of a blob.
pub type Blob = (u64, Box<dyn AsyncRead + Send + Unpin>);

/// Where blobs come from.
#[async_trait]
pub trait BlobSource: Send + Sync {
    /// The blob `sha256:…`; `None` where it is unknown.
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>>;
}

/// What one sandbox may have of its host.
pub struct Courier {
    sandbox: String,
    blobs: Mutex<Option<Arc<dyn BlobSource>>>,
    cache: Option<Arc<BlobCache>>,
    upstreams: Mutex<Vec<(String, Arc<Upstream>)>>,
    plain_http: Vec<String>,
    allowed: Mutex<BTreeSet<String>>,
    places: Semaphore,
}

impl std::fmt::Debug for Courier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Courier").field("sandbox", &self.sandbox).finish_non_exhaustive()
    }
}

impl Courier {
    /// A courier that as yet has no blobs and leads nowhere but to the configuration's own list. Without its cache, guests download by
    /// themselves: that it cannot be opened is a warning. Blocks.
    pub fn new(sandbox: &str, config: &config::Courier) -> Self {
        let open = || BlobCache::open(&config.cache_dir, config.cache_mib << 20);
        let cache = match (config.cache_mib > 0).then(open) {
            None => None,
            Some(Ok(cache)) => Some(cache),
            Some(Err(error)) => {
                log::warn!(sandbox, path:% = config.cache_dir.display(); "no cache of blobs: {error}");
                None
            }
        };
        let courier = Self {
            sandbox: sandbox.to_owned(),
            blobs: Mutex::default(),
            cache,
            upstreams: Mutex::default(),
            plain_http: config.plain_http.clone(),
            allowed: Mutex::default(),
            places: Semaphore::new(MAX_SIDE_BY_SIDE),
        };
        config.allow.iter().for_each(|authority| courier.allow(authority));
        courier
    }

    /// Has blobs that are not on the node come from the repository of `image` too.
    pub fn add_image(&self, image: &str) {
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if self.cache.is_none() || upstreams.len() >= MAX_UPSTREAMS || upstreams.iter().any(|(name, _)| name == image) {
            return;
        }
        match Upstream::new(image, &self.plain_http) {
            Ok(upstream) => upstreams.push((image.to_owned(), Arc::new(upstream))),
            // The guest says so, to whom it concerns.
            Err(error) => log::debug!(sandbox = self.sandbox, image; "{error}"),
        }
    }

    /// Lets the guest reach `authority` (`host:port`) from the node's network.
    pub fn allow(&self, authority: &str) {
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        if allowed.len() < MAX_ALLOWED {
            allowed.insert(authority.to_ascii_lowercase());
        } else {
            log::warn!(sandbox = self.sandbox, authority; "not allowed for tunnels: the list is full at {MAX_ALLOWED}");
        }
    }

    /// Sets where blobs come from.
    pub fn set_blobs(&self, source: Arc<dyn BlobSource>) {
        *self.blobs.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    /// Serves one connection of the guest to its end.
    pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let Ok(_place) = self.places.acquire().await else { return };
        if let Err(error) = self.answer(&mut stream).await {
            log::debug!(sandbox = self.sandbox; "courier: {error}");
        }
    }

    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S) -> Result<(), LineError> {
        let request = match timeout(REQUEST_TIMEOUT, Request::read(stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => return line::refuse(stream, &error.to_string()).await,
            Err(_) => return line::refuse(stream, "no request in time").await,
        };
        match request {
            Request::Get(digest) => self.get(stream, &digest).await,
            Request::Connect(authority) => self.tunnel(stream, &authority).await,
        }
    }

    async fn get<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S, digest: &str) -> Result<(), LineError> {
        let (size, mut blob) = match self.find(digest).await {
            Ok(Some(found)) => found,
            Ok(None) => return line::refuse(stream, "not on this node").await,
            Err(error) => {
                log::warn!(sandbox = self.sandbox, digest; "blob: {error}");
                return line::refuse(stream, "the node could not look for it").await;
            }
        };
        line::write_line(stream, &format!("OK {size}")).await?;
        tokio::io::copy_buf(&mut tokio::io::BufReader::with_capacity(CHUNK, &mut blob), stream).await?;
        Ok(stream.shutdown().await?)
    }

    /// containerd first: what it has costs nothing. An error of one place is no reason not to look into the next.
    async fn find(&self, digest: &str) -> io::Result<Option<Blob>> {
        let source = self.blobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let in_store = match source {
            Some(source) => source.open(digest).await,
            None => Ok(None),
        };
        match in_store {
            Ok(Some((size, blob))) => {
                log::debug!(sandbox = self.sandbox, digest, size; "blob from the content store");
                return Ok(Some((size, blob)));
            }
            Ok(None) => {}
            Err(error) => log::warn!(sandbox = self.sandbox, digest; "content store: {error}"),
        }
        let Some(cache) = &self.cache else { return Ok(None) };
        let found = cache.get(digest, self).await?;
        if let Some((size, _)) = &found {
            log::debug!(sandbox = self.sandbox, digest, size = *size; "blob from the node's cache");
        }
        Ok(found)
    }

    async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut S, authority: &str) -> Result<(), LineError> {
        if !self.allowed.lock().unwrap_or_else(PoisonError::into_inner).contains(&authority.to_ascii_lowercase()) {
            log::warn!(sandbox = self.sandbox, authority; "tunnel refused");
            let rule = "neither a registry of this sandbox's images nor its broker; see courier.allow in the node's configuration";
            return line::refuse(stream, &format!("{authority} is {rule}")).await;
        }
        let mut peer = match timeout(CONNECT_TIMEOUT, TcpStream::connect(authority)).await {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => return line::refuse(stream, &format!("{authority}: {error}")).await,
            Err(_) => return line::refuse(stream, &format!("{authority}: no connection within {} s", CONNECT_TIMEOUT.as_secs())).await,
        };
        peer.set_nodelay(true)?;
        line::accept(stream).await?;
        tokio::io::copy_bidirectional_with_sizes(stream, &mut peer, CHUNK, CHUNK).await?;
        Ok(())
    }
}

/// The repositories of the sandbox's images; the one that came last is asked first, because it is its guest that asks.
#[async_trait]
impl BlobSource for Courier {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        let upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (_, upstream) in upstreams.iter().rev() {
            if let Some(found) = upstream.open(digest).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use tokio::{
        io::{AsyncReadExt, DuplexStream},
        net::TcpListener,
    };

    struct OneBlob(&'static [u8]);

    #[async_trait]
    impl BlobSource for OneBlob {
        async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
            Ok(digest.ends_with("00").then(|| (self.0.len() as u64, Box::new(self.0) as Box<dyn AsyncRead + Send + Unpin>)))
        }
    }

    fn leading_to(allow: &[String]) -> Courier {
        Courier::new("s", &config::Courier { allow: allow.to_vec(), cache_mib: 0, ..Default::default() })
    }

    fn serve(courier: Courier) -> DuplexStream {
        let (guest, host) = tokio::io::duplex(1 << 10);
        tokio::spawn(async move { courier.serve(host).await });
        guest
    }

    fn digest(last: &str) -> Request {
        Request::Get(format!("sha256:{}{last}", "0".repeat(62)))
    }

    #[tokio::test]
    async fn a_blob_comes_with_its_size() {
        let courier = leading_to(&[]);
        courier.set_blobs(Arc::new(OneBlob(b"ciphertext")));
        let mut guest = serve(courier);
        assert_eq!(digest("00").send(&mut guest).await.unwrap(), "10");
        let mut bytes = Vec::new();
        guest.read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, b"ciphertext");
    }

    #[tokio::test]
    async fn what_is_not_there_is_said() {
        let courier = leading_to(&[]);
        courier.set_blobs(Arc::new(OneBlob(b"")));
        assert!(matches!(digest("01").send(&mut serve(courier)).await, Err(LineError::Refused(r)) if r == "not on this node"));
        assert!(digest("00").send(&mut serve(leading_to(&[]))).await.is_err());
    }

    #[tokio::test]
    async fn a_tunnel_leads_only_where_it_is_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let refused = Request::Connect(address.clone()).send(&mut serve(leading_to(&[]))).await.unwrap_err();
        assert!(refused.to_string().contains("courier.allow"), "{refused}");

        let mut guest = serve(leading_to(std::slice::from_ref(&address)));
        Request::Connect(address).send(&mut guest).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        guest.write_all(b"ping").await.unwrap();
        guest.shutdown().await.unwrap();
        let mut seen = Vec::new();
        peer.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"ping");
    }

    #[tokio::test]
    async fn a_request_that_is_none_is_refused() {
        let mut guest = serve(leading_to(&[]));
        line::write_line(&mut guest, "GET sha256:../../etc/shadow").await.unwrap();
        assert!(matches!(line::read_answer(&mut guest).await, Err(LineError::Refused(_))));
    }
}
