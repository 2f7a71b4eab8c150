//! nerdctl, the real one, on the containerd of a test bed, with a bridge network in the network namespace of the test program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::command::{self, Finished};
use crate::place;

/// One command that starts no VM.
const SHORT: Duration = Duration::from_secs(120);

/// The client, with directories of its own.
#[derive(Debug)]
pub struct Nerdctl {
    program: PathBuf,
    plugins: PathBuf,
    directory: PathBuf,
    address: PathBuf,
}

/// Gives this program, and all that it starts from here on, a network of its own: nerdctl makes a bridge and rules of the packet filter, which
/// are to be nobody's. Before any thread is started.
pub fn own_network() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("a network namespace: run `make test`, which uses sudo where needed")?;
    command::run(Command::new("ip").args(["link", "set", "lo", "up"]), SHORT)?.succeeded()?;
    Ok(())
}

impl Nerdctl {
    /// For the containerd of `bed`.
    pub fn new(bed: &Bed) -> Result<Self> {
        let program = place::built_nerdctl()?;
        let plugins = place::unpacked("cni", "usr/lib/cni")?;
        let (directory, address) = (bed.base().join("nerdctl"), bed.base().join("c/c.sock"));
        ensure!(address.exists(), "{} is not there", address.display());
        let networks = directory.join("net.d");
        fs::create_dir_all(&networks)?;
        fs::write(networks.join("nerdctl-bridge.conflist"), network(&directory.join("leases")).to_string())?;
        Ok(Self { program, plugins, directory, address })
    }

    /// The command line of `nerdctl` with `arguments`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--address").arg(&self.address).args(["--namespace", "default", "--cgroup-manager", "cgroupfs"]);
        command.arg("--data-root").arg(self.directory.join("data")).arg("--cni-path").arg(&self.plugins);
        command.arg("--cni-netconfpath").arg(self.directory.join("net.d")).args(["--snapshotter", "cloister"]);
        // The machine's own configuration of nerdctl is not this one's.
        command.args(arguments).env("NERDCTL_TOML", "/dev/null").env_remove("CONTAINERD_ADDRESS");
        command
    }

    /// `nerdctl run` with what every test needs.
    pub fn run_command(&self, arguments: &[&str]) -> Command {
        let common = ["run", "--runtime", "io.containerd.cloister.v2", "--pull", "never"];
        self.command(&common.iter().chain(arguments).copied().collect::<Vec<_>>())
    }

    /// Runs it to its end, whatever comes of it.
    pub fn call(&self, arguments: &[&str]) -> Result<Finished> {
        command::run(&mut self.command(arguments), SHORT)
    }

    /// Addresses that its networks have given away.
    pub fn leases(&self) -> Vec<String> {
        // host-local keeps them in one file each.
        let files = fs::read_dir(self.directory.join("leases/bridge")).into_iter().flatten().flatten();
        files.map(|file| file.file_name().to_string_lossy().into_owned()).filter(|name| name.starts_with("10.4.")).collect()
    }
}

/// nerdctl's default network as it writes it itself, but with the leases in a directory of ours.
fn network(leases: &Path) -> Value {
    // Its id is the SHA-256 of its name.
    let id = crate::oci::digest(b"bridge").trim_start_matches("sha256:").to_owned();
    json!({
        "cniVersion": "1.0.0",
        "name": "bridge",
        "nerdctlID": id,
        "nerdctlLabels": { "nerdctl/default-network": "true" },
        "plugins": [
            {
                "type": "bridge",
                "bridge": "nerdctl0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": leases,
                    "ranges": [[{ "gateway": "10.4.0.1", "subnet": "10.4.0.0/24" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "firewall", "ingressPolicy": "same-bridge" },
            { "type": "tuning" },
        ],
    })
}
