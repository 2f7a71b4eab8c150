//! `cloister image verify`: what the guest will say of an image's signatures, said on the desk.

use crate::{
    input, output,
    places::{Parts, Place, RegistryArgs},
};
use anyhow::{Context, Result};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use image::{
    digest::Digest,
    manifest,
    reference::Reference,
    registry::RegistryRepository,
    signature::{Document, KeyStore, SignaturePolicy, Subject, attached::Repository, check, policy::MAX_POLICY},
};
use serde::Serialize;
use serde_json::json;
use std::{collections::BTreeMap, path::PathBuf};

/// Longest key file, in bytes.
const MAX_KEY: u64 = 16 << 10;

/// Verify an image's signature, as the guest does before it runs the image
///
///   cloister image verify docker://registry.example/app:1 --key cosign.pub
///   cloister image verify docker://registry.example/app:1 --policy policy.json --resource kbs:///default/cosign/pub=cosign.pub
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// docker://REGISTRY/NAME:TAG or docker://REGISTRY/NAME@DIGEST; or oci:DIR:TAG with --identity
    #[arg(value_name = "IMAGE")]
    image: Place,
    /// Public key that has to have signed the image's name, with any tag: PEM, such as cosign.pub
    #[arg(long, value_name = "FILE", required_unless_present = "policy", conflicts_with = "policy")]
    key: Option<PathBuf>,
    /// containers' policy.json
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The file that stands for a resource of the broker that the policy names; may be repeated
    #[arg(long, value_name = "RESOURCE=FILE")]
    resource: Vec<String>,
    /// The name that the image will be run under, where it is not the image's own
    #[arg(long, value_name = "NAME")]
    identity: Option<Reference>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    image: String,
    /// Of the manifest for our platform.
    digest: String,
    verified: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let policy = policy(args)?;
    let keys = Files::new(&args.resource)?;
    let outcome = input::block_on(verify(args, &policy, &keys))?;
    match args.json {
        true => output::json(&outcome),
        false => output::line(&format!("{} {}: verified", outcome.image, outcome.digest)),
    }
}

fn policy(args: &Args) -> Result<SignaturePolicy> {
    if let Some(path) = &args.policy {
        return SignaturePolicy::parse(&input::read(path, MAX_POLICY as u64)?).with_context(|| path.display().to_string());
    }
    let path = args.key.as_ref().context("wanted --key or --policy")?;
    let key = STANDARD.encode(input::read(path, MAX_KEY)?);
    let requirement = json!({"type": "sigstoreSigned", "keyData": key, "signedIdentity": {"type": "matchRepository"}});
    Ok(SignaturePolicy::parse(json!({"default": [requirement]}).to_string().as_bytes())?)
}

async fn verify(args: &Args, policy: &SignaturePolicy, keys: &Files) -> Result<Outcome> {
    if let Some((registry, reference)) = args.image.remote(&args.registry)? {
        let name = args.identity.as_ref().unwrap_or(reference);
        let top = registry.manifest(reference).await?;
        let repository = RegistryRepository { registry: &registry, reference };
        return judged(policy, keys, &repository, name, &top.bytes, top.media_type.as_deref()).await;
    }
    let name = args.identity.as_ref().context("--identity: which name will the image be run under, REGISTRY/NAME:TAG?")?;
    let local = args.image.fetch(&args.registry, Parts::All).await?;
    let descriptor = local.layout.top(local.tag.as_deref())?;
    let bytes = local.layout.document(&descriptor)?;
    judged(policy, keys, &local.layout, name, &bytes, Some(&descriptor.media_type)).await
}

async fn judged(
    policy: &SignaturePolicy,
    keys: &Files,
    repository: &dyn Repository,
    name: &Reference,
    top: &[u8],
    announced: Option<&str>,
) -> Result<Outcome> {
    let lower = match manifest::parse_document(top, announced)? {
        manifest::Document::Manifest(_) => None,
        manifest::Document::Index(index) => Some(repository.manifest(index.select()?).await.map_err(anyhow::Error::msg)?),
    };
    let document = |bytes| Document { digest: Digest::of(bytes), bytes };
    let subject = match &lower {
        None => Subject { reference: name, manifest: document(top), index: None },
        Some(bytes) => Subject { reference: name, manifest: document(bytes), index: Some(document(top)) },
    };
    check(policy, &subject, repository, keys).await?;
    Ok(Outcome { image: name.to_string(), digest: subject.manifest.digest.to_string(), verified: true })
}

/// Keys that a policy names: files, and those that stand for the broker's resources.
struct Files(BTreeMap<String, PathBuf>);

impl Files {
    fn new(resources: &[String]) -> Result<Self> {
        let pair = |text: &String| {
            let (name, file) = text.split_once('=').with_context(|| format!("--resource {text}: want kbs:///repository/type/tag=FILE"))?;
            Ok((name.to_owned(), file.into()))
        };
        Ok(Self(resources.iter().map(pair).collect::<Result<_>>()?))
    }
}

#[async_trait]
impl KeyStore for Files {
    async fn key(&self, path: &str) -> Result<Vec<u8>, String> {
        let file = match self.0.get(path) {
            Some(file) => file.clone(),
            None if path.starts_with("kbs://") => return Err(format!("give its file with --resource {path}=FILE")),
            None => path.strip_prefix("file://").unwrap_or(path).into(),
        };
        input::read(&file, MAX_KEY).map_err(|e| format!("{e:#}"))
    }
}
