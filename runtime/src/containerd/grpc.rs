//! gRPC with rust-protobuf messages: the codec that lets tonic carry what ttrpc already brings, so that there is one protobuf
//! implementation in the tree and no `protoc` at build time.

use protobuf::Message;
use std::marker::PhantomData;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Carries `E` out and `D` in. A client encodes requests, a server responses.
#[derive(Debug)]
pub struct ProtobufCodec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for ProtobufCodec<E, D> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

/// One direction of a [`ProtobufCodec`].
#[derive(Debug)]
pub struct Half<M>(PhantomData<M>);

impl<E: Message, D: Message> Codec for ProtobufCodec<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Half<E>;
    type Decoder = Half<D>;

    fn encoder(&mut self) -> Self::Encoder {
        Half(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Half(PhantomData)
    }
}

impl<M: Message> Encoder for Half<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, item: M, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let bytes = item.write_to_bytes().map_err(|e| Status::internal(e.to_string()))?;
        bytes::BufMut::put_slice(dst, &bytes);
        Ok(())
    }
}

impl<M: Message> Decoder for Half<M> {
    type Item = M;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<M>, Status> {
        let bytes = bytes::Buf::copy_to_bytes(src, bytes::Buf::remaining(src));
        M::parse_from_bytes(&bytes).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}
