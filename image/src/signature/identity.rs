//! Whether the name that was signed is the name that was asked for (containers-policy.json(5), `signedIdentity`).

use crate::{
    manifest::clip,
    reference::{Reference, is_prefix_of_name},
};
use serde::Deserialize;

/// What a signature has to say about the image's name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SignedIdentity {
    /// The same name and tag; never right for an image that is asked for by digest.
    MatchExact {},
    /// The same name and tag, or the same name where the image is asked for by digest. The default.
    MatchRepoDigestOrExact {},
    /// The same name, whatever the tag. What cosign signs has no tag.
    MatchRepository {},
    /// This name and tag.
    ExactReference {
        /// With its tag.
        docker_reference: String,
    },
    /// This name.
    ExactRepository {
        /// Without a tag.
        docker_repository: String,
    },
    /// As the default, after `prefix` of the asked name was replaced: for mirrors that the user names himself.
    RemapIdentity {
        /// Of the name that is asked for.
        prefix: String,
        /// What stands there in the signed name.
        signed_prefix: String,
    },
    /// The digest alone counts, whatever the name: an extension, for cosign's bundles, which name nothing but the digest. Whoever may
    /// push to any repository can then present an image that this key signed under any name.
    MatchDigest {},
}

impl Default for SignedIdentity {
    fn default() -> Self {
        Self::MatchRepoDigestOrExact {}
    }
}

impl SignedIdentity {
    /// Whether a signature that names `signed` (nothing, if it names no image) is for `asked`; else, why not and what to change.
    pub fn check(&self, asked: &Reference, signed: Option<&str>) -> Result<(), String> {
        if *self == (Self::MatchDigest {}) {
            return Ok(());
        }
        let Some(text) = signed else {
            return Err("it names no image, as cosign's bundles do not, and so says nothing of the image's name; let \
                        signedIdentity be {\"type\": \"matchDigest\"} if the digest alone is to count"
                .into());
        };
        let signed: Reference = text.parse().map_err(|_| format!("it names {:?}, which is no image", clip(text)))?;
        // A reference without a tag is read as one with the tag `latest`, which nobody signed.
        let tagged = signed.digest().is_some() || has_tag(text);
        let exact = |asked: &Reference| tagged && signed.digest().is_none() && asked.digest().is_none() && signed == *asked;
        let same_name = |asked: &Reference| signed.name() == asked.name();
        let right = match self {
            Self::MatchDigest {} => true,
            Self::MatchExact {} => exact(asked),
            Self::MatchRepoDigestOrExact {} => repo_digest_or_exact(asked, &same_name, &exact),
            Self::MatchRepository {} => same_name(asked),
            Self::ExactReference { docker_reference } => docker_reference.parse().is_ok_and(|wanted| tagged && signed == wanted),
            Self::ExactRepository { docker_repository } => {
                docker_repository.parse::<Reference>().is_ok_and(|wanted| same_name(&wanted) && !has_tag(docker_repository))
            }
            Self::RemapIdentity { prefix, signed_prefix } => {
                let asked = remapped(asked, prefix, signed_prefix)?;
                repo_digest_or_exact(&asked, &same_name, &exact)
            }
        };
        match right {
            true => Ok(()),
            false if !tagged && same_name(asked) => Err(format!(
                "it names {:?} without a tag, as cosign's do, and {asked} was asked for; let signedIdentity be {{\"type\": \
                 \"matchRepository\"}} if any tag of it will do, or ask for the image by digest",
                clip(text)
            )),
            false => Err(format!("it names {:?}, and {asked} was asked for", clip(text))),
        }
    }
}

fn repo_digest_or_exact(asked: &Reference, same_name: &dyn Fn(&Reference) -> bool, exact: &dyn Fn(&Reference) -> bool) -> bool {
    if asked.digest().is_some() { same_name(asked) } else { exact(asked) }
}

/// A colon after the last slash begins a tag.
fn has_tag(text: &str) -> bool {
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    text[last..].contains(':')
}

