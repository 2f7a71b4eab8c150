//! The gRPC face of the [`Store`]: `containerd.services.snapshots.v1.Snapshots`, routed by hand because its messages are not those
//! of a code generator of tonic's.

use super::{
    backfill::Backfill,
    images::{Chain, Images},
    messages as pb,
    mounts::Mounts,
    store::{Kind, LABEL_TARGET, Labels, Layer, Prepared, Snapshot, Store, StoreError, chain_to_unpack},
    usage,
};
use futures_util::{
    TryFutureExt,
    future::{Either, MapOk},
    stream,
};
use protobuf::{EnumOrUnknown, Message, MessageField};
use runtime::containerd::grpc::ProtobufCodec;
use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    server::{Grpc, ServerStreamingService, UnaryService},
};
use tower_service::Service;

const SERVICE: &str = "/containerd.services.snapshots.v1.Snapshots/";
/// Snapshots in one message of `List`.
const BATCH: usize = 100;

/// Answers containerd out of a [`Store`].
#[derive(Clone)]
pub(crate) struct SnapshotService {
    pub(crate) store: Arc<Store>,
    pub(crate) images: Arc<Images>,
    /// Where plain images are unpacked, for other runtimes.
    pub(crate) backfill: Option<Arc<Backfill>>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for SnapshotService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(route(&service, request).await) })
    }
}

async fn route(service: &SnapshotService, request: http::Request<Body>) -> http::Response<Body> {
    let store = &*service.store;
    let method = request.uri().path().strip_prefix(SERVICE).unwrap_or_default().to_owned();
    match method.as_str() {
        "Prepare" => waiting(request, |m| prepare(service, m)).await,
        "View" => waiting(request, |m| view(service, m)).await,
        "Mounts" => unary(request, |m| mounts(store, &m)).await,
        "Commit" => unary(request, |m| commit(store, m)).await,
        "Remove" => unary(request, |m| remove(store, &m)).await,
        "Stat" => unary(request, |m| stat(store, &m)).await,
        "Update" => unary(request, |m| update(store, m)).await,
        "Usage" => waiting(request, |m| usage(store, m)).await,
        "Cleanup" => unary(request, |_: pb::Empty| cleanup(store)).await,
        "List" => list(request, store).await,
        _ => Status::unimplemented("no such method of the snapshots service").into_http(),
    }
}

async fn prepare(service: &SnapshotService, message: pb::PrepareRequest) -> Result<pb::MountsResponse, Status> {
    let labels = labels(message.labels);
    let promised = labels.get(LABEL_TARGET).map(String::as_str);
    let target = promised.or_else(|| chain_to_unpack(&message.key));
    let layer = match target {
        // Whoever can be promised a layer is, unless another runtime may need it.
        Some(chain) if service.backfill.is_some() || promised.is_none() => layer(service, &message.key, chain).await,
        _ => Layer::Promised,
    };
    let of_container = target.is_none();
    if of_container {
        complete(service, &message.key, &message.parent).await?;
    } else if layer == Layer::Kept
        && let Err(why) = complete(service, &message.key, &message.parent).await
    {
        // The image is here all the same, for Cloister; a container of another runtime is told.
        log::warn!(snapshot = message.key.as_str(), parent = message.parent.as_str(); "not unpacked: {}", why.message());
    }
    match service.store.prepare(&message.key, &message.parent, labels, layer).map_err(refused)? {
        Prepared::Mountable(mounts) => {
            if let (true, Mounts::Own(path, _)) = (of_container, &mounts) {
                service.images.provide_users(path, &message.key, &message.parent).await;
            }
            Ok(respond_mounts(&mounts))
        }
        Prepared::Present(target) => Err(Status::already_exists(format!("target snapshot {target:?}"))),
    }
}

/// What becomes of the layers up to `chain`, which `key` is to be unpacked for.
async fn layer(service: &SnapshotService, key: &str, chain: &str) -> Layer {
    match service.images.chain(key, chain).await {
        Chain { plain: true, encrypted: false, .. } if service.backfill.is_some() => Layer::Kept,
        // Who unpacks an encrypted one instead, of which there is a plain one too, is told by containerd that he cannot.
        Chain { plain: true, .. } => Layer::Dropped,
        Chain { plain: false, .. } => Layer::Promised,
    }
}

/// Unpacks what is below a snapshot, if other runtimes may need it and it was not unpacked when it was pulled.
async fn complete(service: &SnapshotService, key: &str, parent: &str) -> Result<(), Status> {
    match &service.backfill {
        Some(backfill) => backfill.complete(key, parent).await.map_err(Status::failed_precondition),
        None => Ok(()),
    }
}

async fn view(service: &SnapshotService, message: pb::PrepareRequest) -> Result<pb::MountsResponse, Status> {
    complete(service, &message.key, &message.parent).await?;
    let mounts = service.store.view(&message.key, &message.parent, labels(message.labels)).map_err(refused)?;
    if let Mounts::Own(path, _) = &mounts {
        service.images.provide_users(path, &message.key, &message.parent).await;
    }
    Ok(respond_mounts(&mounts))
}

fn mounts(store: &Store, message: &pb::KeyRequest) -> Result<pb::MountsResponse, Status> {
    store.mounts(&message.key).map(|mounts| respond_mounts(&mounts)).map_err(refused)
}

fn commit(store: &Store, message: pb::CommitRequest) -> Result<pb::Empty, Status> {
    store.commit(&message.name, &message.key, &message.parent, labels(message.labels)).map_err(refused)?;
    Ok(pb::Empty::new())
}

fn remove(store: &Store, message: &pb::KeyRequest) -> Result<pb::Empty, Status> {
    store.remove(&message.key).map_err(refused)?;
    Ok(pb::Empty::new())
}

