//! Images as OCI layouts (image-spec 1.1, `image-layout.md`), written without any tool, so that a test can also write what no tool would.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::place;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Programs that the tests' containers use; each is a link to busybox.
const APPLETS: [&str; 30] = [
    "sh",
    "cat",
    "echo",
    "sleep",
    "id",
    "env",
    "head",
    "tail",
    "dd",
    "ls",
    "kill",
    "wc",
    "tty",
    "stty",
    "pwd",
    "true",
    "false",
    "mkdir",
    "touch",
    "printf",
    "sha256sum",
    "hostname",
    "mount",
    "ps",
    "stat",
    "rm",
    "yes",
    "grep",
    "cut",
    "sync",
];

/// One entry of a layer.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A directory and its mode.
    Directory(&'static str, u32),
    /// A file, its mode and its content.
    File(&'static str, u32, Vec<u8>),
    /// A symbolic link and its target.
    Link(String, &'static str),
}

/// What an image is to consist of.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Layers, lowest first; the busybox layer is not implied.
    pub layers: Vec<Vec<Entry>>,
    /// `Entrypoint` of the image config.
    pub entrypoint: Vec<&'static str>,
    /// `Cmd` of the image config.
    pub cmd: Vec<&'static str>,
    /// `Env` of the image config.
    pub env: Vec<&'static str>,
    /// `User` of the image config.
    pub user: &'static str,
    /// `WorkingDir` of the image config.
    pub working_dir: &'static str,
}

impl Image {
    /// Debian's busybox with a user `app` (1000:1000), running `script` with its shell.
    pub fn busybox(script: &'static str) -> Result<Self> {
        Ok(Self {
            layers: vec![busybox_layer()?],
            entrypoint: vec!["/bin/sh", "-c"],
            cmd: vec![script],
            env: vec!["PATH=/bin", "GREETING=from the image"],
            user: "",
            working_dir: "/",
        })
    }

    /// One more layer with one file.
    pub fn with_file(mut self, path: &'static str, content: impl Into<Vec<u8>>) -> Self {
        self.layers.push(vec![Entry::File(path, 0o644, content.into())]);
        self
    }

    /// Writes the image into the layout at `directory` under `tag`.
    pub fn write(&self, directory: &Path, tag: &str) -> Result<Layout> {
        let layers = self.layers.iter().map(|entries| LayerBytes::honest(&tar(entries)?)).collect::<Result<Vec<_>>>()?;
        self.write_layers(directory, tag, &layers)
    }

    /// The same with layers of the caller's own making, whose digests are right even where their content is not.
    pub fn write_layers(&self, directory: &Path, tag: &str, layers: &[LayerBytes]) -> Result<Layout> {
        let layout = Layout { directory: directory.to_owned() };
        fs::create_dir_all(directory.join("blobs/sha256")).with_context(|| format!("creating {}", directory.display()))?;
        let mut descriptors = Vec::new();
        for layer in layers {
            descriptors.push(layout.add(LAYER_GZIP, &layer.compressed)?);
        }
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "Cmd": self.cmd, "Env": self.env, "User": self.user, "WorkingDir": self.working_dir,
            },
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
        });
        let config = layout.add(CONFIG, config.to_string().as_bytes())?;
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors});
        layout.tag_only(&manifest, tag)?;
        Ok(layout)
    }
}

/// A layer as it is stored, and the diff id that the config will claim.
#[derive(Clone, Debug)]
pub struct LayerBytes {
    /// Content of the blob.
    pub compressed: Vec<u8>,
    /// `sha256:…` of the uncompressed tar, or what the test claims.
    pub diff_id: String,
}

impl LayerBytes {
    /// A layer that is what it says.
    pub fn honest(tar: &[u8]) -> Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(tar)?;
        Ok(Self { compressed: encoder.finish()?, diff_id: digest(tar) })
    }

    /// A layer of large files, which are in no memory whole: each repeats a pattern that compresses well and has no block of zeros.
    pub fn streamed(files: &[(&str, u64)]) -> Result<Self> {
        let mut archive = tar::Builder::new(Hashing { encoder: GzEncoder::new(Vec::new(), Compression::fast()), hash: Sha256::new() });
        let pattern: Vec<u8> = (0..4096u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
        for (path, size) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_mode(0o644);
            header.set_size(*size);
            archive.append_data(&mut header, path, Repeated { pattern: &pattern, at: 0 }.take(*size))?;
        }
        let end = archive.into_inner()?;
        Ok(Self { compressed: end.encoder.finish()?, diff_id: format!("sha256:{}", hex::encode(end.hash.finalize())) })
    }
}

/// Compresses and hashes what is written.
struct Hashing {
    encoder: GzEncoder<Vec<u8>>,
    hash: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.hash.update(bytes);
        self.encoder.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.encoder.flush()
    }
}

/// One pattern again and again.
struct Repeated<'a> {
    pattern: &'a [u8],
    at: usize,
}

impl Read for Repeated<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let part = &self.pattern[self.at..];
        let count = part.len().min(buffer.len());
        buffer[..count].copy_from_slice(&part[..count]);
        self.at = (self.at + count) % self.pattern.len();
        Ok(count)
    }
}

