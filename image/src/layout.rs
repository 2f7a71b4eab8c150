//! OCI image-layout directories (image-spec 1.1, `image-layout.md`), which skopeo calls `oci:DIR:TAG`.

use crate::{
    config::{ConfigError, ImageConfig},
    digest::{Digest, DigestError},
    manifest::{self, Descriptor, Document, Index, Manifest, ManifestError, clip},
    media_type::OCI_INDEX,
    strict_json::MAX_DOCUMENT,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use thiserror::Error;

const LAYOUT_FILE: &str = "oci-layout";
const INDEX_FILE: &str = "index.json";
const BLOBS: &str = "blobs/sha256";
const VERSION: &str = "1.0.0";
/// The annotation that names a manifest in a layout's index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Most indices within indices.
const MAX_NESTING: usize = 4;

/// Why a layout cannot be used.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// A file of it.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No layout.
    #[error("{0}: not an OCI image layout: want a directory as `skopeo copy … oci:DIR:TAG` writes it")]
    NotALayout(PathBuf),
    /// Not `oci:DIR:TAG`.
    #[error("{0:?}: want oci:DIR or oci:DIR:TAG")]
    Name(String),
    /// No such image.
    #[error("{path}: no image {tag}; it has {have}")]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// What was asked for.
        tag: String,
        /// What there is.
        have: String,
    },
    /// A blob.
    #[error("{path}: {source}")]
    Digest {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: DigestError,
    },
    /// A document.
    #[error("{path}: {source}")]
    Manifest {
        /// The layout.
        path: PathBuf,
        /// What is wrong.
        source: ManifestError,
    },
    /// An image config.
    #[error("{path}: {source}")]
    Config {
        /// The layout.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutJson {
    image_layout_version: String,
}

/// A directory with blobs and an index.
#[derive(Debug, Clone)]
pub struct Layout {
    path: PathBuf,
}

/// An image of a layout, for our platform.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    /// Of the manifest.
    pub descriptor: Descriptor,
    /// What it consists of.
    pub manifest: Manifest,
    /// How to run it.
    pub config: ImageConfig,
}

/// Splits `oci:DIR[:TAG]`; the prefix may be left out.
pub fn parse_name(name: &str) -> Result<(PathBuf, Option<String>), LayoutError> {
    let rest = name.strip_prefix("oci:").unwrap_or(name);
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (rest, None),
    };
    if path.is_empty() || tag.as_deref() == Some("") {
        return Err(LayoutError::Name(clip(name)));
    }
    Ok((path.into(), tag))
}

