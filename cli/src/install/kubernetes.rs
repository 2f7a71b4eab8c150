//! The RuntimeClass: what a pod names to run with Cloister.

use super::HANDLER;

/// Memory of QEMU and the shim beside the guest's, in MiB.
const HOST_MIB: u32 = 96;

/// The manifest. Its overhead is what a pod takes on top of its containers' limits: the VM's own memory, and the host's side of it.
pub(crate) fn runtime_class(guest_memory_mib: u32) -> String {
    format!(
        "apiVersion: node.k8s.io/v1\n\
         kind: RuntimeClass\n\
         metadata:\n\
         \x20 name: {HANDLER}\n\
         handler: {HANDLER}\n\
         overhead:\n\
         \x20 podFixed:\n\
         \x20   memory: {}Mi\n\
         \x20   cpu: 250m\n",
        guest_memory_mib.saturating_add(HOST_MIB)
    )
}
