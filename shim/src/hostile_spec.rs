//! Each field of a `config.json` hostile or missing: whatever is read of it on the host's side ends in a value or in one line.

use super::*;
use crate::{task::TaskError, volumes};

#[path = "../../protocol/testdata/hostile.rs"]
mod hostile;

/// All that the shim asks of a bundle before there is a VM.
fn read(json: &serde_json::Value) -> Result<(), TaskError> {
    let path = Path::new("/nowhere/config.json");
    let bundle = Bundle::parse(json.to_string().into_bytes()).map_err(|source| BundleError::Malformed { path: path.into(), source })?;
    assert!(!bundle.group("c").is_empty());
    bundle.role()?;
    let pod = bundle.pod("c")?;
    assert!(!pod.hostname.is_empty() && pod.hostname.len() <= 4 * MAX_HOSTNAME, "{:?}", pod.hostname);
    bundle.hooks("c", Path::new("/nowhere")).check()?;
    volumes::plan(bundle.mounts(), &[])?;
    volumes::disks(&bundle)?;
    Ok(())
}

#[test]
fn each_field_hostile_or_missing_is_read_or_refused_in_one_line() {
    read(&hostile::right()).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for (what, spec) in hostile::wrong() {
        match read(&spec) {
            Ok(()) => taken += 1,
            Err(error) => {
                refused += 1;
                let ttrpc::Error::RpcStatus(status) = error.into() else { panic!("{what}: not a status") };
                let line = status.message();
                assert!(!line.is_empty() && line.len() <= 4096 && !line.chars().any(char::is_control), "{what}: {line:?}");
            }
        }
    }
    // What the host does not read is the guest's to judge.
    assert!(taken > 2000 && refused > 500, "{taken} taken, {refused} refused");
}
