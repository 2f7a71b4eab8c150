//! An HTTP proxy between us and everybody else: `CONNECT` for TLS, which still ends in our process, and whole URLs for plain HTTP.

use crate::Stream;
use http::Uri;
use std::{io, net::IpAddr};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest answer to `CONNECT`, in bytes.
const MAX_ANSWER: usize = 8 << 10;
/// Most entries of the list of exceptions.
const MAX_EXCEPTIONS: usize = 256;

/// A proxy that cannot be used. A password in its URL is not in the text.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum ProxyError {
    /// Not a URL of a proxy.
    #[error("proxy: want http://[user:password@]host:port, without a path; TLS to the proxy itself is not supported")]
    Url,
    /// An exception.
    #[error("proxy: no_proxy has more than {MAX_EXCEPTIONS} entries")]
    TooMany,
}

/// Which proxy is for what.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

/// One proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `host:port`.
    authority: String,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// Who is reached without a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    /// A domain and what is below it.
    Domain(String),
    /// An address and the number of its leading bits that count.
    Network(IpAddr, u8),
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`.
    pub fn parse(url: &str) -> Result<Self, ProxyError> {
        let uri: Uri = url.trim().parse().map_err(|_| ProxyError::Url)?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        if uri.scheme_str() != Some("http") || path != "/" {
            return Err(ProxyError::Url);
        }
        let authority = uri.authority().ok_or(ProxyError::Url)?.as_str();
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let host = if uri.port_u16().is_some() { host.to_owned() } else { format!("{host}:80") };
        let authorization = user.map(|user| format!("Basic {}", base64(user.as_bytes())));
        Ok(Self { authority: host, authorization })
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The value of the header `Proxy-Authorization`.
    pub(crate) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// Has the proxy at the other end of `stream` connect us to `authority`.
    pub(crate) async fn connect(&self, stream: &mut Box<dyn Stream>, authority: &str) -> io::Result<()> {
        let authorization = self.authorization.as_ref().map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
        stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{authorization}\r\n").as_bytes()).await?;
        stream.flush().await?;
        // Byte by byte: what follows the empty line is TLS's.
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() >= MAX_ANSWER {
                return Err(io::Error::other(format!("proxy {}: an answer without an end", self.authority)));
            }
            answer.push(stream.read_u8().await?);
        }
        let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
        let status = std::str::from_utf8(line).ok().and_then(|line| line.split(' ').nth(1));
        match status {
            Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
            Some(status) => Err(io::Error::other(format!(
                "proxy {} refused the way to {authority}: {}",
                self.authority,
                &status.chars().take(3).collect::<String>()
            ))),
            None => Err(io::Error::other(format!("proxy {} does not speak HTTP", self.authority))),
        }
    }
}

impl Proxies {
    /// From the URLs of the proxies and the comma-separated list of exceptions: names, `.domains`, addresses, networks, `*`.
    pub fn new(http: Option<&str>, https: Option<&str>, no_proxy: Option<&str>) -> Result<Self, ProxyError> {
        let proxy = |url: Option<&str>| url.filter(|url| !url.trim().is_empty()).map(Proxy::parse).transpose();
        let exceptions: Vec<Exception> = no_proxy.unwrap_or_default().split(',').filter_map(exception).collect();
        if exceptions.len() > MAX_EXCEPTIONS {
            return Err(ProxyError::TooMany);
        }
        Ok(Self { http: proxy(http)?, https: proxy(https)?, exceptions })
    }

    /// The proxies, for whoever has to open the way to them.
    pub fn all(&self) -> impl Iterator<Item = &Proxy> {
        self.http.iter().chain(&self.https)
    }

    /// The proxy for a host, if there is one.
    pub(crate) fn select(&self, tls: bool, host: &str) -> Option<&Proxy> {
        let proxy = if tls { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !self.exceptions.iter().any(|exception| exception.covers(host)))
    }
}

impl Exception {
    fn covers(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        match self {
            Self::All => true,
            Self::Domain(domain) => host == *domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
            Self::Network(network, bits) => host.parse().is_ok_and(|address: IpAddr| same_network(address, *network, *bits)),
        }
    }
}

fn exception(text: &str) -> Option<Exception> {
    let text = text.trim();
    if text == "*" {
        return Some(Exception::All);
    }
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    if let Ok(address) = address.parse::<IpAddr>() {
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(all), |bits| bits.parse().ok().filter(|bits| *bits <= all))?;
        return Some(Exception::Network(address, bits));
    }
    let domain = text.trim_start_matches('*').trim_start_matches('.').to_ascii_lowercase();
    (!domain.is_empty()).then_some(Exception::Domain(domain))
}

fn same_network(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let (one, other) = (bytes(one), bytes(other));
    let (whole, rest) = (usize::from(bits / 8), bits % 8);
    let part = |bytes: &[u8]| bytes.get(whole).map_or(0, |byte| byte.checked_shr(u32::from(8 - rest)).unwrap_or(0));
    one.len() == other.len() && one[..whole] == other[..whole] && part(&one) == part(&other)
}

/// RFC 4648; here to spare this crate a dependency for one header.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let sextet = (word >> (18 - 6 * at)) & 63;
            out.push(if at <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_keep_their_password() {
        let proxy = Proxy::parse("http://me:pass@proxy.example:3128/").unwrap();
        assert_eq!((proxy.authority(), proxy.authorization()), ("proxy.example:3128", Some("Basic bWU6cGFzcw==")));
        assert!(!format!("{proxy:?}").contains("pass"));
        assert_eq!(Proxy::parse("http://p").unwrap().authority(), "p:80");
        for bad in ["", "p:80", "https://p:443", "socks5://p:1", "http://p/x", "http://"] {
            assert_eq!(Proxy::parse(bad), Err(ProxyError::Url), "{bad}");
        }
        assert_eq!([base64(b""), base64(b"a"), base64(b"ab"), base64(b"abc")], ["", "YQ==", "YWI=", "YWJj"]);
    }

    #[test]
    fn exceptions_are_names_domains_and_networks() {
        let proxies = Proxies::new(Some("http://p:1"), None, Some("localhost, .corp.example,10.0.0.0/8 , 192.168.0.1,fd00::/8")).unwrap();
        for (host, through) in [
            ("registry.example", true),
            ("localhost", false),
            ("a.corp.example", false),
            ("corp.example", false),
            ("xcorp.example", true),
            ("10.2.3.4", false),
            ("11.2.3.4", true),
            ("192.168.0.1", false),
            ("192.168.0.2", true),
            ("[fd12::1]", false),
            ("[fe80::1]", true),
        ] {
            assert_eq!(proxies.select(false, host).is_some(), through, "{host}");
        }
        assert!(proxies.select(true, "registry.example").is_none(), "no proxy for TLS was named");
        assert!(Proxies::new(Some("http://p:1"), None, Some("*")).unwrap().select(false, "x").is_none());
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_the_way() {
        for (answer, wanted) in [
            ("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nTLS", None),
            ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", Some("407")),
            ("SSH-2.0\r\n\r\n", Some("does not speak HTTP")),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(1 << 10);
            let mut stream: Box<dyn Stream> = Box::new(ours);
            theirs.write_all(answer.as_bytes()).await.unwrap();
            let result = Proxy::parse("http://a:b@p:1").unwrap().connect(&mut stream, "r.io:443").await;
            assert_eq!(result.as_ref().err().map(|e| e.to_string().contains(wanted.unwrap_or("?"))), wanted.map(|_| true), "{result:?}");
            let mut asked = vec![0; 512];
            let n = theirs.read(&mut asked).await.unwrap();
            let asked = String::from_utf8_lossy(&asked[..n]).into_owned();
            assert!(asked.starts_with("CONNECT r.io:443 HTTP/1.1\r\n") && asked.contains("Proxy-Authorization: Basic YTpi\r\n"), "{asked}");
            if wanted.is_none() {
                let mut rest = [0; 3];
                stream.read_exact(&mut rest).await.unwrap();
                assert_eq!(&rest, b"TLS");
            }
        }
    }
}