fn stat(store: &Store, message: &pb::KeyRequest) -> Result<pb::InfoResponse, Status> {
    store.stat(&message.key).map(respond).map_err(refused)
}

fn update(store: &Store, message: pb::UpdateRequest) -> Result<pb::InfoResponse, Status> {
    let info = message.info.into_option().ok_or_else(|| Status::invalid_argument("no snapshot named"))?;
    let fields = message.update_mask.into_option().unwrap_or_default().paths;
    store.update(&info.name, labels(info.labels), &fields).map(respond).map_err(refused)
}

async fn usage(store: &Store, message: pb::KeyRequest) -> Result<pb::UsageResponse, Status> {
    store.stat(&message.key).map_err(refused)?;
    let root = store.files_of(&message.key).map_err(refused)?;
    let counted = tokio::task::spawn_blocking(move || usage::of(&root).map_err(|source| StoreError::File { path: root, source })).await;
    let usage::Usage { bytes, inodes } = counted.map_err(|error| Status::internal(error.to_string()))?.map_err(refused)?;
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(pb::UsageResponse { size: signed(bytes), inodes: signed(inodes), ..Default::default() })
}

fn cleanup(store: &Store) -> Result<pb::Empty, Status> {
    store.cleanup().map_err(refused)?;
    Ok(pb::Empty::new())
}

fn labels(map: std::collections::HashMap<String, String>) -> Labels {
    map.into_iter().collect()
}

fn respond_mounts(mounts: &Mounts) -> pb::MountsResponse {
    let (type_, source, options) = mounts.mount();
    pb::MountsResponse { mounts: vec![pb::Mount { type_, source, options, ..Default::default() }], ..Default::default() }
}

fn respond(snapshot: Snapshot) -> pb::InfoResponse {
    pb::InfoResponse { info: MessageField::some(info(snapshot)), ..Default::default() }
}

fn info(snapshot: Snapshot) -> pb::Info {
    let kind = match snapshot.kind {
        Kind::View => pb::Kind::VIEW,
        Kind::Active => pb::Kind::ACTIVE,
        Kind::Committed => pb::Kind::COMMITTED,
    };
    pb::Info {
        name: snapshot.name,
        parent: snapshot.parent,
        kind: EnumOrUnknown::new(kind),
        created_at: MessageField::some(timestamp(snapshot.created)),
        updated_at: MessageField::some(timestamp(snapshot.updated)),
        labels: snapshot.labels.into_iter().collect(),
        ..Default::default()
    }
}

fn timestamp(nanos: u64) -> pb::Timestamp {
    const SECOND: u64 = 1_000_000_000;
    // Both fit: 64 bits of nanoseconds end in the year 2554.
    pb::Timestamp { seconds: (nanos / SECOND) as i64, nanos: (nanos % SECOND) as i32, ..Default::default() }
}

fn refused(error: StoreError) -> Status {
    let code = match error {
        StoreError::NotFound(_) => Code::NotFound,
        StoreError::AlreadyExists(_) => Code::AlreadyExists,
        StoreError::Kind { .. } | StoreError::Children(_) | StoreError::Unpacking => Code::FailedPrecondition,
        StoreError::Bound | StoreError::Field(_) => Code::InvalidArgument,
        StoreError::Locked { .. } | StoreError::File { .. } => Code::Internal,
    };
    Status::new(code, error.to_string())
}

async fn unary<Q, A, F>(request: http::Request<Body>, handler: F) -> http::Response<Body>
where
    Q: Message,
    A: Message,
    F: FnOnce(Q) -> Result<A, Status>,
{
    waiting(request, |message| ready(handler(message))).await
}

/// As [`unary`], for what takes more than a look into the store.
async fn waiting<Q, A, F, T>(request: http::Request<Body>, handler: F) -> http::Response<Body>
where
    Q: Message,
    A: Message,
    F: FnOnce(Q) -> T,
    T: Future<Output = Result<A, Status>>,
{
    Grpc::new(ProtobufCodec::<A, Q>::default()).unary(Once(Some(handler)), request).await
}

/// A handler for the one message of one request.
struct Once<F>(Option<F>);

impl<Q, A, F, T> UnaryService<Q> for Once<F>
where
    F: FnOnce(Q) -> T,
    T: Future<Output = Result<A, Status>>,
{
    type Response = A;
    type Future = MapOk<Either<T, Ready<Result<A, Status>>>, fn(A) -> Response<A>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = match self.0.take() {
            Some(handler) => Either::Left(handler(request.into_inner())),
            None => Either::Right(ready(Err(Status::internal("called twice")))),
        };
        answer.map_ok(Response::new)
    }
}

/// Filters are not applied: containerd's metadata store, the only caller, applies them again to what it gets.
async fn list(request: http::Request<Body>, store: &Store) -> http::Response<Body> {
    let lister = Lister(store.list().into_iter().map(info).collect());
    Grpc::new(ProtobufCodec::<pb::ListResponse, pb::ListRequest>::default()).server_streaming(lister, request).await
}

struct Lister(Vec<pb::Info>);

impl ServerStreamingService<pb::ListRequest> for Lister {
    type Response = pb::ListResponse;
    type ResponseStream = stream::Iter<std::vec::IntoIter<Result<pb::ListResponse, Status>>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<pb::ListRequest>) -> Self::Future {
        let batch = |info: &[pb::Info]| Ok(pb::ListResponse { info: info.to_vec(), ..Default::default() });
        let batches: Vec<_> = self.0.chunks(BATCH).map(batch).collect();
        ready(Ok(Response::new(stream::iter(batches))))
    }
}
