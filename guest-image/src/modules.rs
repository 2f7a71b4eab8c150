//! Which kernel modules the guest carries, and in which order it loads them.

use crate::{
    elf,
    modinfo::{self, ModinfoError},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Largest module, decompressed, in bytes (Debian's largest of ours has half a megabyte).
pub const MAX_MODULE: u64 = 16 << 20;
/// Deepest chain of dependencies: a bound for the recursion.
const MAX_DEPTH: usize = 32;

/// When the agent loads a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Before anything else: the way to the host.
    Boot,
    /// With the scratch disk.
    Scratch,
    /// With the first root file system.
    Overlay,
    /// With a network interface.
    Net,
    /// With the first disk that the host serves to a running guest.
    Disk,
    /// In an enclave: its report device.
    Tee,
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

/// What we ask for; dependencies come along. One that is built into the kernel is as good.
/// `aesni-intel` refuses to load on a processor without AES instructions, which is why the generic `gcm` and `ghash-generic` are there
/// too; dm-crypt cannot ask for either by itself, since the guest has no modprobe. `sev-guest` of Linux 6.12 needs them as well: its stage is
/// loaded after that of the scratch disk.
pub const WANTED: &[(Stage, &[&str])] = &[
    (Stage::Boot, &["virtio_mmio", "virtio_pci", "vsock", "vmw_vsock_virtio_transport"]),
    (Stage::Scratch, &["virtio_blk", "brd", "dm-mod", "ghash-generic", "gcm", "aesni-intel", "dm-crypt", "dm-integrity"]),
    (Stage::Overlay, &["overlay"]),
    (Stage::Net, &["virtio_net"]),
    (Stage::Disk, &["nbd"]),
    (Stage::Tee, &["tsm", "sev-guest", "tdx-guest"]),
];

/// A module of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// When it is loaded.
    pub stage: Stage,
    /// Its name, with `_` for `-`.
    pub name: String,
    /// The ELF file, decompressed.
    pub data: Vec<u8>,
}

/// Why the modules could not be gathered.
#[derive(Debug, Error)]
pub enum ModulesError {
    /// A file or directory cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Larger than the bound.
    #[error("{path}: larger than {} MiB when decompressed", MAX_MODULE >> 20)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Not a module.
    #[error("{path}: {source}")]
    Modinfo {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: ModinfoError,
    },
    /// Neither a file nor built in.
    #[error("module {name}, needed by {by}, is not in {root}; use Debian's linux-image-cloud-amd64 6.12 or newer")]
    Missing {
        /// Of the module.
        name: String,
        /// The stage or module that wants it.
        by: String,
        /// Where we looked.
        root: PathBuf,
    },
    /// A circle of dependencies, or a chain without end.
    #[error("module {0}: dependencies nest deeper than {MAX_DEPTH}")]
    Depth(String),
}

/// Finds `wanted` and what it depends on below `root` (`lib/modules/<version>`), in load order, each module once and in the first
/// stage that needs it.
pub fn resolve(root: &Path, wanted: &[(Stage, &[&str])]) -> Result<Vec<Module>, ModulesError> {
    let mut resolver =
        Resolver { root, files: find_files(root)?, builtin: read_builtin(root)?, placed: BTreeSet::new(), modules: Vec::new() };
    for (stage, names) in wanted {
        for name in *names {
            resolver.add(*stage, name, &format!("stage {stage}"), 0)?;
        }
    }
    Ok(resolver.modules)
}

/// The kernel's spelling: file names mix `-` and `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

struct Resolver<'a> {
    root: &'a Path,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    placed: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Resolver<'_> {
    fn add(&mut self, stage: Stage, name: &str, by: &str, depth: usize) -> Result<(), ModulesError> {
        let name = canonical(name);
        if self.placed.contains(&name) || self.builtin.contains(&name) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(ModulesError::Depth(name));
        }
        let Some(path) = self.files.get(&name).cloned() else {
            return Err(ModulesError::Missing { name, by: by.to_owned(), root: self.root.to_owned() });
        };
        let data = read_module(&path)?;
        let info = modinfo::parse(&data).map_err(|source| ModulesError::Modinfo { path, source })?;
        for dependency in &info.depends {
            self.add(stage, dependency, &name, depth + 1)?;
        }
        self.placed.insert(name.clone());
        self.modules.push(Module { stage, name, data });
        Ok(())
    }
}

