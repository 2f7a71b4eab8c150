//! Media types of OCI image-spec 1.1 and of Docker's schema 2, reduced to what they mean for a pull.

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// What a media type is for a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// A list of manifests, one per platform.
    Index,
    /// A manifest.
    Manifest,
    /// An image config.
    Config,
    /// A layer.
    Layer {
        /// How the tar is packed.
        compression: Compression,
        /// Whether the packed tar is encrypted by ocicrypt.
        encrypted: bool,
    },
}

/// How a layer's tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, of one or more members.
    Gzip,
    /// RFC 8878, of one or more frames.
    Zstd,
}

impl MediaType {
    /// What `text` means; nothing for a type that no image of ours has, among them "foreign" layers that live on other servers.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            OCI_INDEX | DOCKER_LIST => Self::Index,
            OCI_MANIFEST | DOCKER_MANIFEST => Self::Manifest,
            OCI_CONFIG | DOCKER_CONFIG => Self::Config,
            _ => return Self::parse_layer(text),
        })
    }

    fn parse_layer(text: &str) -> Option<Self> {
        let (base, encrypted) = text.strip_suffix("+encrypted").map_or((text, false), |base| (base, true));
        let compression = if let Some(suffix) = base.strip_prefix(OCI_LAYER) {
            match suffix {
                "" => Compression::None,
                "+gzip" => Compression::Gzip,
                "+zstd" => Compression::Zstd,
                _ => return None,
            }
        } else {
            // Docker's types end in a dot and the packing; containerd encrypts them without renaming them.
            match base.strip_prefix(DOCKER_LAYER)? {
                "" => Compression::None,
                ".gzip" => Compression::Gzip,
                ".zstd" => Compression::Zstd,
                _ => return None,
            }
        };
        Some(Self::Layer { compression, encrypted })
    }
}

/// Whether a layer of this type lies on another server than the image ("foreign" at Docker, "nondistributable" at OCI).
pub(crate) fn is_foreign(text: &str) -> bool {
    text.starts_with("application/vnd.docker.image.rootfs.foreign.")
        || text.starts_with("application/vnd.oci.image.layer.nondistributable.")
}

impl Compression {
    /// The OCI media type of an encrypted layer that is packed so.
    pub fn encrypted_layer(self) -> String {
        let suffix = match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        };
        format!("{OCI_LAYER}{suffix}+encrypted")
    }

    /// The OCI media type of a plain layer that is packed so.
    pub fn plain_layer(self) -> String {
        self.encrypted_layer().trim_end_matches("+encrypted").to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_say_how_they_are_packed() {
        for (text, compression, encrypted) in [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None, false),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd, false),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Compression::Gzip, true),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", Compression::None, true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip, false),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted", Compression::Gzip, true),
        ] {
            assert_eq!(MediaType::parse(text), Some(MediaType::Layer { compression, encrypted }), "{text}");
        }
        for text in [
            "",
            "application/vnd.oci.image.layer.v1.tar+xz",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted+encrypted",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ] {
            assert_eq!(MediaType::parse(text), None, "{text}");
        }
    }

    #[test]
    fn encrypted_names_are_read_back() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let parsed = |text: String| MediaType::parse(&text);
            assert_eq!(parsed(compression.encrypted_layer()), Some(MediaType::Layer { compression, encrypted: true }));
            assert_eq!(parsed(compression.plain_layer()), Some(MediaType::Layer { compression, encrypted: false }));
        }
    }
}
