//! Blobs out of containerd's content store, as the courier's first source.

use super::{Client, pb};
use crate::courier::{Blob, BlobSource};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use http::uri::PathAndQuery;
use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, ReadBuf};
use tonic::{Status, Streaming};

#[async_trait]
impl BlobSource for Client {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        let request = pb::InfoRequest { digest: digest.to_owned(), ..Default::default() };
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Info");
        let answer: Option<pb::InfoResponse> = self.get("Content.Info", digest, path, request).await.map_err(io::Error::other)?;
        let Some(info) = answer.and_then(|a| a.info.into_option()) else { return Ok(None) };
        let size = u64::try_from(info.size).map_err(io::Error::other)?;

        let request = pb::ReadContentRequest { digest: digest.to_owned(), ..Default::default() };
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
        let messages = self.stream(path, request).await.map_err(io::Error::other)?;
        Ok(Some((size, Box::new(BlobReader { messages, chunk: Bytes::new() }))))
    }
}

/// The messages of `Content.Read` as one stream of bytes; holds one message at a time.
struct BlobReader {
    messages: Streaming<pb::ReadContentResponse>,
    chunk: Bytes,
}

impl BlobReader {
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<pb::ReadContentResponse>, Status>> {
        pin!(self.messages.message()).poll(context)
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.chunk.is_empty() {
            match self.poll_chunk(context) {
                Poll::Ready(Ok(Some(message))) => self.chunk = message.data.into(),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(status)) => return Poll::Ready(Err(io::Error::other(status))),
                Poll::Pending => return Poll::Pending,
            }
        }
        let n = self.chunk.len().min(out.remaining());
        out.put_slice(&self.chunk[..n]);
        self.chunk.advance(n);
        Poll::Ready(Ok(()))
    }
}
