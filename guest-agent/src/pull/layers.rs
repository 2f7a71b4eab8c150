//! Unpacked layers, each once per machine. A layer is known by the chain of blobs up to it and by what was made of each, so that one is used
//! again only over the layers that it was unpacked over, and one that was decrypted only for who has its key.

use super::{
    PullError,
    source::{BlobReader, Source, both},
};
use crate::{scratch::Scratch, stages::Stages};
use futures_util::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use image::{
    layer::{self, LayerError},
    ocicrypt::LayerKey,
    plan::LayerPlan,
    spool::{self, SpoolError},
    unpack::{self, Devices, Limits, Stats, UnpackError, Whiteouts},
};
use log::{debug, warn};
use sha2::{Digest as _, Sha256};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::task::spawn_blocking;

/// Layers that are fetched at the same time.
const PARALLEL: usize = 4;

/// What to do about scratch that is full.
const ROOM: &str = "the VM's scratch (guest.scratch_mib of the node's configuration) has to hold the image, packed and unpacked";

/// The layers on scratch.
#[derive(Default)]
pub struct LayerStore {
    /// Two containers of one image do not unpack it twice, nor see it half unpacked. Holds the layers that hide all below them.
    turn: tokio::sync::Mutex<HashSet<PathBuf>>,
}

/// A layer that is being unpacked; its directory goes unless it is kept.
struct Fresh {
    directory: PathBuf,
    stats: Stats,
    kept: bool,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = fs::remove_dir_all(&self.directory)
            && e.kind() != ErrorKind::NotFound
        {
            warn!(path:% = self.directory.display(); "remove unpacked layer: {e}");
        }
    }
}

impl LayerStore {
    /// The directories of the planned layers, the lowest first; what is not there yet is fetched and unpacked.
    pub async fn unpack(
        &self,
        source: &Arc<Source>,
        plans: Vec<LayerPlan>,
        keys: Vec<Option<LayerKey>>,
        scratch: &Scratch,
        stages: &mut Stages,
    ) -> Result<Vec<PathBuf>, PullError> {
        let mut opaque = self.turn.lock().await;
        let (started, fetched) = (Instant::now(), Arc::new(Mutex::new(Instant::now())));
        let fingerprints: Vec<Option<[u8; 32]>> = keys.iter().map(|key| key.as_ref().map(LayerKey::fingerprint)).collect();
        let directories: Vec<PathBuf> = chain_names(&plans, &fingerprints).iter().map(|name| scratch.layers().join(name)).collect();
        let jobs: Vec<BoxFuture<'static, Result<Option<Fresh>, PullError>>> = plans
            .into_iter()
            .zip(keys)
            .zip(&directories)
            .enumerate()
            .map(|(number, ((plan, key), directory))| {
                let job = Job {
                    number,
                    source: source.clone(),
                    plan,
                    key,
                    directory: directory.clone(),
                    spool: scratch.spool(),
                    fetched: fetched.clone(),
                };
                Box::pin(job.run()) as BoxFuture<'static, _>
            })
            .collect();
        // Dropping the stream on an error drops what was unpacked, and with it its directories.
        let mut layers: Vec<Option<Fresh>> = stream::iter(jobs).buffered(PARALLEL).try_collect().await?;
        let all_fetched = *fetched.lock().unwrap_or_else(PoisonError::into_inner);
        stages.add("fetch", all_fetched.saturating_duration_since(started));
        settle(&directories, &mut layers)?;
        for (directory, layer) in directories.iter().zip(&layers) {
            if layer.as_ref().is_some_and(|layer| layer.stats.opaque_root) {
                opaque.insert(directory.clone());
            }
        }
        stages.add("unpack", Instant::now().saturating_duration_since(all_fetched));
        stages.restart();
        // overlayfs does not look for the mark of opaqueness on a layer's own root.
        let first = directories.iter().rposition(|directory| opaque.contains(directory)).unwrap_or(0);
        Ok(directories[first..].to_vec())
    }
}

