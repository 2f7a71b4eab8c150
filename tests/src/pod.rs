//! A pod made by hand: one VM and any number of containers in it, from OCI specs such as CRI writes, through `ctr`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::command::Finished;
use crate::ctr::{BOOT, Run};

/// What a runtime gives by default (containerd's `defaultUnixCaps`).
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A running pod.
#[derive(Debug)]
pub struct Pod<'a> {
    bed: &'a Bed,
    /// Id of its sandbox.
    pub id: String,
    image: String,
}

impl<'a> Pod<'a> {
    /// Boots the VM, by the pod's first container. `image` is what its other containers are made from.
    pub fn start(bed: &'a Bed, name: &str, image: &str, initdata: Option<&str>) -> Result<Self> {
        let id = bed.id(name);
        let sandbox = format!("io.kubernetes.cri.sandbox-id={id}");
        let flags = ["--detach", "--annotation", "io.kubernetes.cri.container-type=sandbox", "--annotation", &sandbox];
        bed.ctr().run(&Run { image, id: &id, flags: &flags, initdata, ..Run::default() })?.succeeded()?;
        Ok(Self { bed, id, image: image.to_owned() })
    }

    /// The spec of a container of the pod as CRI writes it: `script` is run by the shell, as root, with what every container gets.
    pub fn spec(&self, script: &str) -> Value {
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/",
                "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
                "noNewPrivileges": true, "oomScoreAdj": 0,
            },
            "root": {"path": "rootfs"},
            "hostname": "pod",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            ],
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": self.id,
                "io.kubernetes.cri.image-name": self.image,
            },
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}], "memory": {}, "cpu": {"shares": 2}},
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        })
    }

    /// A container's id.
    pub fn container(&self, name: &str) -> String {
        format!("{name}-{}", self.id)
    }

    /// Runs a container to its end.
    pub fn run(&self, name: &str, spec: &Value) -> Result<Finished> {
        self.start_container(name, spec, &[])
    }

    /// Runs a container in the background.
    pub fn detach(&self, name: &str, spec: &Value) -> Result<String> {
        self.start_container(name, spec, &["--detach"])?.succeeded()?;
        Ok(self.container(name))
    }

    fn start_container(&self, name: &str, spec: &Value, flags: &[&str]) -> Result<Finished> {
        let id = self.container(name);
        let file = self.bed.base().join(format!("{id}.json"));
        fs::write(&file, spec.to_string()).with_context(|| format!("writing {}", file.display()))?;
        let file = file.display().to_string();
        let flags = [&["--config", file.as_str()], flags].concat();
        // A spec takes the place of image and command.
        self.bed.ctr().start(&Run { id: &id, flags: &flags, ..Run::default() })?.finish(BOOT)
    }

    /// A file of a container's bundle on the host.
    pub fn bundle_file(&self, name: &str, file: &str) -> PathBuf {
        let bundles = self.bed.base().join("c/state/io.containerd.runtime.v2.task/default");
        bundles.join(self.container(name)).join(file)
    }

    /// Ends the pod with everything in it; nothing may be left.
    pub fn end(self) -> Result<()> {
        self.bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &self.id])?;
        self.bed.ctr().remove(&self.id)?;
        self.bed.nothing_of(&self.id)
    }
}
