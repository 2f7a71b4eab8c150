//! Where firmware is found: the configuration, else where the distributions' packages put it.

use super::TeeError;
use std::path::{Path, PathBuf};

/// The configured file, else the first of `places` that is there.
pub(super) fn find(tee: &'static str, configured: Option<&Path>, places: &[&str], remedy: &'static str) -> Result<PathBuf, TeeError> {
    let candidates: Vec<&Path> = match configured {
        Some(path) => vec![path],
        None => places.iter().map(Path::new).collect(),
    };
    let found = candidates.iter().find(|path| path.is_file()).and_then(|path| std::path::absolute(path).ok());
    found.ok_or_else(|| {
        let looked = candidates.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        TeeError::Firmware { tee, looked, remedy }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_configured_file_is_the_only_candidate() {
        assert!(find("vtpm", None, &["/nonexistent/a", "Cargo.toml"], "r").unwrap().ends_with("runtime/Cargo.toml"));
        let error = find("vtpm", Some(Path::new("/nonexistent/b")), &["Cargo.toml"], "install ovmf").unwrap_err().to_string();
        assert!(error.contains("(/nonexistent/b): install ovmf, or set vmm.firmware"), "{error}");
    }
}
