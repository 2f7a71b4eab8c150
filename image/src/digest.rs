//! SHA-256 digests: the one algorithm that is accepted, in the one spelling of it.
//!
//! A digest becomes a path and part of a URL, so that anything but `sha256:` and 64 lower-case hexadecimal digits is refused
//! before it is used for either (CVE-2024-3727).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::{
    fmt,
    io::{self, Read},
    str::FromStr,
    sync::{Arc, OnceLock},
};
use thiserror::Error;

/// Why bytes are not what was named.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// Not a digest.
    #[error("digest {0:?}: want \"sha256:\" and 64 lower-case hexadecimal digits")]
    Syntax(String),
    /// Other bytes.
    #[error("digest mismatch: {expected} was asked for, {actual} came: damaged in the store or on the way, or tampered with")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// More or fewer bytes.
    #[error("{digest}: {actual} bytes came where {expected} were announced: truncated, or tampered with")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes announced.
        expected: u64,
        /// Bytes seen until the check failed.
        actual: u64,
    },
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// From the raw hash.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits: safe as a file name.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// Whether `bytes` are what this digest names.
    pub fn check(&self, bytes: &[u8]) -> Result<(), DigestError> {
        let actual = Self::of(bytes);
        if actual == *self { Ok(()) } else { Err(DigestError::Mismatch { expected: *self, actual }) }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let syntax = || DigestError::Syntax(text.chars().take(128).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(syntax)?;
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(syntax());
        }
        let mut out = [0; 32];
        hex::decode_to_slice(hex, &mut out).map_err(|_| syntax())?;
        Ok(Self(out))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream and compares it with its descriptor.
pub struct Verifier {
    expected: Digest,
    size: u64,
    seen: u64,
    hasher: Sha256,
}

impl Verifier {
    /// Expects `size` bytes that hash to `expected`.
    pub fn new(expected: Digest, size: u64) -> Self {
        Self { expected, size, seen: 0, hasher: Sha256::new() }
    }

    /// Takes the next bytes; refuses the first one past the announced size, so that a peer cannot fill the disk.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), DigestError> {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        if self.seen > self.size {
            return Err(self.wrong_size());
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// The verdict at the end of the stream.
    pub fn finish(self) -> Result<(), DigestError> {
        if self.seen != self.size {
            return Err(self.wrong_size());
        }
        let actual = Digest(self.hasher.finalize().into());
        if actual == self.expected { Ok(()) } else { Err(DigestError::Mismatch { expected: self.expected, actual }) }
    }

    fn wrong_size(&self) -> DigestError {
        DigestError::Size { digest: self.expected, expected: self.size, actual: self.seen }
    }
}

/// Passes bytes through and hashes them; at their end the sum is known to whoever holds its other half.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
    sum: Arc<OnceLock<(Digest, u64)>>,
}

/// What a [`HashingReader`] has seen, once it has seen the end: the reader may be in another thread.
pub(crate) struct Sum(Arc<OnceLock<(Digest, u64)>>);

impl Sum {
    /// Digest and number of the bytes; nothing before the end was read.
    pub(crate) fn get(&self) -> Option<(Digest, u64)> {
        self.0.get().copied()
    }
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> (Self, Sum) {
        let sum = Arc::new(OnceLock::new());
        (Self { inner, hasher: Sha256::new(), count: 0, sum: sum.clone() }, Sum(sum))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if n == 0 && !buffer.is_empty() {
            self.sum.get_or_init(|| (Digest(self.hasher.clone().finalize().into()), self.count));
        }
        self.hasher.update(&buffer[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_there_at_the_end_and_not_before() {
        let (mut reader, sum) = HashingReader::new(b"hello".as_slice());
        reader.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(sum.get(), None);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        assert_eq!(sum.get(), Some((Digest::of(b"hello"), 5)));
    }

    #[test]
    fn only_one_spelling_is_a_digest() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in
            ["sha256:../../x", &good.to_uppercase(), &good.replace('a', "A"), &good[..70], &format!("sha512:{}", "a".repeat(128)), "", "0a"]
        {
            assert!(matches!(bad.parse::<Digest>(), Err(DigestError::Syntax(_))), "{bad}");
        }
    }

    #[test]
    fn a_stream_is_compared_with_its_descriptor() {
        let digest = Digest::of(b"hello");
        assert_eq!(digest.to_string(), "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        let verify = |parts: &[&[u8]], size| {
            let mut verifier = Verifier::new(digest, size);
            parts.iter().try_for_each(|part| verifier.update(part)).and_then(|()| verifier.finish())
        };
        assert_eq!(verify(&[b"he", b"llo"], 5), Ok(()));
        assert!(matches!(verify(&[b"hallo"], 5), Err(DigestError::Mismatch { .. })));
        assert!(matches!(verify(&[b"hell"], 5), Err(DigestError::Size { actual: 4, .. })));
        assert!(matches!(verify(&[b"hello", b"!"], 5), Err(DigestError::Size { actual: 6, .. })));
        assert!(digest.check(b"hello").is_ok() && digest.check(b"Hello").is_err());
    }
}
