//! Unpacks a layer's tar into a directory of its own, in the form that overlayfs takes as a lower directory.
//!
//! The archive is hostile until its diff_id is compared, and may be hostile then. So every path is resolved by the kernel inside the
//! directory (`openat2` with `RESOLVE_IN_ROOT`): nothing outside it is ever opened, whatever symbolic links earlier entries have
//! planted. Where readers of tar are known to disagree (sizes given twice, `..`, data behind links), the archive is refused.
//!
//! The rules are those of containerd's `archive.Apply` with its overlay conversion (pkg/archive/tar.go); differences: an entry
//! cannot replace a directory by something else, device nodes are made only where [`Limits::devices`] says so, a directory that is made
//! anew where the same layer takes one away shows nothing of the old one, holes of sparse files stay holes, and metadata of a hard link's
//! own entry is not applied a second time.

mod archive;
mod header;
mod parents;
mod paths;
mod pax;
mod sparse;
mod tree;
mod whiteout;
mod xattr;

pub use parents::adopt_parents;

use archive::{Archive, Entry, Kind};
use paths::{EntryPath, Remembered};
use std::{
    collections::BTreeSet,
    io::{self, Read},
    path::{Path, PathBuf},
};
use thiserror::Error;
use tree::Tree;

/// What an archive may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the unpacked tar.
    pub max_bytes: u64,
    /// Bytes of tar per byte of blob, once 64 MiB are passed; gzip cannot exceed 1032.
    pub max_ratio: u64,
    /// Entries of the tar.
    pub max_entries: u64,
    /// Components of a path.
    pub max_depth: usize,
    /// Bytes of one entry's PAX header: path, link target and extended attributes together.
    pub max_header: usize,
    /// Bytes of one sparse file, its holes with it. They take no place, but whoever reads them reads so many zeros.
    pub max_sparse: u64,
    /// What to do with device nodes.
    pub devices: Devices,
    /// What to do with whiteouts.
    pub whiteouts: Whiteouts,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 64 << 30,
            max_ratio: 1100,
            max_entries: 4_000_000,
            max_depth: 128,
            max_header: 256 << 10,
            max_sparse: 64 << 30,
            devices: Devices::Refuse,
            whiteouts: Whiteouts::Make,
        }
    }
}

/// What to do with device nodes in an archive. The character device 0:0 is overlayfs's whiteout and always taken as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// The layer is refused.
    Refuse,
    /// They are left out, which a container cannot tell: its `/dev` is made anew.
    Skip,
    /// They are made.
    Create,
}

/// What to do with whiteouts in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// They are made, in overlayfs's form.
    Make,
    /// They are left out: of an image's lowest layer, below which there is nothing to hide. overlayfs lists the names of whiteouts in a
    /// directory that one layer alone has, and a container would see a name with nothing behind it.
    LeaveOut,
}

impl Whiteouts {
    /// For the layer of this number, 0 being the lowest.
    pub fn of_layer(number: usize) -> Self {
        if number == 0 { Self::LeaveOut } else { Self::Make }
    }
}

/// What came of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries read.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
    /// Directories that entries lie in but that the archive does not describe; see [`adopt_parents`].
    pub implied: Vec<PathBuf>,
    /// The layer hides everything below it. overlayfs ignores that mark on a layer's root: leave the lower layers out.
    pub opaque_root: bool,
}

