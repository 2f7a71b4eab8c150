//! Volumes without a shared file system: what the host copies in, and empty directories of the guest's own.
//!
//! - [`receive`]: one copy, from the host's stream. - [`unseal`]: what is sealed in it. - [`refresh`]: a changed one takes an older one's place.
//!
//! All of it lies on scratch, encrypted, beside what containers write, and goes with its container; empty directories, which a pod's
//! containers share, with the machine.

mod part;
mod receive;
mod refresh;
mod serve;
mod shared;
#[cfg(test)]
mod tests;
mod unseal;

use super::{
    ContainerError, MAX_CONTAINERS,
    disks::Disk,
    host_spec::{SpecError, printable},
    in_root::InRoot,
    mounts::Binds,
    served::{self, Served, ServedDisks},
};
use crate::{boot::modules::Stage, sandbox::Sandbox};
use attestation::BrokerClient;
use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, fchmod},
    unistd::{Gid, Uid, fchown},
};
use part::Part;
use policy::{Copied, Denial, Overrides, PlaceId, Policy, Wanted};
use protocol::{
    api::{self, VolumeKind},
    volume::MAX_READ_BACK,
};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Most empty directories of a sandbox.
const MAX_EMPTY: usize = 1024;
/// What every runtime mounts and a container can do without: the agent writes the files itself, and a termination log is nobody's.
const DISPENSABLE: &[&str] = &["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", TERMINATION_LOG];
/// Where a workload's last words are. With initdata the one place that the host reads back: at any other it would read what a workload wrote
/// to a file of its own.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// Where empty directories in memory are mounted.
const MEMORY: &str = "/run/cloister/memory";

/// The volumes of all containers.
#[derive(Default)]
pub struct Volumes {
    // Never held across an await.
    prepared: Mutex<HashMap<String, Arc<Prepared>>>,
    served: ServedDisks,
    /// Empty directories by name. Held while one is made: of two containers that want it, one makes it.
    empty: Mutex<HashMap<String, PathBuf>>,
    next: AtomicU64,
    /// Opens what is sealed; there is none before the first volume is announced, and none where the initdata names none.
    broker: OnceLock<Option<Arc<BrokerClient>>>,
}

/// What was announced for one container.
pub struct Prepared {
    directory: PathBuf,
    volumes: Vec<Volume>,
    policy: Policy,
    /// Which of the policy's containers gets it, once that is known.
    of: OnceLock<Option<PlaceId>>,
}

struct Volume {
    destination: String,
    readonly: bool,
    read_back: bool,
    source: Source,
}

enum Source {
    /// The policy does not have it, and the container does not need it.
    LeftOut,
    /// Copied in; what, if it has been. Held for as long as a copy takes.
    Copy(tokio::sync::Mutex<Option<Copied>>),
    /// An empty directory.
    Empty(PathBuf),
    /// A part of one, or of a directory of the host's.
    Part(Part),
    /// The image's own.
    Image,
    /// A disk, by its serial.
    Disk(String),
    /// A disk that the host serves; it, once it is connected. Held while that is done.
    Served(served::Wanted, tokio::sync::Mutex<Option<Arc<Served>>>),
}

/// What a bind mount of the host's spec becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// Nothing: the agent's own file, or the image's.
    Nothing,
    /// What is at this path of the agent's.
    Path(PathBuf),
    /// What the image has there, to be writable in a root that is not.
    Image,
    /// A disk, to be mounted.
    Disk,
}

impl Volumes {
    /// Decides on a container's volumes and makes what is empty; gives the numbers of those that are to be copied.
    pub async fn prepare(&self, request: &api::PrepareVolumesRequest, sandbox: &Sandbox) -> Result<Vec<u32>, ContainerError> {
        for volume in request.volumes.iter().filter(|volume| volume.kind.enum_value_or_default() == VolumeKind::SHARED) {
            shared::admit(sandbox.tee(), sandbox.policy(), volume)?;
        }
        let taken = request.volumes.iter().map(|volume| admit(sandbox.policy(), volume)).collect::<Result<Vec<_>, _>>()?;
        if request.volumes.iter().any(|volume| volume.kind.enum_value_or_default() == VolumeKind::SERVED_DISK) {
            let modules = sandbox.modules();
            let loaded = tokio::task::spawn_blocking(move || modules.load(Stage::Disk)).await;
            loaded.map_err(|e| ContainerError::State(format!("disks: {e}")))??;
        }
        let home = sandbox.scratch().await?.containers().join("volumes");
        self.broker.get_or_init(|| sandbox.kept_broker());
        self.make(request, &taken, &home, sandbox.policy())
    }

