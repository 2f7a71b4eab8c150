//! The body of a request that is too large to be held: sent piece by piece as it is read.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::{
    io::{self, Read},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// Bytes per piece.
const PIECE: usize = 128 << 10;
/// Pieces on their way.
const IN_FLIGHT: usize = 2;

/// A body of known length.
pub struct Upload {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl Upload {
    /// What is in memory already.
    pub fn of(bytes: Bytes) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        let left = bytes.len() as u64;
        if !bytes.is_empty() {
            // There is room for one.
            let _ = sender.try_send(Ok(bytes));
        }
        Self { pieces, left }
    }

    /// Reads `length` bytes of `reader` on a thread of its own; `progress` gets the number of bytes of each piece.
    pub fn read(mut reader: impl Read + Send + 'static, length: u64, mut progress: impl FnMut(u64) + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel(IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; PIECE];
            loop {
                let piece = match reader.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => Ok(Bytes::copy_from_slice(&buffer[..n])),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => Err(e),
                };
                let (ended, n) = (piece.is_err(), piece.as_ref().map_or(0, Bytes::len));
                if sender.blocking_send(piece).is_err() || ended {
                    return;
                }
                progress(n as u64);
            }
        });
        Self { pieces, left: length }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.pieces.poll_recv(cx).map(|piece| {
            piece.map(|piece| {
                let piece = piece?;
                self.left = self.left.saturating_sub(piece.len() as u64);
                Ok(Frame::data(piece))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
