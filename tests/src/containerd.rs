//! A containerd of a chosen version, started by hand with its own configuration, root, state and sockets.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cri::configuration::Node;
use crate::ctr::Ctr;
use crate::daemon::Daemon;
use crate::place;

const START: Duration = Duration::from_secs(120);
const CONFIGURATION: &str = "containerd.toml";
const SHIMS: &str = "bin";

/// What a containerd needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// One of [`place::CONTAINERD_VERSIONS`].
    pub version: &'a str,
    /// Directory for everything of it.
    pub directory: &'a Path,
    /// The configuration of the shims that it starts.
    pub shim_configuration: &'a Path,
    /// Socket of the snapshotter.
    pub snapshotter: &'a Path,
    /// What pods need; without it there is no CRI.
    pub pods: Option<&'a Node>,
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    daemon: Mutex<Daemon>,
    log: PathBuf,
    program: PathBuf,
    shim_configuration: PathBuf,
    directory: PathBuf,
    ctr: Ctr,
}

impl Containerd {
    /// Starts one and waits until it answers.
    pub fn start(options: &Options<'_>) -> Result<Self> {
        let directory = options.directory;
        fs::create_dir_all(directory)?;
        let address = place::socket(directory.join("c.sock"))?;
        place::socket(directory.join("c.sock.ttrpc"))?;
        fs::write(directory.join(CONFIGURATION), configuration(options))?;
        let package = format!("containerd-{}", options.version);
        let program = place::unpacked(&package, "usr/bin/containerd")?;
        let ctr = Ctr::new(place::unpacked(&package, "usr/bin/ctr")?, address, directory.join("fifo"), options.version != "1.6");
        let daemon = launch(&program, directory, options.shim_configuration, &ctr)?;
        let log = daemon.log().to_owned();
        let shim_configuration = options.shim_configuration.to_owned();
        Ok(Self { daemon: Mutex::new(daemon), log, program, shim_configuration, directory: directory.to_owned(), ctr })
    }

    /// Ends it as a crash would. Its shims stay.
    pub fn kill(&self) -> Result<()> {
        self.daemon().kill()
    }

    /// Starts it again after [`Self::kill`], and waits until it answers.
    pub fn start_again(&self) -> Result<()> {
        *self.daemon() = launch(&self.program, &self.directory, &self.shim_configuration, &self.ctr)?;
        Ok(())
    }

    /// Where a shim is looked for before any other place.
    pub fn shims(&self) -> PathBuf {
        self.directory.join(SHIMS)
    }

    fn daemon(&self) -> MutexGuard<'_, Daemon> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client of the same version.
    pub fn ctr(&self) -> &Ctr {
        &self.ctr
    }

    /// Its log, with those of its shims in it.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The file of a blob in the content store.
    pub fn blob(&self, digest: &str) -> Result<PathBuf> {
        let (algorithm, name) = digest.split_once(':').with_context(|| format!("'{digest}' is no digest"))?;
        Ok(self.directory.join("root/io.containerd.content.v1.content/blobs").join(algorithm).join(name))
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("c.sock")
    }

    /// Directory of the tasks' bundles.
    pub fn bundles(&self) -> PathBuf {
        self.directory.join("state/io.containerd.runtime.v2.task/default")
    }

    /// Ends it.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon().stop()
    }
}

fn launch(program: &Path, directory: &Path, shim_configuration: &Path, ctr: &Ctr) -> Result<Daemon> {
    let mut command = Command::new(program);
    command.arg("-c").arg(directory.join(CONFIGURATION)).env("CLOISTER_CONFIG", shim_configuration);
    // containerd looks its shims up in its own PATH: ours, and runc's, which lies beside it.
    let path = std::env::var("PATH").context("PATH is not set")?;
    let beside = program.parent().context("a program without a directory")?.display();
    command.env("PATH", format!("{}:{}:{beside}:{path}", directory.join(SHIMS).display(), place::binaries()?.display()));
    let mut daemon = Daemon::start("containerd", directory, command)?;
    daemon.wait_until(START, "listening", || UnixStream::connect(ctr.address()).is_ok())?;
    ctr.wait_serving(START)?;
    Ok(daemon)
}

/// Without pods it is version 2 of the format, which 2.x reads too. CRI is off then: it would want CNI, and touches the machine's network.
fn configuration(options: &Options<'_>) -> String {
    let (at, snapshotter) = (options.directory.display(), options.snapshotter.display());
    let (version, off, pods) = match options.pods {
        Some(node) if options.version.starts_with("1.") => (2, "", node.text(options.version)),
        Some(node) => (3, "", node.text(options.version)),
        None => (
            2,
            r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "#,
            String::new(),
        ),
    };
    format!(
        r#"version = {version}
root = "{at}/root"
state = "{at}/state"
disabled_plugins = [{off}"io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
address = "{at}/c.sock"

[ttrpc]
address = "{at}/c.sock.ttrpc"

[debug]
level = "debug"

[proxy_plugins.cloister]
type = "snapshot"
address = "{snapshotter}"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "cloister"

[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true
{pods}"#
    )
}
