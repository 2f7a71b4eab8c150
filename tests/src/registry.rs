//! Debian's docker-registry on a free port of loopback, with its storage where a test can reach into it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::daemon::Daemon;
use crate::oci::Layout;
use crate::place;

const START: Duration = Duration::from_secs(60);
const PUSH: Duration = Duration::from_secs(120);

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    /// `127.0.0.1:PORT`, as it stands in image references.
    pub authority: String,
    storage: PathBuf,
}

impl Registry {
    /// Starts one that is open to all, with its storage in `<directory>/<name>`.
    pub fn start(directory: &Path, name: &str) -> Result<Self> {
        Self::start_with(directory, name, "", "")
    }

    /// The same with more in its configuration: keys of `http`, each with a comma before it, and lines.
    pub fn start_with(directory: &Path, name: &str, http: &str, more: &str) -> Result<Self> {
        let storage = directory.join(name);
        fs::create_dir_all(&storage)?;
        let authority = format!("127.0.0.1:{}", free_port()?);
        let file = directory.join(format!("{name}.yml"));
        fs::write(
            &file,
            format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{authority}'{http}}}\n{more}",
                storage.display()
            ),
        )?;
        let mut command = Command::new(place::unpacked("registry", "usr/bin/docker-registry")?);
        command.arg("serve").arg(file);
        // Debian's build reports to a tracing collector unless told otherwise.
        command.env("OTEL_TRACES_EXPORTER", "none");
        let mut daemon = Daemon::start(name, directory, command)?;
        daemon.wait_until(START, "listening", || std::net::TcpStream::connect(&authority).is_ok())?;
        Ok(Self { daemon, authority, storage })
    }

    /// Directory of everything that it stores.
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// Pushes the image `tag` of a layout as `name:tag` and returns its reference.
    pub fn push(&self, layout: &Layout, name: &str, tag: &str) -> Result<String> {
        let reference = format!("{}/{name}:{tag}", self.authority);
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{tag}", layout.directory.display()))
            .arg(format!("docker://{reference}"));
        command::run(&mut skopeo, PUSH)?.succeeded()?;
        Ok(reference)
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> Result<PathBuf> {
        let (algorithm, name) = digest.split_once(':').with_context(|| format!("'{digest}' is no digest"))?;
        let start = name.get(..2).with_context(|| format!("'{digest}' is no digest"))?;
        Ok(self.storage.join("docker/registry/v2/blobs").join(algorithm).join(start).join(name).join("data"))
    }

    /// The lines of its access log that are downloads of this blob, successful or not.
    pub fn downloads(&self, digest: &str) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.daemon.log())?;
        let wanted = format!("/blobs/{digest} ");
        Ok(log.lines().filter(|line| line.contains("\"GET ") && line.contains(&wanted)).map(str::to_owned).collect())
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.stop()
    }
}

/// A port of loopback on which nobody listens at the moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
