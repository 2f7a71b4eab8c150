//! The log of the two services (`broker serve`, `snapshotter`): a line each on standard error, for a terminal or the journal, which
//! adds the time.

use log::{LevelFilter, Log, Metadata, Record, kv};
use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

struct Logger;

/// Logs from here on: of ours what is interesting, of libraries what is wrong.
pub(crate) fn install() {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        const OURS: [&str; 3] = ["cloister", "key_broker", "guest_image"];
        OURS.iter().any(|name| metadata.target().starts_with(name)) || metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Nobody to tell if standard error is gone.
            let _ = writeln!(io::stderr(), "{}", format_record(record));
        }
    }

    fn flush(&self) {}
}

/// `LEVEL message key=value …`. What a peer sent may stand in a value; it cannot forge a line or drive a terminal.
fn format_record(record: &Record<'_>) -> String {
    struct Pairs<'a>(&'a mut String);
    impl<'kvs> kv::VisitSource<'kvs> for Pairs<'_> {
        fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
            let _ = write!(self.0, " {key}={value}");
            Ok(())
        }
    }
    let mut text = format!("{} {}", record.level(), record.args());
    // The visitor above never fails.
    let _ = record.key_values().visit(&mut Pairs(&mut text));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line() {
        let pairs = [("peer", "x\nERROR forged")];
        let record = Record::builder().level(log::Level::Info).args(format_args!("refused")).key_values(&pairs).build();
        assert_eq!(format_record(&record), "INFO refused peer=x ERROR forged");
    }
}
