//! Initdata 0.1.0 as Confidential Containers defines it: a TOML document of named files, whose digest the TEE reports (SNP
//! HOST_DATA, TDX MRCONFIGID, vTPM PCR 8). It reaches the guest through the host, as base64 of gzip in an annotation, so
//! everything here reads hostile input: the digest is what makes it trustworthy, and only the broker can tell.

pub use crate::digest::{Algorithm, DigestError, InitdataDigest};
use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, GzBuilder, bufread::GzDecoder};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
};
use thiserror::Error;

/// The only version there is.
pub const VERSION: &str = "0.1.0";

/// Longest TOML document, in bytes, and longest packed form. The bound holds while unpacking: a few bytes of gzip can claim
/// gigabytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The file in which the broker's address stands.
const AGENT_FILE: &str = "aa.toml";

/// Why initdata was not taken.
#[derive(Debug, Error)]
pub enum InitdataError {
    /// Longer than [`MAX_BYTES`], packed or unpacked.
    #[error("initdata: longer than {MAX_BYTES} bytes")]
    TooLong,
    /// The annotation.
    #[error("initdata: the annotation is not base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// The packed form.
    #[error("initdata: not one gzip stream: {0}")]
    Gzip(String),
    /// The document.
    #[error("initdata: {0}")]
    Toml(String),
    /// Another version of the format.
    #[error("initdata: version {0:?}, this program knows {VERSION:?}")]
    Version(String),
    /// A file inside the document.
    #[error("initdata: data.{file:?}: {message}")]
    File {
        /// Its key.
        file: String,
        /// What is wrong with it, one line.
        message: String,
    },
}

/// Where the broker is, as `aa.toml` says (`[token_configs.kbs]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerAddress {
    /// `http://` or `https://`, without the protocol's path.
    pub url: String,
    /// Certificate to trust, PEM, beside the web's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<String>,
}

/// A parsed document. It keeps the text, because the digest is over the text and the broker wants to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initdata {
    text: String,
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
}

/// Unknown keys are refused: what this program does not understand might be what the owner relied on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: String,
    algorithm: Algorithm,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

impl Initdata {
    /// Reads the packed form: one gzip stream, nothing after it.
    pub fn parse_gzip(packed: &[u8]) -> Result<(Self, InitdataDigest), InitdataError> {
        if packed.len() > MAX_BYTES {
            return Err(InitdataError::TooLong);
        }
        let mut text = Vec::new();
        let mut unpacker = GzDecoder::new(packed).take(MAX_BYTES as u64 + 1);
        unpacker.read_to_end(&mut text).map_err(|e| InitdataError::Gzip(e.to_string()))?;
        if text.len() > MAX_BYTES {
            return Err(InitdataError::TooLong);
        }
        if !unpacker.into_inner().into_inner().is_empty() {
            return Err(InitdataError::Gzip("bytes after its end".into()));
        }
        let text = String::from_utf8(text).map_err(|_| InitdataError::Toml("not UTF-8".into()))?;
        Self::parse_toml(&text)
    }

    /// Reads the annotation's value: base64 of gzip.
    pub fn parse_annotation(value: &str) -> Result<(Self, InitdataDigest), InitdataError> {
        if value.len() > MAX_BYTES * 4 / 3 + 4 {
            return Err(InitdataError::TooLong);
        }
        Self::parse_gzip(&STANDARD.decode(value.trim())?)
    }

    /// Reads the document itself.
    pub fn parse_toml(text: &str) -> Result<(Self, InitdataDigest), InitdataError> {
        if text.len() > MAX_BYTES {
            return Err(InitdataError::TooLong);
        }
        let document: Document = toml::from_str(text).map_err(|e| InitdataError::Toml(one_line(text, &e)))?;
        if document.version != VERSION {
            return Err(InitdataError::Version(document.version.chars().take(32).collect()));
        }
        let digest = InitdataDigest::of(document.algorithm, text);
        Ok((Self { text: text.to_owned(), algorithm: document.algorithm, data: document.data }, digest))
    }

    /// The document as it was, over which the digest is.
    pub fn toml(&self) -> &str {
        &self.text
    }

    /// The digest, again.
    pub fn digest(&self) -> InitdataDigest {
        InitdataDigest::of(self.algorithm, &self.text)
    }

    /// A file of the document.
    pub fn file(&self, name: &str) -> Option<&str> {
        self.data.get(name).map(String::as_str)
    }

    /// The broker that `aa.toml` names; `None` where there is no such file or it names none. Its other settings, which are for
    /// another agent, are left alone.
    pub fn broker(&self) -> Result<Option<BrokerAddress>, InitdataError> {
        #[derive(Default, Deserialize)]
        struct Agent {
            #[serde(default)]
            token_configs: TokenConfigs,
        }
        #[derive(Default, Deserialize)]
        struct TokenConfigs {
            kbs: Option<BrokerAddress>,
        }
        let Some(text) = self.file(AGENT_FILE) else { return Ok(None) };
        let bad = |message: String| InitdataError::File { file: AGENT_FILE.into(), message };
        let agent: Agent = toml::from_str(text).map_err(|e| bad(one_line(text, &e)))?;
        let Some(broker) = agent.token_configs.kbs else { return Ok(None) };
        if !broker.url.starts_with("http://") && !broker.url.starts_with("https://") {
            return Err(bad("token_configs.kbs.url is not an http or https URL".into()));
        }
        Ok(Some(broker))
    }

