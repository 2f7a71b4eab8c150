//! The daemon's log: lines as containerd's own shims write them, into the fifo `log` of the bundle, which containerd reads.

use log::{
    Level, LevelFilter, Log, Metadata, Record,
    kv::{self, Key, Value, VisitSource},
};
use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Longest line, in bytes: what a pipe takes in one piece (`PIPE_BUF`, pipe(7)), so that lines never mix.
const MAX_LINE: usize = 4096;

struct Fifo {
    file: File,
}

/// Logs into the fifo from here on. Without one (CRI-O makes none) there is no log.
///
/// It is opened for reading as well: a reader that goes away then does no harm (no EPIPE), one that comes back reads on, and in
/// between lines are kept as long as there is room, and dropped then: a log must never stop a shim.
pub fn start(fifo: &Path, debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(fifo);
    if let Ok(file) = opened {
        // Set twice only in tests.
        let _ = log::set_boxed_logger(Box::new(Fifo { file }));
    }
    std::panic::set_hook(Box::new(|panic| log::error!("panic: {panic}")));
}

impl Log for Fifo {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc reports each connection that a peer closes as an error; that is how a connection ends.
        metadata.level() <= log::max_level() && !metadata.target().starts_with("ttrpc")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let _ = (&self.file).write(format(record).as_bytes());
        }
    }

    fn flush(&self) {}
}

/// `time="…" level=… msg="…" key=value`.
fn format(record: &Record<'_>) -> String {
    let level = match record.level() {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!("time=\"{}\" level={level} msg={}", rfc3339(since_1970.as_secs()), quote(&record.args().to_string()));
    // Writing to a string does not fail.
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    if line.len() >= MAX_LINE {
        let end = (0..MAX_LINE).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
    }
    line.push('\n');
    line
}

struct Pairs<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let _ = write!(self.0, " {key}={}", quote(&value.to_string()));
        Ok(())
    }
}

/// A value on one line: what the guest wrote must not become a line of ours.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@' | '+' | ',');
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.extend(c.escape_default()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Seconds since 1970 as UTC (RFC 3339), by the days-to-civil algorithm for the Gregorian calendar.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [(0, "1970-01-01T00:00:00Z"), (951_827_696, "2000-02-29T12:34:56Z"), (1_798_761_599, "2026-12-31T23:59:59Z")]
        {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn hostile_text_stays_on_its_line() {
        let args = format_args!("a\nlevel=error \"x\"\u{1b}[2J {}", "y".repeat(MAX_LINE)).to_string();
        let line = format(&Record::builder().args(format_args!("{args}")).level(Level::Info).build());
        assert!(line.len() <= MAX_LINE && line.matches('\n').count() == 1 && !line.contains('\u{1b}'), "{line}");
        assert!(line.contains(r#"msg="a\nlevel=error \"x\""#), "{line}");
    }

    #[test]
    fn a_reader_that_goes_away_and_comes_back_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let fifo = Fifo { file };
        let say = |text: &str| fifo.log(&Record::builder().args(format_args!("{text}")).level(Level::Info).build());
        log::set_max_level(LevelFilter::Info);
        for _ in 0..2 {
            say("one");
            let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
            let mut bytes = [0; 256];
            let n = reader.read(&mut bytes).unwrap();
            assert!(String::from_utf8_lossy(&bytes[..n]).contains("msg=one\n"));
        }
        (0..4096).for_each(|_| say("full"));
    }
}
