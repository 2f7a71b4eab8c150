//! A registry as the place of an image.

use super::Parts;
use crate::{input, output};
use anyhow::{Context, Result};
use image::{
    layout::Layout,
    manifest::{self, Descriptor, Document},
    media_type::OCI_MANIFEST,
    reference::Reference,
    registry::{AuthFile, MAX_AUTH_FILE, Options, Registries, Registry},
};
use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::io::AsyncReadExt;
use transport::{HttpClient, Proxies, TcpDialer};

/// How registries are reached. Proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct RegistryArgs {
    /// Credentials (auth.json, or Docker's config.json); else those that `skopeo login` or `docker login` keep
    #[arg(long, env = "REGISTRY_AUTH_FILE", value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Speak plain HTTP with this registry (host[:port]); may be repeated
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
    /// Certificates to trust beside the web's (PEM)
    #[arg(long, value_name = "FILE")]
    registry_ca: Option<PathBuf>,
    /// Mirrors, blocked and insecure registries (registries.conf, version 2)
    #[arg(long, value_name = "FILE")]
    registries_conf: Option<PathBuf>,
}

impl RegistryArgs {
    /// Speaks plain HTTP with these too.
    pub(crate) fn and_plain_http(mut self, hosts: Vec<String>) -> Self {
        self.plain_http.extend(hosts);
        self
    }

    /// A client.
    pub(crate) fn client(&self) -> Result<Registry> {
        let roots = self.registry_ca.as_deref().map(input::text).transpose()?;
        let variable = |name: &str| env::var(name).or_else(|_| env::var(name.to_lowercase())).ok();
        let (http, https, no_proxy) = (variable("HTTP_PROXY"), variable("HTTPS_PROXY"), variable("NO_PROXY"));
        let proxies = Proxies::new(http.as_deref(), https.as_deref(), no_proxy.as_deref())?;
        let client = HttpClient::new(Arc::new(TcpDialer), roots.as_deref())?.through(proxies);
        let insecure: String = self.plain_http.iter().map(|host| format!("[[registry]]\nlocation = {host:?}\ninsecure = true\n")).collect();
        let registries = match &self.registries_conf {
            Some(path) => Registries::parse(&format!("{}\n{insecure}", input::text(path)?)).with_context(|| path.display().to_string())?,
            None => Registries::parse(&insecure)?,
        };
        let credentials = Arc::new(self.credentials()?);
        Ok(Registry::new(client, Options { credentials, registries, ..Options::default() }))
    }

    fn credentials(&self) -> Result<AuthFile> {
        let home = |variable: &str, file: &str| env::var_os(variable).map(|dir| Path::new(&dir).join(file));
        let usual = [home("XDG_RUNTIME_DIR", "containers/auth.json"), home("HOME", ".docker/config.json")];
        let found = self.authfile.clone().or_else(|| usual.into_iter().flatten().find(|path| path.exists()));
        let Some(path) = found else { return Ok(AuthFile::default()) };
        AuthFile::parse(&input::read(&path, MAX_AUTH_FILE as u64)?).with_context(|| path.display().to_string())
    }
}

/// Fetches an image for our platform into a layout, as its only one.
pub(super) async fn pull(registry: &Registry, reference: &Reference, layout: &Layout, parts: Parts) -> Result<()> {
    let top = registry.manifest(reference).await?;
    let (media_type, bytes) = match manifest::parse_document(&top.bytes, top.media_type.as_deref())? {
        Document::Manifest(manifest) => (manifest.media_type.or(top.media_type), top.bytes),
        Document::Index(index) => {
            let descriptor = index.select()?;
            (Some(descriptor.media_type.clone()), registry.document(reference, descriptor).await?)
        }
    };
    let media_type = media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
    let manifest = manifest::parse_manifest(&bytes, Some(&media_type))?;
    layout.put_document(&manifest.config.media_type, &registry.blob_bytes(reference, &manifest.config).await?)?;
    if parts == Parts::All {
        let progress = output::bytes_progress(manifest.layers.iter().map(|layer| layer.size).sum()).with_message("fetching layers");
        for layer in &manifest.layers {
            fetch_layer(registry, reference, layer, layout, |bytes| progress.inc(bytes)).await.with_context(|| layer.digest.to_string())?;
        }
        progress.finish_and_clear();
    }
    layout.tag("image", &layout.put_document(&media_type, &bytes)?)?;
    Ok(())
}

async fn fetch_layer(
    registry: &Registry,
    reference: &Reference,
    layer: &Descriptor,
    layout: &Layout,
    progress: impl Fn(u64),
) -> Result<()> {
    if layout.blob_path(&layer.digest).exists() {
        return Ok(());
    }
    let (mut reader, mut writer, mut verifier) = (registry.blob(reference, layer).await?, layout.writer()?, layer.verifier());
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = reader.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        verifier.update(&buffer[..n])?;
        writer.write_all(&buffer[..n])?;
        progress(n as u64);
    }
    verifier.finish()?;
    Ok(writer.commit(&layer.digest)?)
}

/// Stores an image of a layout in a registry: blobs first, so that the manifest never names what is not there.
pub(super) async fn push(registry: &Registry, reference: &Reference, layout: &Layout, tag: Option<&str>) -> Result<()> {
    let image = layout.image(tag)?;
    let progress = output::bytes_progress(image.manifest.layers.iter().map(|layer| layer.size).sum()).with_message("storing layers");
    for layer in &image.manifest.layers {
        let counter = progress.clone();
        registry.push_blob(reference, layer, layout.blob(&layer.digest)?, move |bytes| counter.inc(bytes)).await?;
    }
    progress.finish_and_clear();
    registry.push_bytes(reference, &layout.document(&image.manifest.config)?).await?;
    let bytes = layout.document(&image.descriptor)?;
    registry.push_manifest(reference, &reference.selector(), &image.descriptor.media_type, &bytes).await?;
    Ok(())
}
