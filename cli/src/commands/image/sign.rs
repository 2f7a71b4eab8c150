//! `cloister image sign`: signatures in cosign's formats, beside the image.

use crate::{
    input, output,
    places::{Parts, Place, RegistryArgs},
};
use anyhow::{Context, Result, bail};
use image::{
    digest::Digest,
    layout::Layout,
    manifest::{self, Descriptor, Index, Manifest},
    media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST},
    reference::Reference,
    registry::{Registry, RegistryRepository},
    signature::{
        attached::{ArtifactManifest, Repository, referrers_tag, signature_tag},
        sign::{self, SignedBlob, SigningKey},
    },
};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Longest key file, in bytes.
const MAX_KEY: u64 = 16 << 10;

/// Sign an image with a key; the signature is stored beside it
///
///   cloister image keygen cosign
///   cloister image sign docker://registry.example/app:encrypted --key cosign.key
///
/// Sign what will run: encrypting changes the digest. With a tag, the signature is for the name and this tag; with a digest, for the name. An
/// index (an image for several platforms) is signed as a whole.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// docker://REGISTRY/NAME:TAG or docker://REGISTRY/NAME@DIGEST; or oci:DIR:TAG with --identity
    #[arg(value_name = "IMAGE")]
    image: Place,
    /// Private key: PKCS#8 in PEM, ECDSA on P-256, as `cloister image keygen` makes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// cosign's older format (simple), which everybody verifies, its newer one (bundle), or both
    #[arg(long, value_enum, default_value = "both")]
    format: Format,
    /// The name that is signed, REGISTRY/NAME:TAG, where it is not the image's own
    #[arg(long, value_name = "NAME")]
    identity: Option<Reference>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Simple,
    Bundle,
    Both,
}

#[derive(Debug, Serialize)]
struct Outcome {
    /// Of the manifest or index that was signed.
    digest: String,
    /// The name that was signed.
    identity: String,
    /// Where the signatures are: tags or digests in the image's repository.
    signatures: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let pem = Zeroizing::new(input::read(&args.key, MAX_KEY)?);
    let pem = std::str::from_utf8(&pem).with_context(|| args.key.display().to_string())?;
    let key = SigningKey::from_pem(pem).with_context(|| args.key.display().to_string())?;
    let outcome = input::block_on(sign_at(args, &key)).with_context(|| args.image.to_string())?;
    if args.json {
        return output::json(&outcome);
    }
    let mut rows = vec![vec!["signed".to_owned(), format!("{} as {}", outcome.digest, outcome.identity)]];
    rows.extend(outcome.signatures.into_iter().map(|place| vec!["signature".to_owned(), place]));
    output::table(&rows)
}

async fn sign_at(args: &Args, key: &SigningKey) -> Result<Outcome> {
    if let Some((registry, reference)) = args.image.remote(&args.registry)? {
        let fetched = registry.manifest(reference).await?;
        let subject = described(&fetched.bytes, fetched.media_type.as_deref())?;
        let identity = args.identity.as_ref().unwrap_or(reference);
        return attach(args.format, key, &Shelf::Registry(&registry, reference), subject, identity).await;
    }
    if matches!(args.image, Place::DockerArchive(..)) {
        bail!("a docker-archive has no place for signatures: use oci-archive");
    }
    let identity = args.identity.as_ref().context("--identity: which name is to be signed, REGISTRY/NAME:TAG?")?;
    // An archive's own tag is the one that its layout is written with again.
    let local = args.image.fetch(&args.registry, Parts::All).await?;
    let subject = local.layout.top(local.tag.as_deref())?;
    let outcome = attach(args.format, key, &Shelf::Layout(&local.layout), subject, identity).await?;
    args.image.store(&local, &args.registry).await?;
    Ok(outcome)
}

fn described(bytes: &[u8], announced: Option<&str>) -> Result<Descriptor> {
    let media_type = match manifest::parse_document(bytes, announced)? {
        manifest::Document::Manifest(manifest) => manifest.media_type.unwrap_or_else(|| OCI_MANIFEST.into()),
        manifest::Document::Index(index) => index.media_type.unwrap_or_else(|| OCI_INDEX.into()),
    };
    Ok(Descriptor::of(&media_type, bytes))
}

