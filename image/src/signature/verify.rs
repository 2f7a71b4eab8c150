//! Whether an image is signed as the owner's policy wants it.

use super::{
    attached::{self, Attached, Found, Repository},
    bundle,
    key::{MAX_KEY, PublicKey},
    payload::{self, Claim},
    policy::{KeySource, Requirement, SignaturePolicy, Sigstore},
    rekor::Entry,
};
use crate::{digest::Digest, manifest::clip, reference::Reference};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use thiserror::Error;

/// An image that does not run.
#[derive(Debug, Error)]
#[error("image {image}: denied by the signature policy, {scope}: {reason}")]
pub struct SignatureError {
    /// The reference and the manifest's digest.
    image: String,
    /// The part of the policy that decided.
    scope: String,
    /// What is wrong, and what to change.
    reason: String,
}

/// Where the keys are that a policy names by a path.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// The file or resource `path`.
    async fn key(&self, path: &str) -> Result<Vec<u8>, String>;
}

/// An image whose name and digests are known; nothing else of it counts here.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// As it was asked for.
    pub reference: &'a Reference,
    /// The manifest, as it was verified.
    pub manifest: Document<'a>,
    /// The index that led to the manifest, if one did: a signature over it is one over the manifest, which it names by digest.
    pub index: Option<Document<'a>>,
}

/// A manifest or index whose bytes have this digest.
#[derive(Debug, Clone, Copy)]
pub struct Document<'a> {
    /// Of `bytes`.
    pub digest: Digest,
    /// The document.
    pub bytes: &'a [u8],
}

/// Checks every requirement that `policy` has for the image. The policy is asked each time that an image is to run, also where all its
/// layers are here already.
pub async fn check(
    policy: &SignaturePolicy,
    subject: &Subject<'_>,
    repository: &dyn Repository,
    keys: &dyn KeyStore,
) -> Result<(), SignatureError> {
    let (scope, requirements) = policy.requirements(subject.reference);
    let denied = |reason: String| SignatureError {
        image: format!("{} with manifest {}", subject.reference, subject.manifest.digest),
        scope: scope.clone(),
        reason,
    };
    let mut found = None;
    for requirement in requirements {
        let sigstore = match requirement {
            Requirement::InsecureAcceptAnything {} => continue,
            Requirement::Reject {} => return Err(denied("it is to be rejected; give the image's repository a scope of its own".into())),
            Requirement::SignedBy(_) | Requirement::SignedBaseLayer(_) => {
                return Err(denied(
                    "it wants a GPG signature, which is not supported here: sign with cosign and want sigstoreSigned".into(),
                ));
            }
            Requirement::SigstoreSigned(sigstore) => sigstore,
        };
        if let Some(what) = sigstore.unsupported() {
            return Err(denied(format!("it wants {what}, which is not supported here: sign with a key and name it in keyPath or keyData")));
        }
        let wanted = Wanted::load(sigstore, keys).await.map_err(denied)?;
        if found.is_none() {
            found = Some(collect(subject, repository).await);
        }
        let found = found.as_deref().unwrap_or_default();
        wanted.met_by(subject, found).map_err(denied)?;
    }
    Ok(())
}

/// What is attached to the manifest and to the index above it.
async fn collect<'a>(subject: &Subject<'a>, repository: &dyn Repository) -> Vec<(Document<'a>, Found)> {
    let mut all = Vec::new();
    for document in [Some(subject.manifest), subject.index].into_iter().flatten() {
        all.push((document, attached::find(repository, &document.digest).await));
    }
    all
}

/// A requirement with its keys at hand.
struct Wanted<'a> {
    sigstore: &'a Sigstore,
    keys: Vec<PublicKey>,
    logs: Vec<PublicKey>,
}

impl<'a> Wanted<'a> {
    async fn load(sigstore: &'a Sigstore, store: &dyn KeyStore) -> Result<Self, String> {
        let keys = load_keys(sigstore.keys(), store).await?;
        Ok(Self { sigstore, keys, logs: load_keys(sigstore.rekor_keys(), store).await? })
    }

