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
    collections::HashMap,
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

/// The label with the repositories of one registry that a blob was pulled from (containerd, core/remotes/docker/handler.go).
const SOURCE: &str = "containerd.io/distribution.source.";
/// Most repositories of one manifest that count.
const MAX_REPOSITORIES: usize = 16;
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

/// A manifest in containerd's content store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its digest.
    pub digest: String,
    /// The repositories that it was pulled from, as `registry/repository`, without the registry's port; none where it was imported.
    pub repositories: Vec<String>,
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
        Ok(answer.and_then(|a| a.image.into_option()).and_then(target))
    }

    /// All images of the namespace. One that is still being pulled has no name yet.
    pub async fn images(&self) -> Result<Vec<ImageTarget>, ContainerdError> {
        let path = PathAndQuery::from_static("/containerd.services.images.v1.Images/List");
        let answer: Option<pb::ListImagesResponse> = self.get("Images.List", "images", path, pb::ListImagesRequest::new()).await?;
        Ok(answer.unwrap_or_default().images.into_iter().filter_map(target).collect())
    }

    /// All manifests of the namespace: what refers to a config. Also of images that are still being pulled.
    pub async fn manifests(&self) -> Result<Vec<StoredManifest>, ContainerdError> {
        let failed = |status| ContainerdError::Call { call: "Content.List", what: "manifests".to_owned(), status: Box::new(status) };
        let filters = vec!["labels.\"containerd.io/gc.ref.content.config\"".to_owned()];
        let request = pb::ListContentRequest { filters, ..Default::default() };
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/List");
        let mut answers: Streaming<pb::ListContentResponse> = self.stream(path, request).await.map_err(failed)?;
        let mut manifests = Vec::new();
        while let Some(answer) = answers.message().await.map_err(failed)? {
            let stored = |info: pb::Info| StoredManifest { repositories: repositories(&info.labels), digest: info.digest };
            manifests.extend(answer.info.into_iter().map(stored));
        }
        Ok(manifests)
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

fn target(image: pb::Image) -> Option<ImageTarget> {
    let target = image.target.into_option()?;
    let size = u64::try_from(target.size).ok()?;
    Some(ImageTarget { name: image.name, digest: target.digest, media_type: target.media_type, size })
}

fn repositories(labels: &HashMap<String, String>) -> Vec<String> {
    let mut found: Vec<String> = labels
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(SOURCE)?, value)))
        .flat_map(|(registry, value)| value.split(',').map(move |repository| format!("{registry}/{repository}")))
        .collect();
    found.sort_unstable();
    found.truncate(MAX_REPOSITORIES);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_where_a_manifest_came_from() {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = [
            label("containerd.io/gc.ref.content.config", "sha256:aa"),
            label("containerd.io/distribution.source.docker.io", "library/a,library/b"),
            label("containerd.io/distribution.source.127.0.0.1", "a"),
        ];
        assert_eq!(repositories(&HashMap::from(labels)), ["127.0.0.1/a", "docker.io/library/a", "docker.io/library/b"]);
        assert!(repositories(&HashMap::new()).is_empty());
    }
}
