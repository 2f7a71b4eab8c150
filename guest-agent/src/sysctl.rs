//! Kernel parameters of the pod. The machine is the pod, so what other runtimes set in the pod's namespaces is set in the machine's own.

use std::{collections::BTreeMap, fs, io, path::PathBuf};
use thiserror::Error;

/// Where the kernel has them (proc_sys(5)).
const ROOT: &str = "/proc/sys";

/// Those that Kubernetes lets any pod set, because they change nothing for anyone else. They open no service of the guest to anybody
/// either, so a host may set them whatever the owner's policy is.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// Those of an IPC namespace (ipc_namespaces(7)).
pub const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// A kernel parameter that was not set.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// Not one of a pod's.
    #[error("sysctl {0}: only parameters of the network (net.*) and of IPC are a pod's own; remove it")]
    NotOurs(String),
    /// The owner's policy counts, and the host's wish does not.
    #[error(
        "denied by policy: sysctl {0}: with initdata only those that Kubernetes calls safe are set; remove it, or set it in the container"
    )]
    Unsafe(String),
    /// The kernel's answer.
    #[error("sysctl {name}: {source}")]
    Kernel {
        /// Which.
        name: String,
        /// The cause.
        source: io::Error,
    },
}

/// Sets them, in the order of their names; all are looked at before the first is set. `open` is whether nothing is protected from the host.
pub fn apply(wanted: &BTreeMap<String, String>, open: bool) -> Result<(), SysctlError> {
    for name in wanted.keys() {
        admit(name, open)?;
    }
    for (name, value) in wanted {
        fs::write(path(name), value).map_err(|source| SysctlError::Kernel { name: name.clone(), source })?;
    }
    Ok(())
}

fn admit(name: &str, open: bool) -> Result<(), SysctlError> {
    let dotted = name.replace('/', ".");
    if SAFE.contains(&dotted.as_str()) {
        return Ok(());
    }
    if !dotted.starts_with("net.") && !dotted.starts_with("fs.mqueue.") && !IPC.contains(&dotted.as_str()) {
        return Err(SysctlError::NotOurs(name.to_owned()));
    }
    if open { Ok(()) } else { Err(SysctlError::Unsafe(name.to_owned())) }
}

/// Its file. The name's form was checked with the request's bounds: it cannot leave the directory.
fn path(name: &str) -> PathBuf {
    let below = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    PathBuf::from(ROOT).join(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_opens_nothing_where_the_owner_decides() {
        for name in ["net.ipv4.ip_unprivileged_port_start", "net/ipv4/tcp_syncookies", "kernel.shm_rmid_forced"] {
            assert!(admit(name, false).is_ok(), "{name}");
        }
        // By the first, packets for 127.0.0.1 are taken from the network: the guest's own services with them.
        for name in ["net.ipv4.conf.all.route_localnet", "net.ipv4.ip_forward", "kernel.msgmax", "fs.mqueue.msg_max", "net.core.somaxconn"]
        {
            let error = admit(name, false).unwrap_err().to_string();
            assert!(error.starts_with("denied by policy") && error.contains(name) && !error.contains('\n'), "{error}");
            assert!(admit(name, true).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_is_not_a_pods_is_nobodys() {
        for name in ["kernel.core_pattern", "kernel.modprobe", "vm.overcommit_memory", "fs.file-max", "kernel.msgmaxx", "network.x"] {
            assert!(matches!(admit(name, true), Err(SysctlError::NotOurs(_))), "{name}");
        }
    }

    #[test]
    fn names_become_paths() {
        assert_eq!(path("net.core.somaxconn").to_str(), Some("/proc/sys/net/core/somaxconn"));
        assert_eq!(path("net/ipv4/conf/eth0.1/rp_filter").to_str(), Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter"));
    }

    #[test]
    fn one_that_is_refused_leaves_all_as_they_were() {
        let wanted = BTreeMap::from([("kernel.core_pattern".into(), "|/x".into()), ("net.no.such".into(), "1".into())]);
        assert!(matches!(apply(&wanted, true), Err(SysctlError::NotOurs(_))));
        let missing = BTreeMap::from([("net.no.such".into(), "1".into())]);
        assert!(matches!(apply(&missing, true), Err(SysctlError::Kernel { .. })));
    }
}
