//! The bundle that containerd made for a container: the parts of its `config.json` that the host's side needs. The agent gets the
//! whole text and reads it by itself.

use crate::{
    hooks::{self, Hooks},
    pod::{self, Pod, PodError, Shared},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use protocol::api;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Longest `config.json`, in bytes: what the host-guest line takes.
const MAX_SPEC: u64 = protocol::bounds::MAX_SPEC as u64;
/// Longest hostname (`HOST_NAME_MAX`).
const MAX_HOSTNAME: usize = protocol::bounds::MAX_HOSTNAME;
/// Most that is read of a `resolv.conf`, in bytes.
const MAX_RESOLV_CONF: u64 = 64 << 10;
/// Where the owner's initdata stands: ours, and Kata's.
const INITDATA: [&str; 2] = ["dev.cloister.initdata", "io.katacontainers.config.hypervisor.cc_init_data"];

/// The bundle cannot be used.
#[derive(Debug, Error)]
pub enum BundleError {
    /// Reading.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Longer than the bound.
    #[error("{path}: {size} bytes, at most {MAX_SPEC} are taken")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// Not an OCI runtime spec.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where, and what.
        source: serde_json::Error,
    },
    /// The annotation with initdata.
    #[error("annotation {name}: not base64: {source}")]
    Initdata {
        /// The annotation.
        name: &'static str,
        /// Where.
        source: base64::DecodeError,
    },
    /// A namespace of the node.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// A container of a pod that does not say of which.
    #[error("config.json: a container of a pod without the annotation that names its sandbox")]
    NoSandbox,
}

/// What a container is to its shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A container by itself, with a VM of its own.
    Lone,
    /// A pod's first container: the VM itself. Nothing of it runs in the guest.
    Sandbox,
    /// A container in the VM of this sandbox.
    Member(String),
}

/// The parts of an OCI runtime spec that the host's side reads. Unknown fields are the guest's business.
#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default, rename = "ociVersion")]
    oci_version: String,
    #[serde(default)]
    hooks: Option<hooks::Lists>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    linux: Linux,
}

/// A mount of the spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Mount {
    /// In the container.
    pub destination: String,
    /// `bind`, `tmpfs`, …
    #[serde(rename = "type", default)]
    pub kind: String,
    /// On the host.
    #[serde(default)]
    pub source: PathBuf,
    /// As of mount(8).
    #[serde(default)]
    pub options: Vec<String>,
}

impl Mount {
    /// Whether something of the host's is to be seen at the destination.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }

    /// Whether it is not to be written to.
    pub fn is_readonly(&self) -> bool {
        self.options.iter().any(|option| option == "ro" || option == "rro")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
    devices: Vec<Device>,
    resources: Resources,
    sysctl: BTreeMap<String, String>,
}

/// A device of the spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// In the container.
    pub path: String,
    /// `b` is a disk.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// On this host.
    #[serde(default)]
    pub major: i64,
    /// On this host.
    #[serde(default)]
    pub minor: i64,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    devices: Vec<DeviceRule>,
    memory: Memory,
    cpu: Cpu,
}

/// A rule of the device cgroup; without type and numbers it is about all devices.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DeviceRule {
    allow: bool,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<i64>,
    minor: Option<i64>,
    access: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    quota: Option<i64>,
    period: Option<u64>,
}

/// A container's `config.json`.
#[derive(Debug)]
pub struct Bundle {
    json: Vec<u8>,
    spec: Spec,
}

impl Bundle {
    /// Reads `<bundle>/config.json`.
    pub fn read(bundle: &Path) -> Result<Self, BundleError> {
        let path = bundle.join("config.json");
        let failed = |source| BundleError::Read { path: path.clone(), source };
        let size = fs::metadata(&path).map_err(failed)?.len();
        if size > MAX_SPEC {
            return Err(BundleError::TooLong { path, size });
        }
        let json = fs::read(&path).map_err(failed)?;
        Self::parse(json).map_err(|source| BundleError::Malformed { path, source })
    }

    fn parse(json: Vec<u8>) -> Result<Self, serde_json::Error> {
        // By way of an object: a derived struct would be read from an array as well.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json)?;
        let spec = Spec::deserialize(serde_json::Value::Object(object))?;
        Ok(Self { json, spec })
    }

