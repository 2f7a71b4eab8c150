//! The kernel's log and console: where the agent speaks before the host listens.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Longest record that /dev/kmsg takes (`PRINTK_MESSAGE_MAX` less its prefix, kernel/printk/internal.h).
const MAX_RECORD: usize = 900;

/// Opens the kernel's log for writing.
pub fn open_kmsg() -> Option<File> {
    OpenOptions::new().write(true).open("/dev/kmsg").ok()
}

/// Writes one record with the severity `level` (0 to 7, syslog(2)); what is too long is cut.
pub fn write_kmsg(kmsg: &mut File, level: u8, text: &str) {
    let mut end = text.len().min(MAX_RECORD);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let _ = kmsg.write_all(format!("<{level}>cloister-agent: {}\n", &text[..end]).as_bytes());
}

/// Writes to the kernel's log with the highest urgency that does not stop the machine, and to the console where that is another.
pub fn shout(text: &str) {
    // Level 1 (alert) is printed on the console even where the command line says `quiet`.
    if let Some(mut kmsg) = open_kmsg() {
        write_kmsg(&mut kmsg, 1, text);
    } else if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        let _ = console.write_all(format!("{text}\n").as_bytes());
    }
}

/// Makes descriptors 0, 1 and 2 exist: the kernel gives PID 1 none if the initramfs has no /dev/console, and the next file opened
/// would become a container's standard error.
pub fn occupy_stdio() -> std::io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let console = OpenOptions::new().write(true).open("/dev/console").ok();
    let out = console.as_ref().unwrap_or(&null);
    for (from, to) in [(null.as_raw_fd(), 0), (out.as_raw_fd(), 1), (out.as_raw_fd(), 2)] {
        if from != to {
            // SAFETY: dup2 on descriptors that this process owns; 0 to 2 belong to nobody else this early in PID 1.
            if unsafe { libc::dup2(from, to) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
    }
    // Whatever was opened as 0 to 2 has become that descriptor; dropping it would close it again.
    for file in [Some(null), console].into_iter().flatten() {
        if file.as_raw_fd() <= 2 {
            let _kept = std::mem::ManuallyDrop::new(file);
        }
    }
    Ok(())
}

/// Moves a descriptor above standard error.
pub fn above_stdio(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    // SAFETY: fcntl on a descriptor that we own; the result is a new descriptor, which nothing else knows.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    if high < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}
