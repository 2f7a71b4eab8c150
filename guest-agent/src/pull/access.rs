//! What the owner's settings say about getting images, each made ready once: the registry client, the policy on signatures, private keys. Parts
//! may be the broker's, so that they are made when the first image needs them: a manifest is not kept waiting for a policy.

use super::PullError;
use crate::vsock::Courier;
use async_trait::async_trait;
use attestation::{BrokerClient, ResourceUri};
use image::{
    ocicrypt::jwe::PrivateKey,
    reference::Reference,
    registry::{AuthFile, Options, Registries, Registry, RegistryRepository},
    signature::{self, KeyStore, SignaturePolicy, Subject},
};
use policy::{ImageSettings, Text};
use std::{fmt::Display, sync::Arc};
use tokio::sync::OnceCell;
use transport::{HttpClient, Proxies};
use zeroize::Zeroizing;

/// The owner's settings, and what they turned into.
pub struct Access {
    settings: ImageSettings,
    broker: Option<Arc<BrokerClient>>,
    ready: OnceCell<Ready>,
    policy: OnceCell<Option<SignaturePolicy>>,
    private_keys: OnceCell<Vec<PrivateKey>>,
}

/// What the registry client is made of.
struct Ready {
    http: HttpClient,
    credentials: Arc<AuthFile>,
    registries: Registries,
}

impl Access {
    /// Nothing is read before the first image.
    pub fn new(settings: ImageSettings, broker: Option<Arc<BrokerClient>>) -> Self {
        Self { settings, broker, ready: OnceCell::new(), policy: OnceCell::new(), private_keys: OnceCell::new() }
    }

    /// A client for the registries, through the courier. `plain_http` is the node's word.
    pub async fn registry(&self, plain_http: Vec<String>) -> Result<Registry, PullError> {
        let ready = self.ready().await?;
        let (credentials, registries) = (ready.credentials.clone(), ready.registries.clone());
        Ok(Registry::new(ready.http.clone(), Options { plain_http, credentials, registries, ..Options::default() }))
    }

    /// Whether the image is signed as the owner wants it; gives whether he wants it signed. Asked for every container, whatever of its image is
    /// here already.
    pub async fn check_signature(&self, subject: &Subject<'_>, registry: &Registry, reference: &Reference) -> Result<bool, PullError> {
        let Some(policy) = self.signature_policy().await? else { return Ok(false) };
        let repository = RegistryRepository { registry, reference };
        signature::check(policy, subject, &repository, self).await?;
        Ok(policy.demands_signature(reference))
    }

    /// The owner's policy on signatures, if he has one.
    pub async fn signature_policy(&self) -> Result<Option<&SignaturePolicy>, PullError> {
        let load = || async {
            let Some(json) = self.text(&self.settings.security_policy).await? else { return Ok(None) };
            SignaturePolicy::parse(&json).map(Some).map_err(|e| bad("image security policy", &e))
        };
        self.policy.get_or_try_init(load).await.map(Option::as_ref)
    }

    /// The private keys for images that were encrypted with JWE.
    pub async fn private_keys(&self) -> Result<&[PrivateKey], String> {
        let load = || async {
            let mut keys = Vec::new();
            for name in &self.settings.decryption_keys {
                let pem = self.resource(name).await?;
                keys.push(PrivateKey::from_pem(&pem).map_err(|e| format!("{name}: {e}"))?);
            }
            Ok::<_, String>(keys)
        };
        self.private_keys.get_or_try_init(load).await.map(Vec::as_slice)
    }

    /// A resource of the owner's broker.
    pub async fn resource(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        let uri: ResourceUri = name.parse().map_err(|e: attestation::resource::ResourceError| e.to_string())?;
        let broker = self.broker.as_ref().ok_or(
            "the machine was started without initdata that names a broker; add aa.toml with token_configs.kbs.url to the initdata",
        )?;
        broker.resource(&uri).await.map_err(|e| e.to_string())
    }

    /// The handshake with the broker; who needs a key waits for it, or repeats its error.
    pub async fn attest(&self) {
        if let Some(broker) = &self.broker {
            let _ = broker.attest().await;
        }
    }

    async fn ready(&self) -> Result<&Ready, PullError> {
        self.ready.get_or_try_init(|| self.prepare()).await
    }

