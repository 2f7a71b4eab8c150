//! gRPC over a Unix socket, for tests that are not asynchronous: messages of rust-protobuf, carried by tonic.

use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use protobuf::Message;
use tokio::runtime::Runtime;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(20);

/// A connection, and the threads that serve it.
#[derive(Debug)]
pub struct Grpc {
    runtime: Runtime,
    channel: Channel,
}

impl Grpc {
    /// Connects to the socket when it is first needed.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_timeout(CONNECT);
        let channel = {
            let _inside = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self { runtime, channel })
    }

    /// One call; its error is the status's own text.
    pub fn call<Q: Message, A: Message>(&self, path: &str, message: Q, limit: Duration) -> Result<A> {
        let method = path.to_owned();
        let path: PathAndQuery = path.parse()?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let call = async {
            grpc.ready().await.context("connection")?;
            let mut request = Request::new(message);
            request.set_timeout(limit);
            let answer = grpc.unary(request, path, Plain::<Q, A>(PhantomData)).await;
            answer.map_err(|status| anyhow!("{method}: {}: {}", status.code(), status.message()))
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(limit, call).await });
        let answer = answer.map_err(|_| anyhow!("{method}: no answer within {} s", limit.as_secs()))?;
        Ok(answer?.into_inner())
    }
}

/// Carries `Q` out and `A` in.
struct Plain<Q, A>(PhantomData<(Q, A)>);
struct Half<M>(PhantomData<M>);

impl<Q: Message, A: Message> Codec for Plain<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = Half<Q>;
    type Decoder = Half<A>;

    fn encoder(&mut self) -> Half<Q> {
        Half(PhantomData)
    }

    fn decoder(&mut self) -> Half<A> {
        Half(PhantomData)
    }
}

impl<M: Message> Encoder for Half<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: M, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item.write_to_bytes().map_err(|error| Status::internal(error.to_string()))?);
        Ok(())
    }
}

impl<M: Message> Decoder for Half<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        M::parse_from_bytes(&bytes).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
