//! What the user sees.

use anyhow::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};

/// Writes a line to standard output. A reader that has gone away (`| head`) is no failure.
pub(crate) fn line(text: &str) -> Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes bytes to standard output as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a document to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Says on standard error what is going on.
pub(crate) fn note(text: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says on standard error why a command failed: one line, with its causes.
pub(crate) fn failure(error: &Error) {
    note(&format!("cloister: {}", one_line(&with_causes(error))));
}

/// The chain of causes. Most of our errors name their cause in their own text already.
fn with_causes(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Progress over a number of bytes on standard error; nothing where that is no terminal.
pub(crate) fn bytes_progress(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:20} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Columns as wide as their widest cell.
pub(crate) fn table(rows: &[Vec<String>]) -> Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_failure_is_one_line() {
        let error = anyhow!("cause\n  at line 3\n").context("reading x");
        assert_eq!(one_line(&with_causes(&error)), "reading x: cause; at line 3");
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow!("no such file").context("x: no such file").context("build");
        assert_eq!(with_causes(&error), "build: x: no such file");
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!([size(5), size(2048), size(3 << 20)], ["5 B", "2.0 KiB", "3.0 MiB"]);
    }
}
