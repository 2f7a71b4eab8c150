//! A reader that does not wait for ever: a host that sends nothing, or next to nothing, is given up, so that the registry can be asked.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How much has to come while we wait for how long. Time that we ourselves take between reads does not count.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time of waiting.
    pub window: Duration,
    /// Bytes.
    pub least: u64,
}

impl Pace {
    /// Less than any connection that is of use to a registry's client, and more than a host has who only keeps a guest waiting.
    pub const OF_A_HOST: Self = Self { window: Duration::from_secs(30), least: 64 << 10 };
}

/// Reads at a pace, or fails.
pub struct Paced<R> {
    inner: R,
    pace: Pace,
    /// Of the current window.
    waited: Duration,
    bytes: u64,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<R> Paced<R> {
    /// Holds `inner` to `pace`.
    pub fn new(inner: R, pace: Pace) -> Self {
        Self { inner, pace, waited: Duration::ZERO, bytes: 0, waiting: None }
    }

    fn window_ends(&mut self) -> io::Result<()> {
        if self.bytes < self.pace.least {
            let text = format!("only {} bytes came in {} s of waiting", self.bytes, self.pace.window.as_secs_f32());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Paced<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let before = out.filled().len();
            match Pin::new(&mut this.inner).poll_read(cx, out) {
                Poll::Ready(result) => {
                    if let Some((since, _)) = this.waiting.take() {
                        this.waited += since.elapsed();
                    }
                    let n = out.filled().len() - before;
                    this.bytes += n as u64;
                    // The end is the end, however slow the last bytes were.
                    if n > 0 && this.waited >= this.pace.window {
                        this.window_ends()?;
                    }
                    return Poll::Ready(result);
                }
                Poll::Pending => {
                    let left = this.pace.window.saturating_sub(this.waited);
                    let (_, timer) = this.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
                    ready!(timer.as_mut().poll(cx));
                    this.waiting = None;
                    this.window_ends()?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    fn paced(millis: u64, least: u64) -> (DuplexStream, Paced<DuplexStream>) {
        let (host, guest) = tokio::io::duplex(16);
        (host, Paced::new(guest, Pace { window: Duration::from_millis(millis), least }))
    }

    #[tokio::test]
    async fn silence_and_a_trickle_end() {
        let (_host, mut silent) = paced(50, 1);
        assert_eq!(silent.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut host, mut reader) = paced(100, 1 << 20);
        let trickle = tokio::spawn(async move {
            while host.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).await.unwrap_err();
        assert!(error.kind() == io::ErrorKind::TimedOut && !bytes.is_empty(), "{error} after {}", bytes.len());
        drop(reader);
        trickle.await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_blames_nobody() {
        let (mut host, mut reader) = paced(30, 1000);
        host.write_all(b"0123456789").await.unwrap();
        drop(host);
        let mut bytes = Vec::new();
        for _ in 0..10 {
            sleep(Duration::from_millis(10)).await;
            bytes.push(reader.read_u8().await.unwrap());
        }
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(bytes, b"0123456789");
    }

    #[tokio::test]
    async fn a_window_that_brought_enough_is_followed_by_another() {
        let (mut host, mut reader) = paced(40, 1);
        let sender = tokio::spawn(async move {
            for _ in 0..8 {
                sleep(Duration::from_millis(20)).await;
                host.write_all(b"x").await.unwrap();
            }
        });
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        sender.await.unwrap();
        assert_eq!(bytes.len(), 8);
    }
}
