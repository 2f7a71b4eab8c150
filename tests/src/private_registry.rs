//! A registry as a company has it: TLS by an authority of its own, and a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::command;
use crate::ctr::Ctr;
use crate::oci::Layout;
use crate::registry::Registry;

const TOOL: Duration = Duration::from_secs(120);
/// Name and password.
const LOGIN: &str = "me:pass";
/// The same, hashed as htpasswd does.
const HTPASSWD: &str = "me:$2b$04$GQ5pRuB4YSBSJ0g25EwIYOab1mE9KDYNp/RqFLDczkPwDqf6i1DE.\n";

/// A running one.
#[derive(Debug)]
pub struct PrivateRegistry {
    registry: Registry,
    directory: PathBuf,
}

impl PrivateRegistry {
    /// Starts one with all that is its in `<directory>/<name>-tls` and `<directory>/<name>`.
    pub fn start(directory: &Path, name: &str) -> Result<Self> {
        let own = directory.join(format!("{name}-tls"));
        fs::create_dir_all(own.join("ca"))?;
        let openssl = |arguments: &[&str]| command::run(Command::new("openssl").current_dir(&own).args(arguments), TOOL)?.succeeded();
        let new = ["-newkey", "rsa:2048", "-nodes"];
        openssl(&[&["req", "-x509", "-subj", "/CN=test CA", "-days", "2", "-keyout", "ca.key", "-out", "ca/ca.crt"], &new[..]].concat())?;
        openssl(&[&["req", "-subj", "/CN=registry", "-keyout", "tls.key", "-out", "tls.csr"], &new[..]].concat())?;
        fs::write(own.join("san"), "subjectAltName=IP:127.0.0.1\n")?;
        let by_ca = ["-CA", "ca/ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"];
        openssl(&[&["x509", "-req", "-in", "tls.csr", "-out", "tls.pem"], &by_ca[..]].concat())?;
        fs::write(own.join("htpasswd"), HTPASSWD)?;
        let d = own.display();
        let (tls, auth) = (
            format!(", tls: {{certificate: {d}/tls.pem, key: {d}/tls.key}}"),
            format!("auth: {{htpasswd: {{realm: test, path: {d}/htpasswd}}}}\n"),
        );
        let registry = Registry::start_with(directory, name, &tls, &auth)?;
        let hosts = own.join("hosts").join(&registry.authority);
        fs::create_dir_all(&hosts)?;
        let host =
            format!("[host.\"https://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"{d}/ca/ca.crt\"\n", registry.authority);
        fs::write(hosts.join("hosts.toml"), host)?;
        Ok(Self { registry, directory: own })
    }

    /// `127.0.0.1:PORT`.
    pub fn authority(&self) -> &str {
        &self.registry.authority
    }

    /// Its authority's certificate, PEM.
    pub fn ca(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("ca/ca.crt"))?)
    }

    /// The `auth.json` of those who may.
    pub fn auth_file(&self) -> String {
        json!({"auths": {self.authority(): {"auth": STANDARD.encode(LOGIN)}}}).to_string()
    }

    /// Pushes the image `tag` of a layout as `name:tag` and returns its reference.
    pub fn push(&self, layout: &Layout, name: &str, tag: &str) -> Result<String> {
        let reference = format!("{}/{name}:{tag}", self.authority());
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-creds", LOGIN, "--dest-cert-dir"]).arg(self.directory.join("ca"));
        skopeo.arg(format!("oci:{}:{tag}", layout.directory.display())).arg(format!("docker://{reference}"));
        command::run(&mut skopeo, TOOL)?.succeeded()?;
        Ok(reference)
    }

    /// Has a node that may do so fetch manifest and config.
    pub fn pull_lazily(&self, ctr: &Ctr, reference: &str) -> Result<()> {
        let hosts = self.directory.join("hosts").display().to_string();
        ctr.call(&["image", "pull", "--hosts-dir", &hosts, "--user", LOGIN, "--snapshotter", "cloister", reference])?.succeeded()?;
        Ok(())
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.registry.stop()
    }
}
