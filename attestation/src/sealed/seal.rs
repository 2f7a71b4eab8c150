//! The owner's side: texts that [`super::unseal`] opens, and Confidential Containers' guests too.

use super::{IV_LEN, KEY_LEN, MAX_SEALED, PREFIX, VERSION, WRAP};
use crate::{
    encoding::{standard, url},
    resource::ResourceUri,
};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, aead::Aead};
use p256::{
    SecretKey,
    ecdsa::{Signature, SigningKey, signature::Signer},
    pkcs8::DecodePrivateKey,
};
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

/// Why nothing was sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The private key.
    #[error("not a private key that can sign: want PKCS#8 in PEM of an ECDSA key on P-256, as `cloister image keygen` makes it")]
    Key,
    /// The kernel gives no random bytes.
    #[error("random source: {0}")]
    Random(String),
    /// The secret.
    #[error("the sealed text has {0} bytes, guests open at most {MAX_SEALED}")]
    TooLong(usize),
}

/// Who seals: a private key, and the resource that is its public half.
pub struct Owner {
    key: SigningKey,
    signer: ResourceUri,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("signer", &self.signer).finish_non_exhaustive()
    }
}

impl Owner {
    /// With PKCS#8 in PEM. `signer` is where the broker has the public key.
    pub fn from_pem(pem: &str, signer: ResourceUri) -> Result<Self, SealError> {
        let secret = SecretKey::from_pkcs8_pem(pem.trim()).map_err(|_| SealError::Key)?;
        Ok(Self { key: secret.into(), signer })
    }

    /// A text that stands for a secret of the broker's.
    pub fn vault(&self, secret: &ResourceUri) -> Result<String, SealError> {
        self.sign(&json!({
            "version": VERSION, "type": "vault", "provider": "kbs", "name": secret, "provider_settings": {}, "annotations": {},
        }))
    }

    /// A text that holds the secret, encrypted to a key of the broker's.
    pub fn envelope(&self, secret: &[u8], key: &[u8; KEY_LEN], key_id: &ResourceUri) -> Result<String, SealError> {
        let data_key = Zeroizing::new(random::<KEY_LEN>()?);
        let (wrap_iv, iv) = (random::<IV_LEN>()?, random::<IV_LEN>()?);
        self.sign(&json!({
            "version": VERSION, "type": "envelope", "provider": "kbs", "key_id": key_id, "wrap_type": WRAP,
            "encrypted_key": encrypt(key, wrap_iv, &*data_key)?, "encrypted_data": encrypt(&data_key, iv, secret)?,
            "iv": standard(&iv), "provider_settings": {}, "annotations": {"iv": standard(&wrap_iv)},
        }))
    }

    fn sign(&self, payload: &Value) -> Result<String, SealError> {
        let header = json!({"alg": "ES256", "kid": self.signer});
        let signed = format!("{}.{}", url(header.to_string().as_bytes()), url(payload.to_string().as_bytes()));
        let signature: Signature = self.key.sign(signed.as_bytes());
        let text = format!("{PREFIX}{signed}.{}", url(&signature.to_bytes()));
        if text.len() > MAX_SEALED { Err(SealError::TooLong(text.len())) } else { Ok(text) }
    }
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| SealError::Random(e.to_string()))?;
    Ok(bytes)
}

fn encrypt(key: &[u8; KEY_LEN], iv: [u8; IV_LEN], plain: &[u8]) -> Result<String, SealError> {
    let sealed = Aes256Gcm::new(key.into()).encrypt(&Nonce::from(iv), plain);
    sealed.map(|bytes| standard(&bytes)).map_err(|_| SealError::TooLong(plain.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::unseal;
    use p256::{
        elliptic_curve::Generate,
        pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
    };

    fn uri(text: &str) -> ResourceUri {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn what_is_sealed_is_opened_with_what_the_broker_has() {
        let key = SigningKey::generate();
        let public = key.verifying_key().to_public_key_pem(LineEnding::LF).unwrap();
        let owner = Owner::from_pem(&key.to_pkcs8_pem(LineEnding::LF).unwrap(), uri("kbs:///a/keys/sign")).unwrap();
        let fetch = |resource: ResourceUri| {
            std::future::ready(match resource.path() {
                "a/keys/sign" => Ok(Zeroizing::new(public.clone().into_bytes())),
                "a/keys/wrap" => Ok(Zeroizing::new(vec![7; KEY_LEN])),
                "a/secret/db" => Ok(Zeroizing::new(b"hunter2".to_vec())),
                other => Err(format!("{other} refused")),
            })
        };
        let envelope = || owner.envelope(b"hunter2", &[7; KEY_LEN], &uri("kbs:///a/keys/wrap")).unwrap();
        for text in [owner.vault(&uri("kbs:///a/secret/db")).unwrap(), envelope()] {
            assert_eq!(unseal(&text, fetch).await.unwrap().as_slice(), b"hunter2", "{text}");
        }
        assert_ne!(envelope(), envelope(), "a key and nonces of its own each time");
        let other = owner.envelope(b"hunter2", &[8; KEY_LEN], &uri("kbs:///a/keys/wrap")).unwrap();
        assert!(unseal(&other, fetch).await.is_err());
    }

    #[test]
    fn what_no_guest_would_open_is_not_sealed() {
        let key = SigningKey::generate().to_pkcs8_pem(LineEnding::LF).unwrap();
        let owner = Owner::from_pem(&key, uri("kbs:///a/keys/sign")).unwrap();
        let long = owner.envelope(&vec![0; MAX_SEALED], &[7; KEY_LEN], &uri("kbs:///a/keys/wrap"));
        assert!(matches!(long, Err(SealError::TooLong(_))), "{long:?}");
        assert!(Owner::from_pem("-----BEGIN PUBLIC KEY-----", uri("kbs:///a/keys/sign")).is_err());
    }
}
