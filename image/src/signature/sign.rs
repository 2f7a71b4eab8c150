//! The owner's side: signatures that cosign, skopeo and podman verify, and so do we.

use super::{
    attached::{ArtifactManifest, BUNDLE_TYPE, SIGNATURE_ANNOTATION, SIMPLE_TYPE},
    key::{KeyError, PublicKey},
    payload::{COSIGN_TYPE, INTOTO, SIGN_PREDICATE, pae},
};
use crate::{digest::Digest, manifest::Descriptor, reference::Reference};
use base64::{Engine, engine::general_purpose::STANDARD};
use p256::{
    SecretKey,
    ecdsa::{DerSignature, signature::Signer},
    elliptic_curve::Generate,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding},
};
use serde_json::json;
use thiserror::Error;
use zeroize::Zeroizing;

/// Why nothing was signed.
#[derive(Debug, Error)]
pub enum SignError {
    /// The private key.
    #[error("not a private key that can sign: want PKCS#8 in PEM of an ECDSA key on P-256, as `cloister image keygen` makes it{0}")]
    Key(&'static str),
    /// The kernel gives no random bytes.
    #[error("random source: {0}")]
    Random(String),
    /// The public half.
    #[error(transparent)]
    Public(#[from] KeyError),
}

/// A private key, ECDSA on P-256; wiped when dropped.
pub struct SigningKey(p256::ecdsa::SigningKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

impl SigningKey {
    /// A new key.
    pub fn generate() -> Result<Self, SignError> {
        let secret = SecretKey::try_generate().map_err(|e| SignError::Random(e.to_string()))?;
        Ok(Self(secret.into()))
    }

    /// Reads PKCS#8 in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, SignError> {
        if pem.contains("ENCRYPTED") {
            return Err(SignError::Key("; this one is under a password: sign with `cosign sign --key`, which knows it"));
        }
        SecretKey::from_pkcs8_pem(pem.trim()).map(|secret| Self(secret.into())).map_err(|_| SignError::Key(""))
    }

    /// PKCS#8 in PEM.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SignError> {
        self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| SignError::Key(""))
    }

    /// The public half, as `cosign.pub`.
    pub fn public_pem(&self) -> Result<String, SignError> {
        self.0.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|_| SignError::Key(""))
    }

    /// The public half.
    pub fn public(&self) -> Result<PublicKey, SignError> {
        Ok(PublicKey::from_pem(self.public_pem()?.as_bytes())?)
    }

    /// The signature over `message`, DER.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: DerSignature = self.0.sign(message);
        signature.as_bytes().to_vec()
    }
}

/// A blob and the manifest entry that points to it.
#[derive(Debug)]
pub struct SignedBlob {
    /// What is stored.
    pub bytes: Vec<u8>,
    /// The entry.
    pub descriptor: Descriptor,
}

/// What is signed as the image's name: with its tag, if it has one, and without its digest, which is signed in its own place.
pub fn identity(name: &Reference) -> String {
    name.tag().map_or_else(|| name.name(), |tag| format!("{}:{tag}", name.name()))
}

/// A simple-signing layer that says: `digest` is `name`. To be added to the layers of the image at [`super::attached::signature_tag`].
pub fn simple_layer(key: &SigningKey, digest: &Digest, name: &Reference) -> SignedBlob {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": identity(name)},
            "image": {"docker-manifest-digest": digest.to_string()},
            "type": COSIGN_TYPE,
        },
        "optional": null,
    });
    let bytes = payload.to_string().into_bytes();
    let mut descriptor = Descriptor::of(SIMPLE_TYPE, &bytes);
    descriptor.annotations.insert(SIGNATURE_ANNOTATION.into(), STANDARD.encode(key.sign(&bytes)));
    SignedBlob { bytes, descriptor }
}

/// A sigstore bundle that says: `digest` is `name`, and its name is part of what is signed, unlike in cosign's own.
pub fn bundle(key: &SigningKey, digest: &Digest, name: &Reference) -> Result<SignedBlob, SignError> {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": identity(name), "digest": {"sha256": digest.hex()}}],
        "predicateType": SIGN_PREDICATE,
        "predicate": {},
    });
    let payload = statement.to_string().into_bytes();
    let signature = key.sign(&pae(INTOTO, &payload));
    let hint = STANDARD.encode(Digest::of(key.public()?.spki()).as_bytes());
    let bundle = json!({
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}},
        "dsseEnvelope": {
            "payload": STANDARD.encode(&payload),
            "payloadType": INTOTO,
            "signatures": [{"sig": STANDARD.encode(signature)}],
        },
    });
    let bytes = bundle.to_string().into_bytes();
    Ok(SignedBlob { descriptor: Descriptor::of(BUNDLE_TYPE, &bytes), bytes })
}

/// The manifest that attaches a bundle to `subject` (cosign's bundle specification; OCI image-spec 1.1, "artifacts").
pub fn bundle_manifest(bundle: &SignedBlob, subject: Descriptor) -> ArtifactManifest {
    ArtifactManifest::of_bundle(bundle.descriptor.clone(), subject, SIGN_PREDICATE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_their_files() {
        let key = SigningKey::generate().unwrap();
        let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        let public = key.public().unwrap();
        assert!(public.verifies(b"x", &again.sign(b"x")) && !public.verifies(b"y", &again.sign(b"x")));
        assert_eq!(format!("{key:?}"), "SigningKey(..)");
        let cosign = "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n";
        assert!(SigningKey::from_pem(cosign).unwrap_err().to_string().contains("cosign sign"));
        assert!(SigningKey::from_pem("x").is_err());
    }
}
