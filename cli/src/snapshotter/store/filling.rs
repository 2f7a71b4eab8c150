//! Layers that were promised, and are unpacked after all.
//!
//! What makes such a layer one of the others is its record, which is written when its directory is whole and on the disk. So what ends
//! this between, be it kill -9, leaves a directory that nothing is mounted from; the next start removes it, or the next attempt.

use super::{Kind, Snapshot, Store, StoreError};
use nix::unistd::syncfs;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

/// A layer of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) id: u64,
    /// Its files are in its directory.
    pub(crate) unpacked: bool,
    pub(crate) directory: PathBuf,
}

impl Store {
    /// Whether the files of `parent` and of all layers below it are here: no layer is unpacked on one that is not.
    pub(crate) fn is_whole(&self, parent: &str) -> bool {
        parent.is_empty() || self.state().by_name.get(parent).is_some_and(|layer| layer.unpacked)
    }

    /// The layers from the lowest up to `top`; nothing where one is not known, as after the loss of this directory.
    pub(crate) fn chain(&self, top: &str) -> Option<Vec<Link>> {
        let state = self.state();
        let (mut chain, mut name) = (Vec::new(), top);
        while !name.is_empty() {
            let layer = state.by_name.get(name).filter(|layer| layer.kind == Kind::Committed)?;
            chain.push(Link { id: layer.id, unpacked: layer.unpacked, directory: self.directory(layer.id) });
            name = &layer.parent;
        }
        chain.reverse();
        Some(chain)
    }

    /// An empty directory for the files of a layer, which goes with [`Self::abandon`] or stays with [`Self::keep`].
    pub(crate) fn begin(&self, layer: &Link) -> Result<(), StoreError> {
        self.abandon(layer)?;
        fs::create_dir_all(&layer.directory).map_err(|source| StoreError::File { path: layer.directory.clone(), source })
    }

    /// From now on the layer is mounted; without what is below it, where it `hides` that.
    pub(crate) fn keep(&self, layer: &Link, hides: bool) -> Result<(), StoreError> {
        let path = &layer.directory;
        let synced = File::open(path).and_then(|directory| Ok(syncfs(&directory)?));
        synced.map_err(|source| StoreError::File { path: path.clone(), source })?;
        let mut state = self.state();
        let Some(record) = state.by_name.values_mut().find(|record| record.id == layer.id) else {
            // containerd has removed it meanwhile.
            drop(state);
            self.abandon(layer)?;
            return Err(StoreError::NotFound(layer.id.to_string()));
        };
        let kept = Snapshot { unpacked: true, hides, ..record.clone() };
        self.write(&kept)?;
        *record = kept;
        Ok(())
    }

    /// Removes what there is of a layer's files.
    pub(crate) fn abandon(&self, layer: &Link) -> Result<(), StoreError> {
        self.remove_directory(layer.id)
    }

    /// What a crash has left half unpacked.
    pub(super) fn clear_unfinished(&self) -> Result<(), StoreError> {
        let state = self.state();
        let promised = state.by_name.values().filter(|layer| layer.kind == Kind::Committed && !layer.unpacked);
        promised.map(|layer| layer.id).try_for_each(|id| self.remove_directory(id))
    }

    /// A file without a name, for a layer on its way.
    pub(crate) fn unnamed_file(&self) -> io::Result<File> {
        File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o600).open(&self.root)
    }

    /// The directory of a snapshot, for what it takes up; that of a promise does not exist.
    pub(crate) fn files_of(&self, name: &str) -> Result<PathBuf, StoreError> {
        let state = self.state();
        let snapshot = state.by_name.get(name).ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
        Ok(self.directory(snapshot.id))
    }

    pub(super) fn remove_directory(&self, id: u64) -> Result<(), StoreError> {
        let path = self.root.join("snapshots").join(id.to_string());
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::File { path, source }),
            _ => Ok(()),
        }
    }
}