/// The way of one layer from its blob to its directory.
struct Job {
    /// Of the layer, 0 being the lowest.
    number: usize,
    source: Arc<Source>,
    plan: LayerPlan,
    key: Option<LayerKey>,
    directory: PathBuf,
    spool: PathBuf,
    /// When the last layer so far was on scratch.
    fetched: Arc<Mutex<Instant>>,
}

impl Job {
    /// `None` if the layer is there already.
    async fn run(self) -> Result<Option<Fresh>, PullError> {
        let digest = self.plan.descriptor.digest;
        if self.directory.is_dir() {
            debug!(layer:% = digest; "layer is here already");
            return Ok(None);
        }
        let file = self.spooled().await?;
        *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let source = self.source.clone();
        let unpacked = spawn_blocking(move || self.unpack(file)).await.unwrap_or_else(|e| Err(e.to_string()));
        unpacked.map(Some).map_err(|reason| source.invalid("layer", digest, reason))
    }

    /// The verified blob in a file without a name, from the host or else from the registry.
    async fn spooled(&self) -> Result<File, PullError> {
        let descriptor = &self.plan.descriptor;
        let courier = match self.attempt(self.source.layer_from_courier(descriptor).await).await? {
            Ok(file) => return Ok(file),
            Err(reason) => reason,
        };
        debug!(layer:% = descriptor.digest; "not from the host: {courier}");
        let registry = self.attempt(self.source.layer_from_registry(descriptor).await).await?;
        registry.map_err(|e| self.source.failed("layer", descriptor.digest, both(&courier, &e)))
    }

    /// The blob, or what is wrong with this place to have it from. What is wrong with scratch is so with every place.
    async fn attempt(&self, reader: Result<BlobReader, String>) -> Result<Result<File, String>, PullError> {
        let reader = match reader {
            Ok(reader) => reader,
            Err(reason) => return Ok(Err(reason)),
        };
        let file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(&self.spool);
        let spooled = match file {
            Ok(file) => spool::spool(reader, &self.plan, self.key.as_ref(), file).await,
            Err(e) => Err(SpoolError::Write(e)),
        };
        match spooled {
            Err(error @ SpoolError::Write(_)) => Err(self.source.failed("layer", self.plan.descriptor.digest, format!("{error}: {ROOM}"))),
            spooled => Ok(spooled.map_err(|e| e.to_string())),
        }
    }

    fn unpack(self, file: File) -> Result<Fresh, String> {
        let directory = self.directory.with_extension("new");
        fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        // On an error this removes what was unpacked so far.
        let mut layer = Fresh { directory, stats: Stats::default(), kept: false };
        // Device nodes of an image are never seen: /dev is made anew, and the root is mounted without devices.
        let limits = Limits { devices: Devices::Skip, whiteouts: Whiteouts::of_layer(self.number), ..Limits::default() };
        let unpacked = layer::unpack_layer(file, &self.plan, self.key.as_ref(), &layer.directory, &limits);
        layer.stats = unpacked.map_err(|error| match &error {
            LayerError::Unpack(UnpackError::System { source, .. }) if source.kind() == ErrorKind::StorageFull => format!("{error}: {ROOM}"),
            _ => error.to_string(),
        })?;
        Ok(layer)
    }
}

/// Gives directories that a layer implied the look that they have below, then the layers their final names.
fn settle(directories: &[PathBuf], layers: &mut [Option<Fresh>]) -> Result<(), PullError> {
    if layers.iter().all(Option::is_none) {
        return Ok(());
    }
    let roots: Vec<(&Path, &[PathBuf])> = directories
        .iter()
        .zip(layers.iter())
        .map(|(directory, layer)| match layer {
            Some(fresh) => (fresh.directory.as_path(), fresh.stats.implied.as_slice()),
            None => (directory.as_path(), [].as_slice()),
        })
        .collect();
    unpack::adopt_parents(&roots).map_err(|e| PullError::io("layers")(std::io::Error::other(e.to_string())))?;
    for (directory, layer) in directories.iter().zip(layers.iter_mut()) {
        if let Some(fresh) = layer {
            fs::rename(&fresh.directory, directory).map_err(PullError::io("layer directory"))?;
            fresh.kept = true;
        }
    }
    Ok(())
}