impl Layout {
    /// An existing layout.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let layout = Self { path: path.to_owned() };
        let version = fs::read(path.join(LAYOUT_FILE)).ok().and_then(|bytes| serde_json::from_slice::<LayoutJson>(&bytes).ok());
        match version {
            Some(json) if json.image_layout_version == VERSION => Ok(layout),
            _ => Err(LayoutError::NotALayout(layout.path)),
        }
    }

    /// A new layout, or the one that is there already.
    pub fn create(path: &Path) -> Result<Self, LayoutError> {
        let layout = Self { path: path.to_owned() };
        if path.join(LAYOUT_FILE).exists() {
            return Self::open(path);
        }
        let blobs = path.join(BLOBS);
        fs::create_dir_all(&blobs).map_err(io_error(&blobs))?;
        layout.write_index(&Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests: Vec::new() })?;
        // Last, as it is what makes the directory a layout.
        let version = serde_json::json!(LayoutJson { image_layout_version: VERSION.into() });
        layout.replace(LAYOUT_FILE, version.to_string().as_bytes())?;
        Ok(layout)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a blob, which need not exist.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join(BLOBS).join(digest.hex())
    }

    /// Opens a blob. Its content is not compared with anything yet.
    pub fn blob(&self, digest: &Digest) -> Result<File, LayoutError> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(io_error(&path))
    }

    /// A manifest, index or config, compared with its descriptor; at most 4 MiB.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LayoutError> {
        let path = self.blob_path(&descriptor.digest);
        let bytes = read_bounded(&path)?;
        descriptor.verify(&bytes).map_err(|source| LayoutError::Digest { path, source })?;
        Ok(bytes)
    }

    /// The image named `tag`, or the only one; out of an index, the one for linux/amd64.
    pub fn image(&self, tag: Option<&str>) -> Result<LayoutImage, LayoutError> {
        let invalid = |source| LayoutError::Manifest { path: self.path.clone(), source };
        let mut descriptor = self.find(tag)?;
        for _ in 0..MAX_NESTING {
            let bytes = self.document(&descriptor)?;
            let index = match manifest::parse_document(&bytes, Some(&descriptor.media_type)).map_err(invalid)? {
                Document::Index(index) => index,
                Document::Manifest(manifest) => {
                    let config = ImageConfig::parse(&self.document(&manifest.config)?);
                    let config = config.map_err(|source| LayoutError::Config { path: self.path.clone(), source })?;
                    return Ok(LayoutImage { descriptor, manifest, config });
                }
            };
            descriptor = index.select().map_err(invalid)?.clone();
        }
        Err(invalid(ManifestError::Bound(format!("more than {MAX_NESTING} indices within each other"))))
    }

    /// The descriptor of the image named `tag`, or of the only one: a manifest or an index.
    pub fn top(&self, tag: Option<&str>) -> Result<Descriptor, LayoutError> {
        self.find(tag).map(|mut descriptor| {
            descriptor.annotations.remove(REF_NAME);
            descriptor
        })
    }

    fn find(&self, tag: Option<&str>) -> Result<Descriptor, LayoutError> {
        let index = self.index()?;
        let name = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
        let found = match tag {
            Some(tag) => index.manifests.iter().find(|d| name(d).as_deref() == Some(tag)),
            None => {
                // What is attached to images does not make them ambiguous.
                let mut images = index.manifests.iter().filter(|d| !name(d).is_some_and(|name| is_attachment(&name)));
                images.next().filter(|_| images.next().is_none())
            }
        };
        found.cloned().ok_or_else(|| {
            let have: Vec<String> = index.manifests.iter().take(20).map(|d| name(d).unwrap_or_else(|| d.digest.to_string())).collect();
            LayoutError::NoImage {
                path: self.path.clone(),
                tag: tag.map_or_else(|| "without a tag, as it has not exactly one".into(), |tag| format!("{tag:?}")),
                have: if have.is_empty() { "none".into() } else { clip(&have.join(", ")) },
            }
        })
    }

    /// The descriptor of what has this tag, image or not.
    pub fn tagged_descriptor(&self, tag: &str) -> Result<Option<Descriptor>, LayoutError> {
        let found = self.index()?.manifests.into_iter().find(|d| d.annotations.get(REF_NAME).is_some_and(|name| name == tag));
        Ok(found.map(|mut descriptor| {
            descriptor.annotations.remove(REF_NAME);
            descriptor
        }))
    }

    fn index(&self) -> Result<Index, LayoutError> {
        let bytes = read_bounded(&self.path.join(INDEX_FILE))?;
        manifest::parse_index(&bytes, None).map_err(|source| LayoutError::Manifest { path: self.path.clone(), source })
    }

    /// Stores a document and gives its descriptor.
    pub fn put_document(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, LayoutError> {
        let descriptor = Descriptor::of(media_type, bytes);
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(io_error(&writer.path))?;
        writer.commit(&descriptor.digest)?;
        Ok(descriptor)
    }

    /// Begins a blob whose digest is known only at its end.
    pub fn writer(&self) -> Result<BlobWriter, LayoutError> {
        let mut random = [0; 8];
        let path = self.path.join(BLOBS);
        getrandom::fill(&mut random).map_err(|e| io_error(&path)(io::Error::other(e)))?;
        let path = path.join(format!(".incoming-{}", hex::encode(random)));
        let file = File::options().write(true).create_new(true).open(&path).map_err(io_error(&path))?;
        Ok(BlobWriter { file, path, committed: false })
    }

    /// Names a manifest, in place of what had the name.
    pub fn tag(&self, tag: &str, descriptor: &Descriptor) -> Result<(), LayoutError> {
        let mut index = self.index()?;
        index.manifests.retain(|d| d.annotations.get(REF_NAME).is_none_or(|name| name != tag));
        let mut descriptor = descriptor.clone();
        descriptor.annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        index.manifests.push(descriptor);
        self.write_index(&index)
    }

    fn write_index(&self, index: &Index) -> Result<(), LayoutError> {
        self.replace(INDEX_FILE, serde_json::json!(index).to_string().as_bytes())
    }

    /// A reader sees the old file or the new one, never a part.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(io_error(&writer.path))?;
        writer.rename(&self.path.join(name))
    }
}

