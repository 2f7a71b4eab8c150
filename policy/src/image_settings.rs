//! How the guest gets and judges images: table `[image]` of `cdh.toml` in the initdata, in the names of Confidential Containers
//! (guest-components, `image-rs/src/config.rs`), and `auth.json` beside it.
//!
//! ```toml
//! [image]
//! image_security_policy_uri = "kbs:///default/security-policy/test"            # policy.json; or image_security_policy, the text itself
//! authenticated_registry_credentials_uri = "kbs:///default/credential/test"    # auth.json; or the file auth.json of the initdata
//! registry_configuration_uri = "kbs:///default/registry-configuration/test"    # registries.conf; or the table registry_config
//! image_pull_proxy = { https_proxy = "http://proxy.example:3128", no_proxy = "10.0.0.0/8" }
//! extra_root_certificates = ["-----BEGIN CERTIFICATE-----…"]                   # beside the web's
//! image_decryption_keys = ["kbs:///default/key/private"]                       # of ours: private keys for images encrypted with JWE
//! ```

use crate::initdata::{Initdata, InitdataError, one_line};
use serde::Deserialize;

/// The file of the initdata with the settings.
pub const SETTINGS_FILE: &str = "cdh.toml";
/// The file of the initdata with credentials. The host reads initdata: what is to be kept from it belongs into the broker.
pub const AUTH_FILE: &str = "auth.json";
/// Most certificates, and keys.
const MAX_ENTRIES: usize = 64;

/// A text that stands in the initdata, or in the broker under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Itself.
    Inline(String),
    /// `kbs:///repository/type/tag`.
    Resource(String),
}

/// HTTP proxies, as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxySettings {
    /// For registries without TLS.
    pub http_proxy: Option<String>,
    /// For those with.
    pub https_proxy: Option<String>,
    /// Comma-separated names, domains, addresses and networks that are reached without.
    pub no_proxy: Option<String>,
}

/// What the owner says about images, beside which ones may run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSettings {
    /// containers' `policy.json`; without one, no signature is asked for.
    pub security_policy: Option<Text>,
    /// containers' `auth.json`.
    pub credentials: Option<Text>,
    /// containers' `registries.conf`.
    pub registries: Option<Text>,
    /// HTTP proxies.
    pub proxy: ProxySettings,
    /// PEM.
    pub extra_roots: Vec<String>,
    /// Resources of the broker: private keys in PEM.
    pub decryption_keys: Vec<String>,
}

/// `[image]` as it is written; an unknown key is refused, as it might be what the owner relied on.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    image_security_policy_uri: Option<String>,
    image_security_policy: Option<String>,
    authenticated_registry_credentials_uri: Option<String>,
    registry_configuration_uri: Option<String>,
    registry_config: Option<toml::Table>,
    image_pull_proxy: ProxySettings,
    extra_root_certificates: Vec<String>,
    image_decryption_keys: Vec<String>,
    // Of Confidential Containers, without a meaning here: where its lookaside signatures are (GPG's), and how it works inside.
    #[serde(rename = "sigstore_config_uri")]
    _sigstore_config_uri: Option<String>,
    #[serde(rename = "sigstore_config")]
    _sigstore_config: Option<String>,
    #[serde(rename = "anonymous_fallback_on_unauthorized")]
    _anonymous_fallback: bool,
    #[serde(rename = "max_concurrent_layer_downloads_per_image")]
    _max_concurrent: Option<u32>,
    #[serde(rename = "work_dir")]
    _work_dir: Option<String>,
}

#[derive(Default, Deserialize)]
struct Document {
    // The other tables are for another program.
    #[serde(default)]
    image: Table,
}

impl ImageSettings {
    /// The settings in a VM's initdata; without it, none.
    pub fn from_initdata(initdata: Option<&Initdata>) -> Result<Self, InitdataError> {
        let Some(initdata) = initdata else { return Ok(Self::default()) };
        let bad = |message: String| InitdataError::File { file: SETTINGS_FILE.into(), message };
        let text = initdata.file(SETTINGS_FILE).unwrap_or_default();
        let table = toml::from_str::<Document>(text).map_err(|e| bad(one_line(text, &e)))?.image;
        if table.extra_root_certificates.len() > MAX_ENTRIES || table.image_decryption_keys.len() > MAX_ENTRIES {
            return Err(bad(format!("image: a list of more than {MAX_ENTRIES} entries")));
        }
        let registry_config = table.registry_config.map(|table| toml::to_string(&table)).transpose().map_err(|e| bad(e.to_string()))?;
        let auth = initdata.file(AUTH_FILE).map(str::to_owned);
        let settings = Self {
            security_policy: one_of("image_security_policy", table.image_security_policy, table.image_security_policy_uri).map_err(bad)?,
            credentials: one_of(AUTH_FILE, auth, table.authenticated_registry_credentials_uri).map_err(bad)?,
            registries: one_of("registry_config", registry_config, table.registry_configuration_uri).map_err(bad)?,
            proxy: table.image_pull_proxy,
            extra_roots: table.extra_root_certificates,
            decryption_keys: table.image_decryption_keys,
        };
        if let Some(other) = settings.decryption_keys.iter().find(|name| !name.starts_with("kbs://")) {
            return Err(bad(format!(
                "image.image_decryption_keys: {:?} is no resource of the broker, kbs:///…",
                crate::rules::short(other)
            )));
        }
        Ok(settings)
    }
}

