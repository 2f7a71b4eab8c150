//! What a release rule is about: one resource, all of a kind (`kbs:///acme/api/*`), or all of a repository (`kbs:///acme/*/*`).

use attestation::{ResourceUri, resource::ResourceError};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Stands for every name in its place.
const ANY: &str = "*";

/// A resource, or a pattern of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target(String);

impl Target {
    /// From the three parts of a path; `*` may stand for the last, or for the last two.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<Self, ResourceError> {
        // A name in the place of each star, to have the others checked by the one who knows how.
        let plain = |part: &str, open: bool| if open { "x".to_owned() } else { part.to_owned() };
        let open = (kind == ANY && tag == ANY, tag == ANY);
        ResourceUri::new(repository, &plain(kind, open.0), &plain(tag, open.1))?;
        Ok(Self(format!("{repository}/{kind}/{tag}")))
    }

    /// Without its scheme.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The paths under which a rule for this resource may stand, the narrowest first.
    pub(crate) fn candidates(resource: &ResourceUri) -> [String; 3] {
        let path = resource.path();
        let mut parts = path.split('/');
        let (repository, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        [path.to_owned(), format!("{repository}/{kind}/{ANY}"), format!("{repository}/{ANY}/{ANY}")]
    }
}

impl From<ResourceUri> for Target {
    fn from(uri: ResourceUri) -> Self {
        Self(uri.path().to_owned())
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = ResourceError;

    fn try_from(text: String) -> Result<Self, ResourceError> {
        text.parse()
    }
}

impl FromStr for Target {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        let parts: Vec<&str> = text.strip_prefix("kbs:///").unwrap_or_default().split('/').collect();
        match parts.as_slice() {
            [repository, kind, tag] => Self::new(repository, kind, tag),
            // The parser of resources says what is wrong.
            _ => text.parse::<ResourceUri>().map(Into::into),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kbs:///{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_at_the_end_only() {
        for good in ["kbs:///a/b/c", "kbs:///a/b/*", "kbs:///a/*/*"] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        for bad in ["kbs:///*/*/*", "kbs:///a/*/c", "kbs:///a/b*/c", "kbs:///a/b/c*", "kbs:///a/*", "a/b/*", "kbs:///a/../*"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_narrowest_rule_comes_first() {
        let candidates = Target::candidates(&"kbs:///a/b/c".parse().unwrap());
        assert_eq!(candidates, ["a/b/c", "a/b/*", "a/*/*"]);
    }
}
