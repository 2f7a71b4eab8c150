//! Image references in Docker's form, normalised as Docker and containerd do: `busybox` is `docker.io/library/busybox:latest`.
//!
//! The grammar is that of distribution's `reference` package: every part has a fixed alphabet, so that a reference can be put into a
//! URL's path and into a log line as it is.

use crate::digest::Digest;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Longest reference, in bytes.
const MAX_REFERENCE: usize = 1024;
/// Longest name, in bytes (distribution's `NameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// What is wrong with a reference.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("image reference {text:?}: {rule}")]
pub struct ReferenceError {
    /// What was given.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

/// A normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    domain: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as the user names it, such as `docker.io` or `127.0.0.1:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The registry to talk to: Docker Hub's API has another name than its images.
    pub fn registry(&self) -> &str {
        if self.domain == "docker.io" { "registry-1.docker.io" } else { &self.domain }
    }

    /// The name within the registry, such as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one; `latest` was filled in where there is neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one. It counts; a tag beside it is a comment.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What to ask the registry for: the digest, else the tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Registry and repository without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.repository)
    }

    /// The image of the same tag and digest under another name (registry and repository).
    pub fn with_name(&self, name: &str) -> Result<Self, ReferenceError> {
        let other: Self = name.parse()?;
        if other.digest.is_some() || other.tag.as_deref() != Some("latest") || name.ends_with(":latest") {
            return Err(ReferenceError {
                text: name.chars().take(MAX_NAME).collect(),
                rule: "want registry and repository, without tag and digest",
            });
        }
        Ok(Self { tag: self.tag.clone(), digest: self.digest, ..other })
    }

    /// The same image, pinned.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |rule| ReferenceError { text: text.chars().take(MAX_NAME).collect(), rule };
        if text.is_empty() || text.len() > MAX_REFERENCE {
            return Err(fail("must be 1 to 1024 bytes long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| fail("the digest must be \"sha256:\" and 64 lower-case hexadecimal digits"))?))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it, a port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            Some((_, tag)) => (&rest[..rest.len() - tag.len() - 1], Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fail("a tag is 1 to 128 letters, digits, '_', '.', '-', and begins with neither '.' nor '-'"));
        }
        let (domain, repository) = split_domain(name);
        let repository =
            if domain == "docker.io" && !repository.contains('/') { format!("library/{repository}") } else { repository.into() };
        if !is_domain(&domain) {
            return Err(fail("the registry must be a host name or address with an optional port"));
        }
        if domain.len() + 1 + repository.len() > MAX_NAME || !repository.split('/').all(is_component) {
            return Err(fail("a name is at most 255 bytes of lower-case letters and digits, separated by '/', '.', '_', '__' or '-'"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { domain, repository, tag, digest })
    }
}

/// Whether `prefix` (a registry, or a registry and the beginning of a repository) is `name` or ends where a part of it does.
pub(crate) fn is_prefix_of_name(prefix: &str, name: &str) -> bool {
    !prefix.is_empty() && name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The first part is a registry if it can be nothing else: it has a dot or a port, or is `localhost`.
fn split_domain(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || first != first.to_lowercase() => {
            (if first == "index.docker.io" { "docker.io".into() } else { first.to_owned() }, rest)
        }
        _ => ("docker.io".to_owned(), name),
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => {
            return v6.parse::<std::net::Ipv6Addr>().is_ok() && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_tag(text: &str) -> bool {
    (1..=MAX_TAG).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators = text.split(|c: char| c.is_ascii() && alphanumeric(c as u8));
    !text.is_empty()
        && text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().next_back().is_some_and(alphanumeric)
        && separators.filter(|s| !s.is_empty()).all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (text, normal) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("me/app:1.0", "docker.io/me/app:1.0".into()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".into()),
            ("localhost/app", "localhost/app:latest".into()),
            ("localhost:5000/a/b__c/d-e:T", "localhost:5000/a/b__c/d-e:T".into()),
            ("[::1]:5000/app:1", "[::1]:5000/app:1".into()),
            (&format!("127.0.0.1:5000/demo:1@{digest}"), format!("127.0.0.1:5000/demo:1@{digest}")),
            (&format!("ghcr.io/x/y@{digest}"), format!("ghcr.io/x/y@{digest}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), normal);
            assert_eq!(normal.parse::<Reference>().unwrap(), reference, "normal form is stable");
        }
    }

    #[test]
    fn docker_hub_is_reached_under_its_other_name() {
        let hub: Reference = "busybox".parse().unwrap();
        assert_eq!((hub.registry(), hub.repository(), hub.selector().as_str()), ("registry-1.docker.io", "library/busybox", "latest"));
        let digest = Digest::of(b"");
        let pinned = "127.0.0.1:5000/demo:1".parse::<Reference>().unwrap().with_digest(digest);
        assert_eq!((pinned.registry(), pinned.selector()), ("127.0.0.1:5000", digest.to_string()));
        assert_eq!((pinned.tag(), pinned.name().as_str()), (Some("1"), "127.0.0.1:5000/demo"));
    }

    #[test]
    fn names_are_exchanged_and_compared_by_parts() {
        let digest = Digest::of(b"");
        let asked: Reference = format!("x.io/a/b:1@{digest}").parse().unwrap();
        assert_eq!(asked.with_name("m.io:5000/x/a/b").unwrap().to_string(), format!("m.io:5000/x/a/b:1@{digest}"));
        for bad in ["m.io/a:1", "m.io/a:latest", "m.io/A", "m.io/..", ""] {
            assert!(asked.with_name(bad).is_err(), "{bad}");
        }
        for (prefix, wanted) in [("x.io", true), ("x.io/a", true), ("x.io/a/b", true), ("x.i", false), ("x.io/a/", false), ("", false)] {
            assert_eq!(is_prefix_of_name(prefix, &asked.name()), wanted, "{prefix}");
        }
    }

    #[test]
    fn hostile_references_are_refused() {
        let long = format!("x.io/{}", "a".repeat(256));
        for text in [
            "",
            ":",
            "/",
            "a//b",
            "a/../b",
            "../a",
            "a/.",
            "A/b c",
            "x.io/A",
            "x.io/a:",
            "x.io/a:.t",
            "x.io/a:b:c",
            "x.io:0/a",
            "x.io:99999/a",
            "x.io:+80/a",
            "-x.io/a",
            "x..io/a",
            "[::1/a",
            "x.io/a@sha256:abc",
            "x.io/a@",
            "x.io/a?b",
            "x.io/a#b",
            "x.io/a%2f",
            "x.io/a\n",
            "user@x.io/a",
            "x.io/a___b",
            "x.io/é",
            "https://x.io/a",
            &long,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was taken");
        }
    }
}
