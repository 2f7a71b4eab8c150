//! Manifest and config of an image, out of containerd's stores.

use anyhow::{Context, Result, bail, ensure};
use image::{
    config::ImageConfig,
    digest::Digest,
    manifest::{Document, Manifest, parse_document, parse_manifest},
};
use runtime::{
    containerd::{Client, ImageTarget},
    courier::BlobSource,
};
use tokio::io::AsyncReadExt;

/// Longest manifest or config, in bytes: what registries accept.
const MAX_DOCUMENT: u64 = 4 << 20;

/// An image's manifest, for our platform, and its config.
pub(crate) async fn read(client: &Client, target: &ImageTarget) -> Result<(Manifest, ImageConfig)> {
    let bytes = read_blob(client, &target.digest).await?;
    let manifest = match parse_document(&bytes, Some(&target.media_type))? {
        Document::Manifest(manifest) => manifest,
        Document::Index(index) => {
            let ours = index.select()?;
            parse_manifest(&read_blob(client, &ours.digest.to_string()).await?, Some(&ours.media_type))?
        }
    };
    let config = ImageConfig::parse(&read_blob(client, &manifest.config.digest.to_string()).await?)?;
    Ok((manifest, config))
}

/// A manifest or config, compared with its digest.
pub(crate) async fn read_blob(client: &Client, digest: &str) -> Result<Vec<u8>> {
    let opened = client.open(digest).await.with_context(|| digest.to_owned())?;
    let Some((size, reader)) = opened else { bail!("{digest} is not in containerd's content store: fetch the image anew") };
    ensure!(size <= MAX_DOCUMENT, "{digest}: longer than {MAX_DOCUMENT} bytes");
    let mut bytes = Vec::new();
    reader.take(MAX_DOCUMENT).read_to_end(&mut bytes).await.with_context(|| digest.to_owned())?;
    digest.parse::<Digest>()?.check(&bytes)?;
    Ok(bytes)
}

/// OCI image specification, config.md, "Layer ChainID".
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id.to_string(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()).to_string(),
        };
        chain.push(id);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let diff_ids: Vec<Digest> = [b"a", b"b", b"c"].map(|text| Digest::of(text)).to_vec();
        let chain = chain_ids(&diff_ids);
        assert_eq!(chain[0], diff_ids[0].to_string());
        // printf 'sha256:%s sha256:%s' $(printf a | sha256sum | cut -c-64) $(printf b | sha256sum | cut -c-64) | sha256sum
        assert_eq!(chain[1], "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676");
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], diff_ids[2]).as_bytes()).to_string());
        assert!(chain_ids(&[]).is_empty());
    }
}
