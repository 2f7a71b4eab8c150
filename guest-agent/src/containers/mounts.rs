//! The mounts of the host's spec: which the agent makes by itself, which it takes over, and which there cannot be.

use super::{
    ContainerError,
    host_spec::{SpecError, bounded, field, path_text, printable},
    volumes::{Bind, Prepared},
};
use oci_spec::runtime::Mount;
use std::{collections::HashMap, path::Path};

/// Destinations that runtimes always mount and that the agent provides itself.
const OWN: &[&str] = &["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
/// What hosts bind into every container and the agent provides itself, where no volume is announced for it.
const OWN_BINDS: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/dev/shm"];
/// Flags of a tmpfs that may come from the host.
const FLAGS: &[&str] = &[
    "nosuid",
    "nodev",
    "noexec",
    "exec",
    "ro",
    "rw",
    "relatime",
    "norelatime",
    "atime",
    "noatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
];
/// How a mount spreads to other namespaces: nothing of a container spreads anywhere in a guest.
const PROPAGATION: &[&str] = &["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
/// Settings of a tmpfs that may come from the host, with a value of letters, digits and `%`.
const SETTINGS: &[&str] = &["size", "mode", "nr_inodes", "nr_blocks", "uid", "gid"];

/// A mount of the host's wish; its destination is an absolute path in its shortest spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Memory, with known options only. `/run` is among them where the host has one there: images bring files in `/run` too.
    Tmpfs {
        /// In the container.
        destination: String,
        /// Of tmpfs.
        options: Vec<String>,
    },
    /// A further view of the kernel.
    Kernel {
        /// proc, sysfs, …
        typ: String,
        /// In the container.
        destination: String,
    },
    /// Something of the host's, which the guest has only as a volume.
    Bind {
        /// In the container.
        destination: String,
        /// On the host; for error texts.
        source: String,
        /// Not to be written to.
        readonly: bool,
    },
}

impl Wanted {
    /// In the container.
    pub fn destination(&self) -> &str {
        match self {
            Self::Tmpfs { destination, .. } | Self::Kernel { destination, .. } | Self::Bind { destination, .. } => destination,
        }
    }
}

/// What is taken over of the host's mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    /// In the host's order: a later one may lie in an earlier one.
    pub list: Vec<Wanted>,
    /// Settings of `/dev/shm`, where they are not the usual ones.
    pub shm: Vec<String>,
}

impl Mounts {
    /// Sorts the mounts of a spec.
    pub fn parse(list: &[Mount]) -> Result<Self, SpecError> {
        bounded("mounts", list.len())?;
        let mut mounts = Self::default();
        for mount in list {
            mounts.take(mount)?;
        }
        Ok(mounts)
    }

    fn take(&mut self, mount: &Mount) -> Result<(), SpecError> {
        let destination = path_text("mounts.destination", mount.destination())?;
        let typ = mount.typ().clone().unwrap_or_default();
        let options = mount.options().clone().unwrap_or_default();
        bounded("mounts.options", options.len())?;
        if OWN.contains(&destination.as_str()) {
            return Ok(());
        }
        let bound = typ == "bind" || options.iter().any(|o| o == "bind" || o == "rbind");
        match typ.as_str() {
            _ if bound => {
                let source = printable(&mount.source().as_deref().unwrap_or(Path::new("?")).display().to_string());
                let readonly = options.iter().any(|option| option == "ro" || option == "rro");
                self.list.push(Wanted::Bind { destination, source, readonly });
            }
            "tmpfs" if destination == "/dev/shm" => {
                self.shm = tmpfs_options(&options)?.into_iter().filter(|option| option.contains('=')).collect();
            }
            "tmpfs" => self.list.push(Wanted::Tmpfs { destination, options: tmpfs_options(&options)? }),
            "proc" | "sysfs" | "mqueue" | "devpts" | "cgroup" | "cgroup2" => self.list.push(Wanted::Kernel { typ, destination }),
            _ => return Err(SpecError::MountType { typ: printable(&typ), destination: printable(&destination) }),
        }
        Ok(())
    }

    /// Has a disk of the host's be mounted at a place, in its shortest spelling, if that is one where a disk is mounted and not a device.
    pub fn mount_disk(&mut self, destination: &str) -> bool {
        let is_place = destination != "/" && !destination.starts_with("/dev/") && !OWN.contains(&destination);
        if is_place {
            let destination = destination.to_owned();
            self.list.push(Wanted::Bind { destination, source: "a disk".to_owned(), readonly: false });
        }
        is_place
    }

    /// What the owner's policy is asked about: destinations, with their type where it is a view of the kernel. `/run` hides what the
    /// image has there and is so usual that every runtime does it. Volumes were asked about when they were announced.
    pub fn overrides(&self) -> Vec<String> {
        let asked = self.list.iter().filter_map(|wanted| match wanted {
            Wanted::Tmpfs { destination, options } if destination != "/run" => Some(tmpfs_name(destination, options)),
            Wanted::Kernel { typ, destination } => Some(format!("{typ}:{destination}")),
            Wanted::Tmpfs { .. } | Wanted::Bind { .. } => None,
        });
        asked.collect()
    }