    fn make(&self, request: &api::PrepareVolumesRequest, taken: &[bool], home: &Path, policy: &Policy) -> Result<Vec<u32>, ContainerError> {
        let full = |prepared: &HashMap<String, Arc<Prepared>>| {
            if prepared.contains_key(&request.container_id) {
                return Err(ContainerError::Exists(format!("volumes of container {}", request.container_id)));
            }
            if prepared.len() >= MAX_CONTAINERS {
                return Err(ContainerError::Full(MAX_CONTAINERS, "containers with volumes"));
            }
            Ok(())
        };
        let mut table = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        full(&table)?;
        let directory = home.join(format!("v{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&directory).map_err(ContainerError::io("volumes"))?;
        let mut prepared = Prepared { directory, volumes: Vec::new(), policy: policy.clone(), of: OnceLock::new() };
        for (volume, taken) in request.volumes.iter().zip(taken) {
            let source = match (taken, volume.kind.enum_value_or_default()) {
                (false, _) => Source::LeftOut,
                (true, VolumeKind::COPY) => Source::Copy(tokio::sync::Mutex::default()),
                (true, VolumeKind::IMAGE) => Source::Image,
                (true, VolumeKind::DISK) => Source::Disk(volume.name.clone()),
                (true, VolumeKind::SERVED_DISK) => Source::Served(served::Wanted::of(volume), tokio::sync::Mutex::default()),
                (true, VolumeKind::SHARED) => {
                    let failed = ContainerError::io(format!("directory of the host at {}", volume.destination));
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    Source::Part(shared::part(volume, number).map_err(failed)?)
                }
                (true, VolumeKind::EMPTY | VolumeKind::EMPTY_MEMORY) => {
                    let whole = self.empty_directory(volume, home)?;
                    match volume.path.as_str() {
                        "" => Source::Empty(whole),
                        path => {
                            let failed = ContainerError::io(format!("part {path} of the empty directory at {}", volume.destination));
                            let number = self.next.fetch_add(1, Ordering::Relaxed);
                            Source::Part(Part::of_empty(&whole, volume, number).map_err(failed)?)
                        }
                    }
                }
            };
            // What the owner let in with this content keeps it. What every container has is its own.
            let kept = !policy.is_open() && matches!(source, Source::Copy(_)) && !is_dispensable(volume);
            let read_back = volume.read_back && (policy.is_open() || volume.destination == TERMINATION_LOG);
            let readonly = volume.readonly || kept;
            prepared.volumes.push(Volume { destination: volume.destination.clone(), readonly, read_back, source });
        }
        let wanted = (0u32..).zip(&prepared.volumes).filter(|(_, volume)| matches!(volume.source, Source::Copy(_) | Source::Served(..)));
        let wanted = wanted.map(|(number, _)| number).collect();
        table.insert(request.container_id.clone(), Arc::new(prepared));
        Ok(wanted)
    }

    fn empty_directory(&self, volume: &api::Volume, home: &Path) -> Result<PathBuf, ContainerError> {
        let mut empty = self.empty.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = empty.get(&volume.name) {
            return Ok(path.clone());
        }
        if empty.len() >= MAX_EMPTY {
            return Err(ContainerError::Full(MAX_EMPTY, "empty directories of a sandbox"));
        }
        let in_memory = volume.kind.enum_value_or_default() == VolumeKind::EMPTY_MEMORY;
        // Never the host's name in a path.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = if in_memory { Path::new(MEMORY).join(format!("m{number}")) } else { home.join(format!("e{number}")) };
        make_empty(&path, volume, in_memory).map_err(ContainerError::io(format!("empty directory at {}", volume.destination)))?;
        empty.insert(volume.name.clone(), path.clone());
        Ok(path)
    }

    /// What was announced for a container.
    pub fn of(&self, container_id: &str) -> Option<Arc<Prepared>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(container_id).cloned()
    }

    /// Removes a container's volumes, if it has any.
    pub fn forget(&self, container_id: &str) {
        let gone = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(container_id);
        if let Some(gone) = gone
            && let Err(e) = fs::remove_dir_all(&gone.directory)
        {
            log::warn!(path:% = gone.directory.display(); "remove volumes: {e}");
        }
    }

    /// What a container left in a volume that was announced for it.
    pub fn read_back(&self, request: &api::ReadVolumeRequest) -> Result<Vec<u8>, ContainerError> {
        let missing = || ContainerError::NoContainer(format!("{}'s volume {}", request.container_id, request.number));
        let prepared = self.of(&request.container_id).ok_or_else(missing)?;
        let number = request.number as usize;
        let volume = prepared.volumes.get(number).filter(|volume| volume.read_back).ok_or_else(missing)?;
        let Source::Copy(_) = volume.source else { return Err(missing()) };
        // The container may have put anything in its place that a directory of its own takes: it has only the file.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(prepared.place(number)).map_err(ContainerError::io("volume"))?;
        let mut content = Vec::new();
        file.take(MAX_READ_BACK as u64).read_to_end(&mut content).map_err(ContainerError::io("volume"))?;
        Ok(content)
    }
}

impl Prepared {
    /// Where a copy has its place.
    fn place(&self, number: usize) -> PathBuf {
        self.directory.join(number.to_string())
    }

