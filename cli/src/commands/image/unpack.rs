//! `cloister image unpack`.

use crate::{input, output};
use anyhow::{Context, Result};
use image::{
    layout::{Layout, parse_name},
    local::unpack_image,
    ocicrypt::Kek,
    unpack::{Devices, Limits},
};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Unpack an image of an OCI layout as a guest unpacks it: every digest and HMAC checked, each layer a directory of an overlay
///
/// What is refused here is refused in a guest, for the same reason. As root; the result is looked at with
///
///   mount -t overlay overlay -o ro,lowerdir=LAYERS /mnt
///
/// where LAYERS is what this command prints last.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// oci:DIR:TAG, as skopeo writes it
    #[arg(value_name = "IMAGE")]
    image: String,
    /// A directory, new or empty; the layers are 0, 1, … in it
    #[arg(value_name = "DIRECTORY")]
    target: PathBuf,
    /// The key of an encrypted image: a file with its 32 bytes
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Make device nodes too, which a guest does not: its /dev is made anew
    #[arg(long)]
    devices: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    /// The lowest first.
    layers: Vec<PathBuf>,
    /// For the mount option of that name: the topmost first.
    lowerdir: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let outcome = unpack(args).with_context(|| args.image.clone())?;
    if args.json {
        return output::json(&outcome);
    }
    let mut rows: Vec<Vec<String>> = outcome.layers.iter().map(|path| vec!["layer".to_owned(), path.display().to_string()]).collect();
    rows.push(vec!["lowerdir".to_owned(), outcome.lowerdir.clone()]);
    output::table(&rows)
}

fn unpack(args: &Args) -> Result<Outcome> {
    let (path, tag) = parse_name(&args.image)?;
    let layout = Layout::open(&path)?;
    let kek = args.key.as_deref().map(read_key).transpose()?;
    fs::create_dir_all(&args.target).with_context(|| args.target.display().to_string())?;
    let target = fs::canonicalize(&args.target)?;
    anyhow::ensure!(fs::read_dir(&target)?.next().is_none(), "{}: not empty", target.display());
    let limits = Limits { devices: if args.devices { Devices::Create } else { Devices::Skip }, ..Limits::default() };
    let layers = input::block_on(async { Ok(unpack_image(&layout, tag.as_deref(), kek.as_ref(), &target, &limits).await?) })?;
    let lowerdir = layers.iter().rev().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":");
    Ok(Outcome { layers, lowerdir })
}

fn read_key(path: &Path) -> Result<Kek> {
    let bytes = zeroize::Zeroizing::new(input::read(path, 4096)?);
    Kek::from_bytes(&bytes).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_layout_and_what_is_not_empty_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let args =
            |image: &str, target: &Path| Args { image: image.to_owned(), target: target.to_owned(), key: None, devices: false, json: true };
        let error = run(&args("oci:/nowhere:1", &dir.path().join("out"))).unwrap_err();
        assert!(format!("{error:#}").contains("not an OCI image layout"), "{error:#}");
        Layout::create(&dir.path().join("layout")).unwrap();
        let name = format!("oci:{}:1", dir.path().join("layout").display());
        let error = run(&args(&name, dir.path())).unwrap_err();
        assert!(format!("{error:#}").contains("not empty"), "{error:#}");
        let error = run(&args(&name, &dir.path().join("out"))).unwrap_err();
        assert!(format!("{error:#}").contains("no image"), "{error:#}");
    }
}