impl ImageSettings {
    /// Whether images have to be signed. Of a text that the broker keeps only the guest sees whether it demands it of each.
    pub fn demands_signatures(&self) -> bool {
        match &self.security_policy {
            Some(Text::Inline(text)) => text.contains("sigstoreSigned"),
            Some(Text::Resource(_)) => true,
            None => false,
        }
    }
}

/// Servers that these settings send the guest to, beside the registries of its images, as URLs: proxies, and mirrors and other locations
/// that stand in the initdata itself. For the shim, which opens the way there; what the broker keeps, it cannot know.
pub fn destinations(settings: &ImageSettings) -> Vec<String> {
    let mut urls: Vec<String> = [&settings.proxy.http_proxy, &settings.proxy.https_proxy].into_iter().flatten().cloned().collect();
    let Some(Text::Inline(text)) = &settings.registries else { return urls };
    let file: toml::Table = toml::from_str(text).unwrap_or_default();
    let tables = |value: Option<&toml::Value>| value.and_then(toml::Value::as_array).cloned().unwrap_or_default();
    for table in tables(file.get("registry")) {
        for place in [vec![table.clone()], tables(table.get("mirror"))].concat() {
            let insecure = place.get("insecure").and_then(toml::Value::as_bool).unwrap_or(false);
            let location = place.get("location").and_then(toml::Value::as_str).unwrap_or_default();
            let host = location.split('/').next().unwrap_or_default();
            if !host.is_empty() && urls.len() < MAX_ENTRIES {
                urls.push(format!("{}://{host}", if insecure { "http" } else { "https" }));
            }
        }
    }
    urls
}

/// The text itself or its name, and not both: which of two policies counts must not be a matter of reading order.
fn one_of(what: &str, inline: Option<String>, uri: Option<String>) -> Result<Option<Text>, String> {
    match (inline, uri) {
        (Some(_), Some(_)) => Err(format!("image: {what} is given twice, as a text and as the name of a resource; keep one")),
        (Some(text), None) => Ok(Some(Text::Inline(text))),
        (None, Some(uri)) if uri.starts_with("kbs://") => Ok(Some(Text::Resource(uri))),
        (None, Some(uri)) => Err(format!("image: {what}: {:?}: the guest has no such file; want kbs:///…", crate::rules::short(&uri))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(files: &[(&str, &str)]) -> Result<ImageSettings, InitdataError> {
        let mut text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n".to_owned();
        for (name, content) in files {
            text.push_str(&format!("{name:?} = '''\n{content}'''\n"));
        }
        ImageSettings::from_initdata(Some(&Initdata::parse_toml(&text).unwrap().0))
    }

    #[test]
    fn the_names_of_confidential_containers_are_read() {
        let cdh = r#"
socket = "unix:///run/cdh.sock"
[kbc]
name = "cc_kbc"
url = "http://broker"
[image]
max_concurrent_layer_downloads_per_image = 3
image_security_policy_uri = "kbs:///default/security-policy/test"
authenticated_registry_credentials_uri = "kbs:///default/credential/test"
extra_root_certificates = ["PEM"]
image_decryption_keys = ["kbs:///default/key/private"]
[image.image_pull_proxy]
https_proxy = "http://proxy:3128"
no_proxy = "localhost"
[image.registry_config]
unqualified-search-registries = ["docker.io"]
[[image.registry_config.registry]]
location = "localhost:5000"
insecure = true
"#;
        let settings = settings(&[("cdh.toml", cdh)]).unwrap();
        assert_eq!(settings.security_policy, Some(Text::Resource("kbs:///default/security-policy/test".into())));
        assert_eq!(settings.credentials, Some(Text::Resource("kbs:///default/credential/test".into())));
        assert!(settings.demands_signatures());
        assert!(matches!(&settings.registries, Some(Text::Inline(text)) if text.contains("localhost:5000")));
        assert_eq!(settings.proxy.https_proxy.as_deref(), Some("http://proxy:3128"));
        assert_eq!((settings.extra_roots.len(), settings.decryption_keys.len()), (1, 1));
        assert_eq!(destinations(&settings), ["http://proxy:3128", "http://localhost:5000"]);
    }

    #[test]
    fn nothing_is_asked_for_where_nothing_is_said() {
        assert_eq!(ImageSettings::from_initdata(None).unwrap(), ImageSettings::default());
        assert_eq!(settings(&[]).unwrap(), ImageSettings::default());
        let with_auth = settings(&[("auth.json", "{}")]).unwrap();
        assert!(matches!(&with_auth.credentials, Some(Text::Inline(_))) && destinations(&with_auth).is_empty());
        let policy = |kind: &str| format!("[image]\nimage_security_policy = '{{\"default\":[{{\"type\":\"{kind}\"}}]}}'\n");
        for (kind, demands) in [("insecureAcceptAnything", false), ("sigstoreSigned", true)] {
            assert_eq!(settings(&[("cdh.toml", &policy(kind))]).unwrap().demands_signatures(), demands, "{kind}");
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let uri = "[image]\nauthenticated_registry_credentials_uri = \"kbs:///a/b/c\"\n";
        for (files, wanted) in [
            (vec![("cdh.toml", "[image]\nimage_security_policy_uri = \"file:///etc/policy.json\"\n")], "no such file"),
            (vec![("cdh.toml", "[image]\nimage_security_polcy = \"x\"\n")], "line 2"),
            (vec![("cdh.toml", "[image]\nimage_decryption_keys = [\"/key.pem\"]\n")], "no resource"),
            (vec![("cdh.toml", uri), ("auth.json", "{}")], "given twice"),
            (vec![("cdh.toml", "[image")], "cdh.toml"),
        ] {
            let error = settings(&files).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        }
    }
}
