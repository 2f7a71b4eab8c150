//! The snapshots: one small JSON file for each, and for each that can be mounted one directory.
//!
//! ```text
//! <root>/lock                  held by the running snapshotter
//! <root>/records/<id>.json     written under another name, then renamed: whole or absent
//! <root>/snapshots/<id>/fs     what is mounted: empty, since the container's files exist in the guest only; or an unpacked layer
//! <root>/snapshots/<id>/work   of an overlay
//! ```
//!
//! A directory is made before its record and removed after it, so what a crash leaves is a directory without a record, which the
//! next start removes. Records are not synced to the disk: what a power failure takes is either about a container that the same
//! failure ended, or a chain id that [`Store::stat`] makes good.

mod filling;

pub(crate) use filling::Link;

use super::mounts::{self, Mounts};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use thiserror::Error;

/// The label by which a client says which chain id it is about to unpack (containerd: `snapshots.LabelSnapshotRef`).
pub(crate) const LABEL_TARGET: &str = "containerd.io/snapshot.ref";

/// Longest name of a snapshot, in bytes. containerd's own are a namespace, a number and a client's key.
const MAX_NAME: usize = 4096;
/// Most bytes of labels of one snapshot.
const MAX_LABELS: usize = 64 << 10;

/// Why a call was refused.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    #[error("snapshot {name:?} is {kind}, wanted {wanted}")]
    Kind { name: String, kind: &'static str, wanted: &'static str },
    #[error("snapshot {0:?} has children")]
    Children(String),
    #[error("name or labels of the snapshot are empty or too long")]
    Bound,
    #[error("field {0:?} of a snapshot cannot be changed")]
    Field(String),
    /// Of an encrypted image, to `ctr` of containerd 1.6 and 1.7.
    #[error("layers are not unpacked on this host: run `cloister image prepare IMAGE` once, then `ctr run --snapshotter …` again")]
    Unpacking,
    #[error("{path}: another snapshotter uses this directory")]
    Locked { path: PathBuf },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    View,
    Active,
    Committed,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::View => "a view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

pub(crate) type Labels = BTreeMap<String, String>;

/// A snapshot, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    id: u64,
    pub(crate) name: String,
    pub(crate) parent: String,
    pub(crate) kind: Kind,
    /// Nanoseconds since 1970.
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) labels: Labels,
    /// Its directory holds a layer's files, or will.
    #[serde(default)]
    unpacked: bool,
    /// It hides all that is below it, which overlayfs does not see in a layer's own root.
    #[serde(default)]
    hides: bool,
}

/// What becomes of a layer that a client is about to unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// Promised to be there, to clients that know of promises; the others are refused.
    Promised,
    /// The same, but the others may unpack it. What they write goes when they commit it: the guest unpacks for itself.
    Dropped,
    /// Unpacked, for other runtimes, where all layers below it are; else as [`Self::Dropped`].
    Kept,
}

/// What `Prepare` came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Prepared {
    /// A new snapshot.
    Mountable(Mounts),
    /// The chain id that was asked for is there: nothing to unpack.
    Present(String),
}

#[derive(Debug, Default)]
struct State {
    by_name: BTreeMap<String, Snapshot>,
    last_id: u64,
}

/// All snapshots below one directory.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    state: Mutex<State>,
    _lock: Flock<fs::File>,
}