    /// The packed form. The same document gives the same bytes: no time, no name, no system in the header.
    pub fn to_gzip(&self) -> Vec<u8> {
        let mut packer = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
        // Writing to memory does not fail.
        let _ = packer.write_all(self.text.as_bytes());
        packer.finish().unwrap_or_default()
    }

    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        STANDARD.encode(self.to_gzip())
    }
}

/// Where in `text`, and what, on one line: the parser's own message draws a picture over several.
pub(crate) fn one_line(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| 1 + text.as_bytes().iter().take(span.start).filter(|b| **b == b'\n').count());
    let message: String = error.message().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
    line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    const DOCUMENT: &str = r#"version = "0.1.0"
algorithm = "sha256"

[data]
"aa.toml" = '''
[token_configs]
[token_configs.coco_as]
url = "http://elsewhere"
[token_configs.kbs]
url = "http://127.0.0.1:8080"
cert = "PEM"
'''
"#;

    #[test]
    fn the_packed_form_comes_back_with_its_digest() {
        let (initdata, digest) = Initdata::parse_toml(DOCUMENT).unwrap();
        assert_eq!(digest.to_string(), format!("sha256:{}", hex::encode(Sha256::digest(DOCUMENT))));
        let (again, same) = Initdata::parse_annotation(&initdata.to_annotation()).unwrap();
        assert_eq!((again.toml(), &same), (DOCUMENT, &digest));
        assert_eq!(initdata.digest(), digest);
        assert_eq!(initdata.to_gzip(), again.to_gzip());
        assert_eq!(digest.to_string().parse::<InitdataDigest>().unwrap(), digest);
    }

    #[test]
    fn each_algorithm_is_the_documents_own() {
        for (name, length) in [("sha256", 32), ("sha384", 48), ("sha512", 64), ("sha-384", 48)] {
            let (_, digest) = Initdata::parse_toml(&DOCUMENT.replace("\"sha256\"", &format!("{name:?}"))).unwrap();
            assert_eq!(digest.bytes().len(), length);
        }
    }

    #[test]
    fn one_byte_changes_the_digest() {
        let (_, one) = Initdata::parse_toml(DOCUMENT).unwrap();
        let (_, two) = Initdata::parse_toml(&format!("{DOCUMENT} ")).unwrap();
        assert_ne!(one, two);
    }

    #[test]
    fn the_broker_is_found() {
        let (initdata, _) = Initdata::parse_toml(DOCUMENT).unwrap();
        let broker = initdata.broker().unwrap().unwrap();
        assert_eq!((broker.url.as_str(), broker.cert.as_deref()), ("http://127.0.0.1:8080", Some("PEM")));
        let (none, _) = Initdata::parse_toml("version = \"0.1.0\"\nalgorithm = \"sha256\"\n").unwrap();
        assert_eq!(none.broker().unwrap(), None);
        let (wrong, _) = Initdata::parse_toml(&DOCUMENT.replace("http://127", "ftp://127")).unwrap();
        assert!(wrong.broker().unwrap_err().to_string().contains("aa.toml"));
    }

    #[test]
    fn a_bomb_is_stopped_at_the_bound() {
        let mut packer = GzBuilder::new().write(Vec::new(), Compression::best());
        packer.write_all(&vec![b'#'; MAX_BYTES + 1]).unwrap();
        let bomb = packer.finish().unwrap();
        assert!(bomb.len() < 8192);
        assert!(matches!(Initdata::parse_gzip(&bomb), Err(InitdataError::TooLong)));
    }

    #[test]
    fn malformed_documents_are_refused_on_one_line() {
        let cases = [
            ("version = \"0.2.0\"\nalgorithm = \"sha256\"\n", "0.2.0"),
            ("version = \"0.1.0\"\nalgorithm = \"md5\"\n", "line 2"),
            ("algorithm = \"sha256\"\n", "version"),
            ("version = \"0.1.0\"\nalgorithm = \"sha256\"\nextra = 1\n", "extra"),
            ("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\nx = 1\n", "line 4"),
            ("version = \"0.1.0\"\nversion = \"0.1.0\"\n", "line 2"),
            ("= = =", "line 1"),
        ];
        for (text, wanted) in cases {
            let error = Initdata::parse_toml(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn hostile_packed_forms_are_refused() {
        let (initdata, _) = Initdata::parse_toml(DOCUMENT).unwrap();
        let good = initdata.to_gzip();
        assert!(matches!(Initdata::parse_gzip(b""), Err(InitdataError::Gzip(_))));
        assert!(matches!(Initdata::parse_gzip(b"not gzip"), Err(InitdataError::Gzip(_))));
        assert!(matches!(Initdata::parse_gzip(&good[..good.len() - 1]), Err(InitdataError::Gzip(_))));
        assert!(matches!(Initdata::parse_gzip(&[good.as_slice(), b"x"].concat()), Err(InitdataError::Gzip(_))));
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        assert!(Initdata::parse_gzip(&flipped).is_err());
        assert!(matches!(Initdata::parse_gzip(&vec![0; MAX_BYTES + 1]), Err(InitdataError::TooLong)));
        assert!(matches!(Initdata::parse_annotation("%%%"), Err(InitdataError::Base64(_))));
    }
}