    /// What each bind mount becomes, by destination. One for which no volume was announced is refused, but for those that the agent makes
    /// itself.
    pub fn binds(&self, volumes: Option<&Prepared>) -> Result<Binds, ContainerError> {
        let mut binds = Binds::new();
        for wanted in &self.list {
            let Wanted::Bind { destination, source, readonly } = wanted else { continue };
            let (bind, meant) = match volumes.and_then(|volumes| volumes.bind(destination)) {
                Some(announced) => announced?,
                None if OWN_BINDS.contains(&destination.as_str()) => (Bind::Nothing, false),
                None => {
                    let (source_path, destination) = (source.clone(), printable(destination));
                    return Err(SpecError::HostMount { source_path, destination }.into());
                }
            };
            binds.insert(destination.clone(), (bind, *readonly || meant));
        }
        Ok(binds)
    }
}

/// What bind mounts become, by destination, and whether they are read-only.
pub type Binds = HashMap<String, (Bind, bool)>;

/// A tmpfs as a policy spells it: the destination, and after a colon the options that change more than a size.
fn tmpfs_name(destination: &str, options: &[String]) -> String {
    let mut named = named_options(options);
    named.sort_unstable();
    if named.is_empty() { destination.to_owned() } else { format!("{destination}:{}", named.join(",")) }
}

/// The options of a tmpfs that a policy names. Its size is a limit like that of memory; the others that a host may set are the agent's
/// choice behind a closed door.
pub fn named_options(options: &[String]) -> Vec<String> {
    let named = |option: &&String| option.split_once('=').map_or(["ro", "noexec"].contains(&option.as_str()), |(key, _)| !is_size(key));
    options.iter().filter(named).cloned().collect()
}

/// Settings of a tmpfs that are limits.
pub fn is_size(key: &str) -> bool {
    ["size", "nr_blocks", "nr_inodes"].contains(&key)
}

/// The options that count; one that is not known is refused, because it might be another one's way in.
fn tmpfs_options(options: &[String]) -> Result<Vec<String>, SpecError> {
    let known = |option: &str| match option.split_once('=') {
        Some((key, value)) => {
            let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'%');
            SETTINGS.contains(&key) && !value.is_empty() && value.len() <= 20 && plain
        }
        None => FLAGS.contains(&option),
    };
    let counted: Vec<String> = options.iter().filter(|option| !PROPAGATION.contains(&option.as_str())).cloned().collect();
    match counted.iter().find(|option| !known(option)) {
        Some(bad) => Err(field("mounts.options", format!("{:?} is not an option of tmpfs that can be set", printable(bad)))),
        None => Ok(counted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(mounts: Value) -> Result<Mounts, SpecError> {
        Mounts::parse(&serde_json::from_value::<Vec<Mount>>(mounts).unwrap())
    }

    fn tmpfs(options: &[&str]) -> Result<Mounts, SpecError> {
        parse(json!([{"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": options}]))
    }

    #[test]
    fn files_of_the_host_are_refused_by_name() {
        let mount = json!([{"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"]}]);
        let error = parse(mount).unwrap().binds(None).unwrap_err().to_string();
        assert!(error.contains("/srv/data") && error.contains("/data") && !error.contains('\n'), "{error}");
        let error = parse(json!([{"destination": "/x", "type": "nfs", "source": "h:/x"}])).unwrap_err();
        assert!(matches!(error, SpecError::MountType { .. }));
    }

    #[test]
    fn mount_options_carry_nothing_else() {
        for option in ["size=1m,suid", "context=x", "mode=0\u{0}", "lowerdir=/", "size=", "dev", "suid", "mpol=bind:0"] {
            assert!(tmpfs(&[option]).is_err(), "{option:?}");
        }
        let taken = tmpfs(&["rprivate", "nosuid", "size=50%", "uid=1000", "mode=1777"]).unwrap();
        let options = ["nosuid", "size=50%", "uid=1000", "mode=1777"].map(str::to_owned).into();
        assert_eq!(taken.list, [Wanted::Tmpfs { destination: "/t".into(), options }]);
        assert_eq!(taken.overrides(), ["/t:mode=1777,uid=1000"]);
    }

    #[test]
    fn what_every_runtime_mounts_is_the_agents() {
        let usual = json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys/fs/cgroup/", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/x", "options": ["rbind"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/containerd/x/shm", "options": ["rbind"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=65536k"]},
        ]);
        let mounts = parse(usual).unwrap();
        assert_eq!((mounts.list.len(), mounts.overrides().len()), (3, 0));
        assert!(mounts.binds(None).unwrap().values().all(|(bind, _)| *bind == Bind::Nothing));
        let shm = json!([{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "mode=1777", "size=128m"]}]);
        assert_eq!(parse(shm).unwrap().shm, ["mode=1777", "size=128m"]);
    }

    #[test]
    fn further_views_of_the_kernel_are_asked_about_by_type() {
        let mounts = parse(json!([{"destination": "/host/proc", "type": "proc", "source": "proc"}])).unwrap();
        assert_eq!(mounts.overrides(), ["proc:/host/proc"]);
    }
}
