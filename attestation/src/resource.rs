//! Names of secrets: `kbs:///<repository>/<type>/<tag>`.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Longest segment, in bytes.
const MAX_SEGMENT: usize = 255;

/// A text that names no resource.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?}: not a resource, expected kbs:///repository/type/tag of letters, digits, '_', '-' and, not first, '.'")]
pub struct ResourceError(String);

/// A resource's name. It says nothing about which broker: that is the initdata's to say, so that whoever writes a name (an image's
/// annotation, for one) cannot choose whom the guest trusts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceUri {
    path: String,
}

impl ResourceUri {
    /// From its three segments.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<Self, ResourceError> {
        Self::from_path(&format!("{repository}/{kind}/{tag}"))
    }

    /// From `repository/type/tag`.
    pub fn from_path(path: &str) -> Result<Self, ResourceError> {
        if path.split('/').count() == 3 && path.split('/').all(is_segment) {
            return Ok(Self { path: path.to_owned() });
        }
        Err(ResourceError(path.chars().take(160).collect()))
    }

    /// `repository/type/tag`.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// `^[a-zA-Z0-9_\-]+[a-zA-Z0-9_\-\.]*$`: neither `..` nor a hidden name, nothing to escape in a URL.
fn is_segment(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    text.len() <= MAX_SEGMENT && text.bytes().next().is_some_and(plain) && text.bytes().all(|b| plain(b) || b == b'.')
}

impl FromStr for ResourceUri {
    type Err = ResourceError;

    /// Reads `kbs:///a/b/c`. An authority (`kbs://host:port/a/b/c`), which older tools write, is dropped.
    fn from_str(uri: &str) -> Result<Self, ResourceError> {
        let bad = || ResourceError(uri.chars().take(160).collect());
        let (_, path) = uri.strip_prefix("kbs://").and_then(|rest| rest.split_once('/')).ok_or_else(bad)?;
        Self::from_path(path).map_err(|_| bad())
    }
}

impl TryFrom<String> for ResourceUri {
    type Error = ResourceError;

    fn try_from(uri: String) -> Result<Self, ResourceError> {
        uri.parse()
    }
}

impl From<ResourceUri> for String {
    fn from(uri: ResourceUri) -> Self {
        uri.to_string()
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs:///{}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were() {
        let uri: ResourceUri = "kbs:///default/image-key/v1.2_x".parse().unwrap();
        assert_eq!((uri.path(), uri.to_string().as_str()), ("default/image-key/v1.2_x", "kbs:///default/image-key/v1.2_x"));
        assert_eq!(ResourceUri::new("default", "image-key", "v1.2_x").unwrap(), uri);
        assert_eq!("kbs://broker.example:8080/default/image-key/v1.2_x".parse::<ResourceUri>().unwrap(), uri);
    }

    #[test]
    fn what_would_leave_its_place_is_refused() {
        let long = format!("kbs:///a/b/{}", "c".repeat(MAX_SEGMENT + 1));
        let bad = [
            "",
            "kbs:///",
            "kbs:///a/b",
            "kbs:///a/b/c/d",
            "kbs:///a//c",
            "kbs:///a/../c",
            "kbs:///a/.b/c",
            "kbs:///a/b/c?x",
            "kbs:///a/b/c#x",
            "kbs:///a/b/%2e",
            "http:///a/b/c",
            "/a/b/c",
            "a/b/c",
            "kbs:///a/b/c\n",
            "kbs:///\u{e4}/b/c",
            &long,
        ];
        for uri in bad {
            assert!(uri.parse::<ResourceUri>().is_err(), "{uri}");
        }
        assert!(ResourceUri::new("a/b", "c", "d").is_err());
        assert!(ResourceUri::new("a", "", "d").is_err());
    }
}
