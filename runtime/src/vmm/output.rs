//! What the monitor and the guest's console say: into the log, and the last of it kept for the error text.

use crate::rate::Rate;
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Instant,
};

/// Lines that are kept.
const KEPT_LINES: usize = 64;
/// Longest line that is kept, in bytes; the guest writes what it likes.
const MAX_LINE: u64 = 1024;
/// Words of a line that tells why a guest died, the most telling first: of our agent, of its kernel, of QEMU.
const TELLING: [&str; 3] = ["FATAL", "Kernel panic", "qemu"];

/// The readers of a monitor's output.
pub(super) struct Output {
    lines: Arc<Mutex<VecDeque<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Output {
    /// Reads what `child` writes, until it ends.
    pub(super) fn read(sandbox: &str, child: &mut Child) -> io::Result<Self> {
        let mut output = Self { lines: Arc::default(), readers: Vec::new() };
        if let Some(stdout) = child.stdout.take() {
            output.start(sandbox, "console", stdout)?;
        }
        if let Some(stderr) = child.stderr.take() {
            output.start(sandbox, "qemu", stderr)?;
        }
        Ok(output)
    }

    fn start(&mut self, sandbox: &str, name: &'static str, from: impl Read + Send + 'static) -> io::Result<()> {
        let (sandbox, lines) = (sandbox.to_owned(), self.lines.clone());
        let reader = move || keep_lines(&sandbox, name, from, &lines);
        self.readers.push(thread::Builder::new().name(name.into()).stack_size(128 << 10).spawn(reader)?);
        Ok(())
    }

    /// The last lines, once all is read.
    pub(super) fn finish(self) -> Vec<String> {
        for reader in self.readers {
            // A reader that panicked has told what it had.
            let _ = reader.join();
        }
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn keep_lines(sandbox: &str, name: &str, from: impl Read, lines: &Mutex<VecDeque<String>>) {
    let mut from = BufReader::with_capacity(4096, from);
    let mut rate = Rate::new(Instant::now());
    loop {
        let mut line = Vec::new();
        match from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text: String = String::from_utf8_lossy(&line).trim_end().chars().filter(|c| !c.is_control()).collect();
        if text.is_empty() {
            continue;
        }
        match rate.pass(Instant::now()) {
            Some(0) => log::info!(sandbox, source = name; "{text}"),
            Some(held_back) => log::warn!(sandbox, source = name; "{text} ({held_back} lines before it are left out)"),
            None => {}
        }
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(text);
    }
}

/// The line that tells most about an end, without the kernel's time stamp.
pub(super) fn last_words(lines: &[String]) -> Option<&str> {
    let telling = TELLING.iter().find_map(|word| lines.iter().find(|line| line.contains(word) && !line.contains("warning: ")));
    let line = telling.or_else(|| lines.iter().rev().find(|line| !line.contains("reboot: ")))?;
    Some(match line.split_once("] ") {
        Some((stamp, text)) if stamp.starts_with('[') => text,
        _ => line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn the_telling_line_is_found() {
        let agent = lines(&["[    0.1] noise", "[    1.5] cloister-agent: FATAL no vsock", "[    1.6] reboot: Restarting system"]);
        assert_eq!(last_words(&agent), Some("cloister-agent: FATAL no vsock"));
        let panic = lines(&["[    0.1] Kernel panic - not syncing: x", "[    0.2] Call Trace:", "[    0.3] ---[ end Kernel panic ]---"]);
        assert_eq!(last_words(&panic), Some("Kernel panic - not syncing: x"));
        assert_eq!(last_words(&lines(&["only", "[    0.3] reboot: Power down"])), Some("only"));
        assert_eq!(last_words(&[]), None);
    }

    #[test]
    fn what_a_guest_writes_is_bounded_and_harmless() {
        let kept = Mutex::new(VecDeque::new());
        let flood = format!("{}\n\x1b[2J{}\n", "line\n".repeat(1000), "x".repeat(5000));
        keep_lines("s", "console", flood.as_bytes(), &kept);
        let kept = kept.into_inner().unwrap_or_default();
        assert_eq!(kept.len(), KEPT_LINES);
        assert!(kept.iter().all(|line| line.len() <= MAX_LINE as usize && !line.contains('\x1b')));
    }
}