async fn attach(format: Format, key: &SigningKey, shelf: &Shelf<'_>, subject: Descriptor, name: &Reference) -> Result<Outcome> {
    let mut signatures = Vec::new();
    let digest = subject.digest;
    if format != Format::Bundle {
        signatures.push(shelf.add_simple(&digest, sign::simple_layer(key, &digest, name)).await?);
    }
    if format != Format::Simple {
        signatures.push(shelf.add_bundle(subject, sign::bundle(key, &digest, name)?).await?);
    }
    Ok(Outcome { digest: digest.to_string(), identity: sign::identity(name), signatures })
}

/// Where an image and its signatures stand.
enum Shelf<'a> {
    Registry(&'a Registry, &'a Reference),
    Layout(&'a Layout),
}

impl Shelf<'_> {
    async fn tagged(&self, tag: &str) -> Result<Option<Vec<u8>>> {
        let found = match self {
            Self::Registry(registry, reference) => RegistryRepository { registry, reference }.tagged(tag).await,
            Self::Layout(layout) => layout.tagged(tag).await,
        };
        Ok(found.map_err(anyhow::Error::msg)?.map(|(bytes, _)| bytes))
    }

    async fn blob(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Registry(registry, reference) => registry.push_bytes(reference, bytes).await?,
            Self::Layout(layout) => drop(layout.put_document("", bytes)?),
        }
        Ok(())
    }

    /// Stores a manifest under a tag, or by its digest; whether the store keeps a list of referrers itself.
    async fn manifest(&self, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> Result<bool> {
        let digest = Digest::of(bytes).to_string();
        match self {
            Self::Registry(registry, reference) => Ok(registry.push_manifest(reference, tag.unwrap_or(&digest), media_type, bytes).await?),
            Self::Layout(layout) => {
                let descriptor = layout.put_document(media_type, bytes)?;
                if let Some(tag) = tag {
                    layout.tag(tag, &descriptor)?;
                }
                Ok(false)
            }
        }
    }

    /// Beside the signatures that are there: others may have signed too.
    async fn add_simple(&self, digest: &Digest, layer: SignedBlob) -> Result<String> {
        let tag = signature_tag(digest);
        let mut layers = match self.tagged(&tag).await? {
            Some(bytes) => manifest::parse_manifest(&bytes, None).with_context(|| format!("tag {tag}"))?.layers,
            None => Vec::new(),
        };
        self.blob(&layer.bytes).await?;
        layers.push(layer.descriptor);
        // cosign makes it look like an image, for registries that take nothing else.
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.digest).collect();
        let config = json!({"architecture": "", "created": "0001-01-01T00:00:00Z", "history": [{"created": "0001-01-01T00:00:00Z"}],
                            "os": "", "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {}});
        let config = config.to_string().into_bytes();
        self.blob(&config).await?;
        let config = Descriptor::of(OCI_CONFIG, &config);
        let manifest =
            Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers, annotations: Default::default() };
        self.manifest(Some(&tag), OCI_MANIFEST, json!(manifest).to_string().as_bytes()).await?;
        Ok(tag)
    }

    async fn add_bundle(&self, subject: Descriptor, bundle: SignedBlob) -> Result<String> {
        let tag = referrers_tag(&subject.digest);
        self.blob(ArtifactManifest::EMPTY).await?;
        self.blob(&bundle.bytes).await?;
        let manifest = sign::bundle_manifest(&bundle, subject);
        let bytes = json!(manifest).to_string().into_bytes();
        let listed = manifest.listed(&bytes);
        if !self.manifest(None, OCI_MANIFEST, &bytes).await? {
            // No list is kept there (distribution-spec 1.1, "Referrers Tag Schema").
            let mut manifests = match self.tagged(&tag).await? {
                Some(bytes) => manifest::parse_index(&bytes, None).with_context(|| format!("tag {tag}"))?.manifests,
                None => Vec::new(),
            };
            manifests.retain(|known| known.digest != listed.digest);
            manifests.push(listed.clone());
            let index = Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests };
            self.manifest(Some(&tag), OCI_INDEX, json!(index).to_string().as_bytes()).await?;
        }
        Ok(listed.digest.to_string())
    }
}

#[cfg(test)]
#[path = "sign_tests.rs"]
mod tests;
