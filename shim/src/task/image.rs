//! Which image a container was made from, and whom the guest must reach to have it.

use super::{Settings, TaskError};
use crate::bundle::Bundle;
use runtime::containerd::Client;
use std::path::Path;

/// The image of a container.
#[derive(Debug)]
pub struct Image {
    /// As the user wrote it.
    pub name: String,
    /// What the node's containerd says it is; empty where it does not know.
    pub digest: String,
    /// containerd, for its content store.
    pub containerd: Option<Client>,
}

/// Finds the image: the annotations of CRI and CRI-O name it, and else containerd knows which image the container was made from.
pub async fn find(settings: &Settings, bundle: &Bundle, container_id: &str) -> Result<Image, TaskError> {
    let named = bundle.image_name().map(str::to_owned);
    let containerd = match connect(settings).await {
        Ok(containerd) => containerd,
        // The guest can have its image from the registry, if only its name is known.
        Err(error) if named.is_some() => {
            log::warn!(container = container_id; "{error}");
            None
        }
        Err(error) => return Err(error),
    };
    let target = match (&containerd, &named) {
        (None, _) => None,
        (Some(client), Some(name)) => client.image(name).await.map_err(asked)?,
        (Some(client), None) => client.container_image(container_id).await.map_err(asked)?,
    };
    let digest = target.as_ref().map(|target| target.digest.clone()).unwrap_or_default();
    match named.or(target.map(|target| target.name)) {
        Some(name) => Ok(Image { name, digest, containerd }),
        None => Err(TaskError::Invalid(format!(
            "container {container_id}: containerd knows no image for it; create it from an image reference, not from a root directory"
        ))),
    }
}

async fn connect(settings: &Settings) -> Result<Option<Client>, TaskError> {
    if settings.address.is_empty() {
        return Ok(None);
    }
    let path = settings.address.strip_prefix("unix://").unwrap_or(&settings.address);
    Client::connect(Path::new(path), &settings.namespace).await.map(Some).map_err(asked)
}

fn asked(error: runtime::containerd::ContainerdError) -> TaskError {
    TaskError::Sandbox(error.to_string())
}

/// Whom a guest must reach for an image of this name, as `host:port`.
pub fn registries(name: &str, plain_http: &[String]) -> Vec<String> {
    let first = name.split_once('/').map_or("", |(first, _)| first);
    // As in Docker's grammar: without a dot, a colon or "localhost", the first word is a user of Docker Hub.
    let is_host = first.contains(['.', ':']) || first == "localhost";
    if !is_host || matches!(first, "docker.io" | "index.docker.io") {
        return ["registry-1.docker.io:443", "auth.docker.io:443", "production.cloudflare.docker.com:443"].map(str::to_owned).into();
    }
    let port = if plain_http.iter().any(|plain| plain == first) { 80 } else { 443 };
    vec![authority(first, port)]
}

/// The broker of a URL, as `host:port`.
pub fn broker(url: &str) -> Option<String> {
    let (rest, port) = match url.split_once("://")? {
        ("http", rest) => (rest, 80),
        ("https", rest) => (rest, 443),
        _ => return None,
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    (!host.is_empty()).then(|| authority(host, port))
}

/// Adds the port where there is none; the colons of an IPv6 address stand in brackets.
fn authority(host: &str, port: u16) -> String {
    let after_brackets = host.rsplit_once(']').map_or(host, |(_, rest)| rest);
    if after_brackets.contains(':') { host.to_owned() } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_those_of_the_name() {
        let plain = ["registry.local".to_owned()];
        for (name, wanted) in [
            ("127.0.0.1:5000/demo:1", "127.0.0.1:5000"),
            ("ghcr.io/a/b@sha256:00", "ghcr.io:443"),
            ("registry.local/a", "registry.local:80"),
            ("[::1]:5000/a", "[::1]:5000"),
            ("[::1]/a", "[::1]:443"),
            ("localhost/a", "localhost:443"),
        ] {
            assert_eq!(registries(name, &plain), [wanted], "{name}");
        }
        for name in ["docker.io/library/nginx:1", "nginx", "user/image:1"] {
            assert_eq!(registries(name, &plain)[0], "registry-1.docker.io:443", "{name}");
        }
    }

    #[test]
    fn brokers_are_those_of_the_url() {
        for (url, wanted) in [
            ("http://127.0.0.1:8080", Some("127.0.0.1:8080")),
            ("https://kbs.example/path?x", Some("kbs.example:443")),
            ("http://u:p@kbs.example/", Some("kbs.example:80")),
            ("https://[::1]/x", Some("[::1]:443")),
            ("ftp://x", None),
            ("http:///x", None),
            ("x", None),
        ] {
            assert_eq!(broker(url).as_deref(), wanted, "{url}");
        }
    }

    #[tokio::test]
    async fn without_a_name_and_without_containerd_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let bundle = Bundle::read(dir.path()).unwrap();
        let group = crate::group::Group::new("", "default", "c");
        let settings = Settings { namespace: "default".into(), address: String::new(), group };
        let error = find(&settings, &bundle, "c").await.unwrap_err();
        assert!(error.to_string().contains("image reference"), "{error}");
    }
}