/// Every module file below `root`, by its name in the kernel's spelling.
fn find_files(root: &Path) -> Result<BTreeMap<String, PathBuf>, ModulesError> {
    let mut files = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let unreadable = |source| ModulesError::File { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let kind = entry.file_type().map_err(unreadable)?;
            let file = entry.file_name();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if let Some((name, suffix)) = file.to_str().and_then(|f| f.split_once('.'))
                && matches!(suffix, "ko" | "ko.xz" | "ko.zst")
            {
                files.insert(canonical(name), entry.path());
            }
        }
    }
    Ok(files)
}

/// `modules.builtin`: a path per line. Part of the package, unlike `modules.dep`.
fn read_builtin(root: &Path) -> Result<BTreeSet<String>, ModulesError> {
    let path = root.join("modules.builtin");
    let text = fs::read_to_string(&path).map_err(|source| ModulesError::File { path, source })?;
    let name = |line: &str| line.rsplit('/').next().and_then(|f| f.strip_suffix(".ko")).map(canonical);
    Ok(text.lines().filter_map(name).collect())
}

/// Reads a module and decompresses it: the guest's kernel would do so at every boot.
fn read_module(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let failed = |source| ModulesError::File { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(failed)?;
    let mut reader: Box<dyn Read> = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new(io::BufReader::new(file), true)),
        Some("zst") => Box::new(zstd::Decoder::new(file).map_err(failed)?),
        _ => Box::new(file),
    };
    let mut data = Vec::new();
    reader.by_ref().take(MAX_MODULE + 1).read_to_end(&mut data).map_err(failed)?;
    if data.len() as u64 > MAX_MODULE {
        return Err(ModulesError::TooLarge { path: path.to_owned() });
    }
    data.truncate(unsigned_len(&data));
    Ok(elf::stripped(data))
}