    /// The whole text.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Its mounts.
    pub fn mounts(&self) -> &[Mount] {
        &self.spec.mounts
    }

    /// Whether it may use every device: the last rule about all of them counts.
    pub fn is_privileged(&self) -> bool {
        let all = |rule: &&DeviceRule| rule.kind.as_deref().is_none_or(|kind| kind == "a") && rule.major.is_none_or(|major| major < 0);
        self.spec.linux.resources.devices.iter().rfind(all).is_some_and(|rule| rule.allow)
    }

    /// Its devices.
    pub fn devices(&self) -> &[Device] {
        &self.spec.linux.devices
    }

    /// Whether a device is only to be read, by the last rule that is about it alone (kubelet's `readOnly` of a block volume).
    pub fn is_readonly(&self, device: &Device) -> bool {
        let about = |rule: &&DeviceRule| {
            let numbers = (rule.major, rule.minor) == (Some(device.major), Some(device.minor));
            rule.allow && numbers && rule.kind.as_deref() == Some(device.kind.as_str())
        };
        self.spec.linux.resources.devices.iter().rfind(about).is_some_and(|rule| !rule.access.is_empty() && !rule.access.contains('w'))
    }

    /// What the container is, by the annotations of containerd's CRI plugin and of CRI-O.
    pub fn role(&self) -> Result<Role, BundleError> {
        let kind = self.annotation(&["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"]);
        match kind {
            Some("sandbox") => Ok(Role::Sandbox),
            Some("container") => self.sandbox_id().map(|id| Role::Member(id.to_owned())).ok_or(BundleError::NoSandbox),
            _ => Ok(Role::Lone),
        }
    }

    /// The sandbox that the annotations name.
    fn sandbox_id(&self) -> Option<&str> {
        self.annotation(&["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"])
    }

    /// Whose shim the container belongs to: its own label first, then its pod's, else its own.
    pub fn group<'a>(&'a self, id: &'a str) -> &'a str {
        self.annotation(&["dev.cloister.group", "io.containerd.runc.v2.group"]).or_else(|| self.sandbox_id()).unwrap_or(id)
    }

    /// The image, where the caller says which.
    pub fn image_name(&self) -> Option<&str> {
        self.annotation(&["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"])
    }

    /// What the VM is asked to be. `id` is the container's, for one that has no hostname.
    pub fn pod(&self, id: &str) -> Result<Pod, BundleError> {
        let hostname = if self.spec.hostname.is_empty() { id } else { &self.spec.hostname };
        let sysctls = if self.role()? == Role::Sandbox { self.spec.linux.sysctl.clone() } else { BTreeMap::new() };
        Ok(Pod {
            hostname: hostname.chars().take(MAX_HOSTNAME - 1).collect(),
            netns: self.netns()?,
            initdata: initdata(&self.spec.annotations).transpose()?,
            memory: self.memory_limit(),
            processors: self.processor_limit(),
            sysctls,
            dns: self.dns(),
        })
    }

    /// The network namespace that the container is to be in, where it is one that exists already. A list of namespaces that leaves one
    /// out asks for the node's; one without even a mount namespace is no container's.
    fn netns(&self) -> Result<Option<PathBuf>, PodError> {
        let namespaces = &self.spec.linux.namespaces;
        let find = |kind: &str| namespaces.iter().find(|namespace| namespace.kind == kind);
        for (kind, shared) in [("network", Shared::Network), ("pid", Shared::Pid), ("ipc", Shared::Ipc)] {
            if find("mount").is_some() && find(kind).is_none() {
                return Err(shared.refused());
            }
        }
        Ok(find("network").map(|network| network.path.clone()).filter(|path| !path.as_os_str().is_empty()))
    }

    /// Whether the container is to have a network namespace that does not exist yet.
    pub fn wants_netns(&self) -> bool {
        self.spec.linux.namespaces.iter().any(|namespace| namespace.kind == "network" && namespace.path.as_os_str().is_empty())
    }

    /// The hooks of the container `id`, whose bundle this is, in the folder `path`.
    pub fn hooks(&self, id: &str, path: &Path) -> Hooks {
        let subject = hooks::Subject {
            id: id.to_owned(),
            bundle: path.to_owned(),
            oci_version: self.spec.oci_version.clone(),
            annotations: self.spec.annotations.clone().into_iter().collect(),
        };
        Hooks::new(subject, self.spec.hooks.clone().unwrap_or_default())
    }