/// Why an archive was not unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The stream: its decompressor, its end, a limit on it.
    #[error("reading the archive: {0}")]
    Archive(#[source] io::Error),
    /// A header.
    #[error("archive entry {number}: {why}")]
    Header {
        /// Counted from 1.
        number: u64,
        /// What is wrong.
        why: String,
    },
    /// What an entry asks for.
    #[error("archive entry {path:?}: {why}")]
    Entry {
        /// Its path, cut to a line's length.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The directory.
    #[error("unpacking {path:?}: {what}: {source}")]
    System {
        /// The entry's path, cut to a line's length.
        path: String,
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// Unpacks one archive into one directory.
pub struct Unpacker {
    tree: Tree,
    limits: Limits,
    implied: BTreeSet<EntryPath>,
    described: Vec<(EntryPath, header::Time)>,
    remembered: Remembered,
    opaque_root: bool,
    buffer: Vec<u8>,
}

/// Bytes copied at a time.
const BUFFER: usize = 128 << 10;

impl Unpacker {
    /// For the empty directory `root`, which nobody else touches meanwhile.
    pub fn new(root: &Path, limits: &Limits) -> Result<Self, UnpackError> {
        Ok(Self {
            tree: Tree::open(root)?,
            limits: limits.clone(),
            implied: BTreeSet::new(),
            described: Vec::new(),
            remembered: Remembered::default(),
            opaque_root: false,
            buffer: vec![0; BUFFER],
        })
    }

    /// Reads an archive to its end mark and no further than a buffer behind it. On an error the directory holds a part of it.
    pub fn unpack(mut self, reader: impl Read) -> Result<Stats, UnpackError> {
        let mut archive = Archive::new(reader, self.limits.max_header);
        let mut entries = 0;
        while let Some(entry) = archive.next_entry()? {
            entries += 1;
            if entries > self.limits.max_entries {
                return Err(UnpackError::Header { number: entries, why: format!("more than {} entries", self.limits.max_entries) });
            }
            self.entry(&entry, &mut archive)?;
        }
        self.finish_directories()?;
        let implied = self.implied.iter().map(EntryPath::to_path).collect();
        Ok(Stats { entries, bytes: 0, implied, opaque_root: self.opaque_root })
    }

    fn entry<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), UnpackError> {
        let path = EntryPath::parse(&entry.path, self.limits.max_depth)?;
        // As containerd: the root's own entry changes nothing, for the root belongs to whoever made the directory.
        let Some((parent, name)) = path.split() else { return Ok(()) };
        if let Some(whiteout) = whiteout::parse(&path)? {
            return self.whiteout(&whiteout, &path, &parent);
        }
        if entry.kind == Kind::Char && entry.device == (0, 0) {
            return self.whiteout(&whiteout::Whiteout::Name(name.to_vec()), &path, &parent);
        }
        if matches!(entry.kind, Kind::Char | Kind::Block) {
            match self.limits.devices {
                Devices::Refuse => return Err(path.refused("a device node: this guest makes none; remove it from the image")),
                Devices::Skip => return Ok(()),
                Devices::Create => (),
            }
        }
        let parent_fd = self.parent(&parent)?;
        match entry.kind {
            Kind::Directory => {
                let replaced = tree::make_dir(&parent_fd, name, &path, tree::Replace::Anything)?;
                let dir = tree::open_child_dir(&parent_fd, name, &path)?;
                if replaced == tree::Replaced::Whiteout {
                    // The whiteout hid what lies below; the directory in its place must go on doing so.
                    xattr::set_opaque(&dir, &path)?;
                }
                tree::apply_to_dir(&dir, entry, &path)?;
                self.implied.remove(&path);
                self.remembered.add(&path)?;
                self.described.push((path, entry.mtime));
            }
            Kind::File => {
                if let Some(map) = entry.sparse.as_ref().filter(|map| map.size > self.limits.max_sparse) {
                    return Err(path.refused(format!("a sparse file of {} bytes; at most {}", map.size, self.limits.max_sparse)));
                }
                let file = tree::make_file(&parent_fd, name, &path)?;
                archive.copy_data(&file, entry.sparse.as_ref(), &mut self.buffer, &path)?;
                tree::apply_to_file(&file, entry, &path)?;
            }
            Kind::Symlink => tree::make_symlink(&parent_fd, name, entry, &path)?,
            Kind::HardLink => {
                let target = EntryPath::parse(&entry.link, self.limits.max_depth)?;
                let (directory, target_name) = target.split().ok_or_else(|| path.refused("a hard link to the root"))?;
                let directory = self.tree.open_dir(&directory)?.ok_or_else(|| path.refused("a hard link to nothing in this layer"))?;
                tree::make_hard_link(&parent_fd, name, &directory, target_name, &path)?;
            }
            Kind::Fifo | Kind::Char | Kind::Block => tree::make_node(&parent_fd, name, entry, &path)?,
        }
        Ok(())
    }

    fn whiteout(&mut self, whiteout: &whiteout::Whiteout, path: &EntryPath, parent: &EntryPath) -> Result<(), UnpackError> {
        if *whiteout == whiteout::Whiteout::Ignored {
            return Ok(());
        }
        let directory = self.parent(parent)?;
        match (self.limits.whiteouts, whiteout) {
            (Whiteouts::LeaveOut, _) | (_, whiteout::Whiteout::Ignored) => Ok(()),
            (Whiteouts::Make, whiteout::Whiteout::Opaque) => {
                self.opaque_root |= parent.is_root();
                xattr::set_opaque(&directory, path)
            }
            (Whiteouts::Make, whiteout::Whiteout::Name(name)) => whiteout::make(&directory, name, path),
        }
    }

    /// The directory that an entry lies in, made if the archive did not describe it.
    fn parent(&mut self, parent: &EntryPath) -> Result<tree::DirFd, UnpackError> {
        let (directory, made) = self.tree.open_or_make_dir(parent)?;
        for path in made {
            self.remembered.add(&path)?;
            self.implied.insert(path);
        }
        Ok(directory)
    }

    /// Directories get their times last: each entry made in them changes them.
    fn finish_directories(&mut self) -> Result<(), UnpackError> {
        for (path, time) in std::mem::take(&mut self.described) {
            if let Some(directory) = self.tree.open_dir(&path)? {
                tree::set_times(&directory, time, &path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
