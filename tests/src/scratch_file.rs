//! The file behind a running VM's scratch disk, as its host can read and change it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::leaks;

/// Bytes of a block of the guest's file system.
pub const BLOCK: u64 = 4096;

/// The scratch file of one VM.
#[derive(Debug)]
pub struct ScratchFile {
    path: PathBuf,
    file: File,
}

/// Its blocks, but for those that were never written.
pub type Blocks = BTreeMap<u64, Vec<u8>>;

impl ScratchFile {
    /// The only one of `directory`.
    pub fn find(directory: &Path) -> Result<Self> {
        let mut found = all(directory)?;
        ensure!(found.len() == 1, "want one running VM with scratch, there are {found:?}");
        let path = found.remove(0);
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self { path, file })
    }

    /// All that was written so far.
    pub fn read(&self) -> Result<Blocks> {
        let mut blocks = Blocks::new();
        let mut at = 0;
        loop {
            let data = match lseek(&self.file, at, Whence::SeekData) {
                Err(Errno::ENXIO) => return Ok(blocks),
                found => found?,
            };
            at = lseek(&self.file, data, Whence::SeekHole)?;
            for block in u64::try_from(data)? / BLOCK..u64::try_from(at)?.div_ceil(BLOCK) {
                let mut content = vec![0; usize::try_from(BLOCK)?];
                self.file.read_exact_at(&mut content, block * BLOCK).with_context(|| self.path.display().to_string())?;
                blocks.insert(block, content);
            }
        }
    }

    /// Writes one block.
    pub fn write(&self, block: u64, content: &[u8]) -> Result<()> {
        Ok(self.file.write_all_at(content, block * BLOCK)?)
    }
}

/// The longest run of blocks that are not the same in both: where a large file was written in between.
pub fn longest_change(before: &Blocks, after: &Blocks) -> Range<u64> {
    let mut longest = 0..0;
    let mut current = 0..0;
    for block in after.iter().filter(|(block, content)| before.get(block) != Some(content)).map(|(block, _)| *block) {
        current = if current.end == block { current.start..block + 1 } else { block..block + 1 };
        if current.end - current.start > longest.end - longest.start {
            longest = current.clone();
        }
    }
    longest
}

/// Those of every running VM whose scratch files are in `directory`. They have no names there: what QEMU has open is named by its descriptor.
pub fn all(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut paths) = (Vec::new(), Vec::new());
    for (pid, _) in leaks::pids_with("qemu-system-x86_64") {
        // Gone meanwhile: it has none.
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let again = found.iter().any(|(one, known)| *one == pid && *known == target);
            if target.starts_with(directory) && target.to_string_lossy().ends_with(" (deleted)") && !again {
                found.push((pid, target));
                paths.push(entry.path());
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_change_is_found() {
        let blocks = |numbers: &[(u64, u8)]| numbers.iter().map(|(block, byte)| (*block, vec![*byte])).collect::<Blocks>();
        let before = blocks(&[(1, 0), (2, 0), (3, 0)]);
        assert_eq!(longest_change(&before, &before), 0..0);
        assert_eq!(longest_change(&before, &blocks(&[(1, 1), (2, 0), (3, 1), (4, 1), (6, 1)])), 3..5);
    }
}
