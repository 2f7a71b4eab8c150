//! Running a program to its end with a limit of time, and knowing when it first said something.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    /// What was run, for error texts.
    pub line: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output, in bytes: containers may say anything.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
    /// From the start of the program to the first byte of its standard output.
    pub first_output: Option<Duration>,
    /// From the start of the program to its end.
    pub total: Duration,
}

impl Finished {
    /// Exit code; None after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The result of a program that had to succeed.
    pub fn succeeded(self) -> Result<Self> {
        ensure!(self.status.success(), "`{}` failed ({}): {}{}", self.line, self.status, self.stderr.trim_end(), self.text().trim_end());
        Ok(self)
    }
}

/// A program on its way.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    started: Instant,
    stdout: JoinHandle<(Vec<u8>, Option<Duration>)>,
    stderr: JoinHandle<Vec<u8>>,
    first: Receiver<()>,
}

/// Runs `command` to its end. After `limit` it is killed, which is an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Finished> {
    start(command, Vec::new())?.finish(limit)
}

/// Starts `command` with `input` on its standard input, which is closed after it.
pub fn start(command: &mut Command, input: Vec<u8>) -> Result<Running> {
    let line = describe(command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let (mut stdin, mut stdout, mut stderr) = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => (stdin, stdout, stderr),
        _ => bail!("`{line}` has no pipes"),
    };
    std::thread::spawn(move || stdin.write_all(&input).ok());
    let (tell, first) = channel();
    let stdout = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut first = None;
        let mut piece = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = stdout.read(&mut piece) {
            if first.is_none() {
                first = Some(started.elapsed());
                tell.send(()).ok();
            }
            all.extend_from_slice(&piece[..count]);
        }
        (all, first)
    });
    let stderr = std::thread::spawn(move || {
        let mut all = Vec::new();
        stderr.read_to_end(&mut all).ok();
        all
    });
    Ok(Running { line, child, started, stdout, stderr, first })
}

impl Running {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True once the program has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for the first byte on standard output.
    pub fn wait_output(&self, limit: Duration) -> Result<()> {
        self.first.recv_timeout(limit).with_context(|| format!("`{}` said nothing within {} s", self.line, limit.as_secs()))
    }

    /// Waits for the end.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let deadline = self.started + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                let said = self.stderr.join().unwrap_or_default();
                bail!("`{}` had not ended after {} s: {}", self.line, limit.as_secs(), String::from_utf8_lossy(&said).trim_end());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let total = self.started.elapsed();
        let (stdout, first_output) = self.stdout.join().unwrap_or_default();
        let stderr = String::from_utf8_lossy(&self.stderr.join().unwrap_or_default()).into_owned();
        Ok(Finished { line: self.line, status, stdout, stderr, first_output, total })
    }
}

/// The command line, for error texts: the program's name, and long arguments cut.
fn describe(command: &Command) -> String {
    let name = command.get_program().to_string_lossy();
    let mut line = name.rsplit('/').next().unwrap_or_default().to_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        line.push(' ');
        line.extend(argument.chars().take(120));
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn output_status_and_input_arrive() {
        let finished = start(Command::new("sh").args(["-c", "cat; echo oops >&2; exit 7"]), b"hello".to_vec()).unwrap();
        let finished = finished.finish(Duration::from_secs(20)).unwrap();
        assert_eq!((finished.code(), finished.text().as_str(), finished.stderr.as_str()), (Some(7), "hello", "oops\n"));
        assert!(finished.first_output.unwrap() <= finished.total);
        assert!(finished.succeeded().unwrap_err().to_string().contains("oops"));
    }

    #[test]
    fn a_program_beyond_its_limit_is_killed_and_named() {
        let text = run(Command::new("sleep").arg("600"), Duration::from_millis(50)).unwrap_err().to_string();
        assert!(text.starts_with("`sleep 600` had not ended"), "{text}");
    }
}
