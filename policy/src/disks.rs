//! Disks of the host's that are mounted in a container, each opened by a key of the owner's. A disk is named by the `[[container]]` that has
//! it and by no list for all: its key goes to one container, whose image is named beside it.
//!
//! ```toml
//! [[container.disks]]
//! destination = "/data"              # where it is mounted; a place below /dev is a device instead, see allow.devices
//! key = "kbs:///acme/db/disk"        # 32 random bytes, at the broker
//! format = true                      # an empty disk becomes a new one; absent: it is refused
//! ```

use crate::{
    container::ContainerRule,
    rules::short,
    workload::{Denial, Policy, denial},
};
use serde::{Deserialize, Serialize};

/// A disk that a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    /// Where it is mounted.
    pub destination: String,
    /// The key that opens it: `kbs:///repository/type/tag`, 32 bytes.
    pub key: String,
    /// An empty disk becomes a new one. Without it, a host that hands over an empty disk in the place of a full one is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub format: bool,
}

impl DiskRule {
    /// What is wrong with it, if anything is.
    pub(crate) fn fault(&self) -> Option<String> {
        let place = &self.destination;
        let parts: Vec<&str> = place.split('/').skip(1).collect();
        let shortest = place.starts_with('/') && parts.iter().all(|part| !matches!(*part, "" | "." | "..")) && !place.contains('\0');
        if !shortest || place.starts_with("/dev/") {
            return Some(format!("destination {:?}: expected an absolute path, not below /dev, in its shortest spelling", short(place)));
        }
        let names: Vec<&str> = self.key.strip_prefix("kbs:///").unwrap_or_default().split('/').collect();
        let plain = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        (names.len() != 3 || !names.iter().all(plain)).then(|| format!("key {:?}: expected kbs:///repository/type/tag", short(&self.key)))
    }
}

impl ContainerRule {
    /// The disk that it has here.
    pub fn disk(&self, destination: &str) -> Option<&DiskRule> {
        self.disks.iter().find(|disk| disk.destination == destination)
    }
}

impl Policy {
    /// May a disk of the host's be mounted here, in any container? Asked when it is announced. Without initdata any may.
    pub fn mounted_disk(&self, destination: &str) -> Result<(), Denial> {
        if self.is_open() || self.containers().iter().any(|rule| rule.disk(destination).is_some()) {
            return Ok(());
        }
        Err(Self::unnamed_disk(destination))
    }

    /// The refusal of a disk that no container has.
    pub fn unnamed_disk(destination: &str) -> Denial {
        denial(
            format!("disk mounted at {}", short(destination)),
            "no [[container]] has a key for it, and what a host wrote to it is not to be believed",
            format!("put {{ destination = {:?}, key = \"kbs:///…\" }} into disks of its [[container]]", short(destination)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Image, Ledger, Wanted};

    const BASE: &str =
        "[[container]]\nname = \"db\"\nimage.digest = \"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"\n";

    fn parse(disks: &str) -> Result<Policy, String> {
        Policy::parse(&format!("{BASE}disks = {disks}\n")).map_err(|error| error.to_string())
    }

    fn admit(policy: &Policy, disks: &[&str]) -> Result<(), String> {
        let image = Image { reference: "r/db".into(), digests: vec![format!("sha256:{}", "a".repeat(64))] };
        let wanted = Wanted { image, disks: disks.iter().map(|disk| (*disk).to_owned()).collect(), ..Wanted::default() };
        Ledger::new(policy.clone()).admit(&wanted).map(drop).map_err(|denial| denial.to_string())
    }

    #[test]
    fn a_container_has_the_disks_that_are_named_and_no_others() {
        let policy = parse("[{ destination = \"/data\", key = \"kbs:///acme/db/disk\" }]").unwrap();
        assert_eq!(policy.mounted_disk("/data"), Ok(()));
        let denial = policy.mounted_disk("/other").unwrap_err().to_string();
        assert!(denial.contains("/other") && denial.contains("disks of its [[container]]") && !denial.contains('\n'), "{denial}");
        assert_eq!(admit(&policy, &["/data"]), Ok(()));
        assert!(admit(&policy, &[]).unwrap_err().contains("without disk mounted at /data"));
        assert!(admit(&policy, &["/data", "/other"]).unwrap_err().contains("disk mounted at /other"));
        let rule = policy.containers()[0].disk("/data").unwrap();
        assert!(rule.key == "kbs:///acme/db/disk" && !rule.format);
        let table = Policy::parse(&format!("{BASE}[[container.disks]]\ndestination = \"/data\"\nkey = \"kbs:///acme/db/disk\"\n")).unwrap();
        assert_eq!(table.containers(), policy.containers());
    }

    /// Its key is for an image that the owner knows: no rule for all containers can give one.
    #[test]
    fn without_containers_no_disk_is_mounted() {
        for text in ["", "[allow]\ndevices = true\nmounts = true\n"] {
            let policy = Policy::parse(text).unwrap();
            assert!(policy.mounted_disk("/data").is_err() && admit(&policy, &["/data"]).unwrap_err().contains("/data"), "{text}");
        }
        let open = Policy::from_initdata(None).unwrap();
        assert_eq!((open.mounted_disk("/data"), admit(&open, &["/data"])), (Ok(()), Ok(())));
    }

    #[test]
    fn a_disk_has_a_place_and_a_key() {
        let disk = |destination: &str, key: &str| parse(&format!("[{{ destination = {destination:?}, key = {key:?} }}]"));
        for place in ["data", "/", "/a/../b", "/a/", "/dev/xvda", ""] {
            assert!(disk(place, "kbs:///a/b/c").unwrap_err().contains("destination"), "{place}");
        }
        for key in ["", "a/b/c", "kbs:///a/b", "kbs:///a/b/c/d", "kbs:///a//c", "kbs://host/a/b/c", "kbs:///a/b/*"] {
            assert!(disk("/data", key).unwrap_err().contains("key"), "{key}");
        }
        assert!(disk("/data", "kbs:///a/b/c").is_ok());
        let one = "{ destination = \"/data\", key = \"kbs:///a/b/c\" }";
        assert!(parse(&format!("[{one}, {one}]")).unwrap_err().contains("twice"));
        assert!(parse("[{ destination = \"/data\" }]").unwrap_err().contains("key"));
    }
}