/// A name for each layer: the hash of what it and all below it are, before and after unpacking, and of what decrypted them. By its blob alone
/// another image could name an encrypted one, as plain or with a key of its own, and find here what was decrypted with a key that it does not
/// have (compare CVE-2022-24778).
fn chain_names(plans: &[LayerPlan], keys: &[Option<[u8; 32]>]) -> Vec<String> {
    let mut chain = Sha256::new();
    let name = |(plan, key): (&LayerPlan, &Option<[u8; 32]>)| {
        chain.update(plan.descriptor.digest.as_bytes());
        chain.update(plan.diff_id.as_bytes());
        chain.update([u8::from(key.is_some())]);
        chain.update(key.unwrap_or_default());
        hex::encode(chain.clone().finalize())
    };
    plans.iter().zip(keys).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::{pace::Pace, source::Node};
    use async_trait::async_trait;
    use image::{digest::Digest, manifest::Descriptor};
    use protocol::line::LineError;
    use std::time::Duration;
    use tokio::{
        io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use transport::{HttpClient, TcpDialer};

    const BLOB: &[u8] = b"the layer as it was pushed";

    /// What a host can do to a layer.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Host {
        Honest,
        Without,
        Wrong,
        Short,
        Endless,
        LyingOfSize,
        Silent,
        Trickling,
    }

    #[async_trait]
    impl Node for Host {
        async fn blob(&self, _: &str) -> Result<(u64, BlobReader), LineError> {
            let size = BLOB.len() as u64;
            let (mut host, guest) = tokio::io::duplex(4096);
            match self {
                Self::Without => return Err(LineError::Refused("not on this node".into())),
                Self::Honest => host.write_all(BLOB).await?,
                Self::Wrong => host.write_all(&BLOB.to_ascii_uppercase()).await?,
                Self::Short => host.write_all(&BLOB[1..]).await?,
                Self::LyingOfSize => return Ok((size + 1, Box::new(BLOB))),
                Self::Endless => return Ok((size, Box::new(BLOB.chain(tokio::io::repeat(0))))),
                Self::Silent => return Ok((size, Box::new(Held(guest, host)))),
                Self::Trickling => {
                    tokio::spawn(async move {
                        while host.write_all(&BLOB[..1]).await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    });
                }
            }
            Ok((size, Box::new(guest)))
        }
    }

    /// A stream whose other end stays open and says nothing.
    struct Held(tokio::io::DuplexStream, #[allow(dead_code)] tokio::io::DuplexStream);

    impl AsyncRead for Held {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            out: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_read(cx, out)
        }
    }

    /// A registry that has one blob, or is down; gives its address and how often it was asked.
    async fn registry(up: bool) -> (String, Arc<std::sync::atomic::AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap().to_string(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let count = asked.clone();
        if up {
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let _ = stream.read(&mut [0; 4096]).await;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", BLOB.len());
                    let _ = stream.write_all(&[head.as_bytes(), BLOB].concat()).await;
                }
            });
        }
        (address, asked)
    }

    async fn fetch(host: Host, registry: &str, spool: &Path) -> Result<Vec<u8>, String> {
        let http = HttpClient::new(Arc::new(TcpDialer), None).unwrap();
        let reference = format!("{registry}/image:1").parse().unwrap();
        let options = image::registry::Options { plain_http: vec![registry.to_owned()], ..Default::default() };
        let source = Source::new(Arc::new(host), image::registry::Registry::new(http, options), reference);
        let source = source.with_pace(Pace { window: Duration::from_millis(300), least: 1 << 10 });
        let job = Job {
            number: 0,
            source: Arc::new(source),
            plan: plan(BLOB),
            key: None,
            directory: spool.join("unused"),
            spool: spool.to_owned(),
            fetched: Arc::new(Mutex::new(Instant::now())),
        };
        let mut file = job.spooled().await.map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        Ok(bytes)
    }

    #[tokio::test]
    async fn whatever_the_host_serves_the_layer_is_the_registrys() {
        let dir = tempfile::tempdir().unwrap();
        let (up, asked) = registry(true).await;
        let (down, _) = registry(false).await;
        let hosts = [Host::Without, Host::Wrong, Host::Short, Host::Endless, Host::LyingOfSize, Host::Silent, Host::Trickling];
        for (number, host) in hosts.into_iter().enumerate() {
            assert_eq!(fetch(host, &up, dir.path()).await.unwrap(), BLOB, "{host:?}");
            assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), number + 1, "{host:?}");
            // And where the registry has nothing either, the reason of both is said.
            let error = fetch(host, &down, dir.path()).await.unwrap_err();
            assert!(error.contains(&down) && error.contains("the node: ") && !error.contains('\n'), "{host:?}: {error}");
            assert_eq!(error.matches("layer").count(), 1, "{host:?}: {error}");
        }
        assert_eq!(fetch(Host::Honest, &up, dir.path()).await.unwrap(), BLOB);
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), hosts.len(), "an honest host is enough");
    }

    /// No other place of the blob helps, and none is asked.
    #[tokio::test]
    async fn a_scratch_that_cannot_be_written_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let (up, asked) = registry(true).await;
        let error = fetch(Host::Honest, &up, &dir.path().join("missing")).await.unwrap_err();
        assert!(error.contains("writing to scratch: ") && error.contains("scratch_mib") && !error.contains("the node: "), "{error}");
        assert_eq!((error.matches("layer").count(), asked.load(std::sync::atomic::Ordering::Relaxed)), (1, 0), "{error}");
    }

    fn plan(content: &[u8]) -> LayerPlan {
        let descriptor = Descriptor::of("application/vnd.oci.image.layer.v1.tar", content);
        LayerPlan { diff_id: Digest::of(content), descriptor, compression: image::media_type::Compression::None, envelope: None }
    }

    #[test]
    fn a_layer_is_known_with_all_below_it() {
        let plain = |plans: &[LayerPlan]| chain_names(plans, &vec![None; plans.len()]);
        let names = plain(&[plan(b"a"), plan(b"b")]);
        assert_eq!(names[0], plain(&[plan(b"a")])[0]);
        assert_ne!(names[1], plain(&[plan(b"b")])[0]);
        assert_ne!(names[1], plain(&[plan(b"c"), plan(b"b")])[1]);
    }

    /// An image that names another's encrypted blob finds what was decrypted only with the same key, and with what came out.
    #[test]
    fn what_was_decrypted_is_found_with_its_key_alone() {
        let layers = [plan(b"a"), plan(b"b")];
        let keys = [Some([1; 32]), Some([2; 32])];
        let names = chain_names(&layers, &keys);
        assert_eq!(names, chain_names(&layers, &keys));
        for others in [[None, None], [Some([0; 32]), Some([2; 32])], [Some([9; 32]), Some([2; 32])]] {
            let other = chain_names(&layers, &others);
            assert!(other.iter().all(|name| !names.contains(name)), "{others:?}");
        }
        let lying = LayerPlan { diff_id: Digest::of(b"something else"), ..plan(b"a") };
        assert_ne!(names[0], chain_names(&[lying], &keys[..1])[0]);
    }

    #[test]
    fn what_is_not_settled_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, dropped) = (dir.path().join("kept"), dir.path().join("dropped"));
        let fresh = |name: &str| {
            let directory = dir.path().join(name);
            fs::create_dir(&directory).unwrap();
            Some(Fresh { directory, stats: Stats::default(), kept: false })
        };
        settle(std::slice::from_ref(&kept), &mut [fresh("kept.new")]).unwrap();
        drop(fresh("dropped.new"));
        assert!(kept.is_dir() && !dropped.exists() && !dir.path().join("dropped.new").exists());
    }
}
