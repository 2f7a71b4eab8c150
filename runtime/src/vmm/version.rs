//! QEMU's version: an enclave that it does not know yet is refused in one line, and not by its own error about an unknown object.

use std::{fmt, io, path::Path, path::PathBuf, process::Command};
use thiserror::Error;

/// Major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// Before the first full stop.
    pub major: u32,
    /// After it.
    pub minor: u32,
}

/// A program that does not say its version.
#[derive(Debug, Error)]
#[error("{program} --version: {source}")]
pub struct QemuVersionError {
    program: PathBuf,
    source: io::Error,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl QemuVersion {
    /// Asks the program. Blocks for as long as it takes to start.
    pub fn of(program: &Path) -> Result<Self, QemuVersionError> {
        let failed = |source| QemuVersionError { program: program.to_owned(), source };
        let output = Command::new(program).arg("--version").output().map_err(failed)?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::parse(&text).ok_or_else(|| failed(io::Error::other("no version in what it prints")))
    }

    /// Reads `QEMU emulator version 10.0.2 (…)`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        let of = |text| QemuVersion::parse(text);
        assert_eq!(of("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some(QemuVersion { major: 7, minor: 2 }));
        assert!(of("QEMU emulator version 10.1.0") > of("QEMU emulator version 9.1.0"));
        assert_eq!(of("qemu"), None);
        assert!(QemuVersion::of(Path::new("/nonexistent/qemu")).is_err_and(|e| e.to_string().starts_with("/nonexistent/qemu --version: ")));
    }
}
