//! Where an image is: an OCI layout, an archive of one, an archive of Docker's, or a registry. Whatever it is, it is worked on as a layout.

mod archive;
mod remote;

pub(crate) use remote::RegistryArgs;

use anyhow::{Context, Result, bail};
use image::{
    layout::{Layout, parse_name},
    reference::Reference,
    registry::Registry,
};
use std::path::PathBuf;
use tempfile::TempDir;

/// The forms that a place is written in; for `--help`.
pub(crate) const FORMS: &str = "docker://REGISTRY/NAME:TAG, oci:DIR:TAG, oci-archive:FILE:TAG or docker-archive:FILE";

/// A place as the user writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory, and the image's tag in it.
    Layout(PathBuf, Option<String>),
    /// A tar of such a directory.
    OciArchive(PathBuf, Option<String>),
    /// What `docker save` writes.
    DockerArchive(PathBuf, Option<String>),
    /// A registry.
    Registry(Reference),
}

/// An image on this machine.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) layout: Layout,
    pub(crate) tag: Option<String>,
    /// Goes with it.
    _temporary: Option<TempDir>,
}

/// What of an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// Manifest and config.
    Documents,
    /// The layers too.
    All,
}

impl std::str::FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let split = |rest: &str| parse_name(rest).with_context(|| text.to_owned());
        Ok(match text.split_once(':') {
            Some(("docker", rest)) => {
                let rest = rest.strip_prefix("//").with_context(|| format!("{text}: want {FORMS}"))?;
                Self::Registry(rest.parse()?)
            }
            Some(("oci", rest)) => split(rest).map(|(path, tag)| Self::Layout(path, tag))?,
            Some(("oci-archive", rest)) => split(rest).map(|(path, tag)| Self::OciArchive(path, tag))?,
            Some(("docker-archive", rest)) => {
                // A reference has colons and slashes of its own: the file ends at the first colon.
                let (path, reference) = rest.split_once(':').map_or((rest, None), |(path, name)| (path, Some(name.to_owned())));
                if path.is_empty() {
                    bail!("{text}: want {FORMS}");
                }
                Self::DockerArchive(path.into(), reference)
            }
            _ => bail!("{text}: want {FORMS}"),
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, path, tag) = match self {
            Self::Registry(reference) => return write!(f, "docker://{reference}"),
            Self::Layout(path, tag) => ("oci", path, tag),
            Self::OciArchive(path, tag) => ("oci-archive", path, tag),
            Self::DockerArchive(path, tag) => ("docker-archive", path, tag),
        };
        write!(f, "{kind}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

impl Place {
    /// The image as a layout; a temporary one unless it is one already.
    pub(crate) async fn fetch(&self, registry: &RegistryArgs, parts: Parts) -> Result<Local> {
        if let Self::Layout(path, tag) = self {
            return Ok(Local { layout: Layout::open(path)?, tag: tag.clone(), _temporary: None });
        }
        let temporary = tempfile::tempdir().context("make a temporary directory (TMPDIR says where)")?;
        let tag = match self {
            Self::Layout(..) => None,
            Self::OciArchive(path, tag) => {
                archive::unpack(path, temporary.path())?;
                tag.clone()
            }
            Self::DockerArchive(path, name) => {
                archive::unpack_docker(path, name.as_deref(), temporary.path())?;
                None
            }
            Self::Registry(reference) => {
                remote::pull(&registry.client()?, reference, &Layout::create(temporary.path())?, parts).await?;
                None
            }
        };
        Ok(Local { layout: Layout::open(temporary.path()).with_context(|| self.to_string())?, tag, _temporary: Some(temporary) })
    }

    /// A layout to write an image into, which [`Self::store`] then brings here.
    pub(crate) fn begin(&self) -> Result<(Local, String)> {
        let needs_tag = |tag: &Option<String>| tag.clone().with_context(|| format!("{self}: the destination needs a tag"));
        let (path, tag, temporary) = match self {
            Self::Layout(path, tag) => (path.clone(), needs_tag(tag)?, None),
            Self::OciArchive(_, tag) => {
                let temporary = tempfile::tempdir()?;
                (temporary.path().to_owned(), needs_tag(tag)?, Some(temporary))
            }
            Self::DockerArchive(..) | Self::Registry(_) => {
                let temporary = tempfile::tempdir()?;
                (temporary.path().to_owned(), "image".to_owned(), Some(temporary))
            }
        };
        Ok((Local { layout: Layout::create(&path)?, tag: Some(tag.clone()), _temporary: temporary }, tag))
    }

    /// Brings the image of a layout that [`Self::begin`] gave to its place.
    pub(crate) async fn store(&self, local: &Local, registry: &RegistryArgs) -> Result<()> {
        match self {
            Self::Layout(..) => Ok(()),
            Self::OciArchive(path, _) => archive::pack(&local.layout, path),
            Self::DockerArchive(path, name) => archive::pack_docker(&local.layout, local.tag.as_deref(), name.as_deref(), path),
            Self::Registry(reference) => {
                if reference.digest().is_some() {
                    bail!("{self}: the destination is named by tag: its digest is known only at the end");
                }
                remote::push(&registry.client()?, reference, &local.layout, local.tag.as_deref()).await
            }
        }
    }

    /// The registry's client and the reference, where it is one.
    pub(crate) fn remote(&self, registry: &RegistryArgs) -> Result<Option<(Registry, &Reference)>> {
        match self {
            Self::Registry(reference) => Ok(Some((registry.client()?, reference))),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_skopeo_reads_them() {
        let read = |text: &str| text.parse::<Place>();
        assert_eq!(read("oci:/a/b:1").unwrap(), Place::Layout("/a/b".into(), Some("1".into())));
        assert_eq!(read("oci-archive:a.tar").unwrap(), Place::OciArchive("a.tar".into(), None));
        assert_eq!(read("docker-archive:a.tar:x.io:5000/a:1").unwrap(), Place::DockerArchive("a.tar".into(), Some("x.io:5000/a:1".into())));
        assert_eq!(read("docker://x.io/a:1").unwrap().to_string(), "docker://x.io/a:1");
        assert_eq!(read("oci-archive:a.tar:1").unwrap().to_string(), "oci-archive:a.tar:1");
        for bad in ["", "app", "x.io/a:1", "docker:x.io/a", "oci:", "dir:x", "docker-archive:", "docker://A//b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(read("oci:a").unwrap().begin().unwrap_err().to_string().contains("needs a tag"));
    }
}
