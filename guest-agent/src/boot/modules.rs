//! Kernel modules, loaded from the initramfs in the order and the stages of its list.
//!
//! `/lib/modules/load` holds lines `<stage> <file.ko> [parameters]`; `#` begins a comment. Only what the agent needs to speak with the
//! host is loaded before it says READY; the rest follows while the host is still busy with its own part.

use log::{debug, warn};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    kmod::{ModuleInitFlags, finit_module},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    ffi::CString,
    fmt,
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
};
use thiserror::Error;

/// Where the initramfs keeps modules and their list.
const DIRECTORY: &str = "lib/modules";
const LIST: &str = "load";
/// Longest list; the initramfs is measured, so this only ends a mistake of its builder.
const MAX_LIST: u64 = 64 << 10;

/// When a module is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before READY: the transport to the host.
    Boot,
    /// For the scratch disk.
    Scratch,
    /// For containers' root file systems.
    Overlay,
    /// For the pod's network.
    Net,
    /// For the first disk that the host serves.
    Disk,
    /// Only in a TEE: its report device.
    Tee,
}

impl Stage {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "boot" => Self::Boot,
            "scratch" => Self::Scratch,
            "overlay" => Self::Overlay,
            "net" => Self::Net,
            "disk" => Self::Disk,
            "tee" => Self::Tee,
            _ => return None,
        })
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot",
            Self::Scratch => "scratch",
            Self::Overlay => "overlay",
            Self::Net => "net",
            Self::Disk => "disk",
            Self::Tee => "tee",
        })
    }
}

/// Why a module could not be loaded.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// A line of the list.
    #[error("/{DIRECTORY}/{LIST}: line {line}: {reason}")]
    List {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the initramfs.
    #[error("/{DIRECTORY}/{file}: {source}")]
    Read {
        /// Its name.
        file: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The kernel refused it.
    #[error("kernel module {file}: {source}")]
    Load {
        /// Its name.
        file: String,
        /// The cause.
        source: Errno,
    },
}

/// One line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    stage: Stage,
    file: String,
    parameters: CString,
}

/// The modules of the initramfs. Loading is idempotent: a stage is loaded once, and whoever asks meanwhile waits for its end.
pub struct Modules {
    directory: Option<OwnedFd>,
    pending: Mutex<Vec<Entry>>,
}

impl Modules {
    /// Reads the list below the initramfs's root. Without a list there is nothing to load: everything is built in.
    pub fn open(root: &OwnedFd) -> Result<Self, ModuleError> {
        let read_error = |file: &str, source: Errno| ModuleError::Read { file: file.to_owned(), source: source.into() };
        let directory = match openat(root.as_fd(), DIRECTORY, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::ENOENT) => return Ok(Self { directory: None, pending: Mutex::default() }),
            Err(e) => return Err(read_error("", e)),
        };
        let list = openat(directory.as_fd(), LIST, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| read_error(LIST, e))?;
        let mut text = String::new();
        let read = File::from(list).take(MAX_LIST).read_to_string(&mut text);
        read.map_err(|source| ModuleError::Read { file: LIST.to_owned(), source })?;
        Ok(Self { directory: Some(directory), pending: Mutex::new(parse_list(&text)?) })
    }

    /// Loads the modules of `stage` that are not loaded yet. Blocks; decompression and self-tests take their time.
    pub fn load(&self, stage: Stage) -> Result<(), ModuleError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(directory) = &self.directory else { return Ok(()) };
        let (now, later) = std::mem::take(&mut *pending).into_iter().partition(|entry| entry.stage == stage);
        *pending = later;
        let now: Vec<Entry> = now;
        now.iter().try_for_each(|entry| insert(directory, entry))
    }
}

fn insert(directory: &OwnedFd, entry: &Entry) -> Result<(), ModuleError> {
    let file = openat(directory.as_fd(), entry.file.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| ModuleError::Read { file: entry.file.clone(), source: e.into() })?;
    match finit_module(file.as_fd(), &entry.parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => debug!(module = entry.file; "kernel module loaded"),
        // An accelerated cipher on a processor without its instructions: the generic one does the work.
        Err(Errno::ENODEV) => warn!(module = entry.file; "kernel module has no device here"),
        Err(source) => return Err(ModuleError::Load { file: entry.file.clone(), source }),
    }
    // The initramfs is memory of the guest: what has been loaded is not needed twice.
    let _ = unlinkat(directory.as_fd(), entry.file.as_str(), UnlinkatFlags::NoRemoveDir);
    Ok(())
}

fn parse_list(text: &str) -> Result<Vec<Entry>, ModuleError> {
    let mut entries = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let bad = |reason: &str| ModuleError::List { line: number + 1, reason: reason.to_owned() };
        if line.is_empty() {
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let stage = words.next().and_then(Stage::parse).ok_or_else(|| bad("stage must be boot, scratch, overlay, net, disk or tee"))?;
        let file = words.next().filter(|f| !f.is_empty() && !f.contains('/')).ok_or_else(|| bad("no module file"))?;
        let parameters = CString::new(words.next().unwrap_or_default().trim()).map_err(|_| bad("NUL in the parameters"))?;
        entries.push(Entry { stage, file: file.to_owned(), parameters });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_order_stage_and_parameters() {
        let list = parse_list("# modules\nboot vsock.ko\n\nscratch dm-crypt.ko a=1 b=2 # why\n").unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].stage, list[0].file.as_str()), (Stage::Boot, "vsock.ko"));
        assert_eq!((list[1].stage, list[1].parameters.to_str().unwrap()), (Stage::Scratch, "a=1 b=2"));
    }

    #[test]
    fn a_broken_line_is_named() {
        for (text, line) in [("boot a.ko\nlater b.ko", 2), ("boot", 1), ("boot ../x.ko", 1)] {
            assert!(matches!(parse_list(text), Err(ModuleError::List { line: l, .. }) if l == line), "{text:?}");
        }
    }

    #[test]
    fn an_initramfs_without_modules_has_all_built_in() {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        Modules::open(&root).unwrap().load(Stage::Boot).unwrap();
    }

    #[test]
    fn a_listed_file_that_is_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(DIRECTORY)).unwrap();
        std::fs::write(dir.path().join(DIRECTORY).join(LIST), "boot gone.ko\n").unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let error = Modules::open(&root).unwrap().load(Stage::Boot).unwrap_err();
        assert!(error.to_string().contains("gone.ko"), "{error}");
    }
}
