//! The snapshots: one small JSON file for each, and for each that can be mounted one empty directory.
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
    /// See the module's documentation: `ctr` of containerd 1.6 and 1.7.
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

    /// A new writable snapshot or, with [`LABEL_TARGET`], the promise that the target is there; `unpack`: the target is to be unpacked
    /// into a new snapshot instead.
    pub(crate) fn prepare(&self, name: &str, parent: &str, labels: Labels, unpack: bool) -> Result<Prepared, StoreError> {
        match labels.get(LABEL_TARGET).cloned() {
            Some(target) if !unpack => {
                self.promise(name, &target, parent, labels)?;
                Ok(Prepared::Present(target))
            }
            None if !unpack && chain_to_unpack(name).is_some() => Err(StoreError::Unpacking),
            _ => self.create(name, parent, Kind::Active, labels, unpack).map(Prepared::Mountable),
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
        let snapshot =
            Snapshot { id, name: name.to_owned(), parent: parent.to_owned(), kind, created: now, updated: now, labels, unpacked };
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
        let path = self.root.join("snapshots").join(id.to_string());
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::File { path, source }),
            _ => Ok(()),
        }
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
mod tests {
    use super::*;

    const CHAIN: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn labelled(target: &str) -> Labels {
        Labels::from([(LABEL_TARGET.to_owned(), target.to_owned())])
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_labelled_prepare_is_a_promise_that_is_kept() {
        let (_dir, store) = store();
        for key in ["ns/1/extract-1 x", "other/2/extract-2 x"] {
            assert_eq!(store.prepare(key, "", labelled(CHAIN), false).unwrap(), Prepared::Present(CHAIN.into()));
        }
        let all = store.list();
        assert_eq!(all.len(), 1, "namespaces share it");
        assert_eq!((all[0].kind, all[0].labels[LABEL_TARGET].as_str()), (Kind::Committed, CHAIN));
        // containerd asks for target and parent: on another parent it is another snapshot.
        store.prepare("ns/3/extract-3 x", "ns/9/base", labelled(CHAIN), false).unwrap();
        assert!(store.list().iter().any(|s| s.name == "ns/3/extract-3 x" && s.parent == "ns/9/base" && s.kind == Kind::Committed));
    }

    #[test]
    fn an_unpacking_client_is_told_what_to_do() {
        let (_dir, store) = store();
        let key = format!("default/7/extract-123456-aBc= {CHAIN}");
        let error = store.prepare(&key, "", Labels::new(), false).unwrap_err();
        assert!(error.to_string().contains("cloister image prepare"), "{error}");
        assert!(store.list().is_empty());
        // A container that is merely called so is none.
        assert!(matches!(store.prepare("default/8/extract-1", "", Labels::new(), false), Ok(Prepared::Mountable(_))));
    }

    #[test]
    fn a_container_gets_an_empty_directory_and_leaves_nothing() {
        let (dir, store) = store();
        let Prepared::Mountable(Mounts::Own(path, true)) = store.prepare("ns/1/c", CHAIN, Labels::new(), false).unwrap() else {
            panic!("not mountable")
        };
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        assert_eq!(store.mounts("ns/1/c").unwrap(), Mounts::Own(path.clone(), true));
        assert!(matches!(store.prepare("ns/1/c", "", Labels::new(), false), Err(StoreError::AlreadyExists(_))));
        fs::write(path.join("file"), b"x").unwrap();
        store.remove("ns/1/c").unwrap();
        assert!(matches!(store.remove("ns/1/c"), Err(StoreError::NotFound(_))));
        for directory in ["records", "snapshots"] {
            assert_eq!(fs::read_dir(dir.path().join(directory)).unwrap().count(), 0, "{directory}");
        }
    }

    #[test]
    fn views_are_read_only_and_committed_ones_are_not_mounted() {
        let (_dir, store) = store();
        store.view("ns/1/v", "", Labels::new()).unwrap();
        assert!(matches!(store.mounts("ns/1/v").unwrap(), Mounts::Own(_, false)));
        store.prepare("ns/2/extract-1 x", "", labelled(CHAIN), false).unwrap();
        assert!(matches!(store.mounts(CHAIN), Err(StoreError::Kind { .. })));
        assert!(matches!(store.commit("x", "ns/1/v", "", Labels::new()), Err(StoreError::Kind { .. })));
        assert!(matches!(store.mounts("nobody"), Err(StoreError::NotFound(_))));
    }

    #[test]
    fn commit_moves_and_drops_what_was_written() {
        let (_dir, store) = store();
        let Prepared::Mountable(Mounts::Own(path, true)) = store.prepare("ns/1/a", "base", Labels::new(), false).unwrap() else {
            panic!("not mountable")
        };
        fs::write(path.join("file"), b"x").unwrap();
        store.commit("ns/2/b", "ns/1/a", "", Labels::new()).unwrap();
        let all = store.list();
        assert_eq!((all.len(), all[0].name.as_str(), all[0].parent.as_str()), (1, "ns/2/b", "base"));
        assert!(!path.exists());
    }

    #[test]
    fn layers_that_are_unpacked_are_stacked() {
        let (dir, store) = store();
        let other = CHAIN.replace('a', "b");
        let mut parent = String::new();
        for (number, chain) in [CHAIN, &other].into_iter().enumerate() {
            let key = format!("ns/{number}/extract-1 {chain}");
            let Prepared::Mountable(mounts) = store.prepare(&key, &parent, labelled(chain), true).unwrap() else { panic!("present") };
            match mounts {
                Mounts::Own(path, true) if number == 0 => fs::write(path.join("below"), b"1").unwrap(),
                Mounts::Overlay { upper: Some((upper, _)), lower } if number == 1 => {
                    assert_eq!(fs::read(lower[0].join("below")).unwrap(), b"1");
                    fs::write(upper.join("above"), b"2").unwrap();
                }
                other => panic!("{other:?}"),
            }
            let name = format!("ns/{}/{chain}", number + 10);
            store.commit(&name, &key, "", Labels::new()).unwrap();
            parent = name;
        }
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let Prepared::Mountable(Mounts::Overlay { lower, upper }) = store.prepare("ns/3/c", &parent, Labels::new(), false).unwrap() else {
            panic!("no overlay")
        };
        assert!(upper.is_some() && lower.len() == 2 && lower[0].join("above").is_file() && lower[1].join("below").is_file());
        assert!(matches!(store.view("ns/4/v", &parent, Labels::new()).unwrap(), Mounts::Overlay { upper: None, .. }));
        // What is promised beside it has nothing to show.
        store.prepare("ns/5/extract-1 x", "", labelled(&CHAIN.replace('a', "c")), false).unwrap();
        let promised = store.prepare("ns/6/d", &CHAIN.replace('a', "c"), Labels::new(), false).unwrap();
        assert!(matches!(promised, Prepared::Mountable(Mounts::Own(_, true))));
    }

    #[test]
    fn a_parent_outlives_its_children() {
        let (_dir, store) = store();
        store.stat(CHAIN).unwrap();
        store.prepare("ns/1/c", CHAIN, Labels::new(), false).unwrap();
        assert!(matches!(store.remove(CHAIN), Err(StoreError::Children(_))));
        store.remove("ns/1/c").unwrap();
        store.remove(CHAIN).unwrap();
    }

    #[test]
    fn a_chain_id_is_always_there_and_nothing_else_is() {
        let (_dir, store) = store();
        for name in [CHAIN.to_owned(), format!("default/12/{CHAIN}")] {
            assert_eq!(store.stat(&name).unwrap().kind, Kind::Committed);
        }
        for name in ["", "x", "default/1/x", "sha256:short", &CHAIN.to_uppercase()] {
            assert!(matches!(store.stat(name), Err(StoreError::NotFound(_))), "{name}");
        }
    }

    #[test]
    fn a_restart_finds_everything_and_clears_the_rest() {
        let (dir, store) = store();
        store.prepare("ns/1/c", CHAIN, Labels::new(), false).unwrap();
        store.stat(CHAIN).unwrap();
        store.update(CHAIN, Labels::from([("a".into(), "b".into())]), &["labels.a".into()]).unwrap();
        let before = store.list();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked { .. })));
        drop(store);
        fs::create_dir_all(dir.path().join("snapshots/99/fs")).unwrap();
        fs::write(dir.path().join("records/98.json"), b"{torn").unwrap();
        fs::write(dir.path().join("records/97.partial"), b"").unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.list(), before);
        assert!(matches!(store.mounts("ns/1/c").unwrap(), Mounts::Own(path, true) if path.is_dir()));
        assert_eq!(fs::read_dir(dir.path().join("records")).unwrap().count(), 2);
        assert!(!dir.path().join("snapshots/99").exists());
        // A new id never meets an old directory.
        assert!(matches!(store.prepare("ns/2/d", "", Labels::new(), false), Ok(Prepared::Mountable(_))));
    }

    #[test]
    fn only_labels_change() {
        let (_dir, store) = store();
        store.stat(CHAIN).unwrap();
        let labels = Labels::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        assert_eq!(store.update(CHAIN, labels.clone(), &[]).unwrap().labels, labels);
        let gone = store.update(CHAIN, Labels::new(), &["labels.a".into()]).unwrap();
        assert_eq!(gone.labels, Labels::from([("b".to_owned(), "2".to_owned())]));
        assert!(matches!(store.update(CHAIN, Labels::new(), &["parent".into()]), Err(StoreError::Field(_))));
        assert!(matches!(store.update("x", Labels::new(), &[]), Err(StoreError::NotFound(_))));
    }

    #[test]
    fn names_and_labels_have_an_end() {
        let (_dir, store) = store();
        let long = "n".repeat(MAX_NAME + 1);
        let heavy = Labels::from([("k".to_owned(), "v".repeat(MAX_LABELS))]);
        for (name, parent, labels) in [("", "", Labels::new()), (&long, "", Labels::new()), ("n", &long, Labels::new()), ("n", "", heavy)] {
            assert!(matches!(store.prepare(name, parent, labels, false), Err(StoreError::Bound)));
        }
    }
}
