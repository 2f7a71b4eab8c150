//! For whoever relies on a token: the broker's keys as a JWK set (RFC 7517 §5), fetched from `/.well-known/jwks.json` or pinned, and the
//! verification of a token with them. Also takes Trustee's sets and tokens, as far as they are ES256, which Trustee's own are.

use crate::{
    encoding::from_url,
    token::{self, TokenError},
};
use p256::{PublicKey, ecdsa::VerifyingKey};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Keys in a set.
const MAX_KEYS: usize = 64;

/// Longest set that is read, in bytes.
const MAX_SET: usize = 1 << 20;

/// A set that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("JWK set: {0}")]
pub struct JwksError(String);

/// The keys that are relied on.
#[derive(Debug, Clone)]
pub struct Jwks(Vec<Key>);

#[derive(Debug, Clone)]
struct Key {
    /// As the set says, else its thumbprint.
    kid: String,
    key: VerifyingKey,
}

#[derive(Deserialize)]
struct Written {
    keys: Vec<Value>,
}

impl Jwks {
    /// Reads a set. Keys for something else than ES256 are left out; a set without any key for it is an error.
    pub fn parse(json: &[u8]) -> Result<Self, JwksError> {
        if json.len() > MAX_SET {
            return Err(JwksError(format!("longer than {MAX_SET} bytes")));
        }
        let written: Written = serde_json::from_slice(json).map_err(|e| JwksError(e.to_string()))?;
        if written.keys.len() > MAX_KEYS {
            return Err(JwksError(format!("more than {MAX_KEYS} keys")));
        }
        let keys: Vec<Key> = written.keys.iter().filter_map(key).collect();
        if keys.is_empty() { Err(JwksError("no key for ES256 in it".into())) } else { Ok(Self(keys)) }
    }

    /// The claims of a token that one of these keys signed and that has not expired `now` (seconds since 1970). A `jwk` in the token's
    /// header decides nothing; its `kid` only which key is tried first.
    pub fn verify(&self, token: &str, now: u64) -> Result<Value, TokenError> {
        let header = token::header(token)?;
        let (named, others): (Vec<&Key>, Vec<&Key>) = self.0.iter().partition(|key| header["kid"] == key.kid.as_str());
        let claims = named.into_iter().chain(others).find_map(|key| match token::signed(token, &key.key) {
            Err(TokenError::Signature) => None,
            result => Some(result),
        });
        let claims = claims.unwrap_or(Err(TokenError::Signature))?;
        match claims["exp"].as_u64() {
            Some(expires) if expires > now => Ok(claims),
            Some(expires) => Err(TokenError::Expired(expires)),
            None => Err(TokenError::Malformed("claims: no exp".into())),
        }
    }
}

/// A P-256 key out of a JWK for ES256.
pub(crate) fn verifying_key(jwk: &Value) -> Option<VerifyingKey> {
    key(jwk).map(|key| key.key)
}

fn key(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if text("kty") != Some("EC") || text("crv") != Some("P-256") || text("alg").is_some_and(|alg| alg != "ES256") {
        return None;
    }
    let (x, y) = (text("x")?, text("y")?);
    let point = [vec![4], from_url(x)?, from_url(y)?].concat();
    let key = VerifyingKey::from(PublicKey::from_sec1_bytes(&point).ok()?);
    Some(Key { kid: text("kid").map_or_else(|| token::thumbprint(x, y), Into::into), key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{encoding::url, token::TokenSigner};
    use p256::ecdsa::{Signature, SigningKey, signature::Signer};
    use serde_json::json;

    fn set(keys: &[Value]) -> Vec<u8> {
        json!({ "keys": keys }).to_string().into_bytes()
    }

    fn token(key: &SigningKey, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", url(header.to_string().as_bytes()), url(claims.to_string().as_bytes()));
        let signature: Signature = key.sign(signed.as_bytes());
        format!("{signed}.{}", url(&signature.to_bytes()))
    }

    #[test]
    fn a_token_is_verified_with_the_set_and_nothing_else() {
        let (ours, forger) = (TokenSigner::generate().unwrap(), TokenSigner::generate().unwrap());
        let (key, bad) = (SigningKey::from_slice(&ours.to_bytes()).unwrap(), SigningKey::from_slice(&forger.to_bytes()).unwrap());
        let jwks = Jwks::parse(&set(&[json!({"kty": "RSA", "n": "x"}), forger.jwk(), ours.jwk()])).unwrap();
        let only = Jwks::parse(&set(&[ours.jwk()])).unwrap();
        let claims = json!({"exp": 10});
        for header in [json!({"alg": "ES256"}), json!({"alg": "ES256", "kid": ours.jwk()["kid"]}), json!({"alg": "ES256", "kid": "?"})] {
            assert_eq!(jwks.verify(&token(&key, &header, &claims), 9).unwrap(), claims);
        }
        let named = json!({"alg": "ES256", "kid": ours.jwk()["kid"], "jwk": forger.jwk()});
        assert_eq!(only.verify(&token(&bad, &named, &claims), 9), Err(TokenError::Signature));
        assert_eq!(only.verify(&token(&key, &named, &claims), 10), Err(TokenError::Expired(10)));
        assert!(only.verify(&token(&key, &json!({"alg": "none"}), &claims), 9).is_err());
        assert!(only.verify(&token(&key, &json!({"alg": "ES256"}), &json!({})), 9).is_err());
        for bad in ["", "a.b", "a.b.c", "...."] {
            assert!(only.verify(bad, 9).is_err());
        }
    }

    /// Trustee's recorded set, and its keys for other algorithms, which no token of its is signed with.
    #[test]
    fn trustees_sets_are_read() {
        let Some(folder) = vectors::folder().map(|folder| folder.join("kbs")) else { return };
        let read = |name: &str| vectors::read(&folder, name);
        let jwks = Jwks::parse(&read("trustee_expected-jwks.json")).unwrap();
        assert_eq!(jwks.0.len(), 1);
        for name in
            ["trustee_jwk_scenario01.json", "trustee_jwk_scenario03.json", "trustee_jwk_scenario05.json", "trustee_jwk_scenario06.json"]
        {
            let rsa: Value = serde_json::from_slice(&read(name)).unwrap();
            assert!(Jwks::parse(&set(&[rsa])).unwrap_err().to_string().contains("no key for ES256"), "{name}");
        }
    }

    /// Trustee's example of claims, signed by a key of ours: read as it is, and expired as it is.
    #[test]
    fn trustees_claims_are_read() {
        let Some(folder) = vectors::folder() else { return };
        let claims: Value = serde_json::from_slice(&vectors::read(&folder, "kbs/trustee_example.token.json")).unwrap();
        let signer = TokenSigner::generate().unwrap();
        let key = SigningKey::from_slice(&signer.to_bytes()).unwrap();
        let (jwks, issued) = (Jwks::parse(&set(&[signer.jwk()])).unwrap(), claims["iat"].as_u64().unwrap());
        let token = token(&key, &json!({"alg": "ES256", "typ": "JWT", "jwk": signer.jwk()}), &claims);
        let read = jwks.verify(&token, issued).unwrap();
        assert_eq!(read["submods"]["cpu0"]["ear.status"], "contraindicated");
        assert!(matches!(jwks.verify(&token, issued + 1_000_000_000), Err(TokenError::Expired(_))));
    }
}