impl Store {
    /// Opens `root`, made if missing, and clears away what a crash left.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        for directory in ["records", "snapshots"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(|source| StoreError::File { path, source })?;
        }
        let path = root.join("lock");
        let file = fs::File::create(&path).map_err(|source| StoreError::File { path: path.clone(), source })?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StoreError::Locked { path: root.to_owned() })?;
        let store = Self { root: root.to_owned(), state: Mutex::default(), _lock: lock };
        store.load()?;
        store.cleanup()?;
        store.clear_unfinished()?;
        Ok(store)
    }

    fn load(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        for path in entries(&self.root.join("records"))? {
            let record = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Snapshot>(&bytes).ok());
            match record {
                Some(record) if path == self.record_path(record.id) => {
                    state.last_id = state.last_id.max(record.id);
                    state.by_name.insert(record.name.clone(), record);
                }
                // Torn by a power failure, or the temporary file of a record that never was.
                _ => {
                    log::warn!(file = path.display().to_string().as_str(); "unreadable snapshot record removed");
                    fs::remove_file(&path).map_err(|source| StoreError::File { path, source })?;
                }
            }
        }
        Ok(())
    }

    /// Removes directories that no record names.
    pub(crate) fn cleanup(&self) -> Result<(), StoreError> {
        let state = self.state();
        for path in entries(&self.root.join("snapshots"))? {
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u64>().ok());
            if !state.by_name.values().any(|s| Some(s.id) == id) {
                fs::remove_dir_all(&path).map_err(|source| StoreError::File { path, source })?;
            }
        }
        Ok(())
    }

    /// A new writable snapshot or, with [`LABEL_TARGET`], the promise that the target is there, as `layer` has it.
    pub(crate) fn prepare(&self, name: &str, parent: &str, labels: Labels, layer: Layer) -> Result<Prepared, StoreError> {
        let kept = layer == Layer::Kept && self.is_whole(parent);
        match labels.get(LABEL_TARGET).cloned() {
            Some(target) if !kept => {
                self.promise(name, &target, parent, labels)?;
                Ok(Prepared::Present(target))
            }
            None if layer == Layer::Promised && chain_to_unpack(name).is_some() => Err(StoreError::Unpacking),
            _ => self.create(name, parent, Kind::Active, labels, kept).map(Prepared::Mountable),
        }
    }

    /// A new read-only snapshot.
    pub(crate) fn view(&self, name: &str, parent: &str, labels: Labels) -> Result<Mounts, StoreError> {
        self.create(name, parent, Kind::View, labels, false)
    }

    /// Records `target` as committed on `parent`. containerd finds it by label and parent and takes our name for it, which may be
    /// shared by several of its namespaces; the same target on another parent needs a name of its own, and `key` is unique.
    fn promise(&self, key: &str, target: &str, parent: &str, labels: Labels) -> Result<(), StoreError> {
        let mut state = self.state();
        let is_it =
            |s: &Snapshot| s.kind == Kind::Committed && s.parent == parent && s.labels.get(LABEL_TARGET).is_some_and(|t| t == target);
        if state.by_name.values().any(is_it) {
            return Ok(());
        }
        let name = if state.by_name.contains_key(target) { key } else { target };
        self.insert(&mut state, name, parent, Kind::Committed, labels, false).map(drop)
    }

    fn create(&self, name: &str, parent: &str, kind: Kind, labels: Labels, unpacked: bool) -> Result<Mounts, StoreError> {
        let mut state = self.state();
        self.insert(&mut state, name, parent, kind, labels, unpacked)?;
        self.mounts_of(&state, name)
    }

    fn insert(&self, state: &mut State, name: &str, parent: &str, kind: Kind, labels: Labels, unpacked: bool) -> Result<u64, StoreError> {
        check_bounds(name, parent, &labels)?;
        if state.by_name.contains_key(name) {
            return Err(StoreError::AlreadyExists(name.to_owned()));
        }
        let id = state.last_id + 1;
        let now = now();
        let snapshot = Snapshot {
            id,
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind,
            created: now,
            updated: now,
            labels,
            unpacked,
            hides: false,
        };
        if kind != Kind::Committed {
            for path in [self.directory(id), self.work_directory(id)] {
                fs::create_dir_all(&path).map_err(|source| StoreError::File { path, source })?;
            }
        }
        self.write(&snapshot)?;
        state.last_id = id;
        state.by_name.insert(name.to_owned(), snapshot);
        Ok(id)
    }

    /// How a view or an active snapshot is mounted.
    pub(crate) fn mounts(&self, name: &str) -> Result<Mounts, StoreError> {
        self.mounts_of(&self.state(), name)
    }

    fn mounts_of(&self, state: &State, name: &str) -> Result<Mounts, StoreError> {
        let snapshot = state.by_name.get(name).ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
        let writable = match snapshot.kind {
            Kind::Committed => return Err(wrong_kind(snapshot, "active or a view")),
            kind => kind == Kind::Active,
        };
        // From the top. A chain that was promised has nothing to show.
        let (mut lower, mut parent) = (Vec::new(), &snapshot.parent);
        while let Some(layer) = state.by_name.get(parent).filter(|layer| layer.unpacked) {
            lower.push(self.directory(layer.id));
            if layer.hides {
                break;
            }
            parent = &layer.parent;
        }
        Ok(mounts::of(self.directory(snapshot.id), self.work_directory(snapshot.id), lower, writable))
    }

    /// Turns the active snapshot `key` into the committed `name`. An unpacked layer keeps its files; what was written into another
    /// directory is dropped: it was never part of a container.
    pub(crate) fn commit(&self, name: &str, key: &str, parent: &str, labels: Labels) -> Result<(), StoreError> {
        let mut state = self.state();
        let active = state.by_name.get(key).ok_or_else(|| StoreError::NotFound(key.to_owned()))?.clone();
        if active.kind != Kind::Active {
            return Err(wrong_kind(&active, "active"));
        }
        let parent = if active.parent.is_empty() { parent } else { &active.parent };
        if active.unpacked {
            check_bounds(name, parent, &labels)?;
            if state.by_name.contains_key(name) {
                return Err(StoreError::AlreadyExists(name.to_owned()));
            }
            let committed = Snapshot { name: name.to_owned(), kind: Kind::Committed, updated: now(), labels, ..active };
            self.write(&committed)?;
            state.by_name.remove(key);
            state.by_name.insert(name.to_owned(), committed);
            return Ok(());
        }
        self.insert(&mut state, name, parent, Kind::Committed, labels, false)?;
        state.by_name.remove(key);
        self.erase(active.id)
    }

    /// Forgets a snapshot that is nobody's parent.
    pub(crate) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.by_name.values().any(|s| s.parent == name) {
            return Err(StoreError::Children(name.to_owned()));
        }
        let snapshot = state.by_name.remove(name).ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
        self.erase(snapshot.id)
    }

    /// What is known of a snapshot. A chain id is always there.
    pub(crate) fn stat(&self, name: &str) -> Result<Snapshot, StoreError> {
        let mut state = self.state();
        if !state.by_name.contains_key(name) {
            if !is_chain_id(name) {
                return Err(StoreError::NotFound(name.to_owned()));
            }
            self.insert(&mut state, name, "", Kind::Committed, Labels::new(), false)?;
        }
        state.by_name.get(name).cloned().ok_or_else(|| StoreError::NotFound(name.to_owned()))
    }

    /// Changes the labels that `fields` names (`labels.<key>`), or all of them where it is empty or names `labels`.
    pub(crate) fn update(&self, name: &str, labels: Labels, fields: &[String]) -> Result<Snapshot, StoreError> {
        let mut state = self.state();
        let Entry::Occupied(mut entry) = state.by_name.entry(name.to_owned()) else {
            return Err(StoreError::NotFound(name.to_owned()));
        };
        let mut changed = entry.get().clone();
        if fields.is_empty() {
            changed.labels.clone_from(&labels);
        }
        for field in fields {
            match field.strip_prefix("labels.") {
                Some(key) => match labels.get(key) {
                    Some(value) => drop(changed.labels.insert(key.to_owned(), value.clone())),
                    None => drop(changed.labels.remove(key)),
                },
                None if field == "labels" => changed.labels.clone_from(&labels),
                None => return Err(StoreError::Field(field.clone())),
            }
        }
        check_bounds(&changed.name, &changed.parent, &changed.labels)?;
        changed.updated = now();
        self.write(&changed)?;
        entry.insert(changed.clone());
        Ok(changed)
    }

    /// Every snapshot, by name.
    pub(crate) fn list(&self) -> Vec<Snapshot> {
        self.state().by_name.values().cloned().collect()
    }

    fn erase(&self, id: u64) -> Result<(), StoreError> {
        let path = self.record_path(id);
        fs::remove_file(&path).map_err(|source| StoreError::File { path, source })?;
        self.remove_directory(id)
    }

    fn write(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let path = self.record_path(snapshot.id);
        let partial = path.with_extension("partial");
        let written = serde_json::to_vec(snapshot).map_err(io::Error::other);
        let written = written.and_then(|bytes| fs::write(&partial, bytes)).and_then(|()| fs::rename(&partial, &path));
        written.map_err(|source| StoreError::File { path, source })
    }

    fn record_path(&self, id: u64) -> PathBuf {
        self.root.join("records").join(format!("{id}.json"))
    }

    fn directory(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string()).join("fs")
    }

    fn work_directory(&self, id: u64) -> PathBuf {
        self.directory(id).with_file_name("work")
    }

    /// A panic while the lock is held leaves no half-made state: the map changes last.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wrong_kind(snapshot: &Snapshot, wanted: &'static str) -> StoreError {
    StoreError::Kind { name: snapshot.name.clone(), kind: snapshot.kind.name(), wanted }
}

/// What the client called it: containerd prefixes `<namespace>/<number>/`.
fn client_key(name: &str) -> &str {
    name.splitn(3, '/').nth(2).unwrap_or(name)
}

fn is_chain_id(name: &str) -> bool {
    let hex = client_key(name).strip_prefix("sha256:");
    hex.is_some_and(|h| h.len() == 64 && h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The chain id that a client is about to unpack, if this is the key of one (containerd: `snapshots.UnpackKeyFormat`, "extract-%s %s").
pub(crate) fn chain_to_unpack(name: &str) -> Option<&str> {
    let (_, chain) = client_key(name).strip_prefix("extract-")?.split_once(' ')?;
    is_chain_id(chain).then_some(chain)
}

fn check_bounds(name: &str, parent: &str, labels: &Labels) -> Result<(), StoreError> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if (1..=MAX_NAME).contains(&name.len()) && parent.len() <= MAX_NAME && bytes <= MAX_LABELS { Ok(()) } else { Err(StoreError::Bound) }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::File { path: directory.to_owned(), source };
    fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
