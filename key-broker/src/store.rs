//! Secrets, their rules and the token key on disk, in one file that survives a kill at any moment: redb commits by copy-on-write with
//! checksums, and every change here is one transaction.
//!
//! The file is readable by its owner only. It is not encrypted: whoever can read it has the secrets, so it belongs on the owner's
//! side, never on a node.

use crate::{
    rule::{Rule, RuleError},
    target::Target,
};
use attestation::{ResourceUri, token::TokenSigner};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use thiserror::Error;
use zeroize::Zeroizing;

/// Path of a resource → its bytes.
const SECRETS: TableDefinition<&str, &[u8]> = TableDefinition::new("secrets");

/// Path of a resource → the text of its rule.
const RULES: TableDefinition<&str, &str> = TableDefinition::new("rules");

/// Name → bytes of the broker's own keys.
const KEYS: TableDefinition<&str, &[u8]> = TableDefinition::new("keys");

/// The signing key of the tokens.
const TOKEN_KEY: &str = "token";

/// The key before it.
const PREVIOUS_TOKEN_KEY: &str = "token.previous";

/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 1 << 20;

/// Why the store cannot do it.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The database.
    #[error("{path}: {reason}")]
    Database {
        /// Its file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A rule that is stored cannot be read.
    #[error("{resource}: {source}")]
    Rule {
        /// Whose.
        resource: String,
        /// The cause.
        source: RuleError,
    },
    /// A secret beyond [`MAX_SECRET`].
    #[error("{0}: longer than {MAX_SECRET} bytes")]
    TooLong(ResourceUri),
    /// The stored signing key.
    #[error(transparent)]
    Token(#[from] attestation::token::TokenError),
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Entry {
    /// `kbs:///…`, or a pattern for which there is a rule.
    pub resource: Target,
    /// Length of the secret; `None` where there is a rule only.
    pub bytes: Option<u64>,
    /// Text of the rule; `None` where there is none, and nobody gets the secret.
    pub rule: Option<String>,
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
}

impl Store {
    /// Opens the file, and makes it if there is none; its directory must be there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file_error = |source| StoreError::File { path: path.to_owned(), source };
        // Made here with its mode, so that there is no moment in which another user could open it.
        fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(file_error)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(file_error)?;
        let error = |e: &dyn std::fmt::Display| StoreError::Database { path: path.to_owned(), reason: e.to_string() };
        let database = Database::create(path).map_err(|e| error(&e))?;
        let store = Self { path: path.to_owned(), database };
        store.write(|transaction| {
            // A read of a table that was never opened for writing would fail.
            transaction.open_table(SECRETS)?;
            transaction.open_table(RULES)?;
            transaction.open_table(KEYS)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// The signing key of the tokens, made at the first start: tokens outlive a restart.
    pub fn token_signer(&self) -> Result<TokenSigner, StoreError> {
        let stored = self.read(|t| Ok(t.open_table(KEYS)?.get(TOKEN_KEY)?.map(|key| Zeroizing::new(key.value().to_vec()))))?;
        if let Some(bytes) = stored {
            return Ok(TokenSigner::from_bytes(&bytes)?);
        }
        let signer = TokenSigner::generate()?;
        self.write(|t| t.open_table(KEYS)?.insert(TOKEN_KEY, signer.to_bytes().as_slice()).map(drop).map_err(Into::into))?;
        Ok(signer)
    }

    /// The signing key before the present one, if there was one.
    pub fn previous_token_signer(&self) -> Result<Option<TokenSigner>, StoreError> {
        let stored = self.read(|t| Ok(t.open_table(KEYS)?.get(PREVIOUS_TOKEN_KEY)?.map(|key| Zeroizing::new(key.value().to_vec()))))?;
        Ok(stored.map(|bytes| TokenSigner::from_bytes(&bytes)).transpose()?)
    }

    /// Makes a new signing key; the present one becomes the previous.
    pub fn rotate_token_signer(&self) -> Result<TokenSigner, StoreError> {
        let (old, new) = (self.token_signer()?, TokenSigner::generate()?);
        self.write(|t| {
            let mut keys = t.open_table(KEYS)?;
            keys.insert(PREVIOUS_TOKEN_KEY, old.to_bytes().as_slice())?;
            keys.insert(TOKEN_KEY, new.to_bytes().as_slice())?;
            Ok(())
        })?;
        Ok(new)
    }

    /// Stores a secret. With a rule, both change at once; without, the rule that is there stays, and if there is none the secret is
    /// released to nobody.
    pub fn put(&self, resource: &ResourceUri, secret: &[u8], rule: Option<&Rule>) -> Result<(), StoreError> {
        if secret.len() > MAX_SECRET {
            return Err(StoreError::TooLong(resource.clone()));
        }
        self.write(|t| {
            t.open_table(SECRETS)?.insert(resource.path(), secret)?;
            if let Some(rule) = rule {
                t.open_table(RULES)?.insert(resource.path(), rule.text())?;
            }
            Ok(())
        })
    }

    /// Stores or replaces a rule alone, of a resource or of a pattern.
    pub fn put_rule(&self, resource: &Target, rule: &Rule) -> Result<(), StoreError> {
        self.write(|t| t.open_table(RULES)?.insert(resource.path(), rule.text()).map(drop).map_err(Into::into))
    }

    /// Removes secret and rule; says whether there was either.
    pub fn delete(&self, resource: &Target) -> Result<bool, StoreError> {
        self.write(|t| {
            let secret = t.open_table(SECRETS)?.remove(resource.path())?.is_some();
            let rule = t.open_table(RULES)?.remove(resource.path())?.is_some();
            Ok(secret || rule)
        })
    }

    /// Whether there is a secret.
    pub fn has_secret(&self, resource: &ResourceUri) -> Result<bool, StoreError> {
        self.read(|t| Ok(t.open_table(SECRETS)?.get(resource.path())?.is_some()))
    }

    /// A secret; to be asked for after the rule has said yes.
    pub fn secret(&self, resource: &ResourceUri) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.read(|t| Ok(t.open_table(SECRETS)?.get(resource.path())?.map(|value| Zeroizing::new(value.value().to_vec()))))
    }

    /// The rule of a resource: its own, else that of the narrowest pattern. One rule counts; they do not add up.
    pub fn rule(&self, resource: &ResourceUri) -> Result<Option<Rule>, StoreError> {
        let text = self.read(|t| {
            let rules = t.open_table(RULES)?;
            for path in Target::candidates(resource) {
                if let Some(text) = rules.get(path.as_str())? {
                    return Ok(Some(text.value().to_owned()));
                }
            }
            Ok(None)
        })?;
        let rule = text.as_deref().map(Rule::parse).transpose();
        rule.map_err(|source| StoreError::Rule { resource: resource.to_string(), source })
    }

    /// All resources in the order of their names, without their secrets.
    pub fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut entries = std::collections::BTreeMap::new();
        self.read(|t| {
            for item in t.open_table(SECRETS)?.iter()? {
                let (path, secret) = item?;
                entries.insert(path.value().to_owned(), (Some(secret.value().len() as u64), None));
            }
            for item in t.open_table(RULES)?.iter()? {
                let (path, rule) = item?;
                entries.entry(path.value().to_owned()).or_insert((None, None)).1 = Some(rule.value().to_owned());
            }
            Ok(())
        })?;
        // Only valid paths are ever stored.
        let entry = |(path, (bytes, rule)): (String, _)| Some(Entry { resource: format!("kbs:///{path}").parse().ok()?, bytes, rule });
        Ok(entries.into_iter().filter_map(entry).collect())
    }

    fn read<T>(&self, work: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let result = self.database.begin_read().map_err(redb::Error::from).and_then(|transaction| work(&transaction));
        result.map_err(|e| self.error(&e))
    }

    fn write<T>(&self, work: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let result = self.database.begin_write().map_err(redb::Error::from).and_then(|transaction| {
            let value = work(&transaction)?;
            // Durable when this returns: the answer to an administrator must not be undone by a power cut.
            transaction.commit()?;
            Ok(value)
        });
        result.map_err(|e| self.error(&e))
    }

    fn error(&self, error: &redb::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use attestation::Tee;
    use std::io::{BufRead, Write};

    fn rule(byte: u8) -> Rule {
        let digest = format!("sha256:{}", hex::encode([byte; 32])).parse().unwrap();
        Rule::exactly(Tee::Sample, &[byte; 48], &digest).unwrap()
    }

    fn uri(tag: &str) -> ResourceUri {
        ResourceUri::new("default", "key", tag).unwrap()
    }

    #[test]
    fn what_is_stored_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = Store::open(&path).unwrap();
        store.put(&uri("a"), b"secret", Some(&rule(1))).unwrap();
        store.put(&uri("b"), b"unruled", None).unwrap();
        let key = store.token_signer().unwrap().to_bytes();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(store);

        let store = Store::open(&path).unwrap();
        assert_eq!(store.secret(&uri("a")).unwrap().unwrap().as_slice(), b"secret");
        assert_eq!(store.rule(&uri("a")).unwrap().unwrap().text(), rule(1).text());
        assert!(store.rule(&uri("b")).unwrap().is_none());
        assert!(store.secret(&uri("c")).unwrap().is_none());
        assert!(store.has_secret(&uri("b")).unwrap() && !store.has_secret(&uri("c")).unwrap());
        assert_eq!(store.token_signer().unwrap().to_bytes(), key);
    }

    #[test]
    fn a_new_secret_keeps_the_rule_and_a_new_rule_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        store.put(&uri("a"), b"one", Some(&rule(1))).unwrap();
        store.put(&uri("a"), b"two", None).unwrap();
        assert_eq!(store.rule(&uri("a")).unwrap().unwrap().text(), rule(1).text());
        store.put_rule(&uri("a").into(), &rule(2)).unwrap();
        store.put_rule(&uri("z").into(), &rule(2)).unwrap();
        assert_eq!(store.secret(&uri("a")).unwrap().unwrap().as_slice(), b"two");
        let list = store.list().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0], Entry { resource: uri("a").into(), bytes: Some(3), rule: Some(rule(2).text().to_owned()) });
        assert_eq!(list[1].bytes, None);
        assert!(store.delete(&uri("a").into()).unwrap());
        assert!(!store.delete(&uri("a").into()).unwrap());
        assert!(store.secret(&uri("a")).unwrap().is_none() && store.rule(&uri("a")).unwrap().is_none());
    }

    #[test]
    fn a_pattern_counts_where_a_resource_has_no_rule_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let text = |tag: &str| store.rule(&uri(tag)).unwrap().map(|rule| rule.text().to_owned());
        store.put(&uri("a"), b"1", None).unwrap();
        assert_eq!(text("a"), None);
        store.put_rule(&"kbs:///default/*/*".parse().unwrap(), &rule(1)).unwrap();
        assert_eq!(text("a"), Some(rule(1).text().to_owned()));
        store.put_rule(&"kbs:///default/key/*".parse().unwrap(), &rule(2)).unwrap();
        assert_eq!(text("a"), Some(rule(2).text().to_owned()));
        store.put_rule(&uri("a").into(), &rule(3)).unwrap();
        assert_eq!(text("a"), Some(rule(3).text().to_owned()));
        assert_eq!(text("b"), Some(rule(2).text().to_owned()));
        assert_eq!(store.list().unwrap().len(), 3);
    }

    #[test]
    fn a_new_token_key_keeps_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let first = store.token_signer().unwrap().to_bytes();
        assert!(store.previous_token_signer().unwrap().is_none());
        let second = store.rotate_token_signer().unwrap().to_bytes();
        assert_ne!(first, second);
        assert_eq!(store.token_signer().unwrap().to_bytes(), second);
        assert_eq!(store.previous_token_signer().unwrap().unwrap().to_bytes(), first);
    }

    #[test]
    fn what_cannot_be_stored_is_said_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = Store::open(&path).unwrap();
        let error = store.put(&uri("a"), &vec![0; MAX_SECRET + 1], None).unwrap_err();
        assert!(error.to_string().starts_with("kbs:///default/key/a: longer than"), "{error}");
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("store"), "two brokers on one file: {error}");
        let error = Store::open(&directory.path().join("no/such")).unwrap_err().to_string();
        assert!(error.contains("no/such"), "{error}");
        drop(store);
        fs::write(&path, vec![7; 10_000]).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Database { .. }), "{error}");
    }

    const WRITER: &str = "CLOISTER_TEST_STORE";

    /// The child of the test below: stores one resource after the other and says so after each.
    #[test]
    #[ignore = "run by a_kill_loses_nothing_that_was_acknowledged"]
    fn writer() {
        let Some(path) = std::env::var_os(WRITER) else { return };
        let store = Store::open(Path::new(&path)).unwrap();
        for n in 0.. {
            store.put(&uri(&format!("n{n}")), &[n as u8; 4096], Some(&rule(n as u8))).unwrap();
            writeln!(std::io::stdout(), "stored {n}").unwrap();
        }
    }

    #[test]
    fn a_kill_loses_nothing_that_was_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "store::tests::writer", "--nocapture"])
            .env(WRITER, &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // The harness writes lines of its own, and without a line break before the first of ours.
        let acknowledged = lines.filter_map(|line| line.split_once("stored ").map(|(_, n)| n.parse::<u32>().unwrap()));
        let last = acknowledged.take(20).last().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&path).unwrap();
        for n in 0..=last {
            assert_eq!(store.secret(&uri(&format!("n{n}"))).unwrap().unwrap().as_slice(), [n as u8; 4096]);
            assert_eq!(store.rule(&uri(&format!("n{n}"))).unwrap().unwrap().text(), rule(n as u8).text());
        }
        assert_eq!(last, 19);
    }
}