fn remapped(asked: &Reference, prefix: &str, signed_prefix: &str) -> Result<Reference, String> {
    let name = asked.name();
    if !is_prefix_of_name(prefix, &name) {
        return Ok(asked.clone());
    }
    let name = format!("{signed_prefix}{}", &name[prefix.len()..]);
    asked.with_name(&name).map_err(|e| format!("signedIdentity.signedPrefix: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(json: &str) -> SignedIdentity {
        serde_json::from_str(json).unwrap()
    }

    fn allows(json: &str, asked: &str, signed: &str) -> bool {
        identity(json).check(&asked.parse().unwrap(), Some(signed)).is_ok()
    }

    #[test]
    fn each_rule_matches_what_it_says() {
        let digest = format!("x.io/a@sha256:{}", "ab".repeat(32));
        type Pairs = &'static [(&'static str, &'static str, bool)];
        let cases: [(&str, Pairs); 7] = [
            (r#"{"type":"matchExact"}"#, &[("x.io/a:1", "x.io/a:1", true), ("x.io/a:1", "x.io/a:2", false), ("x.io/a:1", "x.io/a", false)]),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                &[("x.io/a:1", "x.io/a:1", true), ("x.io/a:latest", "x.io/a", false), ("x.io/a:1", "x.io/b:1", false)],
            ),
            (
                r#"{"type":"matchRepository"}"#,
                &[("x.io/a:1", "x.io/a", true), ("x.io/a:1", "x.io/a:9", true), ("x.io/a", "x.io/ab", false)],
            ),
            (
                r#"{"type":"exactReference","dockerReference":"y.io/b:1"}"#,
                &[("x.io/a:1", "y.io/b:1", true), ("y.io/b:1", "y.io/b:2", false), ("y.io/b", "y.io/b", false)],
            ),
            (r#"{"type":"exactRepository","dockerRepository":"y.io/b"}"#, &[("x.io/a:1", "y.io/b", true), ("x.io/a:1", "x.io/a", false)]),
            (
                r#"{"type":"remapIdentity","prefix":"mirror.io/y","signedPrefix":"y.io"}"#,
                &[("mirror.io/y/b:1", "y.io/b:1", true), ("mirror.io/yy/b:1", "y.io/y/b:1", false), ("y.io/b:1", "y.io/b:1", true)],
            ),
            (r#"{"type":"matchDigest"}"#, &[("x.io/a:1", "y.io/b:1", true)]),
        ];
        for (json, pairs) in cases {
            for (asked, signed, wanted) in pairs {
                assert_eq!(allows(json, asked, signed), *wanted, "{json}: {asked} {signed}");
            }
        }
        assert!(allows(r#"{"type":"matchRepoDigestOrExact"}"#, &digest, "x.io/a"));
        assert!(!allows(r#"{"type":"matchRepoDigestOrExact"}"#, &digest, "x.io/b"));
        assert!(!allows(r#"{"type":"matchExact"}"#, &digest, &digest));
        assert!(allows(r#"{"type":"matchRepository"}"#, "busybox", "docker.io/library/busybox:1"), "names are normalised");
    }

    #[test]
    fn the_default_and_the_nameless_are_strict() {
        let asked: Reference = "x.io/a:1".parse().unwrap();
        let default = SignedIdentity::default();
        assert!(default.check(&asked, Some("x.io/a:1")).is_ok());
        let error = default.check(&asked, Some("x.io/a")).unwrap_err();
        assert!(error.contains("matchRepository"), "{error}");
        let error = default.check(&asked, None).unwrap_err();
        assert!(error.contains("matchDigest"), "{error}");
        assert!(identity(r#"{"type":"matchDigest"}"#).check(&asked, None).is_ok());
        assert!(default.check(&asked, Some("x.io/a\n:1")).is_err());
    }

    #[test]
    fn unknown_rules_and_members_are_errors() {
        for json in [r#"{"type":"matchAnything"}"#, r#"{"type":"matchExact","x":1}"#, r#"{}"#, r#"{"type":"exactReference"}"#] {
            assert!(serde_json::from_str::<SignedIdentity>(json).is_err(), "{json}");
        }
    }
}