/// Length without the appended signature (`include/linux/module_signature.h`): the signature, a `struct module_signature` of twelve
/// bytes that ends in its length, and a line of text. The initramfs is measured with everything in it, so a signature says nothing
/// more; checking sixteen of them took two thirds of the time that loading them took, a quarter of a second without KVM.
fn unsigned_len(module: &[u8]) -> usize {
    const TRAILER: &[u8] = b"~Module signature appended~\n";
    const INFO: usize = 12;
    let Some(signed) = module.strip_suffix(TRAILER) else { return module.len() };
    let length = signed.last_chunk::<4>().map_or(usize::MAX, |length| u32::from_be_bytes(*length) as usize);
    length.checked_add(INFO).and_then(|tail| signed.len().checked_sub(tail)).unwrap_or(module.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{self, Package};

    fn names(modules: &[Module]) -> Vec<(Stage, &str)> {
        modules.iter().map(|m| (m.stage, m.name.as_str())).collect()
    }

    #[test]
    fn dependencies_come_before_what_needs_them_and_once() {
        let package = Package::new();
        let modules = resolve(&package.modules(), WANTED).unwrap();
        let expected = [
            (Stage::Boot, "virtio_mmio"),
            (Stage::Boot, "vsock"),
            (Stage::Boot, "vmw_vsock_virtio_transport_common"),
            (Stage::Boot, "vmw_vsock_virtio_transport"),
            (Stage::Scratch, "virtio_blk"),
            (Stage::Scratch, "brd"),
            (Stage::Scratch, "dm_mod"),
            (Stage::Scratch, "ghash_generic"),
            (Stage::Scratch, "gcm"),
            (Stage::Scratch, "cryptd"),
            (Stage::Scratch, "aesni_intel"),
            (Stage::Scratch, "dm_crypt"),
            (Stage::Scratch, "dm_integrity"),
            (Stage::Overlay, "overlay"),
            (Stage::Net, "virtio_net"),
            (Stage::Disk, "nbd"),
            (Stage::Tee, "configfs"),
            (Stage::Tee, "tsm"),
            (Stage::Tee, "sev_guest"),
            (Stage::Tee, "tdx_guest"),
        ];
        assert_eq!(names(&modules), expected);
    }

    #[test]
    fn each_compression_gives_the_same_module() {
        let package = Package::new();
        let wanted: &[(Stage, &[&str])] = &[(Stage::Boot, &["overlay"])];
        let plain = resolve(&package.modules(), wanted).unwrap();
        let file = package.modules().join("kernel/fs/overlay.ko");
        fs::write(file.with_extension("ko.zst"), zstd::encode_all(&plain[0].data[..], 3).unwrap()).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(resolve(&package.modules(), wanted).unwrap(), plain);
    }

    #[test]
    fn an_xz_file_is_read_to_its_check_sum() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.ko.xz");
        fs::write(&path, fixture::XZ_OF_HELLO).unwrap();
        assert_eq!(read_module(&path).unwrap(), b"hello");
        for at in 0..fixture::XZ_OF_HELLO.len() {
            fs::write(&path, &fixture::XZ_OF_HELLO[..at]).unwrap();
            assert!(read_module(&path).is_err() || at == 0, "cut at {at}");
        }
        let mut flipped = fixture::XZ_OF_HELLO.to_vec();
        flipped[30] ^= 1;
        fs::write(&path, flipped).unwrap();
        assert!(read_module(&path).is_err());
    }

    #[test]
    fn a_signature_is_cut_off_and_nothing_else_is() {
        let module = fixture::module("x", &[]);
        let signed = |length: u32| {
            [&module[..], &[7; 300], &[0, 0, 2, 0, 0, 0, 0, 0], &length.to_be_bytes()[..], b"~Module signature appended~\n"].concat()
        };
        assert_eq!(unsigned_len(&signed(300)), module.len());
        assert_eq!(unsigned_len(&module), module.len());
        // A length that leads outside the file: left for the kernel to refuse.
        assert_eq!(unsigned_len(&signed(u32::MAX)), signed(0).len());
        assert_eq!(unsigned_len(b"~Module signature appended~\n"), 28);
    }

    #[test]
    fn a_missing_module_is_named_with_who_wants_it() {
        let package = Package::new();
        let error = resolve(&package.modules(), &[(Stage::Net, &["e1000"])]).unwrap_err().to_string();
        assert!(error.contains("e1000") && error.contains("stage net"), "{error}");
        fs::remove_file(package.modules().join("kernel/cryptd.ko")).unwrap();
        let error = resolve(&package.modules(), WANTED).unwrap_err().to_string();
        assert!(error.contains("cryptd, needed by aesni_intel"), "{error}");
    }

    #[test]
    fn a_circle_ends() {
        let package = Package::new();
        fs::write(package.modules().join("kernel/a.ko"), fixture::module("a", &["b"])).unwrap();
        fs::write(package.modules().join("kernel/b.ko"), fixture::module("b", &["a"])).unwrap();
        assert!(matches!(resolve(&package.modules(), &[(Stage::Boot, &["a"])]), Err(ModulesError::Depth(_))));
    }

    #[test]
    fn a_bomb_is_cut_off() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.ko.zst");
        fs::write(&path, zstd::encode_all(io::repeat(0).take(MAX_MODULE + 1), 1).unwrap()).unwrap();
        assert!(matches!(read_module(&path), Err(ModulesError::TooLarge { .. })));
    }
}