    async fn prepare(&self) -> Result<Ready, PullError> {
        let settings = &self.settings;
        let roots = settings.extra_roots.join("\n");
        let http = HttpClient::new(Arc::new(Courier), Some(&roots)).map_err(|e| bad("extra_root_certificates", &e))?;
        let proxy = &settings.proxy;
        let proxies = Proxies::new(proxy.http_proxy.as_deref(), proxy.https_proxy.as_deref(), proxy.no_proxy.as_deref());
        let http = http.through(proxies.map_err(|e| bad("image_pull_proxy", &e))?);
        let credentials = match self.text(&settings.credentials).await? {
            Some(json) => AuthFile::parse(&json).map_err(|e| bad("credentials", &e))?,
            None => AuthFile::default(),
        };
        let registries = match self.text(&settings.registries).await? {
            Some(toml) => {
                let toml = std::str::from_utf8(&toml).map_err(|e| bad("registry configuration", &e))?;
                Registries::parse(toml).map_err(|e| bad("registry configuration", &e))?
            }
            None => Registries::default(),
        };
        Ok(Ready { http, credentials: Arc::new(credentials), registries })
    }

    async fn text(&self, text: &Option<Text>) -> Result<Option<Zeroizing<Vec<u8>>>, PullError> {
        match text {
            None => Ok(None),
            Some(Text::Inline(text)) => Ok(Some(Zeroizing::new(text.clone().into_bytes()))),
            Some(Text::Resource(name)) => {
                let found = self.resource(name).await;
                found.map(Some).map_err(|reason| PullError::Settings { what: name.clone(), reason })
            }
        }
    }
}

fn bad(what: &str, error: &dyn Display) -> PullError {
    PullError::Settings { what: what.to_owned(), reason: error.to_string() }
}

#[async_trait]
impl KeyStore for Access {
    async fn key(&self, path: &str) -> Result<Vec<u8>, String> {
        if !path.starts_with("kbs://") {
            return Err("the guest has no such file: want kbs:///repository/type/tag, or the key itself in keyData".into());
        }
        self.resource(path).await.map(|bytes| bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(settings: ImageSettings) -> Access {
        Access::new(settings, None)
    }

    #[tokio::test]
    async fn settings_that_cannot_be_kept_are_refused_with_their_name() {
        let resource = |name: &str| Some(Text::Resource(name.to_owned()));
        for (settings, wanted) in [
            (ImageSettings { security_policy: resource("kbs:///a/b/policy"), ..Default::default() }, "kbs:///a/b/policy"),
            (ImageSettings { security_policy: Some(Text::Inline("{}".into())), ..Default::default() }, "image security policy"),
            (ImageSettings { credentials: Some(Text::Inline("x".into())), ..Default::default() }, "auth.json"),
            (ImageSettings { registries: Some(Text::Inline("x".into())), ..Default::default() }, "registries.conf"),
            (
                ImageSettings {
                    extra_roots: vec!["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----".into()],
                    ..Default::default()
                },
                "extra_root",
            ),
        ] {
            let access = access(settings);
            let refused = match access.registry(Vec::new()).await {
                Ok(_) => access.signature_policy().await.err(),
                Err(error) => Some(error),
            };
            let error = refused.unwrap().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        }
        access(ImageSettings::default()).registry(Vec::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_key_is_the_brokers_or_in_the_policy() {
        let error = access(ImageSettings::default()).key("/etc/cosign.pub").await.unwrap_err();
        assert!(error.contains("kbs:///") && error.contains("keyData"), "{error}");
        let error = access(ImageSettings::default()).key("kbs:///a/key/1").await.unwrap_err();
        assert!(error.contains("aa.toml"), "{error}");
    }

    /// The same image again, with every layer here: the policy is asked before anything is looked for.
    #[tokio::test]
    async fn the_policy_is_asked_every_time() {
        let reject = r#"{"default":[{"type":"reject"}]}"#;
        let access = access(ImageSettings { security_policy: Some(Text::Inline(reject.into())), ..Default::default() });
        let registry = access.registry(Vec::new()).await.unwrap();
        let reference: Reference = "x.io/a:1".parse().unwrap();
        let bytes = b"manifest".as_slice();
        let subject = Subject {
            reference: &reference,
            manifest: signature::Document { digest: image::digest::Digest::of(bytes), bytes },
            index: None,
        };
        let anything = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        let lax = Access::new(ImageSettings { security_policy: Some(Text::Inline(anything.into())), ..Default::default() }, None);
        assert!(!lax.check_signature(&subject, &registry, &reference).await.unwrap(), "no signature was demanded");
        for _ in 0..2 {
            let error = access.check_signature(&subject, &registry, &reference).await.unwrap_err().to_string();
            assert!(error.contains("denied by the signature policy"), "{error}");
        }
    }
}
