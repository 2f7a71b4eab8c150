//! Raw files of disks on the node, and loop devices of them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long what has been let go may take to be closed.
const SETTLE: Duration = Duration::from_secs(20);

/// Makes a raw file of `mib` MiB that begins with `text`.
pub fn file(path: &Path, mib: u64, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(File::options().write(true).open(path)?.set_len(mib << 20)?)
}

/// A loop device of a file, gone when dropped.
#[derive(Debug)]
pub struct Loop {
    /// In /dev.
    pub path: String,
}

impl Loop {
    /// Sets one up. `None` where the machine has none: a container, most likely.
    pub fn of(file: &Path) -> Result<Option<Self>> {
        let done = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match done {
            Ok(done) if done.status.success() => Ok(Some(Self { path: String::from_utf8(done.stdout)?.trim().to_owned() })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.path]).status();
    }
}

/// Fails unless every process of the machine has closed the file or device.
pub fn nobody_has(path: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let holders = holders(Path::new(path));
        if holders.is_empty() {
            return Ok(());
        }
        ensure!(started.elapsed() < SETTLE, "{path} is still open: {holders:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Descriptors that lead to a path.
pub fn holders(path: &Path) -> Vec<PathBuf> {
    let list = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let descriptors = list("/proc".into()).flat_map(|process| list(process.join("fd")));
    descriptors.filter(|descriptor| fs::read_link(descriptor).is_ok_and(|target| target == path)).collect()
}