/// An OCI layout on disk.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Its directory.
    pub directory: PathBuf,
}

/// The digests of one image.
#[derive(Clone, Debug)]
pub struct Digests {
    /// Of the manifest.
    pub manifest: String,
    /// Of the config.
    pub config: String,
    /// Of the layers, lowest first.
    pub layers: Vec<String>,
}

impl Layout {
    /// Digests of the layout's first image.
    pub fn digests(&self) -> Result<Digests> {
        let index: Value = serde_json::from_slice(&fs::read(self.directory.join("index.json"))?)?;
        let manifest = text(&index["manifests"][0]["digest"])?;
        let content: Value = serde_json::from_slice(&fs::read(self.blob(&manifest)?)?)?;
        let layers = content["layers"].as_array().context("a manifest without layers")?;
        Ok(Digests {
            manifest,
            config: text(&content["config"]["digest"])?,
            layers: layers.iter().map(|layer| text(&layer["digest"])).collect::<Result<_>>()?,
        })
    }

    /// The layers of the layout's first image under a config that runs `script`, as an image of its own in `directory`: what anybody can make
    /// of an image that he cannot read. With `plain` the layers are called plain ones.
    pub fn forged(&self, directory: &Path, script: &str, plain: bool) -> Result<Self> {
        let digests = self.digests()?;
        let read = |digest: &str| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(self.blob(digest)?)?)?) };
        let (mut manifest, mut config) = (read(&digests.manifest)?, read(&digests.config)?);
        let forged = Self { directory: directory.to_owned() };
        fs::create_dir_all(directory.join("blobs/sha256"))?;
        for layer in &digests.layers {
            fs::copy(self.blob(layer)?, forged.blob(layer)?)?;
        }
        config["config"]["Cmd"] = json!([script]);
        manifest["config"] = forged.add(CONFIG, config.to_string().as_bytes())?;
        for layer in manifest["layers"].as_array_mut().into_iter().flatten().filter(|_| plain) {
            layer["mediaType"] = json!(LAYER_GZIP);
        }
        forged.tag_only(&manifest, "1")?;
        Ok(forged)
    }

    /// Makes this manifest the layout's one image.
    fn tag_only(&self, manifest: &Value, tag: &str) -> Result<()> {
        fs::write(self.directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut descriptor = self.add(MANIFEST, manifest.to_string().as_bytes())?;
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        fs::write(self.directory.join("index.json"), json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string())?;
        Ok(())
    }

    fn blob(&self, digest: &str) -> Result<PathBuf> {
        let (_, name) = digest.split_once(':').with_context(|| format!("'{digest}' is no digest"))?;
        Ok(self.directory.join("blobs/sha256").join(name))
    }

    fn add(&self, media_type: &str, content: &[u8]) -> Result<Value> {
        let digest = digest(content);
        fs::write(self.blob(&digest)?, content)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
    }
}

/// `sha256:…` of some bytes.
pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

/// The tar archive of some entries, with no time or owner of this machine in it.
pub fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        match entry {
            Entry::Directory(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                archive.append_data(&mut header, path, std::io::empty())?;
            }
            Entry::File(path, mode, content) => {
                header.set_mode(*mode);
                header.set_size(u64::try_from(content.len())?);
                archive.append_data(&mut header, path, content.as_slice())?;
            }
            Entry::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, target)?;
            }
        }
    }
    Ok(archive.into_inner()?)
}

/// The lowest layer of every test image.
pub fn busybox_layer() -> Result<Vec<Entry>> {
    let busybox = fs::read(place::busybox()?)?;
    let mut entries = vec![
        Entry::Directory("bin", 0o755),
        Entry::File("bin/busybox", 0o755, busybox),
        Entry::Directory("etc", 0o755),
        Entry::File("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n".to_vec()),
        Entry::File("etc/group", 0o644, b"root:x:0:\napp:x:1000:\n".to_vec()),
        Entry::Directory("root", 0o700),
        Entry::Directory("tmp", 0o1777),
        Entry::Directory("srv", 0o755),
    ];
    entries.extend(APPLETS.iter().map(|applet| Entry::Link(format!("bin/{applet}"), "busybox")));
    Ok(entries)
}

fn text(value: &Value) -> Result<String> {
    Ok(value.as_str().with_context(|| format!("{value} is no string"))?.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_layout_names_blobs_that_exist_under_their_digests() {
        let directory = std::env::temp_dir().join(format!("cloister-oci-{}", std::process::id()));
        let image = Image { layers: vec![vec![Entry::File("a", 0o644, b"x".to_vec())]], ..Image::default() };
        let layout = image.clone().with_file("b", "y").write(&directory, "latest").unwrap();
        let digests = layout.digests().unwrap();
        assert_eq!(digests.layers.len(), 2);
        for name in digests.layers.iter().chain([&digests.config, &digests.manifest]) {
            assert_eq!(&digest(&fs::read(layout.blob(name).unwrap()).unwrap()), name);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
