//! The owner's side: encrypts every layer of an image in a layout into another layout. The config, with its diff_ids, stays as it is:
//! what runs is unchanged, and the guest compares what it decrypted with it. Each layer's key is bound to it, so that nobody can put the
//! layers under a config that prints them.

use crate::{
    config::ImageConfig,
    digest::{Digest, DigestError},
    layout::{Layout, LayoutError},
    manifest::{Descriptor, Manifest},
    media_type::{OCI_CONFIG, OCI_MANIFEST},
    ocicrypt::{self, Envelope, OcicryptError, Recipient, SealError, is_ocicrypt_annotation},
    plan::{self, LayerPlan, Mixed, PlanError},
};
use std::io;
use thiserror::Error;

/// Why an image was not encrypted. The target has no new tag then.
#[derive(Debug, Error)]
pub enum EncryptError {
    /// A layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// What the image is.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Done already.
    #[error("layer {0} is encrypted already: encrypt the plain image")]
    Encrypted(Digest),
    /// Something that is no layer of a container image.
    #[error("layer {layer}: {source}")]
    Io {
        /// Which layer.
        layer: Digest,
        /// The cause.
        source: io::Error,
    },
    /// A blob of the source.
    #[error("the source is damaged: {0}")]
    Source(DigestError),
    /// The cipher or a key.
    #[error(transparent)]
    Ocicrypt(#[from] OcicryptError),
}

/// How far an encryption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of layers encrypted.
    pub done: u64,
    /// Bytes of all layers.
    pub total: u64,
}

/// Encrypts the image `source_tag` (or the only one) of `source` into `target` under the name `target_tag`. Each layer gets a key of
/// its own, wrapped for each of `recipients`. Gives the descriptor of the new manifest.
pub fn encrypt_image(
    source: &Layout,
    source_tag: Option<&str>,
    target: &Layout,
    target_tag: &str,
    recipients: &[Recipient<'_>],
    mut progress: impl FnMut(Progress),
) -> Result<Descriptor, EncryptError> {
    let image = source.image(source_tag)?;
    let plans = plan::plan_layers(&image.manifest, &image.config, Mixed::Allowed)?;
    if let Some(sealed) = plans.iter().find(|plan| plan.envelope.is_some()) {
        return Err(EncryptError::Encrypted(sealed.descriptor.digest));
    }
    let mut state = Progress { done: 0, total: plans.iter().map(|plan| plan.descriptor.size).sum() };
    progress(state);
    let mut layers = Vec::with_capacity(plans.len());
    let config = target.put_document(OCI_CONFIG, &source.document(&image.manifest.config)?)?;
    for plan in &plans {
        layers.push(encrypt_layer((source, target), plan, config.digest, recipients, |bytes| {
            state.done += bytes;
            progress(state);
        })?);
    }
    let config = Descriptor { annotations: image.manifest.config.annotations.clone(), ..config };
    let annotations = image.manifest.annotations.clone();
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers, annotations };
    let descriptor = target.put_document(OCI_MANIFEST, serde_json::json!(manifest).to_string().as_bytes())?;
    target.tag(target_tag, &descriptor)?;
    Ok(descriptor)
}

