//! What a VM is asked to be, whoever asks: the `config.json` of a pod's first container or of a lone one ([`crate::bundle`]), or the
//! CRI's own description of a pod, which the Sandbox service is sent.

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use protobuf::Message;
use protocol::api;
use runtime::config::Config;
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};
use thiserror::Error;

#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/pod_pb/modules.rs"));
}

use generated::pod as pb;

/// Most memory of a VM, in MiB.
const MAX_MEMORY_MIB: u64 = 1 << 20;
/// Most virtual processors of a VM.
const MAX_VCPUS: u32 = 256;
/// Longest description of a pod, in bytes: its annotations are the longest part, which Kubernetes ends at 256 KiB.
const MAX_DESCRIPTION: usize = protocol::bounds::MAX_SPEC;
/// Period of a processor quota where none is given, in microseconds.
pub const DEFAULT_CPU_PERIOD: i64 = 100_000;

/// What no VM can be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PodError {
    /// A namespace of the node.
    #[error("a container in a VM cannot share the node's {what}; remove {field}")]
    Node {
        /// What is in the namespace.
        what: &'static str,
        /// As users ask for it.
        field: &'static str,
    },
    /// The options of CreateSandbox.
    #[error("CreateSandbox: options: {0}")]
    Options(String),
}

/// A namespace that is shared with the node: never possible, always refused in the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Interfaces, addresses, ports.
    Network,
    /// Processes.
    Pid,
    /// Message queues and shared memory.
    Ipc,
}

impl Shared {
    /// The refusal.
    pub fn refused(self) -> PodError {
        let (what, field) = match self {
            Self::Network => ("network", "hostNetwork: true (or --net-host)"),
            Self::Pid => ("processes", "hostPID: true (or --pid host)"),
            Self::Ipc => ("IPC objects", "hostIPC: true (or --ipc host)"),
        };
        PodError::Node { what, field }
    }
}

/// A pod, or a container by itself.
#[derive(Debug, Default)]
pub struct Pod {
    /// Hostname inside; empty where nobody says.
    pub hostname: String,
    /// The network namespace that moves into the VM; none is a pod without a network.
    pub netns: Option<PathBuf>,
    /// The owner's initdata, packed as the guest takes it.
    pub initdata: Option<Vec<u8>>,
    /// Limit of memory in bytes.
    pub memory: Option<u64>,
    /// Limit of processors, rounded up.
    pub processors: Option<u32>,
    /// Kernel parameters of the whole pod.
    pub sysctls: BTreeMap<String, String>,
    /// Where its containers look names up.
    pub dns: api::Dns,
}

impl Pod {
    /// Reads what the Sandbox service is sent. A caller that describes nothing gets a pod of the node's configuration.
    pub fn of_request(request: &CreateSandboxRequest) -> Result<Self, PodError> {
        let described = match request.options.as_ref() {
            Some(options) if options.type_url.ends_with("runtime.v1.PodSandboxConfig") => {
                if options.value.len() > MAX_DESCRIPTION {
                    return Err(PodError::Options(format!("{} bytes, at most {MAX_DESCRIPTION} are taken", options.value.len())));
                }
                pb::PodSandboxConfig::parse_from_bytes(&options.value).map_err(|error| PodError::Options(error.to_string()))?
            }
            Some(options) if !options.type_url.is_empty() => {
                return Err(PodError::Options(format!("of type {:?}, expected runtime.v1.PodSandboxConfig", options.type_url)));
            }
            _ => pb::PodSandboxConfig::new(),
        };
        let options = &described.linux.security_context.namespace_options;
        for (mode, shared) in [(options.network, Shared::Network), (options.pid, Shared::Pid), (options.ipc, Shared::Ipc)] {
            if mode.enum_value() == Ok(pb::NamespaceMode::NODE) {
                return Err(shared.refused());
            }
        }
        let initdata = initdata(&described.annotations).or_else(|| initdata(&request.annotations));
        let resources = &described.linux.resources;
        Ok(Self {
            hostname: described.hostname.clone(),
            netns: (!request.netns_path.is_empty()).then(|| request.netns_path.clone().into()),
            initdata: initdata.transpose()?,
            memory: limit(resources.memory_limit_in_bytes),
            processors: processors(resources.cpu_quota, resources.cpu_period),
            sysctls: described.linux.sysctls.clone().into_iter().collect(),
            dns: api::Dns {
                servers: described.dns_config.servers.clone(),
                searches: described.dns_config.searches.clone(),
                options: described.dns_config.options.clone(),
                ..Default::default()
            },
        })
    }

    /// Memory of the VM in MiB: the containers' limit on top of what the configuration gives the guest itself.
    pub fn memory_mib(&self, config: &Config) -> Option<u32> {
        let wanted = self.memory.map(|bytes| u64::from(config.guest.memory_mib) + bytes.div_ceil(1 << 20));
        // Within its bound, it fits.
        wanted.map(|wanted| u32::try_from(wanted.min(MAX_MEMORY_MIB)).unwrap_or(u32::MAX))
    }

