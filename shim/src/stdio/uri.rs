//! Addresses of streams: a path, or `fifo:`, `file:` or `binary:` with one.

use super::StdioError;
use std::path::PathBuf;

/// Longest address, in bytes.
const MAX_URI: usize = 32 << 10;
/// Most words that a logger is given.
const MAX_WORDS: usize = 256;

/// What is at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A named pipe; an address without a scheme is one.
    Fifo(PathBuf),
    /// A file that is written at its end.
    File(PathBuf),
    /// A program that takes the output, with its arguments.
    Logger(PathBuf, Vec<String>, Readiness),
}

/// How a logger says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// `binary:`: by a byte, or by closing the descriptor, which it does too when it fails.
    ByteOrEnd,
    /// `binary-v2:`: by a byte. The end without one is a failure.
    Byte,
}

/// An address of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// What is there.
    pub place: Place,
}

impl Uri {
    /// Reads an address. As Go's shims do it, the query of a logger's becomes words: each key, followed by its value.
    pub fn parse(uri: &str) -> Result<Self, StdioError> {
        let refuse = |rule| StdioError::Address { uri: uri.chars().take(256).collect(), rule };
        if uri.len() > MAX_URI {
            return Err(refuse("longer than 32 KiB"));
        }
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(Self { place: Place::Fifo(absolute(uri).ok_or_else(|| refuse("an absolute path is expected"))?) });
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path, false).and_then(|path| absolute(&path)).ok_or_else(|| refuse("an absolute path is expected"))?;
        let place = match scheme {
            "fifo" => Place::Fifo(path),
            "file" => Place::File(path),
            "binary" | "binary-v2" => {
                let readiness = if scheme == "binary" { Readiness::ByteOrEnd } else { Readiness::Byte };
                Place::Logger(path, words(query).ok_or_else(|| refuse("its query is not one of a URL"))?, readiness)
            }
            _ => return Err(refuse("a path, fifo://, file://, binary:// or binary-v2:// is expected")),
        };
        Ok(Self { place })
    }
}

fn absolute(path: &str) -> Option<PathBuf> {
    (path.starts_with('/') && !path.contains('\0')).then(|| PathBuf::from(path))
}

fn words(query: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        words.push(decode(key, true)?);
        words.push(decode(value, true)?);
        if words.len() > MAX_WORDS {
            return None;
        }
    }
    Some(words)
}

/// Undoes percent-encoding; in a query, `+` is a space.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                hex::decode(digits).ok()?[0]
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(uri: &str) -> Place {
        Uri::parse(uri).unwrap().place
    }

    #[test]
    fn each_kind_is_known() {
        assert_eq!(place("/run/f"), Place::Fifo("/run/f".into()));
        assert_eq!(place("fifo:///run/f"), Place::Fifo("/run/f".into()));
        assert_eq!(place("file:///var/log/a%20b"), Place::File("/var/log/a b".into()));
    }

    #[test]
    fn nerdctls_logger_gets_its_words() {
        let uri = "binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fnerdctl&quiet";
        let words = ["_NERDCTL_INTERNAL_LOGGING", "/var/lib/nerdctl", "quiet", ""].map(str::to_owned);
        assert_eq!(place(uri), Place::Logger("/usr/bin/nerdctl".into(), words.clone().into(), Readiness::ByteOrEnd));
        assert_eq!(place(&uri.replace("binary:", "binary-v2:")), Place::Logger("/usr/bin/nerdctl".into(), words.into(), Readiness::Byte));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let many = format!("binary:///x?{}", "a&".repeat(MAX_WORDS));
        for uri in ["f", "http://x/y", "file://relative", "binary:///x?a=%", "binary:///x?a=%zz", "file:///a%00b", "fifo://", &many] {
            assert!(Uri::parse(uri).is_err(), "{uri}");
        }
        assert!(Uri::parse(&"/".repeat(MAX_URI + 1)).unwrap_err().to_string().len() < 512);
    }

    #[test]
    fn streams_of_containerds_own_are_refused_with_what_is_expected() {
        for uri in ["ttrpc+unix:///run/containerd/s/1?streaming_id=a", "grpc+unix:///run/s?streaming_id=a"] {
            let error = Uri::parse(uri).unwrap_err().to_string();
            assert!(error.contains(uri) && error.contains("fifo://") && !error.contains('\n'), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_address_panics(uri in ".{0,200}") {
            let _ = Uri::parse(&uri);
        }
    }
}
