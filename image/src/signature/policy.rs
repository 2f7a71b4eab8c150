//! `policy.json` of containers (containers-policy.json(5)): which images have to be signed, and by whom.
//!
//! As there, nothing is guessed: an unknown member, a repeated key and an empty list of requirements are errors. The member `keyPath`
//! may name a resource of the broker (`kbs:///…`), as in Confidential Containers.

use super::identity::SignedIdentity;
use crate::{manifest::clip, reference::Reference, strict_json};
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;

/// Longest policy, in bytes.
pub const MAX_POLICY: usize = 1 << 20;
/// Most keys of one requirement.
const MAX_KEYS: usize = 16;
/// The transport under which images of registries stand.
const DOCKER: &str = "docker";

/// A policy that cannot be used; nothing runs then.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// Not the JSON that it should be.
    #[error("signature policy: {0}")]
    Json(#[from] serde_json::Error),
    /// A rule broken.
    #[error("signature policy: {scope}: {rule}")]
    Rule {
        /// Where.
        scope: String,
        /// The rule.
        rule: String,
    },
}

/// A parsed policy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignaturePolicy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

/// One requirement; all of a list have to be met.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub enum Requirement {
    /// Any image will do.
    InsecureAcceptAnything {},
    /// No image will do.
    Reject {},
    /// Signed with GPG.
    SignedBy(Unsupported),
    /// Based on an image that is signed with GPG.
    SignedBaseLayer(Unsupported),
    /// Signed with cosign.
    SigstoreSigned(Box<Sigstore>),
}

/// Requirements that are read, so that a policy shared with other tools can be used, and refused where they apply.
#[derive(Debug, Clone, Deserialize)]
pub struct Unsupported {}

/// `sigstoreSigned`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sigstore {
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<String>,
    rekor_public_key_paths: Option<Vec<String>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    signed_identity: Option<SignedIdentity>,
}

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource<'a> {
    /// A file, or a resource of the broker.
    Path(&'a str),
    /// In the policy: base64 of PEM, or PEM.
    Data(&'a str),
}

impl SignaturePolicy {
    /// Reads a policy.
    pub fn parse(json: &[u8]) -> Result<Self, PolicyError> {
        if json.len() > MAX_POLICY {
            return Err(rule("policy.json", format!("longer than {MAX_POLICY} bytes")));
        }
        let policy: Self = strict_json::parse(json)?;
        check("default", &policy.default)?;
        for (transport, scopes) in &policy.transports {
            for (scope, requirements) in scopes {
                check(&format!("transports.{}.{:?}", clip(transport), clip(scope)), requirements)?;
            }
        }
        Ok(policy)
    }

    /// The requirements for an image and the name of the scope that has them: the most specific scope alone counts.
    pub fn requirements(&self, reference: &Reference) -> (String, &[Requirement]) {
        let docker = self.transports.get(DOCKER);
        let found = docker.and_then(|docker| scopes(reference).into_iter().find_map(|scope| docker.get(&scope).map(|r| (scope, r))));
        match found {
            Some((scope, requirements)) => (format!("transports.docker.{scope:?}"), requirements),
            None => ("default".to_owned(), &self.default),
        }
    }

    /// Whether this image has to be signed to be accepted.
    pub fn demands_signature(&self, reference: &Reference) -> bool {
        self.requirements(reference).1.iter().any(|requirement| matches!(requirement, Requirement::SigstoreSigned(_)))
    }

    /// Whether every image is accepted as it is.
    pub fn accepts_anything(&self) -> bool {
        let open = |list: &Vec<Requirement>| list.iter().all(|r| matches!(r, Requirement::InsecureAcceptAnything {}));
        open(&self.default) && self.transports.get(DOCKER).is_none_or(|docker| docker.values().all(open))
    }
}

impl Sigstore {
    /// What the signature has to say about the name.
    pub fn identity(&self) -> SignedIdentity {
        self.signed_identity.clone().unwrap_or_default()
    }

    /// The keys, one of which has to have signed.
    pub fn keys(&self) -> Vec<KeySource<'_>> {
        sources(&self.key_path, &self.key_paths, &self.key_data, &self.key_datas)
    }

    /// The transparency logs' keys, one of which has to have logged the signature; empty where none is wanted.
    pub fn rekor_keys(&self) -> Vec<KeySource<'_>> {
        let (path, paths) = (&self.rekor_public_key_path, &self.rekor_public_key_paths);
        sources(path, paths, &self.rekor_public_key_data, &self.rekor_public_key_datas)
    }

    /// What of it is not supported here.
    pub fn unsupported(&self) -> Option<&'static str> {
        match (&self.fulcio, &self.pki) {
            (Some(_), _) => Some("fulcio (certificates of short life)"),
            (_, Some(_)) => Some("pki (certificates)"),
            _ => None,
        }
    }

    fn check(&self, scope: &str) -> Result<(), PolicyError> {
        let kinds = [
            self.key_path.is_some(),
            self.key_paths.is_some(),
            self.key_data.is_some(),
            self.key_datas.is_some(),
            self.fulcio.is_some(),
            self.pki.is_some(),
        ];
        if kinds.iter().filter(|given| **given).count() != 1 {
            return Err(rule(scope, "sigstoreSigned wants exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio, pki"));
        }
        let rekor = [
            self.rekor_public_key_path.is_some(),
            self.rekor_public_key_paths.is_some(),
            self.rekor_public_key_data.is_some(),
            self.rekor_public_key_datas.is_some(),
        ];
        if rekor.iter().filter(|given| **given).count() > 1 {
            return Err(rule(scope, "sigstoreSigned wants at most one of rekorPublicKeyPath, …Paths, …Data, …Datas"));
        }
        if self.unsupported().is_none() && self.keys().is_empty() || rekor.contains(&true) && self.rekor_keys().is_empty() {
            return Err(rule(scope, "an empty list of keys, which no signature could meet"));
        }
        if self.keys().len() > MAX_KEYS || self.rekor_keys().len() > MAX_KEYS {
            return Err(rule(scope, format!("more than {MAX_KEYS} keys")));
        }
        Ok(())
    }
}