    /// Virtual processors of the VM: as many as the limit allows, at least the configuration's.
    pub fn vcpus(&self, config: &Config) -> Option<u32> {
        self.processors.map(|limit| limit.max(config.guest.vcpus).min(MAX_VCPUS))
    }
}

fn initdata(annotations: &HashMap<String, String>) -> Option<Result<Vec<u8>, PodError>> {
    let found = crate::bundle::initdata(annotations)?;
    Some(found.map_err(|error| PodError::Options(error.to_string())))
}

/// A limit, where it is one: zero and negative numbers say "none".
pub fn limit(bytes: i64) -> Option<u64> {
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

/// Processors of a quota, rounded up.
pub fn processors(quota: i64, period: i64) -> Option<u32> {
    let period = if period == 0 { DEFAULT_CPU_PERIOD } else { period };
    (quota > 0 && period > 0).then(|| u32::try_from(quota.saturating_add(period - 1) / period).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::{MessageField, well_known_types::any::Any};

    fn request(config: &pb::PodSandboxConfig) -> CreateSandboxRequest {
        let options = Any { type_url: "runtime.v1.PodSandboxConfig".into(), value: config.write_to_bytes().unwrap(), ..Default::default() };
        CreateSandboxRequest { sandbox_id: "p".into(), options: MessageField::some(options), ..Default::default() }
    }

    #[test]
    fn a_pod_is_read_from_the_cris_own_message() {
        let mut config = pb::PodSandboxConfig { hostname: "web".into(), ..Default::default() };
        config.annotations.insert("dev.cloister.initdata".into(), "eA==".into());
        config.dns_config = MessageField::some(pb::DNSConfig { servers: vec!["10.0.0.10".into()], ..Default::default() });
        let linux = config.linux.mut_or_insert_default();
        linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        linux.resources = MessageField::some(pb::LinuxContainerResources {
            cpu_quota: 250_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        let mut request = request(&config);
        request.netns_path = "/run/netns/p".into();
        let pod = Pod::of_request(&request).unwrap();
        assert_eq!((pod.hostname.as_str(), pod.netns.as_deref().unwrap().to_str()), ("web", Some("/run/netns/p")));
        assert_eq!((pod.initdata.as_deref(), pod.memory, pod.processors), (Some(&b"x"[..]), Some(64 << 20), Some(3)));
        assert_eq!((pod.sysctls.len(), pod.dns.servers.len()), (1, 1));
        let config = Config::default();
        assert_eq!((pod.memory_mib(&config), pod.vcpus(&config)), (Some(512 + 64), Some(3)));
    }

    #[test]
    fn what_is_the_nodes_is_refused_by_the_name_that_users_give_it() {
        for (set, field) in [
            (pb::NamespaceOption { network: pb::NamespaceMode::NODE.into(), ..Default::default() }, "hostNetwork"),
            (pb::NamespaceOption { pid: pb::NamespaceMode::NODE.into(), ..Default::default() }, "hostPID"),
            (pb::NamespaceOption { ipc: pb::NamespaceMode::NODE.into(), ..Default::default() }, "hostIPC"),
        ] {
            let mut config = pb::PodSandboxConfig::new();
            config.linux.mut_or_insert_default().security_context.mut_or_insert_default().namespace_options = MessageField::some(set);
            let error = Pod::of_request(&request(&config)).unwrap_err().to_string();
            assert!(error.contains(field) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_caller_that_describes_nothing_gets_the_configurations_pod() {
        let pod = Pod::of_request(&CreateSandboxRequest::new()).unwrap();
        assert_eq!((pod.netns, pod.memory, pod.processors, pod.initdata), (None, None, None, None));
    }

    #[test]
    fn broken_options_are_an_error_and_no_panic() {
        let mut broken = request(&pb::PodSandboxConfig::new());
        broken.options.mut_or_insert_default().value = vec![0x12, 0xff];
        assert!(matches!(Pod::of_request(&broken), Err(PodError::Options(_))));
        broken.options.mut_or_insert_default().type_url = "another.Type".into();
        assert!(Pod::of_request(&broken).unwrap_err().to_string().contains("another.Type"));
    }

    proptest::proptest! {
        #[test]
        fn no_options_panic(value in proptest::collection::vec(proptest::num::u8::ANY, 0..256)) {
            let mut request = request(&pb::PodSandboxConfig::new());
            request.options.mut_or_insert_default().value = value;
            let _ = Pod::of_request(&request);
        }
    }

    #[test]
    fn limits_have_an_end() {
        assert_eq!((limit(0), limit(-1), limit(7)), (None, None, Some(7)));
        assert_eq!((processors(150_000, 0), processors(-1, 0), processors(i64::MAX, 1)), (Some(2), None, Some(u32::MAX)));
        let absurd = Pod { memory: Some(u64::MAX), processors: Some(u32::MAX), ..Pod::default() };
        assert_eq!((absurd.memory_mib(&Config::default()), absurd.vcpus(&Config::default())), (Some(1 << 20), Some(256)));
    }
}
