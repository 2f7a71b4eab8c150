//! Authentication: the token flow of the distribution project (`docs/spec/auth/token.md`) and HTTP Basic (RFC 7617).

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use zeroize::{Zeroize, Zeroizing};

/// Longest challenge taken, in bytes.
const MAX_CHALLENGE: usize = 4096;

/// A user's name and password (or access token) for one registry. Wiped when dropped.
pub struct Credentials {
    user: String,
    password: Zeroizing<String>,
}

impl Credentials {
    /// Of one registry.
    pub fn new(user: String, password: String) -> Self {
        Self { user, password: Zeroizing::new(password) }
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The header's value.
    pub(super) fn basic(&self) -> Option<Authorization> {
        let pair = Zeroizing::new(format!("{}:{}", self.user, self.password.as_str()));
        Authorization::new("Basic", &Zeroizing::new(STANDARD.encode(pair.as_bytes())))
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// The value of an `Authorization` header; never shown by `Debug`.
#[derive(Clone)]
pub(super) struct Authorization(HeaderValue);

impl Authorization {
    fn new(scheme: &str, value: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&Zeroizing::new(format!("{scheme} {value}"))).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a token from this server.
    Bearer {
        /// The token server.
        realm: String,
        /// What the registry calls itself there.
        service: Option<String>,
    },
    /// With name and password.
    Basic,
}

impl Challenge {
    /// From the answer's headers; a bearer challenge is preferred.
    pub(super) fn parse(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut parsed: Vec<Self> = values.filter(|text| text.len() <= MAX_CHALLENGE).filter_map(Self::parse_one).collect();
        parsed.sort_by_key(|challenge| *challenge == Self::Basic);
        parsed.into_iter().next()
    }

    fn parse_one(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service) = (None, None);
        let mut rest = rest;
        while let Some((key, value, after)) = parameter(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                _ => (),
            }
            rest = after;
        }
        Some(Self::Bearer { realm: realm?, service })
    }

    /// The URL to fetch the token from, for the `actions` (`pull`, `pull,push`) in `repository`.
    pub(super) fn token_url(realm: &str, service: Option<&str>, repository: &str, actions: &str) -> String {
        let scope = encode(&format!("repository:{repository}:{actions}"));
        let mut url = format!("{realm}{}scope={scope}", if realm.contains('?') { '&' } else { '?' });
        if let Some(service) = service {
            url.push_str(&format!("&service={}", encode(service)));
        }
        url
    }
}

/// `key="value"` or `key=value`, and what follows the comma.
fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (key, rest) = text.trim_start_matches([' ', ',']).split_once('=')?;
    let Some(quoted) = rest.strip_prefix('"') else {
        let end = rest.find(',').unwrap_or(rest.len());
        return Some((key.trim(), rest[..end].trim().to_owned(), &rest[end..]));
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return Some((key.trim(), value, &quoted[at + 1..])),
            _ => value.push(c),
        }
    }
    None
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn encode(text: &str) -> String {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|b| if unreserved(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The token server's answer.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Drop for TokenAnswer {
    fn drop(&mut self) {
        self.token.zeroize();
        self.access_token.zeroize();
    }
}

/// The header for the token in `body`.
pub(super) fn bearer(body: &[u8]) -> Option<Authorization> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    let token = answer.token.as_ref().or(answer.access_token.as_ref()).filter(|token| !token.is_empty())?;
    Authorization::new("Bearer", token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::parse(&headers)
    }

    #[test]
    fn challenges_are_read() {
        let bearer =
            |realm: &str, service: Option<&str>| Some(Challenge::Bearer { realm: realm.into(), service: service.map(str::to_owned) });
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        assert_eq!(parse(&[docker]), bearer("https://auth.docker.io/token", Some("registry.docker.io")));
        assert_eq!(parse(&["Basic realm=\"x\"", r#"bearer realm=https://t , service="a\"b,c""#]), bearer("https://t", Some("a\"b,c")));
        assert_eq!(parse(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        for bad in ["", "Negotiate", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"unterminated"] {
            assert_eq!(parse(&[bad]), None, "{bad}");
        }
    }

    #[test]
    fn the_token_url_is_encoded() {
        let url = Challenge::token_url("https://t/token?a=b", Some("x y"), "library/busybox", "pull");
        assert_eq!(url, "https://t/token?a=b&scope=repository%3Alibrary%2Fbusybox%3Apull&service=x%20y");
        assert!(Challenge::token_url("https://t/token", None, "a", "pull").starts_with("https://t/token?scope="));
    }

    #[test]
    fn a_token_becomes_one_header() {
        assert_eq!(bearer(br#"{"token":"abc"}"#).unwrap().header(), "Bearer abc");
        assert_eq!(bearer(br#"{"access_token":"abc","expires_in":300}"#).unwrap().header(), "Bearer abc");
        for bad in [&b"{}"[..], br#"{"token":""}"#, b"{\"token\":\"a\\nb\"}", b"x"] {
            assert!(bearer(bad).is_none());
        }
        let credentials = Credentials::new("me".into(), "pass".into());
        assert_eq!(credentials.basic().unwrap().header(), "Basic bWU6cGFzcw==");
        assert!(!format!("{credentials:?} {:?}", credentials.basic().unwrap().header()).contains("pass"));
    }
}
