//! The networks of the test pods: a bridge by the CNI plugins of Debian's package, below the test bed and gone with it.
//!
//! Pods have two interfaces on it: `eth0` with IPv4, IPv6 and a permanent neighbour, `eth1` with a route of its own. A handler of its own
//! has no network at all.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command;
use crate::place;

const SHORT: Duration = Duration::from_secs(60);

/// A neighbour that answers no question, written down for good, as some clouds do it for their gateway. It takes the configuration so far from
/// between the words that containerd puts before and behind it.
const NEIGHBOUR: &str = r#"#!/bin/sh
config=$(cat)
case $CNI_COMMAND in
ADD)
    nsenter --net="$CNI_NETNS" ip neigh add 169.254.1.1 lladdr 02:00:00:00:00:99 dev "$CNI_IFNAME" nud permanent || exit 1
    config=${config#*'"prevResult":'}
    printf '%s' "${config%,'"type"'*}"
    ;;
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.4.0"]}' ;;
esac
"#;

/// A network that gives the pod an address on paper, and no interface.
const PAPER: &str = r#"#!/bin/sh
cat >/dev/null
case $CNI_COMMAND in
ADD)
    printf '{"cniVersion":"0.4.0","interfaces":[{"name":"%s","sandbox":"%s"}],' "$CNI_IFNAME" "$CNI_NETNS"
    printf '"ips":[{"version":"4","interface":0,"address":"192.0.2.7/32"}]}'
    ;;
VERSION) echo '{"cniVersion":"0.4.0","supportedVersions":["0.4.0"]}' ;;
esac
"#;

/// A bridge that pods are connected to, and the node with them.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    directory: PathBuf,
    number: u8,
}

impl Network {
    /// A bridge named after a bed, configured below `directory`. `number` keeps the networks of two beds apart.
    pub fn new(directory: &Path, bed: &str, number: u8) -> Result<Self> {
        let network = Self { bridge: format!("clst-{bed}"), directory: directory.to_owned(), number };
        network.install_plugins()?;
        network.write_configuration()?;
        // Made here and not by the plugin, which would leave it behind, and switch forwarding on for the whole machine to give it an address.
        let _ = network.ip(&["link", "del", &network.bridge]);
        network.ip(&["link", "add", &network.bridge, "type", "bridge"])?;
        network.ip(&["address", "add", &format!("{}/24", network.node()), "dev", &network.bridge])?;
        network.ip(&["address", "add", &format!("{}/64", network.node_v6()), "dev", &network.bridge, "nodad"])?;
        network.ip(&["link", "set", &network.bridge, "up"])?;
        Ok(network)
    }

    /// Directory of the plugins.
    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    /// Directory of the configuration of every pod, and of those without a network.
    pub fn configurations(&self) -> (PathBuf, PathBuf) {
        (self.directory.join("net.d"), self.directory.join("paper.d"))
    }

    /// The node's own address on the bridge.
    pub fn node(&self) -> String {
        format!("10.231.{}.1", self.number)
    }

    /// The same, IPv6.
    pub fn node_v6(&self) -> String {
        format!("fd00:231:{}::1", self.number)
    }

    fn install_plugins(&self) -> Result<()> {
        let (plugins, package) = (self.plugins(), place::unpacked("cni", "usr/lib/cni")?);
        fs::create_dir_all(&plugins)?;
        for plugin in ["bridge", "host-local", "loopback"] {
            symlink(package.join(plugin), plugins.join(plugin))?;
        }
        for (plugin, script) in [("neighbour", NEIGHBOUR), ("paper", PAPER)] {
            fs::write(plugins.join(plugin), script)?;
            fs::set_permissions(plugins.join(plugin), fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    fn write_configuration(&self) -> Result<()> {
        let number = self.number;
        let addresses = |ranges: Value, routes: Value| json!({"type": "host-local", "dataDir": self.directory.join("addresses"), "ranges": ranges, "routes": routes});
        let bridge = |mtu: u32, ipam: Value| json!({"type": "bridge", "bridge": self.bridge, "mtu": mtu, "ipam": ipam});
        let list =
            |name: &str, plugins: Value| json!({"cniVersion": "0.4.0", "name": format!("{}-{name}", self.bridge), "plugins": plugins});
        let first = addresses(
            json!([[{"subnet": format!("10.231.{number}.0/24"), "rangeStart": format!("10.231.{number}.16")}],
                [{"subnet": format!("fd00:231:{number}::/64"), "rangeStart": format!("fd00:231:{number}::16")}]]),
            json!([{"dst": "0.0.0.0/0", "gw": self.node()}, {"dst": "::/0", "gw": self.node_v6()}]),
        );
        let second = addresses(
            json!([[{"subnet": format!("10.232.{number}.0/24")}]]),
            json!([{"dst": "10.99.0.0/16", "gw": format!("10.232.{number}.1")}]),
        );
        let (all, paper) = self.configurations();
        fs::create_dir_all(&all)?;
        fs::create_dir_all(&paper)?;
        fs::write(all.join("10-one.conflist"), list("one", json!([bridge(1400, first), {"type": "neighbour"}])).to_string())?;
        fs::write(all.join("20-two.conflist"), list("two", json!([bridge(1300, second)])).to_string())?;
        fs::write(paper.join("10-paper.conflist"), list("paper", json!([{"type": "paper"}])).to_string())?;
        Ok(())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        command::run(Command::new("ip").args(arguments), SHORT)?.succeeded().map(drop)
    }

    /// Takes the bridge away.
    pub fn remove(&self) -> Result<()> {
        self.ip(&["link", "del", &self.bridge]).with_context(|| format!("bridge {}", self.bridge))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Already gone where all went well.
        let _ = self.ip(&["link", "del", &self.bridge]);
    }
}
