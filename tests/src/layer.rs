//! Layers of all kinds of entries, with what tars of real tools have in them: nanoseconds, attributes, owners, long names, hard links.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tar::{Builder, EntryType, Header};

use crate::oci::LayerBytes;
use crate::tree::{self, Kind, Look};

/// Writes a tar, entry by entry.
pub struct Writer {
    builder: Builder<Vec<u8>>,
}

impl Default for Writer {
    fn default() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }
}

impl Writer {
    /// One entry as `look` says; `content` is that of a file.
    pub fn add(&mut self, path: &Path, look: &Look, content: impl Read) -> Result<()> {
        let mut header = self.header(look)?;
        let mut device = |number: u64| -> Result<()> {
            header.set_device_major(libc::major(number))?;
            Ok(header.set_device_minor(libc::minor(number))?)
        };
        match &look.kind {
            Kind::Character(number) | Kind::Block(number) => device(*number)?,
            _ => {}
        }
        let kind = match &look.kind {
            Kind::Directory => EntryType::Directory,
            Kind::File(size, _) => {
                header.set_size(*size);
                EntryType::Regular
            }
            Kind::Link(_) => EntryType::Symlink,
            Kind::Fifo => EntryType::Fifo,
            Kind::Character(_) => EntryType::Char,
            Kind::Block(_) => EntryType::Block,
        };
        header.set_entry_type(kind);
        match &look.kind {
            Kind::Link(target) => self.builder.append_link(&mut header, path, target)?,
            Kind::File(..) => self.builder.append_data(&mut header, path, content)?,
            _ => self.builder.append_data(&mut header, path, io::empty())?,
        }
        Ok(())
    }

    /// Another name of a file that this layer has already, with `look` once more, as tools write it: containerd applies it once more.
    pub fn hard_link(&mut self, path: &Path, target: &Path, look: &Look) -> Result<()> {
        let mut header = self.header(look)?;
        header.set_entry_type(EntryType::Link);
        Ok(self.builder.append_link(&mut header, path, target)?)
    }

