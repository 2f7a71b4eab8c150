//! Directories of the host's, as they are, by virtio-fs (Documentation/filesystems/virtiofs.rst of Linux), for development.
//!
//! What is in them is what the host likes, at any moment, and what a container writes to them the host has: nothing that an owner's
//! policy could say anything about. So neither an enclave has one, nor a sandbox with initdata.

use super::part::Part;
use attestation::Tee;
use nix::mount::{MsFlags, mount};
use policy::{Denial, Policy};
use protocol::api;
use std::{fs, io, path::Path};

/// Where they are mounted.
const SHARED: &str = "/run/cloister/shared";

/// Whether this machine takes one.
pub fn admit(tee: Tee, policy: &Policy, volume: &api::Volume) -> Result<(), Denial> {
    let rule = match (tee, policy.is_open()) {
        (Tee::Sample, true) => return Ok(()),
        (Tee::Sample, false) => "a sandbox with initdata shares no directory with its host".to_owned(),
        (tee, _) => format!("a machine with evidence of {tee:?} shares no directory with its host"),
    };
    let asked = format!("directory of the host at {}", volume.destination);
    Err(Denial { asked, rule, remedy: "mount it read-only and leave it out of guest.shared: it is then copied in".to_owned() })
}

/// A part of one. The first who asks for any part has it mounted; callers come one after the other. The host has followed links once; whoever
/// writes there may have put others in their place since.
pub fn part(volume: &api::Volume, number: u64) -> io::Result<Part> {
    let root = Path::new(SHARED).join(&volume.name);
    if !root.exists() {
        fs::create_dir_all(&root)?;
        // A device node of the host's would be one of the guest's.
        let mounted = mount(Some(volume.name.as_str()), &root, Some("virtiofs"), MsFlags::MS_NODEV, None::<&str>);
        mounted.inspect_err(|_| drop(fs::remove_dir(&root)))?;
    }
    Part::found(&root, &volume.path, number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn neither_an_enclave_nor_a_sandbox_with_initdata_shares_a_directory() {
        let volume = api::Volume { destination: "/data".into(), name: "share0".into(), ..Default::default() };
        let open = Policy::from_initdata(None).unwrap();
        let closed = Policy::parse("[allow]\nmounts = [\"/data\"]\ncopy_in = [\"/data\"]\n").unwrap();
        assert_eq!(admit(Tee::Sample, &open, &volume), Ok(()));
        for (tee, policy) in [(Tee::Sample, &closed), (Tee::Snp, &open), (Tee::Tdx, &open), (Tee::Tpm, &open), (Tee::Snp, &closed)] {
            let text = admit(tee, policy, &volume).unwrap_err().to_string();
            assert!(text.contains("/data") && text.contains("guest.shared") && !text.contains('\n'), "{text}");
        }
    }
}
