//! What the shim asks of the containerd that started it: which image a container was made from, and blobs out of its content
//! store. `ctr` and `nerdctl` write no image annotation into the OCI spec, so this is how a plain `ctr run` finds its image.

pub mod grpc;

mod content;

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/containerd_pb/modules.rs"));
}

use generated::containerd as pb;
use grpc::ProtobufCodec;
use http::uri::PathAndQuery;
use protobuf::Message;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

/// How long containerd may take for a call that reads its metadata.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Why containerd did not answer a question.
#[derive(Debug, Error)]
pub enum ContainerdError {
    /// The socket is not there or nobody listens.
    #[error("containerd at {socket}: cannot connect: {source}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: tonic::transport::Error,
    },
    /// The namespace is not a header value.
    #[error("containerd namespace {0:?} is not printable ASCII")]
    Namespace(String),
    /// The call failed.
    #[error("containerd {call} of {what}: {status}")]
    Call {
        /// Method.
        call: &'static str,
        /// Id, name or digest asked for.
        what: String,
        /// Its answer.
        status: Box<Status>,
    },
}

/// What an image's name means to containerd at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTarget {
    /// The image's name, as the user wrote it, with its registry.
    pub name: String,
    /// Digest of the index or manifest.
    pub digest: String,
    /// Media type of that document.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A connection to containerd, in one namespace. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Client {
    /// Connects to containerd's gRPC socket.
    pub async fn connect(socket: &Path, namespace: &str) -> Result<Self, ContainerdError> {
        let failed = |source| ContainerdError::Connect { socket: socket.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(failed)?;
        let channel = endpoint.connect_timeout(CALL_TIMEOUT).connect().await.map_err(failed)?;
        let namespace = namespace.parse().map_err(|_| ContainerdError::Namespace(namespace.to_owned()))?;
        Ok(Self { channel, namespace })
    }

    /// The image that a container was created from; `None` where the container or its image is unknown, or it has none.
    pub async fn container_image(&self, container_id: &str) -> Result<Option<ImageTarget>, ContainerdError> {
        let request = pb::GetContainerRequest { id: container_id.to_owned(), ..Default::default() };
        let path = PathAndQuery::from_static("/containerd.services.containers.v1.Containers/Get");
        let answer: Option<pb::GetContainerResponse> = self.get("Containers.Get", container_id, path, request).await?;
        match answer.and_then(|a| a.container.into_option()).map(|c| c.image) {
            Some(name) if !name.is_empty() => self.image(&name).await,
            _ => Ok(None),
        }
    }

    /// What an image's name means; `None` where it is unknown.
    pub async fn image(&self, name: &str) -> Result<Option<ImageTarget>, ContainerdError> {
        let request = pb::GetImageRequest { name: name.to_owned(), ..Default::default() };
        let path = PathAndQuery::from_static("/containerd.services.images.v1.Images/Get");
        let answer: Option<pb::GetImageResponse> = self.get("Images.Get", name, path, request).await?;
        let image = answer.and_then(|a| a.image.into_option());
        Ok(image.and_then(|image| {
            let target = image.target.into_option()?;
            let size = u64::try_from(target.size).ok()?;
            Some(ImageTarget { name: image.name, digest: target.digest, media_type: target.media_type, size })
        }))
    }

    /// Digests of all manifests of the namespace: what refers to a config. Also of images that are still being pulled.
    pub async fn manifests(&self) -> Result<Vec<String>, ContainerdError> {
        let failed = |status| ContainerdError::Call { call: "Content.List", what: "manifests".to_owned(), status: Box::new(status) };
        let filters = vec!["labels.\"containerd.io/gc.ref.content.config\"".to_owned()];
        let request = pb::ListContentRequest { filters, ..Default::default() };
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/List");
        let mut answers: Streaming<pb::ListContentResponse> = self.stream(path, request).await.map_err(failed)?;
        let mut digests = Vec::new();
        while let Some(answer) = answers.message().await.map_err(failed)? {
            digests.extend(answer.info.into_iter().map(|info| info.digest));
        }
        Ok(digests)
    }

    /// A unary call of any service, at `/<service>/<method>`; NotFound is `None`. `call` and `what` stand in the error.
    pub async fn get<Q: Message, A: Message>(
        &self,
        call: &'static str,
        what: &str,
        path: PathAndQuery,
        message: Q,
    ) -> Result<Option<A>, ContainerdError> {
        let failed = |status| ContainerdError::Call { call, what: what.to_owned(), status: Box::new(status) };
        let mut grpc = self.ready().await.map_err(failed)?;
        match grpc.unary(self.request(message), path, ProtobufCodec::<Q, A>::default()).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(failed(status)),
        }
    }

    /// A call that is answered by a stream of messages.
    async fn stream<Q: Message, A: Message>(&self, path: PathAndQuery, message: Q) -> Result<Streaming<A>, Status> {
        let mut grpc = self.ready().await?;
        let mut request = self.request(message);
        // A layer takes as long as its reader; only the calls about metadata have a deadline.
        request.metadata_mut().remove("grpc-timeout");
        Ok(grpc.server_streaming(request, path, ProtobufCodec::<Q, A>::default()).await?.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
        Ok(grpc)
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request.set_timeout(CALL_TIMEOUT);
        request
    }
}