    /// Limit of memory in bytes, of the pod or the container.
    fn memory_limit(&self) -> Option<u64> {
        let pod = self.number("io.kubernetes.cri.sandbox-memory");
        pod.or(self.spec.linux.resources.memory.limit).and_then(pod::limit)
    }

    /// Limit of processors, rounded up, of the pod or the container.
    fn processor_limit(&self) -> Option<u32> {
        let quota = self.number("io.kubernetes.cri.sandbox-cpu-quota").or(self.spec.linux.resources.cpu.quota)?;
        let own = self.spec.linux.resources.cpu.period.and_then(|period| i64::try_from(period).ok());
        let period = self.number("io.kubernetes.cri.sandbox-cpu-period").or(own).unwrap_or_default();
        pod::processors(quota, period)
    }

    /// Where names are looked up, by the `resolv.conf` that the caller has made for the container. One that cannot be read is none.
    fn dns(&self) -> api::Dns {
        let Some(mount) = self.spec.mounts.iter().find(|mount| mount.destination == "/etc/resolv.conf") else {
            return api::Dns::new();
        };
        let mut text = String::new();
        let read = fs::File::open(&mount.source).and_then(|file| file.take(MAX_RESOLV_CONF).read_to_string(&mut text));
        if let Err(error) = read {
            log::warn!("{}: {error}", mount.source.display());
        }
        resolv_conf(&text)
    }

    fn number(&self, annotation: &str) -> Option<i64> {
        self.annotation(&[annotation]).and_then(|text| text.parse().ok())
    }

