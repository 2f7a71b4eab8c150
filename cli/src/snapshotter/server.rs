//! Listens on a unix socket until it is told to end.

use super::{backfill::Backfill, images::Images, service::SnapshotService, store::Store};
use crate::places::RegistryArgs;
use anyhow::{Context, Result, bail};
use futures_util::stream;
use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::Server;

/// Longest path of a unix socket, in bytes (`sun_path`, unix(7), with its NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Where the snapshotter listens and what it remembers.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) address: PathBuf,
    pub(crate) root: PathBuf,
    /// The socket of the containerd that asks.
    pub(crate) containerd: PathBuf,
    /// Whether plain images are unpacked, for other runtimes.
    pub(crate) unpack_plain: bool,
    /// How registries are reached for what has to be unpacked later.
    pub(crate) registry: RegistryArgs,
}

/// Serves until `stop`, then removes the socket. The snapshots stay.
pub(crate) async fn serve(options: &Options, stop: impl Future<Output = ()>) -> Result<()> {
    let store = Arc::new(Store::open(&options.root)?);
    let listener = listen(&options.address)?;
    log::info!(
        address = options.address.display().to_string().as_str(),
        root = options.root.display().to_string().as_str(),
        snapshots = store.list().len();
        "snapshotter ready"
    );
    let incoming = stream::unfold(listener, async |listener: UnixListener| {
        let connection: io::Result<UnixStream> = listener.accept().await.map(|(connection, _)| connection);
        Some((connection, listener))
    });
    let images = Arc::new(Images::new(&options.containerd));
    let backfill = options.unpack_plain.then(|| Backfill::new(store.clone(), images.clone(), options.registry.clone()));
    let service = SnapshotService { store, images, backfill };
    let served = Server::builder().serve_with_incoming_shutdown(service, Box::pin(incoming), stop).await;
    let removed = fs::remove_file(&options.address);
    served.context("serve the snapshots API")?;
    removed.with_context(|| format!("remove {}", options.address.display()))
}

/// Binds `path` for root alone. A socket that nobody serves any more is replaced, one that is served is not.
fn listen(path: &Path) -> Result<UnixListener> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        bail!("{}: a socket's path has at most {MAX_SOCKET_PATH} bytes", path.display());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => bail!("{}: exists and is no socket", path.display()),
        Ok(_) if StdUnixStream::connect(path).is_ok() => bail!("{}: another process serves this socket", path.display()),
        Ok(_) => fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(|| format!("protect {}", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshotter::messages as pb;
    use http::uri::PathAndQuery;
    use protobuf::Message;
    use runtime::containerd::grpc::ProtobufCodec;
    use std::collections::HashMap;
    use tokio::sync::oneshot;
    use tonic::{
        Code, Request, Status,
        client::Grpc,
        transport::{Channel, Endpoint},
    };

    const CHAIN: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    struct Client(Channel);

    impl Client {
        async fn call<Q: Message, A: Message>(&self, method: &str, message: Q) -> Result<A, Status> {
            let path = PathAndQuery::try_from(format!("/containerd.services.snapshots.v1.Snapshots/{method}")).unwrap();
            let mut grpc = Grpc::new(self.0.clone());
            grpc.ready().await.unwrap();
            Ok(grpc.unary(Request::new(message), path, ProtobufCodec::<Q, A>::default()).await?.into_inner())
        }

        async fn list(&self) -> Vec<pb::Info> {
            let path = PathAndQuery::from_static("/containerd.services.snapshots.v1.Snapshots/List");
            let mut grpc = Grpc::new(self.0.clone());
            grpc.ready().await.unwrap();
            let codec = ProtobufCodec::<pb::ListRequest, pb::ListResponse>::default();
            let mut answers = grpc.server_streaming(Request::new(pb::ListRequest::new()), path, codec).await.unwrap().into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.message().await.unwrap() {
                all.extend(answer.info);
            }
            all
        }
    }

    /// Serves in a directory of its own; the sender ends it.
    async fn start(root: &Path) -> (Client, oneshot::Sender<()>, tokio::task::JoinHandle<Result<()>>) {
        let options = Options {
            address: root.join("s.sock"),
            root: root.join("state"),
            containerd: root.join("nobody.sock"),
            unpack_plain: false,
            registry: RegistryArgs::default(),
        };
        let address = options.address.clone();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(async move {
            serve(&options, async {
                stopped.await.ok();
            })
            .await
        });
        while !address.exists() {
            tokio::task::yield_now().await;
        }
        let channel = Endpoint::from_shared(format!("unix://{}", address.display())).unwrap().connect().await.unwrap();
        (Client(channel), stop, server)
    }

    fn prepare(key: &str, target: Option<&str>) -> pb::PrepareRequest {
        let labels = target.map(|t| HashMap::from([(crate::snapshotter::LABEL_TARGET.to_owned(), t.to_owned())]));
        pb::PrepareRequest { key: key.into(), labels: labels.unwrap_or_default(), ..Default::default() }
    }

    #[tokio::test]
    async fn containerds_questions_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (client, stop, server) = start(dir.path()).await;

        let answer = client.call::<_, pb::MountsResponse>("Prepare", prepare("ns/1/extract-1 x", Some(CHAIN))).await;
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
        let all = client.list().await;
        assert_eq!((all.len(), all[0].name.as_str(), all[0].kind.enum_value()), (1, CHAIN, Ok(pb::Kind::COMMITTED)));

        let request = pb::PrepareRequest { parent: CHAIN.into(), ..prepare("ns/2/c", None) };
        let mounts: pb::MountsResponse = client.call("Prepare", request).await.unwrap();
        let mount = &mounts.mounts[0];
        assert_eq!((mount.type_.as_str(), &mount.options[..]), ("bind", &["rbind".to_owned(), "rw".to_owned()][..]));
        let key = pb::KeyRequest { key: "ns/2/c".into(), ..Default::default() };
        let again: pb::MountsResponse = client.call("Mounts", key.clone()).await.unwrap();
        assert_eq!(again, mounts);

        let used: pb::UsageResponse = client.call("Usage", key.clone()).await.unwrap();
        assert_eq!(used.inodes, 1, "its directory");
        let parent = pb::KeyRequest { key: CHAIN.into(), ..Default::default() };
        let used: pb::UsageResponse = client.call("Usage", parent.clone()).await.unwrap();
        assert_eq!((used.inodes, used.size), (0, 0), "a promise");
        let refused = client.call::<_, pb::Empty>("Remove", parent.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        client.call::<_, pb::Empty>("Remove", key.clone()).await.unwrap();
        assert_eq!(client.call::<_, pb::InfoResponse>("Stat", key).await.unwrap_err().code(), Code::NotFound);
        client.call::<_, pb::Empty>("Remove", parent).await.unwrap();
        client.call::<_, pb::Empty>("Cleanup", pb::Empty::new()).await.unwrap();
        assert_eq!(client.call::<_, pb::Empty>("Nonsense", pb::Empty::new()).await.unwrap_err().code(), Code::Unimplemented);

        drop(client);
        stop.send(()).unwrap();
        server.await.unwrap().unwrap();
        assert!(!dir.path().join("s.sock").exists());
    }

    #[tokio::test]
    async fn a_socket_that_is_served_or_is_none_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let served = listen(&path).unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("another process"));
        drop(served);
        drop(listen(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert!(listen(&dir.path().join("x".repeat(MAX_SOCKET_PATH))).unwrap_err().to_string().contains("at most"));
    }
}
