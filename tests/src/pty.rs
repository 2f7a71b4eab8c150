//! Running a program in a terminal of its own, for `--tty`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::pty::{Winsize, openpty};

use crate::command::Finished;

/// Rows and columns of the terminal.
pub const SIZE: (u16, u16) = (40, 100);

/// Runs `command` with a terminal as its three streams, types `input` as soon as anything is printed, and returns everything that
/// appeared as `stdout`.
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Result<Finished> {
    run_resized(command, input, None, limit)
}

/// The same; the terminal gets another size (rows and columns) as soon as anything is printed.
pub fn run_resized(command: &mut Command, input: &[u8], size_then: Option<(u16, u16)>, limit: Duration) -> Result<Finished> {
    let size = Winsize { ws_row: SIZE.0, ws_col: SIZE.1, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).context("opening a pseudo terminal")?;
    command.stdin(Stdio::from(pty.slave.try_clone()?)).stdout(Stdio::from(pty.slave.try_clone()?)).stderr(Stdio::from(pty.slave));
    // SAFETY: setsid and ioctl are async-signal-safe and touch nothing of the parent.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let line = format!("{command:?}");
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {line}"))?;
    // The command keeps the slave's descriptors until it is given others; the end of output is seen only without them.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());

    let mut master = File::from(pty.master);
    let mut typist = master.try_clone()?;
    let input = input.to_vec();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut first = None;
        let mut piece = [0; 4096];
        // The kernel reports EIO once the last slave is closed.
        while let Ok(count @ 1..) = master.read(&mut piece) {
            if first.is_none() {
                first = Some(started.elapsed());
                if let Some((rows, columns)) = size_then {
                    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns; the kernel tells the program.
                    unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&typist), libc::TIOCSWINSZ, &size) };
                }
                typist.write_all(&input).ok();
            }
            all.extend_from_slice(&piece[..count]);
        }
        (all, first)
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{line} had not ended after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let total = started.elapsed();
    let (stdout, first_output) = reader.join().unwrap_or_default();
    Ok(Finished { line, status, stdout, stderr: String::new(), first_output, total })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_program_sees_a_terminal_of_the_given_size_and_what_is_typed() {
        let mut command = Command::new("sh");
        command.args(["-c", "test -t 0 && stty size; read line; echo \"got $line\"; exit 4"]);
        let finished = run(&mut command, b"this\n", Duration::from_secs(20)).unwrap();
        assert_eq!(finished.code(), Some(4));
        assert!(finished.text().contains("40 100") && finished.text().contains("got this"), "{}", finished.text());
    }
}
