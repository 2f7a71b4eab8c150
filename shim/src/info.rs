//! `-v` and `-info`: what this program is.

use crate::caller;
use anyhow::{Context, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use std::io::{self, Write};

/// The runtime's name.
pub const NAME: &str = "io.containerd.cloister.v2";
/// Its version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Type of the features (containerd's typeurl of the OCI runtime spec's `Features`), which come as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Writes the version as text.
pub fn print_version() -> Result<()> {
    writeln!(io::stdout(), "containerd-shim-cloister-v2:\n  Version: {VERSION}").context("standard output")
}

/// Writes the `RuntimeInfo`. The caller's runtime options are read, and mean nothing here.
pub fn print_info() -> Result<()> {
    caller::read_stdin(io::stdin().lock())?;
    let bytes = info().write_to_bytes().context("answer")?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("standard output")
}

fn info() -> RuntimeInfo {
    // No mount of the host reaches the guest, so none can be mapped to other ids.
    let features = serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": [],
        "linux": { "mountExtensions": { "idmap": { "enabled": false } } },
    });
    RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion { version: VERSION.to_owned(), ..Default::default() }),
        features: MessageField::some(Any { type_url: FEATURES.to_owned(), value: features.to_string().into_bytes(), ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_those_of_the_spec() {
        let info = RuntimeInfo::parse_from_bytes(&info().write_to_bytes().unwrap()).unwrap();
        assert_eq!((info.name.as_str(), info.version.version.as_str()), (NAME, VERSION));
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], false);
    }
}