    fn annotation(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.spec.annotations.get(*name)).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The owner's initdata among annotations, packed as the guest takes it.
pub fn initdata(annotations: &HashMap<String, String>) -> Option<Result<Vec<u8>, BundleError>> {
    let present = |name: &&'static str| annotations.get(*name).filter(|value| !value.is_empty()).map(|value| (*name, value));
    let (name, value) = INITDATA.iter().find_map(present)?;
    Some(STANDARD.decode(value.trim()).map_err(|source| BundleError::Initdata { name, source }))
}

/// The lines of a `resolv.conf` (resolv.conf(5)) that a guest has a use for.
fn resolv_conf(text: &str) -> api::Dns {
    let mut dns = api::Dns::new();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            // The last one counts.
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
#[path = "hostile_spec.rs"]
mod hostile_spec;

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(json: &str) -> Bundle {
        Bundle::parse(json.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_plain_container_is_by_itself() {
        let plain = bundle(r#"{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"network"}]}}"#);
        assert_eq!(plain.role().unwrap(), Role::Lone);
        assert_eq!((plain.group("a"), plain.image_name()), ("a", None));
        let plain = plain.pod("a").unwrap();
        assert_eq!((plain.netns, plain.memory, plain.processors, plain.hostname.as_str()), (None, None, None, "a"));
    }

    #[test]
    fn namespaces_that_are_left_out_are_the_nodes_and_refused() {
        let with = |namespaces: &str| bundle(&format!(r#"{{"linux":{{"namespaces":[{namespaces}]}}}}"#)).pod("a");
        let all = r#"{"type":"network","path":"/run/netns/p"},{"type":"pid"},{"type":"ipc"},{"type":"mount"}"#;
        assert_eq!(with(all).unwrap().netns, Some("/run/netns/p".into()));
        for (left_out, wanted) in [("network", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC")] {
            let some = all.split("},{").filter(|entry| !entry.contains(left_out)).collect::<Vec<_>>().join("},{");
            let some = format!("{{{}}}", some.trim_matches(['{', '}']));
            let error = with(&some).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        }
        assert!(with("").is_ok());
    }

    #[test]
    fn names_are_looked_up_where_the_caller_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "# a\nnameserver 10.0.0.10\nsearch a.b c.d\noptions ndots:5 edns0\nnameserver\nsortlist x\n").unwrap();
        let json = format!(r#"{{"mounts":[{{"destination":"/etc/resolv.conf","type":"bind","source":{file:?}}}]}}"#);
        let dns = bundle(&json).pod("a").unwrap().dns;
        assert_eq!((&dns.servers[..], &dns.searches[..]), (&["10.0.0.10".to_owned()][..], &["a.b".to_owned(), "c.d".to_owned()][..]));
        assert_eq!(dns.options, ["ndots:5", "edns0"]);
        fs::remove_file(file).unwrap();
        assert_eq!(bundle(&json).pod("a").unwrap().dns, api::Dns::new());
    }

    #[test]
    fn kernel_parameters_are_the_whole_pods() {
        let with = |kind: &str| {
            let json = format!(
                r#"{{"annotations":{{"io.kubernetes.cri.container-type":"{kind}","io.kubernetes.cri.sandbox-id":"p"}},
                "linux":{{"sysctl":{{"net.core.somaxconn":"7"}}}}}}"#
            );
            bundle(&json).pod("p").unwrap().sysctls
        };
        assert_eq!(with("sandbox").get("net.core.somaxconn").map(String::as_str), Some("7"));
        assert!(with("container").is_empty());
    }

    #[test]
    fn pods_of_both_callers_are_known() {
        let containerd = bundle(
            r#"{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p",
            "io.kubernetes.cri.image-name":"docker.io/library/nginx:1"}}"#,
        );
        assert_eq!(containerd.role().unwrap(), Role::Member("p".into()));
        assert_eq!((containerd.group("a"), containerd.image_name()), ("p", Some("docker.io/library/nginx:1")));
        let crio = bundle(r#"{"annotations":{"io.kubernetes.cri-o.ContainerType":"sandbox","io.kubernetes.cri-o.SandboxID":"p"}}"#);
        assert_eq!((crio.role().unwrap(), crio.group("p")), (Role::Sandbox, "p"));
        let lost = bundle(r#"{"annotations":{"io.kubernetes.cri.container-type":"container"}}"#);
        assert!(matches!(lost.role(), Err(BundleError::NoSandbox)));
    }

    #[test]
    fn limits_of_the_pod_go_before_those_of_the_container() {
        let own = r#""linux":{"resources":{"memory":{"limit":1048576},"cpu":{"quota":150000,"period":100000}}}"#;
        let lone = bundle(&format!("{{{own}}}"));
        assert_eq!((lone.memory_limit(), lone.processor_limit()), (Some(1 << 20), Some(2)));
        let pod = bundle(&format!(
            r#"{{"annotations":{{"io.kubernetes.cri.sandbox-memory":"2097152","io.kubernetes.cri.sandbox-cpu-quota":"400000",
            "io.kubernetes.cri.sandbox-cpu-period":"100000"}},{own}}}"#
        ));
        assert_eq!((pod.memory_limit(), pod.processor_limit()), (Some(2 << 20), Some(4)));
        let unlimited = bundle(r#"{"linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}}}"#);
        assert_eq!((unlimited.memory_limit(), unlimited.processor_limit()), (None, None));
        let absurd = bundle(r#"{"linux":{"resources":{"cpu":{"quota":9223372036854775807,"period":1}}}}"#);
        assert_eq!(absurd.processor_limit(), Some(u32::MAX));
    }

    #[test]
    fn initdata_comes_from_either_annotation() {
        let packed = STANDARD.encode(b"packed");
        for name in INITDATA {
            let with = bundle(&format!(r#"{{"annotations":{{"{name}":"{packed}"}}}}"#));
            assert_eq!(with.pod("a").unwrap().initdata.as_deref(), Some(&b"packed"[..]));
        }
        assert!(bundle(r#"{"annotations":{"dev.cloister.initdata":"*"}}"#).pod("a").is_err());
        assert_eq!(bundle("{}").pod("a").unwrap().initdata, None);
    }

    #[test]
    fn hostile_files_are_refused_with_their_path() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Bundle::read(dir.path()), Err(BundleError::Read { .. })));
        let file = dir.path().join("config.json");
        for text in ["", "null", "{\"annotations\":[]}", "{\"linux\":{\"namespaces\":[{}]}}", "{\"hostname\":1}"] {
            fs::write(&file, text).unwrap();
            let error = Bundle::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("config.json") && !error.contains('\n'), "{error}");
        }
        fs::write(&file, vec![b' '; MAX_SPEC as usize + 1]).unwrap();
        assert!(matches!(Bundle::read(dir.path()), Err(BundleError::TooLong { .. })));
    }
}
