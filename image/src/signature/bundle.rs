//! Sigstore bundles (protobuf-specs, `sigstore_bundle.proto`), versions 0.1 to 0.3, as far as a signature with a key needs them.

use super::{
    key::PublicKey,
    payload::{self, Claim, INTOTO, pae},
    rekor::{Entry, TlogEntry},
};
use crate::{digest::Digest, manifest::clip, strict_json};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::borrow::Cow;

/// Most signatures of an envelope, and log entries of a bundle.
const MAX_SIGNATURES: usize = 8;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BundleJson {
    media_type: String,
    #[serde(default)]
    verification_material: Material,
    dsse_envelope: Option<EnvelopeJson>,
    message_signature: Option<MessageJson>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Material {
    tlog_entries: Vec<TlogEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EnvelopeJson {
    payload: String,
    payload_type: String,
    signatures: Vec<SignatureJson>,
}

#[derive(Deserialize)]
struct SignatureJson {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageJson {
    signature: String,
}

/// A bundle; nothing in it has been verified.
pub(super) struct Bundle {
    content: Content,
    /// Of whoever signed.
    pub(super) signatures: Vec<Vec<u8>>,
    entries: Vec<TlogEntry>,
}

enum Content {
    /// A statement in an envelope.
    Dsse { payload: Vec<u8>, encoded: Vec<u8> },
    /// A signature over the manifest itself.
    Message,
}

/// Reads a bundle.
pub(super) fn parse(json: &[u8]) -> Result<Bundle, String> {
    let bundle: BundleJson = strict_json::parse(json).map_err(|e| format!("a bundle of its repository cannot be read: {e}"))?;
    let base64 = |text: &str| STANDARD.decode(text).map_err(|_| "a bundle of its repository has a member that is not base64".to_owned());
    if !bundle.media_type.starts_with("application/vnd.dev.sigstore.bundle") {
        return Err(format!("a bundle of its repository is of type {:?}", clip(&bundle.media_type)));
    }
    let entries = bundle.verification_material.tlog_entries;
    let (content, signatures) = match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), None) => {
            if envelope.payload_type != INTOTO {
                return Err(format!("a bundle of its repository holds {:?}, want {INTOTO:?}", clip(&envelope.payload_type)));
            }
            let payload = base64(&envelope.payload)?;
            let signatures: Vec<&SignatureJson> = envelope.signatures.iter().take(MAX_SIGNATURES + 1).collect();
            let encoded = pae(&envelope.payload_type, &payload);
            (Content::Dsse { payload, encoded }, signatures.iter().map(|s| base64(&s.sig)).collect::<Result<Vec<_>, _>>()?)
        }
        (None, Some(message)) => (Content::Message, vec![base64(&message.signature)?]),
        _ => return Err("a bundle of its repository has neither an envelope nor a signature, or both".into()),
    };
    if signatures.len() > MAX_SIGNATURES || entries.len() > MAX_SIGNATURES {
        return Err(format!("a bundle of its repository has more than {MAX_SIGNATURES} signatures"));
    }
    Ok(Bundle { content, signatures, entries })
}

impl Bundle {
    /// What the signatures are over, where the bundle is attached to `manifest`.
    pub(super) fn message<'a>(&'a self, manifest: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.content {
            Content::Dsse { encoded, .. } => encoded.into(),
            Content::Message => manifest.into(),
        }
    }

    /// What a right signature says; `digest` is that of the manifest that was given to [`Self::message`].
    pub(super) fn claim(&self, digest: Digest) -> Result<Claim, String> {
        match &self.content {
            Content::Dsse { payload, .. } => payload::statement(payload),
            Content::Message => Ok(Claim { digest, name: None }),
        }
    }

    /// Whether one of the log's entries is of this signature.
    pub(super) fn logged(&self, logs: &[PublicKey], signer: &PublicKey, message: &[u8], signature: &[u8]) -> Result<(), String> {
        let mut fault = "it has no entry with a promise of the transparency log, which rekorPublicKey… wants".to_owned();
        for entry in &self.entries {
            let Some(entry) = Entry::from_bundle(entry)? else { continue };
            match entry.check(logs, signer, message, signature) {
                Ok(()) => return Ok(()),
                Err(e) => fault = e,
            }
        }
        Err(fault)
    }
}
