//! Sealed secrets of a container: values of its environment that begin with `sealed.` are opened with the owner's keys before its first
//! process exists. One that cannot be opened stops the container: a program that finds a sealed text where its password should be would
//! fail in its own way, or log it.
//!
//! Nothing is opened for an image that its owner has neither named nor wants signed: its own environment may hold a sealed text that the host has
//! seen elsewhere, and its program print it.
//!
//! The policy is asked about the sealed text, which is what the host wrote; the secret itself is known to this module and to the process.

use attestation::{
    BrokerClient, ResourceUri,
    sealed::{self, SealedError},
};
use std::collections::HashMap;
use thiserror::Error;
use zeroize::Zeroizing;

/// Why a secret was not opened. Never a part of it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It stays sealed.
    #[error("environment variable {name}: {source}")]
    Sealed {
        /// Of the variable.
        name: String,
        /// Why.
        source: SealedError,
    },
    /// Nobody to ask.
    #[error(
        "environment variable {0}: sealed, and the machine was started without initdata that names a broker; add aa.toml to the initdata"
    )]
    NoBroker(String),
    /// Anybody to ask.
    #[error(
        "environment variable {0}: sealed, and any image could have it opened, also one of the host's; name the images in policy.toml \
         ([[image]] or [[container]]), or demand signatures (image_security_policy in cdh.toml of the initdata)"
    )]
    AnyImage(String),
    /// It cannot be a variable.
    #[error("environment variable {0}: the secret is not a text that a variable can hold")]
    Text(String),
}

/// Opened secrets by their sealed text.
#[derive(Default)]
pub struct Opened(HashMap<String, Zeroizing<String>>);

impl Opened {
    /// Opens what is sealed in `env` (`NAME=value`). `known` says that the image is one that the owner has named or wants signed.
    pub async fn of(env: &[String], broker: Option<&BrokerClient>, known: bool) -> Result<Self, SecretError> {
        let mut opened = HashMap::new();
        for (name, value) in env.iter().filter_map(|entry| entry.split_once('=')).filter(|(_, value)| is_sealed(value)) {
            let broker = broker.ok_or_else(|| SecretError::NoBroker(name.to_owned()))?;
            if !known {
                return Err(SecretError::AnyImage(name.to_owned()));
            }
            let fetch = |resource: ResourceUri| async move { broker.resource(&resource).await.map_err(|e| e.to_string()) };
            let secret = sealed::unseal(value, fetch).await;
            let secret = secret.map_err(|source| SecretError::Sealed { name: name.to_owned(), source })?;
            let text = std::str::from_utf8(&secret).ok().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| SecretError::Text(name.to_owned()))?;
            opened.insert(value.to_owned(), Zeroizing::new(text.to_owned()));
        }
        Ok(Self(opened))
    }

    /// The environment as the process gets it.
    pub fn apply(&self, env: &[String]) -> Vec<String> {
        let open = |entry: &String| match entry.split_once('=').and_then(|(name, value)| Some((name, self.0.get(value)?))) {
            Some((name, secret)) => format!("{name}={}", **secret),
            None => entry.clone(),
        };
        env.iter().map(open).collect()
    }
}

/// The prefix and four parts; any other text is the program's own business.
pub fn is_sealed(value: &str) -> bool {
    value.starts_with(sealed::PREFIX) && value.matches('.').count() == 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sealed_value_without_a_broker_stops_the_container() {
        let env = |value: &str| vec!["A=b".to_owned(), format!("PASSWORD={value}")];
        let error = Opened::of(&env("sealed.a.b.c"), None, true).await.err().unwrap().to_string();
        assert!(error.starts_with("environment variable PASSWORD: sealed") && !error.contains("a.b.c"), "{error}");
        for plain in ["sealed", "sealed.a.b", "unsealed.a.b.c", ""] {
            let opened = Opened::of(&env(plain), None, false).await.unwrap();
            assert_eq!(opened.apply(&env(plain)), env(plain), "{plain}");
        }
    }

    /// The host's image, with a sealed text that it has read in a pod's manifest in its own environment.
    #[tokio::test]
    async fn nothing_is_opened_for_an_image_that_nobody_knows() {
        let http = transport::HttpClient::new(std::sync::Arc::new(transport::TcpDialer), None).unwrap();
        let attester = std::sync::Arc::new(attestation::sample::SampleAttester::new(Vec::new(), Vec::new()));
        let broker = BrokerClient::new(http, "http://127.0.0.1:1", attester, None).unwrap();
        let env = ["PASSWORD=sealed.a.b.c".to_owned()];
        let error = Opened::of(&env, Some(&broker), false).await.err().unwrap();
        assert!(matches!(error, SecretError::AnyImage(_)) && !error.to_string().contains("a.b.c"), "{error}");
        // A known one gets as far as the secret itself, which is none.
        let error = Opened::of(&env, Some(&broker), true).await.err().unwrap();
        assert!(matches!(error, SecretError::Sealed { .. }), "{error}");
    }

    #[test]
    fn the_process_gets_the_secret_and_nobody_else() {
        let opened = Opened(HashMap::from([("sealed.a.b.c".to_owned(), Zeroizing::new("hunter2".to_owned()))]));
        assert_eq!(opened.apply(&["P=sealed.a.b.c".into(), "Q=x".into()]), ["P=hunter2", "Q=x"]);
    }
}