    /// One good signature is enough, whatever else is attached: anybody who may push can attach more.
    fn met_by(&self, subject: &Subject<'_>, found: &[(Document<'_>, Found)]) -> Result<(), String> {
        let mut faults: Vec<String> = Vec::new();
        for (document, found) in found {
            for signature in &found.signatures {
                match self.one(subject.reference, *document, signature) {
                    Ok(()) => return Ok(()),
                    Err(fault) => faults.push(fault),
                }
            }
            faults.extend(found.faults.iter().cloned());
        }
        let signatures: usize = found.iter().map(|(_, found)| found.signatures.len()).sum();
        faults.dedup();
        let mut faults: Vec<String> = faults.iter().take(4).map(|fault| fault.chars().take(400).collect()).collect();
        if signatures == 0 {
            faults.insert(0, "it has no signature in its repository: sign it with `cosign sign --key` or `cloister image sign`".into());
        }
        Err(faults.join("; "))
    }

    fn one(&self, asked: &Reference, document: Document<'_>, signature: &Attached) -> Result<(), String> {
        let claim = match signature {
            Attached::Simple { payload, signature, rekor } => {
                let signer = self.signer(payload, signature)?;
                if !self.logs.is_empty() {
                    let entry = rekor.as_deref().ok_or("it has no entry of the transparency log, which rekorPublicKey… wants")?;
                    Entry::from_annotation(entry)?.check(&self.logs, signer, payload, signature)?;
                }
                payload::simple(payload)?
            }
            Attached::Bundle(json) => {
                let bundle = bundle::parse(json)?;
                let message = bundle.message(document.bytes);
                let (signer, signature) = bundle
                    .signatures
                    .iter()
                    .find_map(|signature| self.signer(&message, signature).ok().map(|signer| (signer, signature)))
                    .ok_or(NOT_OURS)?;
                if !self.logs.is_empty() {
                    bundle.logged(&self.logs, signer, &message, signature)?;
                }
                bundle.claim(document.digest)?
            }
        };
        self.accepts(asked, document, &claim)
    }

    /// Nothing of a payload is read before this.
    fn signer(&self, message: &[u8], signature: &[u8]) -> Result<&PublicKey, String> {
        self.keys.iter().find(|key| key.verifies(message, signature)).ok_or_else(|| NOT_OURS.to_owned())
    }

    fn accepts(&self, asked: &Reference, document: Document<'_>, claim: &Claim) -> Result<(), String> {
        if claim.digest != document.digest {
            return Err(format!("a signature of its repository is of another image, {}", claim.digest));
        }
        self.sigstore.identity().check(asked, claim.name.as_deref()).map_err(|e| format!("its signature is for another name: {e}"))
    }
}

const NOT_OURS: &str = "a signature of its repository was not made with a key of the policy, or was tampered with";

async fn load_keys(sources: Vec<KeySource<'_>>, store: &dyn KeyStore) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::with_capacity(sources.len());
    for source in sources {
        let (name, pem) = match source {
            KeySource::Path(path) => {
                let name = format!("key {:?}", clip(path));
                (name.clone(), store.key(path).await.map_err(|e| format!("{name}: {e}"))?)
            }
            KeySource::Data(text) => ("the key in the policy".to_owned(), inline(text)),
        };
        if pem.len() > MAX_KEY {
            return Err(format!("{name}: longer than {MAX_KEY} bytes"));
        }
        keys.push(PublicKey::from_pem(&pem).map_err(|e| format!("{name}: {e}"))?);
    }
    Ok(keys)
}

/// containers wants base64, Confidential Containers takes the PEM as it is.
fn inline(text: &str) -> Vec<u8> {
    if text.trim_start().starts_with("-----BEGIN") {
        return text.as_bytes().to_vec();
    }
    STANDARD.decode(text.trim()).unwrap_or_default()
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
