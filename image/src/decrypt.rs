//! The way back from [`crate::encrypt`]: the plain image out of an encrypted one, for whoever has a key.

use crate::{
    digest::{Digest, DigestError, HashingReader},
    encrypt::Progress,
    layout::{Layout, LayoutError},
    manifest::{Descriptor, Manifest},
    media_type::{OCI_CONFIG, OCI_MANIFEST},
    ocicrypt::{KeyRing, LayerKey, OcicryptError, is_ocicrypt_annotation, open_reader},
    plan::{self, LayerPlan, Mixed, PlanError},
};
use std::io::{self, Read, Seek};
use thiserror::Error;

/// Bytes per read.
const CHUNK: usize = 256 << 10;

/// Why an image was not decrypted. The target has no new tag then.
#[derive(Debug, Error)]
pub enum DecryptError {
    /// A layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// What the image is.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Nothing to do.
    #[error("no layer of the image is encrypted")]
    Plain,
    /// Reading or writing.
    #[error("layer {layer}: {source}")]
    Io {
        /// Which layer.
        layer: Digest,
        /// The cause.
        source: io::Error,
    },
    /// A blob of the source.
    #[error("the source is damaged: {0}")]
    Source(#[from] DigestError),
    /// A key or a layer.
    #[error("layer {layer}: {source}")]
    Ocicrypt {
        /// Which layer.
        layer: Digest,
        /// The cause.
        source: OcicryptError,
    },
}

/// Decrypts the image `source_tag` (or the only one) of `source` into `target` under the name `target_tag`. Layers that are plain stay
/// as they are. Gives the descriptor of the new manifest.
pub fn decrypt_image(
    source: &Layout,
    source_tag: Option<&str>,
    target: &Layout,
    target_tag: &str,
    keys: &KeyRing,
    mut progress: impl FnMut(Progress),
) -> Result<Descriptor, DecryptError> {
    let image = source.image(source_tag)?;
    let plans = plan::plan_layers(&image.manifest, &image.config, Mixed::Allowed)?;
    if plans.iter().all(|plan| plan.envelope.is_none()) {
        return Err(DecryptError::Plain);
    }
    // All keys before any work.
    let key_of = |plan: &LayerPlan| {
        let key = plan.envelope.as_ref().map(|envelope| keys.open(envelope)).transpose();
        key.map_err(|source| DecryptError::Ocicrypt { layer: plan.descriptor.digest, source })
    };
    let keys: Vec<Option<LayerKey>> = plans.iter().map(key_of).collect::<Result<_, _>>()?;
    let mut state = Progress { done: 0, total: plans.iter().map(|plan| plan.descriptor.size).sum() };
    progress(state);
    let mut layers = Vec::with_capacity(plans.len());
    for (plan, key) in plans.iter().zip(&keys) {
        layers.push(layer(source, target, plan, key.as_ref())?);
        state.done += plan.descriptor.size;
        progress(state);
    }
    let config = target.put_document(OCI_CONFIG, &source.document(&image.manifest.config)?)?;
    let config = Descriptor { annotations: image.manifest.config.annotations.clone(), ..config };
    let annotations = image.manifest.annotations.clone();
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers, annotations };
    let descriptor = target.put_document(OCI_MANIFEST, serde_json::json!(manifest).to_string().as_bytes())?;
    target.tag(target_tag, &descriptor)?;
    Ok(descriptor)
}