fn sources<'a>(
    path: &'a Option<String>,
    paths: &'a Option<Vec<String>>,
    data: &'a Option<String>,
    datas: &'a Option<Vec<String>>,
) -> Vec<KeySource<'a>> {
    let paths = path.iter().chain(paths.iter().flatten()).map(|path| KeySource::Path(path));
    paths.chain(data.iter().chain(datas.iter().flatten()).map(|data| KeySource::Data(data))).collect()
}

fn rule(scope: &str, rule: impl Into<String>) -> PolicyError {
    PolicyError::Rule { scope: scope.to_owned(), rule: rule.into() }
}

fn check(scope: &str, requirements: &[Requirement]) -> Result<(), PolicyError> {
    if requirements.is_empty() {
        return Err(rule(scope, "an empty list of requirements: write {\"type\": \"insecureAcceptAnything\"} or {\"type\": \"reject\"}"));
    }
    requirements.iter().try_for_each(|requirement| match requirement {
        Requirement::SigstoreSigned(sigstore) => sigstore.check(scope),
        _ => Ok(()),
    })
}

/// From the most specific to the least: the reference, the repository, each namespace above it, the registry, its domains as `*.domain`,
/// the transport's default.
fn scopes(reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let mut scopes: Vec<String> = Vec::new();
    scopes.extend(reference.digest().map(|digest| format!("{name}@{digest}")));
    scopes.extend(reference.tag().map(|tag| format!("{name}:{tag}")));
    let mut rest = name.as_str();
    scopes.push(rest.to_owned());
    while let Some((parent, _)) = rest.rsplit_once('/') {
        scopes.push(parent.to_owned());
        rest = parent;
    }
    let mut host = rest.split(':').next().unwrap_or_default();
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<SignaturePolicy, PolicyError> {
        SignaturePolicy::parse(json.as_bytes())
    }

    fn scope_of(policy: &SignaturePolicy, reference: &str) -> String {
        policy.requirements(&reference.parse().unwrap()).0
    }

    #[test]
    fn the_most_specific_scope_counts() {
        let names = ["", "*.io", "*.r.io", "q.r.io", "q.r.io/a", "q.r.io/a/b", "q.r.io/a/b:1", "q.r.io:5000/a", "docker.io/library"];
        let scopes: Vec<String> = names.iter().map(|name| format!("{name:?}:[{{\"type\":\"reject\"}}]")).collect();
        let policy =
            parse(&format!("{{\"default\":[{{\"type\":\"reject\"}}],\"transports\":{{\"docker\":{{{}}}}}}}", scopes.join(","))).unwrap();
        for (reference, wanted) in [
            ("q.r.io/a/b:1", "q.r.io/a/b:1"),
            ("q.r.io/a/b:2", "q.r.io/a/b"),
            ("q.r.io/a/c", "q.r.io/a"),
            ("q.r.io/ab", "q.r.io"),
            ("z.r.io/a", "*.r.io"),
            ("q.r.io:5000/a/x", "q.r.io:5000/a"),
            ("q.r.io:5000/b", "*.r.io"),
            ("s.io/a", "*.io"),
            ("busybox", "docker.io/library"),
            ("x.de/a", ""),
        ] {
            assert_eq!(scope_of(&policy, reference), format!("transports.docker.{wanted:?}"), "{reference}");
        }
        let pinned = format!("q.r.io/a/b:1@sha256:{}", "ab".repeat(32));
        assert_eq!(scope_of(&policy, &pinned), "transports.docker.\"q.r.io/a/b:1\"");
        let bare = parse(r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"oci":{"":[{"type":"reject"}]}}}"#).unwrap();
        assert_eq!(scope_of(&bare, "x.de/a"), "default");
        assert!(bare.accepts_anything() && !policy.accepts_anything());
    }

    #[test]
    fn a_policy_is_as_strict_as_containers_makes_it() {
        let accept = r#"{"type":"insecureAcceptAnything"}"#;
        let signed = |members: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned"{members}}}]}}"#);
        assert!(parse(&signed(r#","keyPath":"kbs:///a/b/c""#)).is_ok());
        let cases = [
            (r#"{"default":[]}"#.to_owned(), "empty list of requirements"),
            (format!(r#"{{"default":[{accept}],"transports":{{"docker":{{"x.io":[]}}}}}}"#), "x.io"),
            (r#"{"transports":{}}"#.into(), "default"),
            (format!(r#"{{"default":[{accept}],"x":1}}"#), "x"),
            (format!(r#"{{"default":[{accept}],"default":[{accept}]}}"#), "given twice"),
            (r#"{"default":[{"type":"acceptAnything"}]}"#.into(), "acceptAnything"),
            (r#"{"default":[{"type":"reject","x":1}]}"#.into(), "x"),
            (signed(""), "exactly one of keyPath"),
            (signed(r#","keyPath":"a","keyData":"b""#), "exactly one of keyPath"),
            (signed(r#","keyPaths":[]"#), "empty list of keys"),
            (signed(r#","keyPath":"a","rekorPublicKeyData":"x","rekorPublicKeyPath":"y""#), "at most one of rekor"),
            (signed(r#","keyPath":"a","signedIdentity":{"type":"x"}"#), "matchExact"),
            (signed(r#","keypath":"a""#), "keypath"),
        ];
        for (json, wanted) in cases {
            let error = parse(&json).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{json}: {error}");
        }
    }
}
