//! The streams of exec, attach and port-forward as kubelet's server has them: WebSocket (RFC 6455) with the subprotocol
//! `v4.channel.k8s.io`, in which the first byte of each message is the number of its channel.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Channels of exec and attach. A forwarded port has its data on 0 and its errors on 1, each beginning with two bytes of the port.
pub mod channel {
    /// To the process, or both ways for a port.
    pub const STDIN: u8 = 0;
    /// From the process; a port's errors.
    pub const STDOUT: u8 = 1;
    /// From the process.
    pub const STDERR: u8 = 2;
    /// How it ended, as JSON.
    pub const ERROR: u8 = 3;
}

/// How long one message may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Longest message that is taken.
const MAX_MESSAGE: u64 = 16 << 20;

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// A connection.
#[derive(Debug)]
pub struct WebSocket {
    stream: TcpStream,
}

impl WebSocket {
    /// Connects to a URL that the CRI gave.
    pub fn connect(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").with_context(|| format!("unexpected URL {url}"))?;
        let (authority, path) = rest.split_once('/').with_context(|| format!("unexpected URL {url}"))?;
        let mut stream = TcpStream::connect(authority).with_context(|| authority.to_owned())?;
        stream.set_read_timeout(Some(LIMIT))?;
        // The key is there to be answered by a hash; that the protocol was understood is seen by what follows.
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nOrigin: http://{authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            ensure!(stream.read(&mut byte)? == 1 && head.len() < 8192, "no answer: {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        Ok(Self { stream })
    }

    /// Sends bytes on a channel.
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let length = data.len() + 1;
        let mut frame = vec![0x80 | BINARY];
        match length {
            0..=125 => frame.push(0x80 | u8::try_from(length)?),
            126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length)?.to_be_bytes());
            }
            _ => {
                frame.push(0x80 | 127);
                frame.extend(u64::try_from(length)?.to_be_bytes());
            }
        }
        // A client masks; with zeroes the data stays as it is.
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(data);
        Ok(self.stream.write_all(&frame)?)
    }

    /// The next message with something in it: its channel and bytes; `None` at the end.
    pub fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let mut head = [0; 2];
            match self.stream.read_exact(&mut head) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
                result => result.context("frame")?,
            }
            let length = match head[1] & 0x7f {
                126 => u64::from(u16::from_be_bytes(self.bytes()?)),
                127 => u64::from_be_bytes(self.bytes()?),
                short => u64::from(short),
            };
            ensure!(length <= MAX_MESSAGE, "a message of {length} bytes");
            let mut data = vec![0; usize::try_from(length)?];
            self.stream.read_exact(&mut data)?;
            match head[0] & 0x0f {
                CLOSE => return Ok(None),
                PING => continue,
                _ => {}
            }
            if data.len() > 1 {
                let rest = data.split_off(1);
                return Ok(Some((data[0], rest)));
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads until what came on `channel` ends with `wanted`; what came before is part of the answer.
    pub fn read_until(&mut self, channel: u8, wanted: &str) -> Result<String> {
        let started = Instant::now();
        let mut seen = String::new();
        while !seen.ends_with(wanted) {
            match self.receive()? {
                Some((from, data)) if from == channel => seen.push_str(&String::from_utf8_lossy(&data)),
                Some(_) => {}
                None => bail!("ended at {seen:?}, expected {wanted:?}"),
            }
            ensure!(started.elapsed() < LIMIT, "still {seen:?}, expected {wanted:?}");
        }
        Ok(seen)
    }

    /// Reads to the end: what came on each of the first four channels.
    pub fn read_all(&mut self) -> Result<[String; 4]> {
        let mut all: [Vec<u8>; 4] = Default::default();
        while let Some((channel, data)) = self.receive()? {
            let Some(place) = all.get_mut(usize::from(channel)) else { bail!("channel {channel}") };
            place.extend(data);
            // The last word of an exec. The connection may stay open for a while after it.
            if channel == channel::ERROR {
                break;
            }
        }
        Ok(all.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}