fn encrypt_layer(
    (source, target): (&Layout, &Layout),
    plan: &LayerPlan,
    config: Digest,
    recipients: &[Recipient<'_>],
    progress: impl FnMut(u64),
) -> Result<Descriptor, EncryptError> {
    let layer = plan.descriptor.digest;
    let plain = source.blob(&layer)?;
    let mut out = target.writer()?;
    let mut sealed = ocicrypt::seal(plain, &mut out, progress).map_err(|e| match e {
        SealError::Io(source) => EncryptError::Io { layer, source },
        SealError::Ocicrypt(e) => e.into(),
    })?;
    // A damaged layer would be encrypted well and fail in the guest: better here.
    if sealed.plain_digest() != layer {
        return Err(EncryptError::Source(DigestError::Mismatch { expected: layer, actual: sealed.plain_digest() }));
    }
    out.commit(&sealed.digest)?;
    sealed.bind(config);
    let mut annotations = plan.descriptor.annotations.clone();
    annotations.retain(|name, _| !is_ocicrypt_annotation(name));
    annotations.extend(Envelope::annotations(&sealed, recipients)?);
    let media_type = plan.compression.encrypted_layer();
    Ok(Descriptor { media_type, digest: sealed.digest, size: sealed.size, annotations, platform: None, artifact_type: None })
}

/// Whom an image's layers were encrypted for, each once: names of the broker's keys, and `jwe`; none for a plain image.
pub fn key_ids(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<String>, PlanError> {
    let plans = plan::plan_layers(manifest, config, Mixed::Allowed)?;
    let mut ids: Vec<String> = plans.iter().filter_map(|p| p.envelope.as_ref()).flat_map(Envelope::recipients).collect();
    ids.sort();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        layer::unpack_layer,
        ocicrypt::Kek,
        testing::{self, KID, TarBuilder, gzip},
        unpack::Limits,
    };
    use std::{fs, io::Read};

    const SECRET: &[u8] = b"the owner's secret, which only an attested guest may read";

    fn tars() -> [Vec<u8>; 2] {
        [TarBuilder::new().dir("etc/", 0o755).finish(), TarBuilder::new().file("etc/secret", SECRET).finish()]
    }

    #[tokio::test]
    async fn an_encrypted_image_opens_with_its_key_only() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [low, high] = tars();
        let source = testing::layout(from.path(), "plain", &[&low, &high]);
        let target = Layout::create(to.path()).unwrap();
        let mut steps = Vec::new();
        let descriptor = encrypt_image(&source, Some("plain"), &target, "1", &[Recipient::Broker(KID, &testing::kek())], |progress| {
            steps.push(progress)
        })
        .unwrap();
        let image = target.image(Some("1")).unwrap();
        assert_eq!(image.descriptor.digest, descriptor.digest);
        assert_eq!(image.config, source.image(None).unwrap().config, "the config stays clear and unchanged");
        assert_eq!(steps.first().unwrap().done, 0);
        assert!(steps.last().unwrap().done == steps.last().unwrap().total && steps.last().unwrap().total > 0);
        assert_eq!(key_ids(&image.manifest, &image.config).unwrap(), [KID]);

        let plans = plan::plan_layers(&image.manifest, &image.config, Mixed::Refused).unwrap();
        let root = tempfile::tempdir().unwrap();
        for (at, plan) in plans.iter().enumerate() {
            let envelope = plan.envelope.as_ref().unwrap();
            assert!(envelope.open(&envelope.packets()[0], &Kek::from_bytes(&[1; 32]).unwrap()).is_err());
            let key = envelope.open(&envelope.packets()[0], &testing::kek()).unwrap();
            let blob = tokio::fs::File::open(target.blob_path(&plan.descriptor.digest)).await.unwrap();
            let file = crate::spool::spool(blob, plan, Some(&key), tempfile::tempfile().unwrap()).await.unwrap();
            let layer = root.path().join(at.to_string());
            fs::create_dir(&layer).unwrap();
            unpack_layer(file, plan, Some(&key), &layer, &Limits::default()).unwrap();
        }
        assert_eq!(fs::read(root.path().join("1/etc/secret")).unwrap(), SECRET);
    }

    #[tokio::test]
    async fn every_packing_is_encrypted_and_opened() {
        let tar = TarBuilder::new().file("etc/secret", SECRET).finish();
        type Pack = fn(&[u8]) -> Vec<u8>;
        let packings: [(&str, Pack); 3] = [("", <[u8]>::to_vec), ("+gzip", gzip), ("+zstd", testing::zstd_bytes)];
        for (suffix, pack) in packings {
            let (from, to, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            let source = testing::layout_as(from.path(), "plain", &[&tar], &media_type, pack);
            let target = Layout::create(to.path()).unwrap();
            encrypt_image(&source, None, &target, "1", &[Recipient::Broker(KID, &testing::kek())], |_| ()).unwrap();
            let image = target.image(None).unwrap();
            assert_eq!(image.manifest.layers[0].media_type, format!("{media_type}+encrypted"));
            let plan = &plan::plan_layers(&image.manifest, &image.config, Mixed::Refused).unwrap()[0];
            let envelope = plan.envelope.as_ref().unwrap();
            let key = envelope.open(&envelope.packets()[0], &testing::kek()).unwrap();
            let blob = tokio::fs::File::open(target.blob_path(&plan.descriptor.digest)).await.unwrap();
            let file = crate::spool::spool(blob, plan, Some(&key), tempfile::tempfile().unwrap()).await.unwrap();
            unpack_layer(file, plan, Some(&key), root.path(), &Limits::default()).unwrap();
            assert_eq!(fs::read(root.path().join("etc/secret")).unwrap(), SECRET, "{media_type}");
        }
    }

    #[test]
    fn nothing_of_the_plaintext_is_in_the_target() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [low, high] = tars();
        let source = testing::layout_as(from.path(), "plain", &[&low, &high], "application/vnd.oci.image.layer.v1.tar", <[u8]>::to_vec);
        let target = Layout::create(to.path()).unwrap();
        encrypt_image(&source, None, &target, "1", &[Recipient::Broker(KID, &testing::kek())], |_| ()).unwrap();
        let mut seen = 0;
        for entry in fs::read_dir(to.path().join("blobs/sha256")).unwrap() {
            let mut bytes = Vec::new();
            fs::File::open(entry.unwrap().path()).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(!bytes.windows(20).any(|window| window == &SECRET[..20]));
            seen += 1;
        }
        assert_eq!(seen, 4, "two layers, a config, a manifest");
    }

    #[test]
    fn damaged_and_encrypted_sources_are_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [low, _] = tars();
        let source = testing::layout(from.path(), "plain", &[&low]);
        let target = Layout::create(to.path()).unwrap();
        encrypt_image(&source, None, &target, "1", &[Recipient::Broker(KID, &testing::kek())], |_| ()).unwrap();
        let again = encrypt_image(&target, None, &target, "2", &[Recipient::Broker(KID, &testing::kek())], |_| ());
        assert!(matches!(again, Err(EncryptError::Encrypted(_))));
        let blob = source.blob_path(&Digest::of(&gzip(&low)));
        let mut bytes = fs::read(&blob).unwrap();
        bytes[20] ^= 1;
        fs::write(&blob, bytes).unwrap();
        let before = fs::read_dir(to.path().join("blobs/sha256")).unwrap().count();
        assert!(matches!(
            encrypt_image(&source, None, &target, "3", &[Recipient::Broker(KID, &testing::kek())], |_| ()),
            Err(EncryptError::Source(_))
        ));
        assert_eq!(fs::read_dir(to.path().join("blobs/sha256")).unwrap().count(), before, "nothing is left behind");
        assert!(target.image(Some("3")).is_err());
    }
}
