//! containerd's configuration for pods, as an operator writes it: version 2 of the format for 1.6 and 1.7, version 3 for 2.x.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::network::Network;
use crate::oci::Image;
use crate::place;
use crate::registry::Registry;

/// The runtimes of a node, and which snapshotter each has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtimes {
    /// Cloister's alone.
    Ours,
    /// Ours is runc's too: the only way that 1.6 has.
    OneForAll,
    /// runc has containerd's own: what `cloister install --snapshotter` comes to.
    OneForEach,
}

impl Runtimes {
    /// How our snapshotter is started.
    pub fn flags(self) -> &'static [&'static str] {
        if self == Self::OneForAll { &["--unpack-plain"] } else { &[] }
    }

    /// That of every runtime that has none of its own, as Cloister has.
    fn snapshotter(self) -> &'static str {
        if self == Self::OneForEach { "overlayfs" } else { "cloister" }
    }
}

/// What pods need on this node.
#[derive(Debug)]
pub struct Node {
    /// Their network.
    pub network: Network,
    /// The image that containerd insists on for a pod's first container.
    pause: String,
    /// The registry, by plain HTTP.
    registry: String,
    runtimes: Runtimes,
    /// The program, and where it keeps what it knows of its containers; where the node has it.
    runc: Option<(PathBuf, PathBuf)>,
}

impl Node {
    /// Makes it below `base`.
    pub fn new(base: &Path, bed: &str, version: &str, registry: &Registry, runtimes: Runtimes) -> Result<Self> {
        let pause = match runtimes {
            Runtimes::Ours => Image { cmd: vec!["/pause"], ..Image::default() }.with_file("pause", "nothing that could run"),
            // runc runs it, which Cloister never does.
            Runtimes::OneForAll | Runtimes::OneForEach => Image::busybox("exec sleep 1000000")?,
        };
        let pause = registry.push(&pause.write(&base.join("images/pause"), "1")?, "pause", "1")?;
        let number = version.bytes().last().unwrap_or(b'0') - b'0';
        let network = Network::new(&base.join("n"), bed, number)?;
        let hosts = base.join("certs.d/_default");
        fs::create_dir_all(&hosts)?;
        let server = format!("http://{}", registry.authority);
        fs::write(hosts.join("hosts.toml"), format!("server = {server:?}\n\n[host.{server:?}]\ncapabilities = [\"pull\", \"resolve\"]\n"))?;
        let runc = match runtimes {
            Runtimes::Ours => None,
            Runtimes::OneForAll | Runtimes::OneForEach => Some((place::runc()?, base.join("runc"))),
        };
        Ok(Self { network, pause, registry: base.join("certs.d").display().to_string(), runtimes, runc })
    }

    /// The part of containerd's configuration that is about pods.
    pub fn text(&self, version: &str) -> String {
        if version.starts_with("1.") {
            self.version_2() + &self.of_runc("io.containerd.grpc.v1.cri")
        } else {
            self.version_3() + &self.of_runc("io.containerd.cri.v1.runtime")
        }
    }

    fn of_runc(&self, plugin: &str) -> String {
        let Some((program, state)) = &self.runc else { return String::new() };
        let runtime = format!("[plugins.{plugin:?}.containerd.runtimes.runc");
        format!(
            "\n{runtime}]\nruntime_type = \"io.containerd.runc.v2\"\n\n{runtime}.options]\nBinaryName = {program:?}\nRoot = {state:?}\n"
        )
    }

    fn version_2(&self) -> String {
        let (pause, registry, plugins) = (&self.pause, &self.registry, self.network.plugins());
        let snapshotter = self.runtimes.snapshotter();
        let (all, paper) = self.network.configurations();
        format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {pause:?}
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins:?}
conf_dir = {all:?}
max_conf_num = 2

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = {registry:?}

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = {snapshotter:?}
default_runtime_name = "cloister"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.cloister]
runtime_type = "io.containerd.cloister.v2"
snapshotter = "cloister"
pod_annotations = ["dev.cloister.*"]

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.offline]
runtime_type = "io.containerd.cloister.v2"
cni_conf_dir = {paper:?}
"#
        )
    }

    fn version_3(&self) -> String {
        let (pause, registry, plugins) = (&self.pause, &self.registry, self.network.plugins());
        let snapshotter = self.runtimes.snapshotter();
        let (all, paper) = self.network.configurations();
        format!(
            r#"
[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
stream_server_port = "0"

[plugins."io.containerd.cri.v1.images"]
snapshotter = {snapshotter:?}

[plugins."io.containerd.cri.v1.images".runtime_platforms.cloister]
snapshotter = "cloister"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = {pause:?}

[plugins."io.containerd.cri.v1.images".registry]
config_path = {registry:?}

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [{plugins:?}]
conf_dir = {all:?}
max_conf_num = 2

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "cloister"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.cloister]
runtime_type = "io.containerd.cloister.v2"
snapshotter = "cloister"
pod_annotations = ["dev.cloister.*"]

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.api]
runtime_type = "io.containerd.cloister.v2"
sandboxer = "shim"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.offline]
runtime_type = "io.containerd.cloister.v2"
cni_conf_dir = {paper:?}
"#
        )
    }
}
