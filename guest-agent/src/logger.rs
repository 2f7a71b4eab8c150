//! The agent's log: the kernel's until the host listens, then a line each on the host's console port (`protocol::console`).
//!
//! The host reads every line: never a key, a token, a secret, or a byte of an image's content.

use crate::boot::console;
use log::{Level, LevelFilter, Log, Metadata, Record, kv};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, Shutdown, send, shutdown},
};
use protocol::line;
use std::{
    fmt::Write as _,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Mutex, PoisonError},
};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_vsock::VsockStream;

/// Lines that may wait for a host that does not read; more are dropped, and counted.
const MAX_WAITING: usize = 1024;
/// How long the last words may wait for the host to take them, in milliseconds.
const LAST_WORDS_MS: u16 = 1000;

static LOGGER: Logger = Logger { sink: Mutex::new(Sink { kmsg: None, host: None, dropped: 0, raw: None }) };

struct Logger {
    sink: Mutex<Sink>,
}

struct Sink {
    kmsg: Option<File>,
    host: Option<mpsc::Sender<String>>,
    dropped: u64,
    /// The host's connection once more, for the last words of a dying agent.
    raw: Option<OwnedFd>,
}

/// Begins to log, to the kernel's log.
pub fn install(level: LevelFilter) {
    LOGGER.sink.lock().unwrap_or_else(PoisonError::into_inner).kmsg = console::open_kmsg();
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

/// From here on, lines go to the host. The returned future carries them and ends when the host closes the connection.
pub async fn to_host(mut stream: VsockStream) {
    let (sender, mut lines) = mpsc::channel(MAX_WAITING);
    {
        let mut sink = LOGGER.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.raw = stream.as_fd().try_clone_to_owned().ok();
        sink.host = Some(sender);
    }
    let mut byte = [0u8; 1];
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            // The host sends nothing here: whatever arrives is its end.
            _ = stream.read(&mut byte) => None,
        };
        let Some(line) = line else { break };
        if line::write_line(&mut stream, &line).await.is_err() {
            break;
        }
    }
    let mut sink = LOGGER.sink.lock().unwrap_or_else(PoisonError::into_inner);
    sink.host = None;
    sink.raw = None;
}

/// Sends `text` to the host around every queue and waits, for a bounded time, until it has been read.
pub fn last_words(text: &str) {
    // The panicking thread may be the one that holds the lock.
    let Ok(mut sink) = LOGGER.sink.try_lock() else { return };
    let Some(raw) = sink.raw.take() else { return };
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = send(raw.as_raw_fd(), format!("{clean}\n").as_bytes(), MsgFlags::MSG_NOSIGNAL);
    let _ = shutdown(raw.as_raw_fd(), Shutdown::Write);
    // The host closes its side when it has seen our end.
    let mut wait = [PollFd::new(raw.as_fd(), PollFlags::POLLIN | PollFlags::POLLHUP)];
    let _ = poll(&mut wait, PollTimeout::from(LAST_WORDS_MS));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries are quiet unless something is wrong; their debug output could hold what they carry.
        metadata.target().starts_with("cloister") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = format_record(record);
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        match sink.host.clone() {
            Some(host) => {
                if sink.dropped > 0 && host.try_send(format!("WARN log lines dropped={}", sink.dropped)).is_ok() {
                    sink.dropped = 0;
                }
                if host.try_send(text).is_err() {
                    sink.dropped += 1;
                }
            }
            None => {
                if let Some(kmsg) = &mut sink.kmsg {
                    console::write_kmsg(kmsg, severity(record.level()), &text);
                }
            }
        }
    }

    fn flush(&self) {}
}

/// syslog(2)'s severity.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// `LEVEL message key=value …`, in one line.
fn format_record(record: &Record<'_>) -> String {
    struct Pairs<'a>(&'a mut String);
    impl<'kvs> kv::VisitSource<'kvs> for Pairs<'_> {
        fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
            let _ = write!(self.0, " {key}={value}");
            Ok(())
        }
    }
    let mut text = format!("{} {}", record.level(), record.args());
    let _ = record.key_values().visit(&mut Pairs(&mut text));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(line::MAX_LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line() {
        let args = format_args!("two\nlines");
        let pairs = [("container", "c1\n")];
        let record = Record::builder().level(Level::Warn).args(args).key_values(&pairs).build();
        assert_eq!(format_record(&record), "WARN two lines container=c1 ");
    }

    #[test]
    fn libraries_are_quiet() {
        let metadata = |target, level| Metadata::builder().target(target).level(level).build();
        assert!(LOGGER.enabled(&metadata("cloister_agent::boot", Level::Debug)));
        assert!(!LOGGER.enabled(&metadata("rustls::client", Level::Info)));
        assert!(LOGGER.enabled(&metadata("rustls::client", Level::Warn)));
    }
}