    fn staging(&self, number: usize) -> PathBuf {
        self.directory.join(format!("{number}.new"))
    }

    /// What a bind mount becomes that was announced; `None` if it was not. The flag says that the host meant it read-only.
    pub fn bind(&self, destination: &str) -> Option<Result<(Bind, bool), ContainerError>> {
        let (number, volume) = self.volumes.iter().enumerate().find(|(_, volume)| volume.destination == destination)?;
        let bind = match &volume.source {
            Source::LeftOut => Bind::Nothing,
            // Below /dev it is a device node, and no mount.
            Source::Disk(_) | Source::Served(..) if destination.starts_with("/dev/") => Bind::Nothing,
            Source::Disk(_) | Source::Served(..) => Bind::Disk,
            Source::Empty(path) => Bind::Path(path.clone()),
            Source::Part(part) => Bind::Path(part.place().to_owned()),
            Source::Image => Bind::Image,
            Source::Copy(copied) => match copied.try_lock() {
                Ok(copied) if copied.is_some() => Bind::Path(self.place(number)),
                _ => {
                    let text = format!("volume {number} at {destination} was announced and is not copied; copy it before CreateContainer");
                    return Some(Err(ContainerError::State(text)));
                }
            },
        };
        Some(Ok((bind, volume.readonly)))
    }

    /// Has the policy decide on a container with what of this is bound in it. `decide` gives the place that the container has. No copy can be
    /// replaced meanwhile; afterwards only as that container may have it.
    pub fn decide<T>(
        &self,
        binds: &Binds,
        mut wanted: Wanted,
        decide: impl FnOnce(&Wanted) -> Result<(T, Option<PlaceId>), Denial>,
    ) -> Result<T, ContainerError> {
        let mut held = Vec::new();
        for volume in &self.volumes {
            let destination = &volume.destination;
            let Some((_, readonly)) = binds.get(destination) else { continue };
            match &volume.source {
                Source::Empty(path) => {
                    wanted.overrides.mounts.push(empty_name(destination, *readonly));
                    wanted.empty.push((destination.clone(), path.display().to_string()));
                }
                Source::Copy(copy) => {
                    let busy = || ContainerError::State(format!("volume at {destination} is being copied"));
                    let copy = copy.try_lock().map_err(|_| busy())?;
                    wanted.copied.extend(copy.clone());
                    held.push(copy);
                }
                Source::Disk(_) | Source::Served(..) if !destination.starts_with("/dev/") => wanted.disks.push(destination.clone()),
                Source::LeftOut | Source::Image | Source::Disk(_) | Source::Served(..) | Source::Part(_) => {}
            }
        }
        let (decided, place) = decide(&wanted)?;
        // Cannot fail: it is one container's, and that is made once.
        let _ = self.of.set(place);
        drop(held);
        Ok(decided)
    }

