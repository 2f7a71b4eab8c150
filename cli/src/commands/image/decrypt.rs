//! `cloister image decrypt`: the plain image back, for whoever has a key of it.

use crate::{
    input, output,
    places::{Parts, Place, RegistryArgs},
};
use anyhow::{Context, Result, bail};
use image::{
    decrypt::decrypt_image,
    ocicrypt::{Kek, KeyRing, jwe::PrivateKey},
};
use serde::Serialize;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest key file, in bytes.
const MAX_KEY: u64 = 16 << 10;

/// Decrypt an image: of `cloister image encrypt`, skopeo, podman, nerdctl, or the key provider of Confidential Containers
///
///   cloister image decrypt docker://registry.example/app:encrypted oci:app:plain --private-key private.pem
///   cloister image decrypt oci:app:encrypted oci:app:plain --key kbs:///default/key/app=app.key
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The encrypted image: docker://REGISTRY/NAME:TAG, oci:DIR:TAG or oci-archive:FILE:TAG
    #[arg(value_name = "SOURCE")]
    source: Place,
    /// Where the plain image goes: one of the same, or docker-archive:FILE[:NAME]
    #[arg(value_name = "DESTINATION")]
    destination: Place,
    /// A recipient's private key (PEM; RSA, or EC on P-256); may be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "key")]
    private_key: Vec<PathBuf>,
    /// The key that is the broker's under this name, and a file of its 32 bytes; may be repeated
    #[arg(long, value_name = "RESOURCE=FILE")]
    key: Vec<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    destination: String,
    /// Digest of the new manifest.
    digest: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let keys = keys(args)?;
    let digest = input::block_on(decrypt(args, &keys))?;
    let outcome = Outcome { destination: args.destination.to_string(), digest };
    match args.json {
        true => output::json(&outcome),
        false => output::table(&[vec!["image".to_owned(), format!("{} {}", outcome.destination, outcome.digest)]]),
    }
}

fn keys(args: &Args) -> Result<KeyRing> {
    let mut ring = KeyRing::default();
    for path in &args.private_key {
        let pem = Zeroizing::new(input::read(path, MAX_KEY)?);
        ring.add_private(PrivateKey::from_pem(&pem).with_context(|| path.display().to_string())?);
    }
    for text in &args.key {
        let Some((name, file)) = text.split_once('=') else { bail!("--key {text}: want kbs:///repository/type/tag=FILE") };
        let bytes = Zeroizing::new(input::read(Path::new(file), MAX_KEY)?);
        ring.add_kek(name, Kek::from_bytes(&bytes).with_context(|| file.to_owned())?);
    }
    Ok(ring)
}

async fn decrypt(args: &Args, keys: &KeyRing) -> Result<String> {
    let source = args.source.fetch(&args.registry, Parts::All).await?;
    let (target, tag) = args.destination.begin()?;
    let progress = output::bytes_progress(0).with_message("decrypting layers");
    let image = tokio::task::block_in_place(|| {
        decrypt_image(&source.layout, source.tag.as_deref(), &target.layout, &tag, keys, |state| {
            progress.set_length(state.total);
            progress.set_position(state.done);
        })
    });
    progress.finish_and_clear();
    let digest = image.with_context(|| args.source.to_string())?.digest.to_string();
    args.destination.store(&target, &args.registry).await.with_context(|| args.destination.to_string())?;
    Ok(digest)
}
