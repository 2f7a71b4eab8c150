//! The administrator's key.

use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use thiserror::Error;
use zeroize::Zeroizing;

/// Length in bytes.
const KEY_LEN: usize = 32;

/// Why there is no key.
#[derive(Debug, Error)]
pub enum AdminKeyError {
    /// The file.
    #[error("admin key {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others can read it.
    #[error("admin key {0}: readable by others; chmod 600 it")]
    Mode(PathBuf),
    /// Something else is in it.
    #[error("admin key: expected {} hex digits", 2 * KEY_LEN)]
    Form,
    /// The kernel gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
}

/// The key; wiped when dropped, never shown.
#[derive(Clone)]
pub struct AdminToken(Zeroizing<[u8; KEY_LEN]>);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminToken").finish_non_exhaustive()
    }
}

impl AdminToken {
    /// A new key.
    pub fn generate() -> Result<Self, AdminKeyError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *bytes).map_err(|e| AdminKeyError::Random(e.to_string()))?;
        Ok(Self(bytes))
    }

    /// From 64 hex digits.
    pub fn from_hex(text: &str) -> Result<Self, AdminKeyError> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        hex::decode_to_slice(text.trim(), &mut *bytes).map_err(|_| AdminKeyError::Form)?;
        Ok(Self(bytes))
    }

    /// 64 hex digits.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*self.0))
    }

    /// From a file that only its owner can read.
    pub fn load(path: &Path) -> Result<Self, AdminKeyError> {
        let error = |source| AdminKeyError::File { path: path.to_owned(), source };
        let file = fs::File::open(path).map_err(error)?;
        if file.metadata().map_err(error)?.mode() & 0o077 != 0 {
            return Err(AdminKeyError::Mode(path.to_owned()));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(256).read_to_string(&mut text).map_err(error)?;
        Self::from_hex(&text)
    }

    /// From a file, which is made with a new key if it is not there.
    pub fn load_or_create(path: &Path) -> Result<Self, AdminKeyError> {
        let error = |source| AdminKeyError::File { path: path.to_owned(), source };
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let mut file = match file {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Self::load(path),
            Err(e) => return Err(error(e)),
        };
        let token = Self::generate()?;
        file.write_all(format!("{}\n", *token.to_hex()).as_bytes()).and_then(|()| file.sync_all()).map_err(error)?;
        Ok(token)
    }

    /// Whether `presented` is this key. The time does not depend on how much of it is right: both sides are hashed, and all bytes of
    /// the hashes compared.
    pub(crate) fn is(&self, presented: &str) -> bool {
        let (ours, theirs) = (Sha256::digest(self.to_hex().as_bytes()), Sha256::digest(presented));
        ours.iter().zip(theirs.iter()).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_is_made_once_and_for_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.key");
        let made = AdminToken::load_or_create(&path).unwrap();
        assert!(AdminToken::load_or_create(&path).unwrap().is(&made.to_hex()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(AdminToken::load(&path), Err(AdminKeyError::Mode(_))));
        assert!(matches!(AdminToken::load(&directory.path().join("none")), Err(AdminKeyError::File { .. })));
    }

    #[test]
    fn only_the_whole_key_is_the_key() {
        let key = AdminToken::generate().unwrap();
        let text = key.to_hex();
        assert!(key.is(&text));
        for wrong in ["", &text[..63], &format!("{}0", *text), &AdminToken::generate().unwrap().to_hex()] {
            assert!(!key.is(wrong));
        }
        for bad in ["", "00", &"g".repeat(64), &"0".repeat(66)] {
            assert!(matches!(AdminToken::from_hex(bad), Err(AdminKeyError::Form)), "{bad}");
        }
        assert!(!format!("{key:?}").contains(&text[..8]), "not shown");
    }
}
