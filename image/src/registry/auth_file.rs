//! `auth.json` (containers-auth.json(5)), which is also Docker's `config.json` and what Confidential Containers keep in the broker.

use super::auth::Credentials;
use crate::{
    manifest::clip,
    reference::{Reference, is_prefix_of_name},
    strict_json,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use std::collections::BTreeMap;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// Longest file, in bytes.
pub const MAX_AUTH_FILE: usize = 1 << 20;

/// A file that cannot be used. Nothing of its secrets is in the text.
#[derive(Debug, Error)]
pub enum AuthFileError {
    /// Not the JSON that it should be.
    #[error("auth.json: not JSON of the form {{\"auths\": {{\"registry.example\": {{\"auth\": \"base64 of user:password\"}}}}}}")]
    Json,
    /// One entry of it.
    #[error("auth.json: {key:?}: {rule}")]
    Entry {
        /// Which.
        key: String,
        /// What is wrong with it.
        rule: &'static str,
    },
}

/// Credentials by registry or namespace. Wiped when dropped.
#[derive(Debug, Default)]
pub struct AuthFile(BTreeMap<String, Credentials>);

#[derive(Deserialize)]
struct FileJson {
    #[serde(default)]
    auths: BTreeMap<String, EntryJson>,
}

#[derive(Deserialize)]
struct EntryJson {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Drop for EntryJson {
    fn drop(&mut self) {
        for secret in [&mut self.auth, &mut self.password, &mut self.identitytoken] {
            secret.zeroize();
        }
    }
}

impl AuthFile {
    /// Reads a file. Entries without credentials, which tools leave behind on logging out, are nothing.
    pub fn parse(json: &[u8]) -> Result<Self, AuthFileError> {
        if json.len() > MAX_AUTH_FILE {
            return Err(AuthFileError::Json);
        }
        let file: FileJson = strict_json::parse(json).map_err(|_| AuthFileError::Json)?;
        let mut credentials = BTreeMap::new();
        for (key, entry) in &file.auths {
            if let Some(found) = entry.credentials().map_err(|rule| AuthFileError::Entry { key: clip(key), rule })? {
                credentials.insert(normal(key), found);
            }
        }
        Ok(Self(credentials))
    }

    /// One user for one registry.
    pub fn of_registry(registry: &str, credentials: Credentials) -> Self {
        Self(BTreeMap::from([(normal(registry), credentials)]))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The credentials for an image: of its repository, else of the namespaces above it, else of its registry.
    pub fn find(&self, reference: &Reference) -> Option<&Credentials> {
        let name = reference.name();
        self.0.iter().filter(|(key, _)| is_prefix_of_name(key, &name)).max_by_key(|(key, _)| key.len()).map(|(_, found)| found)
    }
}

impl EntryJson {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        let pair = match (self.auth.as_deref().filter(|auth| !auth.is_empty()), &self.username, &self.password) {
            (Some(auth), ..) => {
                let decoded = Zeroizing::new(STANDARD.decode(auth.trim()).map_err(|_| "auth is not base64")?);
                let text = std::str::from_utf8(&decoded).map_err(|_| "auth is not the base64 of a text")?;
                let (user, password) = text.split_once(':').ok_or("auth is not the base64 of user:password")?;
                // Some tools pad it.
                Some((user.to_owned(), password.trim_end_matches(['\0', '\n']).to_owned()))
            }
            (None, Some(user), Some(password)) => Some((user.clone(), password.clone())),
            _ => None,
        };
        if self.identitytoken.as_ref().is_some_and(|token| !token.is_empty()) {
            return Err("has an identitytoken, which is not supported: use a user and an access token");
        }
        Ok(pair.map(|(user, password)| Credentials::new(user, password)))
    }
}

/// Docker writes URLs, and its Hub has three names.
fn normal(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let key = bare.map_or(key, |rest| rest.split('/').next().unwrap_or_default()).trim_end_matches('/');
    for hub in ["index.docker.io", "registry-1.docker.io"] {
        if key == hub {
            return "docker.io".into();
        }
    }
    key.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(user: &str) -> String {
        format!("{{\"auth\":\"{}\"}}", STANDARD.encode(format!("{user}:secret")))
    }

    fn user_of(file: &AuthFile, reference: &str) -> String {
        let found = file.find(&reference.parse().unwrap());
        found.map_or_else(|| "nobody".into(), |credentials| credentials.user().to_owned())
    }

    #[test]
    fn the_longest_name_counts() {
        let keys = ["https://index.docker.io/v1/", "q.io", "q.io/team", "q.io/team/app", "r.io:5000"];
        let auths: Vec<String> = keys.iter().enumerate().map(|(at, key)| format!("{key:?}:{}", entry(&format!("u{at}")))).collect();
        let file = AuthFile::parse(format!("{{\"auths\":{{{}}},\"credHelpers\":{{}}}}", auths.join(",")).as_bytes()).unwrap();
        for (reference, user) in [
            ("busybox", "u0"),
            ("q.io/x", "u1"),
            ("q.io/team/x", "u2"),
            ("q.io/team/app:1", "u3"),
            ("q.io/teams/app:1", "u1"),
            ("r.io:5000/x", "u4"),
            ("r.io/x", "nobody"),
        ] {
            assert_eq!(user_of(&file, reference), user, "{reference}");
        }
        let plain = AuthFile::parse(br#"{"auths":{"a.io":{"username":"me","password":"x"},"b.io":{}}}"#).unwrap();
        assert_eq!((user_of(&plain, "a.io/x"), user_of(&plain, "b.io/x")), ("me".into(), "nobody".into()));
    }

    #[test]
    fn malformed_files_are_refused_without_their_secrets() {
        let secret = STANDARD.encode("no colon in this secret");
        for json in [
            "x".to_owned(),
            format!("{{\"auths\":{{\"a.io\":{{\"auth\":\"{secret}\"}}}}}}"),
            format!("{{\"auths\":{{\"a.io\":{{\"auth\":\"{secret}%\"}}}}}}"),
            format!("{{\"auths\":{{\"a.io\":{{\"identitytoken\":\"{secret}\"}}}}}}"),
            format!("{{\"auths\":{{\"a.io\":{{\"auth\":[\"{secret}\"]}}}}}}"),
        ] {
            let error = AuthFile::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains(&secret[..8]) && error.starts_with("auth.json"), "{error}");
        }
    }
}