/// A blob being written; gone again unless it is committed.
pub struct BlobWriter {
    file: File,
    path: PathBuf,
    committed: bool,
}

impl BlobWriter {
    /// Gives the blob its name.
    pub fn commit(self, digest: &Digest) -> Result<(), LayoutError> {
        let target = self.path.with_file_name(digest.hex());
        self.rename(&target)
    }

    fn rename(mut self, target: &Path) -> Result<(), LayoutError> {
        self.file.flush().map_err(io_error(&self.path))?;
        fs::rename(&self.path, target).map_err(io_error(target))?;
        self.committed = true;
        Ok(())
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.committed {
            // It was ours alone; that it stays behind harms nobody.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// The tags under which signatures and other referrers of a manifest are kept.
fn is_attachment(tag: &str) -> bool {
    tag.strip_prefix("sha256-").and_then(|rest| rest.get(..64)).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, LayoutError> {
    let file = File::open(path).map_err(io_error(path))?;
    let mut bytes = Vec::new();
    // One byte more than allowed, for the parser to refuse.
    file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes).map_err(io_error(path))?;
    Ok(bytes)
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> LayoutError + use<> {
    let path = path.to_owned();
    |source| LayoutError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn names_are_split() {
        let split = |name| parse_name(name).map(|(path, tag)| (path.display().to_string(), tag)).unwrap();
        assert_eq!(split("oci:/a/b:1.0"), ("/a/b".into(), Some("1.0".into())));
        assert_eq!(split("oci:dir"), ("dir".into(), None));
        assert_eq!(split("/a:b/c"), ("/a:b/c".into(), None));
        assert!(parse_name("oci:").is_err() && parse_name("oci:dir:").is_err());
    }

    #[test]
    fn images_are_found_by_their_tags() {
        let dir = tempfile::tempdir().unwrap();
        let layout = testing::layout(dir.path(), "1", &[b"layer"]);
        let image = Layout::open(dir.path()).unwrap().image(Some("1")).unwrap();
        assert_eq!((image.manifest.layers.len(), image.config.arguments()), (1, vec!["/app".to_owned()]));
        assert!(layout.image(None).is_ok());
        let error = layout.image(Some("2")).unwrap_err().to_string();
        assert!(error.ends_with("no image \"2\"; it has 1"), "{error}");
        layout.tag("1", &image.descriptor).unwrap();
        layout.tag("2", &image.descriptor).unwrap();
        assert_eq!(layout.index().unwrap().manifests.len(), 2);
        let names: Vec<_> = fs::read_dir(dir.path().join(BLOBS)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| name.len() == 64), "no unfinished blob is left: {names:?}");
    }

    #[test]
    fn damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Layout::open(dir.path()), Err(LayoutError::NotALayout(_))));
        let layout = testing::layout(dir.path(), "1", &[b"layer"]);
        let image = layout.image(None).unwrap();
        let config = layout.blob_path(&image.manifest.config.digest);
        let mut bytes = fs::read(&config).unwrap();
        bytes[5] ^= 1;
        fs::write(&config, bytes).unwrap();
        assert!(matches!(layout.image(None), Err(LayoutError::Digest { .. })));
        drop(layout.writer().unwrap());
        fs::remove_file(&config).unwrap();
        assert!(matches!(layout.image(None), Err(LayoutError::Io { .. })));
    }
}
