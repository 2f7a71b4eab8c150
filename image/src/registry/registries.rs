//! `registries.conf` (containers-registries.conf(5), version 2), as far as a guest has a use for it and Confidential Containers carry it in
//! their initdata: mirrors, other locations, blocked registries, registries without TLS.

use crate::{
    manifest::clip,
    reference::{Reference, is_prefix_of_name},
};
use serde::Deserialize;
use thiserror::Error;

/// Longest file, in bytes.
pub const MAX_REGISTRIES: usize = 256 << 10;
/// Most tables, and mirrors of one.
const MAX_ENTRIES: usize = 256;

/// Why an image has no place to come from.
#[derive(Debug, Error)]
pub enum RegistriesError {
    /// The file.
    #[error("registries.conf: {0}")]
    File(String),
    /// A rule of it.
    #[error("{reference}: {prefix} is blocked by registries.conf: remove blocked = true there, or use another image")]
    Blocked {
        /// The image.
        reference: String,
        /// The table's prefix.
        prefix: String,
    },
}

/// A parsed file; the empty one sends every image to its own registry.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registries {
    registry: Vec<Table>,
    #[serde(rename = "unqualified-search-registries")]
    search: Vec<String>,
    #[serde(rename = "short-name-mode")]
    _short_name_mode: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFrom,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFrom {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// One place that an image may be fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The image there.
    pub reference: Reference,
    /// Whether the owner lets it be reached without TLS.
    pub insecure: bool,
}

impl Registries {
    /// Reads a file.
    pub fn parse(text: &str) -> Result<Self, RegistriesError> {
        let bad = |rule: String| RegistriesError::File(rule);
        if text.len() > MAX_REGISTRIES {
            return Err(bad(format!("longer than {MAX_REGISTRIES} bytes")));
        }
        let mut file: Self = toml::from_str(text).map_err(|e| bad(e.message().split_whitespace().collect::<Vec<_>>().join(" ")))?;
        if file.search.iter().any(|registry| registry != "docker.io") {
            return Err(bad(
                "unqualified-search-registries: the names that reach a guest are complete; name the registry in the image".into()
            ));
        }
        if file.registry.len() > MAX_ENTRIES || file.registry.iter().any(|table| table.mirror.len() > MAX_ENTRIES) {
            return Err(bad(format!("more than {MAX_ENTRIES} registries or mirrors")));
        }
        for table in &mut file.registry {
            if table.prefix.is_empty() {
                table.prefix.clone_from(&table.location);
            }
            let name = clip(&table.prefix);
            if table.prefix.is_empty() {
                return Err(bad("a [[registry]] has neither prefix nor location".into()));
            }
            if table.prefix.starts_with("*.") && !table.location.is_empty() {
                return Err(bad(format!("{name:?}: a prefix with a wildcard cannot have a location")));
            }
            if table.mirror.iter().any(|mirror| mirror.location.is_empty()) {
                return Err(bad(format!("{name:?}: a mirror has no location")));
            }
        }
        Ok(file)
    }

    /// Where to look for an image, in order: mirrors first, its own place last.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, RegistriesError> {
        let Some(table) = self.table(reference) else {
            return Ok(vec![Endpoint { reference: reference.clone(), insecure: false }]);
        };
        if table.blocked {
            return Err(RegistriesError::Blocked { reference: reference.to_string(), prefix: table.prefix.clone() });
        }
        let by_digest = reference.digest().is_some();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            PullFrom::All => by_digest || !table.mirror_by_digest_only,
            PullFrom::DigestOnly => by_digest,
            PullFrom::TagOnly => !by_digest && !table.mirror_by_digest_only,
        };
        let mut endpoints = Vec::new();
        for mirror in table.mirror.iter().filter(wanted) {
            endpoints.push(Endpoint { reference: table.moved(reference, &mirror.location)?, insecure: mirror.insecure });
        }
        endpoints.push(Endpoint { reference: table.moved(reference, &table.location)?, insecure: table.insecure });
        Ok(endpoints)
    }

    /// Every registry that the file may send an image to, for whoever has to open the way there: `host[:port]`, and whether without TLS.
    pub fn locations(&self) -> impl Iterator<Item = (&str, bool)> {
        let host = |location: &'_ str| location.split('/').next().unwrap_or_default().len();
        self.registry.iter().flat_map(move |table| {
            let own = std::iter::once((table.location.as_str(), table.insecure));
            let mirrors = table.mirror.iter().map(|mirror| (mirror.location.as_str(), mirror.insecure));
            own.chain(mirrors)
                .filter(|(location, _)| !location.is_empty())
                .map(move |(location, insecure)| (&location[..host(location)], insecure))
        })
    }

    /// The table with the longest prefix.
    fn table(&self, reference: &Reference) -> Option<&Table> {
        self.registry.iter().filter(|table| matches(&table.prefix, reference)).max_by_key(|table| table.prefix.len())
    }
}

