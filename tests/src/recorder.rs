//! Between a guest and its broker, as a host is: everything goes through, and what the guest says is kept.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use serde_json::Value;

/// A listener on loopback whose connections are passed on. Ends with the process.
#[derive(Debug)]
pub struct Recorder {
    /// `127.0.0.1:PORT`.
    pub authority: String,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Recorder {
    /// Passes on to `authority`.
    pub fn start(authority: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let recorder = Self { authority: listener.local_addr()?.to_string(), said: Arc::default() };
        let (said, target) = (recorder.said.clone(), authority.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (said, target) = (said.clone(), target.clone());
                // A connection that breaks is the guest's and the broker's affair.
                thread::spawn(move || pass(client, &target, &said).ok());
            }
        });
        Ok(recorder)
    }

    /// The body of the only request for `path` that a guest has made.
    pub fn body(&self, path: &str) -> Result<Value> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = format!("POST {path} HTTP/1.1\r\n").into_bytes();
        let found = said.iter().find_map(|bytes| {
            let at = bytes.windows(begin.len()).position(|window| window == begin)?;
            let body = bytes[at..].windows(4).position(|window| window == b"\r\n\r\n")? + at + 4;
            serde_json::Deserializer::from_slice(&bytes[body..]).into_iter().next()?.ok()
        });
        found.with_context(|| format!("no guest has sent a document to {path}"))
    }
}

fn pass(client: TcpStream, target: &str, said: &Mutex<Vec<Vec<u8>>>) -> Result<()> {
    let broker = TcpStream::connect(target)?;
    let number = {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push(Vec::new());
        said.len() - 1
    };
    let (mut answers, mut back) = (broker.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        std::io::copy(&mut answers, &mut back).ok();
        back.shutdown(Shutdown::Write).ok();
    });
    let (mut client, mut broker, mut buffer) = (client, broker, [0; 16 << 10]);
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(broker.shutdown(Shutdown::Write)?);
        }
        said.lock().unwrap_or_else(PoisonError::into_inner)[number].extend_from_slice(&buffer[..count]);
        broker.write_all(&buffer[..count])?;
    }
}
