//! The keys that tokens are signed with: the present one, and the one before it for as long as its tokens live.

use attestation::token::{self, Ear, TokenError, TokenSigner};
use serde_json::{Value, json};

/// Both keys.
#[derive(Debug)]
pub(crate) struct Signers {
    current: TokenSigner,
    previous: Option<TokenSigner>,
}

impl Signers {
    pub(crate) fn new(current: TokenSigner, previous: Option<TokenSigner>) -> Self {
        Self { current, previous }
    }

    /// The token of one handshake.
    pub(crate) fn sign(&self, ear: &Ear, nonce: &str) -> String {
        self.current.sign(ear, nonce)
    }

    /// Reads a token that either key signed.
    pub(crate) fn verify(&self, text: &str, now: u64) -> Result<Ear, TokenError> {
        let current = token::verify(text, self.current.verifying_key(), now);
        match (&self.previous, &current) {
            (Some(previous), Err(TokenError::Signature)) => token::verify(text, previous.verifying_key(), now),
            _ => current,
        }
    }

    /// The public half of the present key.
    pub(crate) fn jwk(&self) -> Value {
        self.current.jwk()
    }

    /// A JWK set (RFC 7517 §5) for those who verify tokens.
    pub(crate) fn jwks(&self) -> Value {
        let keys: Vec<Value> = [Some(&self.current), self.previous.as_ref()].into_iter().flatten().map(TokenSigner::jwk).collect();
        json!({ "keys": keys })
    }
}