    /// Its disks, and where each is to be. One that the guest does not have is an error.
    pub fn disks(&self) -> Result<Vec<(String, Disk)>, ContainerError> {
        let mut disks = Vec::new();
        for Volume { destination, source, .. } in &self.volumes {
            let disk = match source {
                Source::Disk(serial) => Disk::with_serial(serial).ok_or_else(|| SpecError::Disk(printable(destination)))?,
                Source::Served(_, served) => {
                    let served = served.try_lock().ok().and_then(|served| served.as_ref().map(|served| served.disk()));
                    let missing = || format!("disk at {destination} was announced and is not connected; connect it before CreateContainer");
                    served.ok_or_else(|| ContainerError::State(missing()))?
                }
                _ => continue,
            };
            disks.push((destination.clone(), disk));
        }
        Ok(disks)
    }

    /// Makes a working directory that lies in one of the volumes.
    pub fn make_directory(&self, path: &str) -> io::Result<()> {
        for (number, volume) in self.volumes.iter().enumerate() {
            let Some(rest) = Path::new(path).strip_prefix(&volume.destination).ok() else { continue };
            let place = match &volume.source {
                Source::Copy(_) => self.place(number),
                Source::Empty(path) => path.clone(),
                Source::Part(part) => part.place().to_owned(),
                Source::LeftOut | Source::Image | Source::Disk(_) | Source::Served(..) => continue,
            };
            if place.is_dir() {
                InRoot::open(&place)?.make_dirs(rest)?;
            }
        }
        Ok(())
    }
}

/// Whether the container gets it. What it can do without is left out where the policy does not have it; anything else is refused.
fn admit(policy: &Policy, volume: &api::Volume) -> Result<bool, Denial> {
    let kind = volume.kind.enum_value_or_default();
    let is_disk = matches!(kind, VolumeKind::DISK | VolumeKind::SERVED_DISK);
    if is_disk && !volume.destination.starts_with("/dev/") {
        return policy.mounted_disk(&volume.destination).map(|()| true);
    }
    if is_disk {
        policy.overrides(&Overrides { devices: vec![volume.destination.clone()], ..Overrides::default() })?;
        return Ok(true);
    }
    if !volume.path.is_empty() {
        part::admit(policy, volume)?;
    }
    match kind {
        VolumeKind::EMPTY | VolumeKind::EMPTY_MEMORY => policy.mount(&empty_name(&volume.destination, volume.readonly)).map(|()| true),
        VolumeKind::COPY if is_dispensable(volume) => Ok(policy.copies_to(&volume.destination)),
        // What is in it is asked about when it has come. Nothing comes where nothing may be.
        VolumeKind::COPY => {
            let nothing = Copied { destination: volume.destination.clone(), ..Copied::default() };
            policy.copied(&nothing, None).map(|()| true)
        }
        // Of a shared one more is asked, see there.
        VolumeKind::IMAGE | VolumeKind::DISK | VolumeKind::SERVED_DISK | VolumeKind::SHARED => Ok(true),
    }
}

fn is_dispensable(volume: &api::Volume) -> bool {
    DISPENSABLE.contains(&volume.destination.as_str())
}

/// An empty directory as a policy spells it, like a tmpfs. Its owner and permissions are no matter of a policy: nobody but the workload is
/// there.
fn empty_name(destination: &str, readonly: bool) -> String {
    if readonly { format!("{destination}:ro") } else { destination.to_owned() }
}

fn make_empty(path: &Path, volume: &api::Volume, in_memory: bool) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if in_memory {
        let size = if volume.size == 0 { "50%".to_owned() } else { volume.size.to_string() };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(format!("size={size}").as_str()))?;
    }
    let directory = File::open(path)?;
    fchown(&directory, Some(Uid::from_raw(volume.uid)), Some(Gid::from_raw(volume.gid)))?;
    Ok(fchmod(&directory, Mode::from_bits_truncate(volume.mode))?)
}