    /// What all kinds of entries have; what a header has no room for goes into an extension before it.
    fn header(&mut self, look: &Look) -> Result<Header> {
        let mut extensions: Vec<(String, Vec<u8>)> = Vec::new();
        if look.mtime.1 != 0 {
            extensions.push(("mtime".into(), format!("{}.{:09}", look.mtime.0, look.mtime.1).into_bytes()));
        }
        extensions.extend(look.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        self.builder.append_pax_extensions(extensions.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
        let mut header = Header::new_gnu();
        header.set_mode(look.mode);
        header.set_uid(look.owner.0.into());
        header.set_gid(look.owner.1.into());
        header.set_mtime(u64::try_from(look.mtime.0)?);
        header.set_size(0);
        Ok(header)
    }

    /// An empty file of this name: a whiteout.
    pub fn mark(&mut self, path: &Path) -> Result<()> {
        self.add(path, &plain(Kind::File(0, String::new())), io::empty())
    }

    /// The layer.
    pub fn finish(self) -> Result<LayerBytes> {
        LayerBytes::honest(&self.builder.into_inner()?)
    }
}

/// Of root, readable, of no time, without attributes.
pub fn plain(kind: Kind) -> Look {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    Look { kind, mode, owner: (0, 0), mtime: (0, 0), xattrs: BTreeMap::new(), hard_link: None }
}

/// A tree of this machine as a layer.
pub fn of_tree(root: &Path) -> Result<LayerBytes> {
    let tree = tree::look(root)?;
    ensure!(!tree.is_empty(), "{}: empty; run `make setup`", root.display());
    let mut writer = Writer::default();
    for (path, look) in &tree {
        match &look.hard_link {
            Some(first) if first != path => writer.hard_link(path, first, look)?,
            _ if matches!(look.kind, Kind::File(..)) => writer.add(path, look, std::fs::File::open(root.join(path))?)?,
            _ => writer.add(path, look, io::empty())?,
        }
    }
    writer.finish()
}

/// Layers of changes that follow each other, the same for the same seed: new, changed and removed files, directories that hide what was in
/// them, files in place of directories and the other way round, and directories that are only implied.
pub fn changes(count: u64, seed: u64) -> Result<Vec<LayerBytes>> {
    let mut random = Random(seed);
    // What the layers so far amount to: each path, and whether it is a directory.
    let mut state = BTreeMap::from([(PathBuf::from("srv"), true)]);
    (0..count).map(|number| one_change(number, &mut random, &mut state)).collect()
}

fn one_change(number: u64, random: &mut Random, state: &mut BTreeMap<PathBuf, bool>) -> Result<LayerBytes> {
    let mut writer = Writer::default();
    if number == 0 {
        writer.add(Path::new("srv"), &plain(Kind::Directory), io::empty())?;
    }
    // What this layer has touched: another entry for it or below it would be a change within a layer, which is another matter.
    let mut touched: Vec<PathBuf> = Vec::new();
    let mut last_file: Option<(PathBuf, Look)> = None;
    for step in 0..25 {
        let existing: Vec<PathBuf> = state.keys().cloned().collect();
        let directories: Vec<PathBuf> = state.iter().filter(|(_, directory)| **directory).map(|(path, _)| path.clone()).collect();
        let parent = random.pick(&directories);
        let fresh = parent.join(format!("{}{number}-{step}", ["n", "a name with spaces ", "ümlaut", &"long".repeat(40)][random.below(4)]));
        let old = random.pick(&existing);
        let is_touched = |path: &Path| touched.iter().any(|other| path.starts_with(other) || other.starts_with(path));
        match random.below(9) {
            0 | 1 => {
                writer.add(&fresh, &random.look(Kind::Directory), io::empty())?;
                state.insert(fresh.clone(), true);
            }
            2 | 3 => {
                let look = add_file(&mut writer, &fresh, random)?;
                state.insert(fresh.clone(), false);
                last_file = Some((fresh.clone(), look));
            }
            4 if old != Path::new("srv") && !is_touched(&old) => {
                let name = format!(".wh.{}", old.file_name().unwrap_or_default().to_string_lossy());
                writer.mark(&old.with_file_name(name))?;
                state.retain(|path, _| !path.starts_with(&old));
                touched.push(old);
            }
            5 if old != Path::new("srv") && !is_touched(&old) => {
                // In place of whatever was there.
                state.retain(|path, _| !path.starts_with(&old));
                add_file(&mut writer, &old, random)?;
                state.insert(old.clone(), false);
                touched.push(old);
            }
            6 if old != Path::new("srv") && state[&old] && !is_touched(&old) => {
                writer.add(&old, &random.look(Kind::Directory), io::empty())?;
                writer.mark(&old.join(".wh..wh..opq"))?;
                state.retain(|path, _| path == &old || !path.starts_with(&old));
                touched.push(old);
            }
            7 => {
                let kind = if random.below(2) == 0 { Kind::Fifo } else { Kind::Link(PathBuf::from("../somewhere/else")) };
                let look = Look { xattrs: BTreeMap::new(), ..random.look(kind) };
                writer.add(&fresh, &look, io::empty())?;
                state.insert(fresh.clone(), false);
            }
            8 => {
                if let Some((target, look)) = last_file.as_ref().filter(|(target, _)| state.contains_key(target)) {
                    writer.hard_link(&fresh, target, look)?;
                    state.insert(fresh.clone(), false);
                }
            }
            _ => continue,
        }
        // What was made anew counts as touched too, so that nothing of this layer takes it away again.
        if state.contains_key(&fresh) {
            touched.push(fresh);
        }
    }
    writer.finish()
}

fn add_file(writer: &mut Writer, path: &Path, random: &mut Random) -> Result<Look> {
    let content = vec![u8::try_from(random.below(256))?; random.below(3000)];
    let look = random.look(Kind::File(u64::try_from(content.len())?, String::new()));
    writer.add(path, &look, content.as_slice())?;
    Ok(look)
}

/// A generator whose numbers are the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % bound.max(1)
    }

    fn pick(&mut self, from: &[PathBuf]) -> PathBuf {
        from.get(self.below(from.len())).cloned().unwrap_or_else(|| PathBuf::from("srv"))
    }

    fn look(&mut self, kind: Kind) -> Look {
        let mut xattrs = BTreeMap::new();
        if self.below(3) == 0 {
            xattrs.insert("user.note".to_owned(), vec![b'x'; 1 + self.below(50)]);
        }
        if self.below(5) == 0 && matches!(kind, Kind::File(..)) {
            // struct vfs_cap_data, revision 2: CAP_NET_BIND_SERVICE.
            xattrs.insert("security.capability".to_owned(), [[1, 0, 0, 2], [0, 4, 0, 0], [0; 4], [0; 4], [0; 4]].concat());
        }
        let modes = [0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000];
        Look {
            kind,
            mode: modes[self.below(modes.len())],
            owner: ([0, 33, 1000, 70_000][self.below(4)], [0, 33, 1000, 3_000_000][self.below(4)]),
            mtime: (1_600_000_000, [0, 5, 123_456_789, 999_999_999][self.below(4)]),
            xattrs,
            hard_link: None,
        }
    }
}
