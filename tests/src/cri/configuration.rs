//! containerd's configuration for pods, as an operator writes it: version 2 of the format for 1.6 and 1.7, version 3 for 2.x.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::network::Network;
use crate::oci::Image;
use crate::registry::Registry;

/// What pods need on this node.
#[derive(Debug)]
pub struct Node {
    /// Their network.
    pub network: Network,
    /// The image that containerd insists on for a pod's first container. It is never run.
    pause: String,
    /// The registry, by plain HTTP.
    registry: String,
    /// Of every runtime that has none of its own, as Cloister has.
    snapshotter: &'static str,
}

impl Node {
    /// Makes it below `base`; `snapshotter` is that of every runtime but Cloister.
    pub fn new(base: &Path, bed: &str, version: &str, registry: &Registry, snapshotter: &'static str) -> Result<Self> {
        let pause = Image { cmd: vec!["/pause"], ..Image::default() }.with_file("pause", "nothing that could run");
        let pause = registry.push(&pause.write(&base.join("images/pause"), "1")?, "pause", "1")?;
        let number = version.bytes().last().unwrap_or(b'0') - b'0';
        let network = Network::new(&base.join("n"), bed, number)?;
        let hosts = base.join("certs.d/_default");
        fs::create_dir_all(&hosts)?;
        let server = format!("http://{}", registry.authority);
        fs::write(hosts.join("hosts.toml"), format!("server = {server:?}\n\n[host.{server:?}]\ncapabilities = [\"pull\", \"resolve\"]\n"))?;
        Ok(Self { network, pause, registry: base.join("certs.d").display().to_string(), snapshotter })
    }

    /// The part of containerd's configuration that is about pods.
    pub fn text(&self, version: &str) -> String {
        if version.starts_with("1.") { self.version_2() } else { self.version_3() }
    }

    fn version_2(&self) -> String {
        let (pause, registry, plugins) = (&self.pause, &self.registry, self.network.plugins());
        let snapshotter = self.snapshotter;
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
        let snapshotter = self.snapshotter;
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
