//! CRI-O's configuration: a drop-in; its files are merged one by one, in the order of their names.

use super::HANDLER;
use std::path::Path;

/// The drop-in, below the node's root.
pub(crate) const DROP_IN: &str = "etc/crio/crio.conf.d/50-cloister.conf";

/// The runtime, of CRI-O's kind `vm`: a shim of containerd's contract.
pub(crate) fn drop_in(shim: &Path, configuration: &Path) -> String {
    format!(
        "# Written by `cloister install`, removed by `cloister uninstall`.\n\
         [crio.runtime.runtimes.{HANDLER}]\n\
         runtime_type = \"vm\"\n\
         runtime_path = {:?}\n\
         runtime_root = \"/run/cloister/crio\"\n\
         runtime_config_path = {:?}\n\
         # Privileged is inside the VM only: it has no devices of the host.\n\
         privileged_without_host_devices = true\n",
        shim.display().to_string(),
        configuration.display().to_string()
    )
}