/// Twice through the blob, as in the guest: nothing is decrypted before digest and HMAC over all of it are right.
fn layer(source: &Layout, target: &Layout, plan: &LayerPlan, key: Option<&LayerKey>) -> Result<Descriptor, DecryptError> {
    let digest = plan.descriptor.digest;
    let failed = |source| DecryptError::Io { layer: digest, source };
    let mut blob = source.blob(&digest)?;
    let (mut verifier, mut mac) = (plan.descriptor.verifier(), key.map(LayerKey::mac));
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = blob.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        verifier.update(&buffer[..n])?;
        if let Some(mac) = &mut mac {
            mac.update(&buffer[..n]);
        }
    }
    verifier.finish()?;
    mac.map_or(Ok(()), crate::ocicrypt::LayerMac::finish).map_err(|source| DecryptError::Ocicrypt { layer: digest, source })?;
    blob.rewind().map_err(failed)?;

    let mut out = target.writer()?;
    let Some(key) = key else {
        io::copy(&mut blob, &mut out).map_err(failed)?;
        out.commit(&digest)?;
        return Ok(Descriptor { media_type: plan.compression.plain_layer(), ..plan.descriptor.clone() });
    };
    let (mut plain, sum) = HashingReader::new(open_reader(blob, key));
    io::copy(&mut plain, &mut out).map_err(failed)?;
    let (actual, size) = sum.get().ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
    let expected = key.plain_digest();
    // skopeo compresses a plain tar before it encrypts it, and still wraps the digest that it found.
    if actual != expected && plan.diff_id != expected {
        return Err(DigestError::Mismatch { expected, actual }.into());
    }
    out.commit(&actual)?;
    let mut annotations = plan.descriptor.annotations.clone();
    annotations.retain(|name, _| !is_ocicrypt_annotation(name));
    let media_type = plan.compression.plain_layer();
    Ok(Descriptor { media_type, digest: actual, size, annotations, platform: None, artifact_type: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encrypt::encrypt_image,
        ocicrypt::{
            Kek, Recipient,
            jwe::{PrivateKey, PublicKey},
        },
        testing::{self, EC_PRIVATE, KID, RSA_PRIVATE, TarBuilder},
    };
    use std::fs;

    fn ring(key: &PrivateKey) -> KeyRing {
        let mut ring = KeyRing::default();
        ring.add_private(key.clone());
        ring
    }

    #[test]
    fn each_recipient_gets_the_same_plain_image_back() {
        let dirs: [_; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let tars = [TarBuilder::new().dir("etc/", 0o755).finish(), TarBuilder::new().file("etc/motd", b"hello").finish()];
        let plain = testing::layout(dirs[0].path(), "plain", &[&tars[0], &tars[1]]);
        let [rsa, ec] = [RSA_PRIVATE, EC_PRIVATE].map(|pem| PrivateKey::from_pem(pem).unwrap());
        let publics: [PublicKey; 2] = [rsa.public(), ec.public()];
        let kek = testing::kek();
        let recipients = [Recipient::Broker(KID, &kek), Recipient::Jwe(&publics[0]), Recipient::Jwe(&publics[1])];
        let sealed = Layout::create(dirs[1].path()).unwrap();
        encrypt_image(&plain, None, &sealed, "sealed", &recipients, |_| ()).unwrap();

        let mut by_kek = KeyRing::default();
        by_kek.add_kek(KID, testing::kek());
        let target = Layout::create(dirs[2].path()).unwrap();
        let original = plain.image(None).unwrap();
        for keys in [by_kek, ring(&rsa), ring(&ec)] {
            let mut last = None;
            decrypt_image(&sealed, None, &target, "again", &keys, |state| last = Some(state)).unwrap();
            let again = target.image(Some("again")).unwrap();
            assert_eq!((again.manifest.layers, again.config), (original.manifest.layers.clone(), original.config.clone()));
            assert!(last.is_some_and(|state| state.done == state.total && state.total > 0));
        }
        for layer in &original.manifest.layers {
            assert_eq!(fs::read(target.blob_path(&layer.digest)).unwrap(), fs::read(plain.blob_path(&layer.digest)).unwrap());
        }
        let error = decrypt_image(&plain, None, &target, "x", &ring(&rsa), |_| ()).unwrap_err();
        assert!(matches!(error, DecryptError::Plain));
    }

    #[test]
    fn nothing_is_written_for_a_wrong_key_or_a_damaged_layer() {
        let dirs: [_; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let tar = TarBuilder::new().file("etc/motd", b"hello").finish();
        let plain = testing::layout(dirs[0].path(), "plain", &[&tar]);
        let sealed = Layout::create(dirs[1].path()).unwrap();
        encrypt_image(&plain, None, &sealed, "1", &[Recipient::Broker(KID, &testing::kek())], |_| ()).unwrap();
        let target = Layout::create(dirs[2].path()).unwrap();
        let mut wrong = KeyRing::default();
        wrong.add_kek(KID, Kek::from_bytes(&[9; 32]).unwrap());
        for keys in [wrong, KeyRing::default(), ring(&PrivateKey::from_pem(EC_PRIVATE).unwrap())] {
            assert!(matches!(decrypt_image(&sealed, None, &target, "1", &keys, |_| ()), Err(DecryptError::Ocicrypt { .. })));
        }
        let blob = sealed.blob_path(&sealed.image(None).unwrap().manifest.layers[0].digest);
        let mut bytes = fs::read(&blob).unwrap();
        bytes[7] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let mut right = KeyRing::default();
        right.add_kek(KID, testing::kek());
        assert!(matches!(decrypt_image(&sealed, None, &target, "1", &right, |_| ()), Err(DecryptError::Source(_))));
        assert_eq!(fs::read_dir(dirs[2].path().join("blobs/sha256")).unwrap().count(), 0);
    }
}
