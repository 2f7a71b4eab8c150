//! The first pass over a layer: to a file, while its digest and, where it is encrypted, its HMAC are computed. Nothing of it is
//! parsed. Only what passed here may be given to [`crate::layer::unpack_layer`].

use crate::{
    digest::{DigestError, Verifier},
    ocicrypt::{LayerKey, LayerMac, OcicryptError},
    plan::LayerPlan,
};
use bytes::{Bytes, BytesMut};
use std::{
    fs::File,
    io::{self, Seek, Write},
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, Scope, ScopedJoinHandle},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};

/// Bytes per chunk between the connection and the hasher.
const CHUNK: usize = 256 << 10;
/// Chunks on their way: what a slow disk may hold back of a fast network.
const IN_FLIGHT: usize = 4;

/// Why a layer was not taken. Which one, its caller says.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The connection.
    #[error("reading: {0}")]
    Read(#[source] io::Error),
    /// The scratch file.
    #[error("writing to scratch: {0}")]
    Write(#[source] io::Error),
    /// Length or digest.
    #[error("{}", without_digest(.0))]
    Digest(#[from] DigestError),
    /// The HMAC.
    #[error(transparent)]
    Hmac(OcicryptError),
    /// A plan for an encrypted layer without its key, or the other way round.
    #[error("the key does not go with the plan")]
    Key,
}

/// What [`DigestError`] says, for whoever names the layer himself.
fn without_digest(error: &DigestError) -> String {
    let text = error.to_string();
    match error {
        DigestError::Size { digest, .. } => text.trim_start_matches(&format!("{digest}: ")).to_owned(),
        DigestError::Syntax(_) | DigestError::Mismatch { .. } => text,
    }
}

/// Writes the blob of `plan` to `file`, from its start, and gives the file back, rewound, when length, digest and HMAC are right.
/// Hashing and writing run on a blocking thread beside the reading. Dropping the future ends both; the file then holds junk.
pub async fn spool<R: AsyncRead + Unpin>(mut reader: R, plan: &LayerPlan, key: Option<&LayerKey>, file: File) -> Result<File, SpoolError> {
    let check = Check::new(plan, key)?;
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    let writer = tokio::task::spawn_blocking(move || check.drain(receiver, file));
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let read = loop {
        // Small reads of a socket are gathered, so that the other thread wakes once per chunk and not once per segment.
        match reader.read_buf(&mut buffer).await {
            Ok(0) => break Ok(()),
            Ok(_) if buffer.len() * 2 < CHUNK => (),
            // The other side is gone only if it found a fault, which it reports below.
            Ok(_) if sender.send(buffer.split().freeze()).await.is_err() => break Ok(()),
            Ok(_) => (),
            Err(source) => break Err(SpoolError::Read(source)),
        }
        buffer.reserve(CHUNK);
    };
    if read.is_ok() && !buffer.is_empty() {
        sender.send(buffer.freeze()).await.ok();
    }
    drop(sender);
    let verdict = writer.await.map_err(|e| SpoolError::Write(io::Error::other(e)))?;
    read.and(verdict)
}

struct Check {
    verifier: Verifier,
    mac: Option<LayerMac>,
}

impl Check {
    fn new(plan: &LayerPlan, key: Option<&LayerKey>) -> Result<Self, SpoolError> {
        if plan.envelope.is_some() != key.is_some() {
            return Err(SpoolError::Key);
        }
        Ok(Self { verifier: plan.descriptor.verifier(), mac: key.map(LayerKey::mac) })
    }

    fn drain(mut self, chunks: mpsc::Receiver<Bytes>, mut file: File) -> Result<File, SpoolError> {
        let mac = self.mac.take();
        // The HMAC is as much work as the digest: side by side, where there is a processor for it.
        let mac = thread::scope(|scope| {
            let mut mac = mac.map(|mac| Beside::new(scope, mac));
            self.write(chunks, &mut file, mac.as_mut())?;
            Ok::<_, SpoolError>(mac.map(Beside::finish))
        })?;
        self.verifier.finish()?;
        mac.map_or(Ok(()), |mac| mac.and_then(LayerMac::finish)).map_err(SpoolError::Hmac)?;
        file.rewind().map_err(SpoolError::Write)?;
        Ok(file)
    }

    fn write(&mut self, mut chunks: mpsc::Receiver<Bytes>, file: &mut File, mut mac: Option<&mut Beside<'_>>) -> Result<(), SpoolError> {
        while let Some(chunk) = chunks.blocking_recv() {
            if let Some(mac) = mac.as_deref_mut() {
                mac.update(&chunk);
            }
            self.verifier.update(&chunk)?;
            file.write_all(&chunk).map_err(SpoolError::Write)?;
        }
        Ok(())
    }
}

/// An HMAC that is computed in a thread of its own, or here where there is but one processor.
enum Beside<'scope> {
    Here(LayerMac),
    There(SyncSender<Bytes>, ScopedJoinHandle<'scope, LayerMac>),
}

impl<'scope> Beside<'scope> {
    fn new(scope: &'scope Scope<'scope, '_>, mut mac: LayerMac) -> Self {
        if thread::available_parallelism().map_or(1, usize::from) == 1 {
            return Self::Here(mac);
        }
        let (sender, receiver) = sync_channel::<Bytes>(IN_FLIGHT);
        let thread = scope.spawn(move || {
            receiver.iter().for_each(|chunk| mac.update(&chunk));
            mac
        });
        Self::There(sender, thread)
    }

    fn update(&mut self, chunk: &Bytes) {
        match self {
            Self::Here(mac) => mac.update(chunk),
            // A thread that is gone is noticed at the end.
            Self::There(sender, _) => drop(sender.send(chunk.clone())),
        }
    }

    fn finish(self) -> Result<LayerMac, OcicryptError> {
        match self {
            Self::Here(mac) => Ok(mac),
            Self::There(sender, thread) => {
                drop(sender);
                thread.join().map_err(|_| OcicryptError::Hmac)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use std::io::Read;

    async fn run(blob: &[u8], plan: &LayerPlan, key: Option<&LayerKey>) -> Result<Vec<u8>, SpoolError> {
        let mut file = spool(blob, plan, key, tempfile::tempfile().unwrap()).await?;
        let mut out = Vec::new();
        file.read_to_end(&mut out).unwrap();
        Ok(out)
    }

    #[tokio::test]
    async fn right_layers_reach_the_file() {
        let blob: Vec<u8> = (0..CHUNK * 3 + 77).map(|i| (i % 251) as u8).collect();
        let plain = testing::plain_plan(&blob);
        assert!(run(&blob, &plain, None).await.unwrap() == blob);
        let (cipher, plan, key) = testing::sealed_plan(&blob);
        assert!(run(&cipher, &plan, Some(&key)).await.unwrap() == cipher);
    }

    #[tokio::test]
    async fn wrong_layers_do_not() {
        let blob = vec![3; CHUNK + 9];
        let (cipher, plan, key) = testing::sealed_plan(&blob);
        let mut flipped = cipher.clone();
        flipped[CHUNK] ^= 1;
        assert!(matches!(run(&flipped, &plan, Some(&key)).await, Err(SpoolError::Digest(DigestError::Mismatch { .. }))));
        let short = run(&cipher[..CHUNK], &plan, Some(&key)).await.unwrap_err();
        assert!(matches!(short, SpoolError::Digest(DigestError::Size { .. })));
        assert!(short.to_string().starts_with(&format!("{CHUNK} bytes came where ")), "{short}");
        let long = [cipher.as_slice(), &[0; CHUNK * 9]].concat();
        assert!(matches!(run(&long, &plan, Some(&key)).await, Err(SpoolError::Digest(DigestError::Size { .. }))));
        assert!(matches!(run(&cipher, &plan, None).await, Err(SpoolError::Key)));
        // The registry is consistent with itself, and yet the layer is not what the key's owner made.
        let mut forged = plan.clone();
        forged.descriptor.digest = crate::digest::Digest::of(&flipped);
        assert!(matches!(run(&flipped, &forged, Some(&key)).await, Err(SpoolError::Hmac(_))));
    }

    #[tokio::test]
    async fn a_broken_connection_is_told_as_such() {
        let plan = testing::plain_plan(b"hello");
        let reader = tokio_test_reader();
        let error = spool(reader, &plan, None, tempfile::tempfile().unwrap()).await.unwrap_err();
        assert!(matches!(error, SpoolError::Read(_)), "{error}");
    }

    #[tokio::test]
    async fn a_full_disk_is_told_as_such() {
        let (full, blob) = (File::options().write(true).open("/dev/full").unwrap(), vec![1; CHUNK * 9]);
        let error = spool(blob.as_slice(), &testing::plain_plan(&blob), None, full).await.unwrap_err();
        assert!(matches!(&error, SpoolError::Write(source) if source.kind() == io::ErrorKind::StorageFull), "{error}");
    }

    fn tokio_test_reader() -> impl AsyncRead + Unpin {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<io::Result<()>> {
                std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        Broken
    }
}