impl Table {
    fn moved(&self, reference: &Reference, location: &str) -> Result<Reference, RegistriesError> {
        // With a wildcard, a mirror takes the place of the registry.
        let prefix = if self.prefix.starts_with("*.") { reference.domain() } else { &self.prefix };
        let name = reference.name();
        if location.is_empty() || location == prefix {
            return Ok(reference.clone());
        }
        let rest = name.get(prefix.len()..).unwrap_or_default();
        let moved = reference.with_name(&format!("{location}{rest}"));
        moved.map_err(|e| RegistriesError::File(format!("location {:?}: {e}", clip(location))))
    }
}

fn matches(prefix: &str, reference: &Reference) -> bool {
    match prefix.strip_prefix('*') {
        Some(domain) => reference.domain().split(':').next().is_some_and(|host| host.ends_with(domain)),
        None => is_prefix_of_name(prefix, &reference.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
unqualified-search-registries = ["docker.io"]
[[registry]]
prefix = "example.com/banned"
blocked = true
[[registry]]
prefix = "example.com/foo"
location = "internal.example/bar"
[[registry.mirror]]
location = "mirror-0.local/for-foo"
[[registry.mirror]]
location = "mirror-1.local:5000/foo"
insecure = true
pull-from-mirror = "digest-only"
[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "hub.local"
[[registry]]
prefix = "*.wild.io"
blocked = true
[[registry]]
location = "localhost:5000"
insecure = true
"#;

    fn places(reference: &str) -> Vec<(String, bool)> {
        let endpoints = Registries::parse(FILE).unwrap().endpoints(&reference.parse().unwrap()).unwrap();
        endpoints.into_iter().map(|endpoint| (endpoint.reference.to_string(), endpoint.insecure)).collect()
    }

    fn place(name: &str, insecure: bool) -> (String, bool) {
        (name.to_owned(), insecure)
    }

    #[test]
    fn images_go_where_the_file_sends_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(places("x.io/a:1"), [place("x.io/a:1", false)]);
        assert_eq!(places("busybox"), [place("hub.local/library/busybox:latest", false), place("docker.io/library/busybox:latest", false)]);
        assert_eq!(places("example.com/foo/x:1"), [place("mirror-0.local/for-foo/x:1", false), place("internal.example/bar/x:1", false)]);
        assert_eq!(places(&format!("example.com/foo/x@{digest}"))[1], place(&format!("mirror-1.local:5000/foo/x@{digest}"), true));
        assert_eq!(places("localhost:5000/x:1"), [place("localhost:5000/x:1", true)]);
        assert_eq!(places("example.com/food:1"), [place("example.com/food:1", false)]);
        let file = Registries::parse(FILE).unwrap();
        assert!(file.locations().any(|place| place == ("mirror-1.local:5000", true)));
    }

    #[test]
    fn blocked_is_blocked() {
        let file = Registries::parse(FILE).unwrap();
        for reference in ["example.com/banned/x", "a.wild.io/x", "b.a.wild.io:5000/x"] {
            let error = file.endpoints(&reference.parse().unwrap()).unwrap_err();
            assert!(matches!(error, RegistriesError::Blocked { .. }), "{error}");
        }
        assert!(file.endpoints(&"wild.io/x".parse().unwrap()).is_ok());
    }

    #[test]
    fn malformed_files_are_refused() {
        for (text, wanted) in [
            ("x = 1", "x"),
            ("[[registry]]\nblocked = true", "neither prefix nor location"),
            ("[[registry]]\nprefix = \"*.a.io\"\nlocation = \"b.io\"", "wildcard"),
            ("[[registry]]\nprefix = \"a.io\"\n[[registry.mirror]]\nlocation = \"\"", "no location"),
            ("unqualified-search-registries = [\"quay.io\"]", "complete"),
        ] {
            let error = Registries::parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{text}: {error}");
        }
        let bad = Registries::parse("[[registry]]\nprefix = \"a.io\"\nlocation = \"B/../c\"").unwrap();
        assert!(bad.endpoints(&"a.io/x".parse().unwrap()).is_err());
    }
}
