//! `cloister image keygen`: a key to sign images with.

use crate::output;
use anyhow::{Context, Result};
use image::signature::sign::SigningKey;
use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Make a key to sign images with: PREFIX.key for you alone, PREFIX.pub for policies
///
/// ECDSA on P-256, as cosign's; `cosign import-key-pair --key PREFIX.key` makes it cosign's own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Path of the two files, without their suffixes
    #[arg(value_name = "PREFIX", default_value = "cosign")]
    prefix: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let key = SigningKey::generate()?;
    let (private, public) = (with_suffix(&args.prefix, "key"), with_suffix(&args.prefix, "pub"));
    write(&private, 0o600, key.to_pem()?.as_bytes())?;
    write(&public, 0o644, key.public_pem()?.as_bytes())?;
    output::line(&format!("{} {}", private.display(), public.display()))
}

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Never over a key that is there: what it signed would be nobody's.
fn write(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let file = File::options().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(content)).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_its_owners_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let args = Args { prefix: dir.path().join("a.b") };
        run(&args).unwrap();
        let private = dir.path().join("a.b.key");
        assert_eq!(private.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(std::fs::read_to_string(dir.path().join("a.b.pub")).unwrap().contains("BEGIN PUBLIC KEY"));
        SigningKey::from_pem(&std::fs::read_to_string(&private).unwrap()).unwrap();
        assert!(run(&args).unwrap_err().to_string().contains("a.b.key"));
    }
}
