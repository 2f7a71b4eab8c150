//! A kernel package in miniature, for the tests: the formats are real, the contents are not.

use std::{
    fs::{self, FileTimes},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tempfile::TempDir;

pub(crate) const VERSION: &str = "6.12.1-test";

/// `printf hello | xz --check=crc32 --lzma2=dict=1MiB`, as the kernel's build compresses modules.
pub(crate) const XZ_OF_HELLO: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x10, 0x00, 0x00, 0x00, 0xa8, 0x70,
    0x8e, 0x86, 0x01, 0x00, 0x04, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x00, 0x00, 0x00, 0x00, 0x86, 0xa6, 0x10, 0x36, 0x00, 0x01, 0x19, 0x05,
    0xbc, 0xe8, 0xec, 0xcb, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
];

/// Module files and what each depends on. `virtio_pci` is built in; the circle of suffixes is for the tests of `modules`.
const MODULES: [(&str, &[&str]); 21] = [
    ("kernel/drivers/virtio/virtio_mmio", &[]),
    ("kernel/net/vsock", &[]),
    ("kernel/net/vmw_vsock_virtio_transport_common", &["vsock"]),
    ("kernel/net/vmw_vsock_virtio_transport", &["vmw_vsock_virtio_transport_common", "vsock"]),
    ("kernel/virtio_blk", &[]),
    ("kernel/dm-mod", &[]),
    ("kernel/dm-crypt", &["dm-mod"]),
    ("kernel/dm-integrity", &["dm-mod"]),
    ("kernel/brd", &[]),
    ("kernel/ghash-generic", &[]),
    ("kernel/gcm", &[]),
    ("kernel/cryptd", &[]),
    ("kernel/aesni-intel", &["cryptd"]),
    ("kernel/fs/overlay", &[]),
    ("kernel/virtio_net", &["virtio_pci"]),
    ("kernel/drivers/block/nbd", &[]),
    ("kernel/fs/configfs", &[]),
    ("kernel/virt/tsm", &["configfs"]),
    ("kernel/virt/sev-guest", &["tsm"]),
    ("kernel/virt/tdx-guest", &["tsm"]),
    ("kernel/unwanted", &[]),
];

/// An unpacked kernel package with an agent beside it, gone when dropped.
pub(crate) struct Package {
    dir: TempDir,
}

impl Package {
    pub(crate) fn new() -> Self {
        Self::with(MODULES.iter())
    }

    /// The same files, made in the opposite order.
    pub(crate) fn reversed() -> Self {
        Self::with(MODULES.iter().rev())
    }

    fn with<'a>(modules: impl Iterator<Item = &'a (&'a str, &'a [&'a str])>) -> Self {
        let package = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(package.root().join("boot")).unwrap();
        fs::write(package.root().join("boot").join(format!("vmlinuz-{VERSION}")), bzimage(&executable(false))).unwrap();
        for (path, depends) in modules {
            let path = package.modules().join(format!("{path}.ko"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().replace('-', "_");
            fs::write(path, module(&name, depends)).unwrap();
        }
        fs::write(package.modules().join("modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/ext4/ext4.ko\n").unwrap();
        fs::write(package.agent(), executable(false)).unwrap();
        package
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn modules(&self) -> PathBuf {
        self.root().join("usr/lib/modules").join(VERSION)
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.root().join("agent")
    }

    /// Gives every file another time and mode.
    pub(crate) fn touch_everything(&self, seconds: u64, mode: u32) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut directories = vec![self.root().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    fs::File::open(&path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
    }
}

/// The header of an ELF64 file for x86-64.
fn elf_header(kind: u16, phnum: u16, shoff: u64, shnum: u16) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&62u16.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&0u64.to_le_bytes());
    out.extend_from_slice(&64u64.to_le_bytes());
    out.extend_from_slice(&shoff.to_le_bytes());
    out.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, phnum, 64, shnum, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    out
}

/// An ELF executable with one program header: loadable, or the name of an interpreter.
pub(crate) fn executable(dynamic: bool) -> Vec<u8> {
    let mut out = elf_header(2, 1, 0, 0);
    out.extend_from_slice(&if dynamic { 3u32 } else { 1 }.to_le_bytes());
    out.resize(64 + 56, 0);
    out.extend((0..4096u32).map(|i| (i * 7 % 251) as u8));
    out
}

/// Sections of a module that no guest needs: where their names are, and their lengths.
pub(crate) const NOT_NEEDED: [(u32, usize); 4] = [(19, 150), (24, 100), (36, 63), (51, 200)];

/// A kernel module: an ELF object with `.shstrtab`, what no guest needs, and `.modinfo`.
pub(crate) fn module(name: &str, depends: &[&str]) -> Vec<u8> {
    let strings = b".shstrtab\0.modinfo\0.BTF\0.orc_unwind\0.orc_unwind_ip\0.rela.orc_unwind_ip\0";
    let modinfo = format!("license=GPL\0depends={}\0name={name}\0vermagic={VERSION} SMP\0", depends.join(","));
    let mut sections = vec![(0, 64, strings.len())];
    for (name, size) in NOT_NEEDED.into_iter().chain([(10, modinfo.len())]) {
        let (_, offset, length) = sections[sections.len() - 1];
        sections.push((name, offset + length, size));
    }
    let at_modinfo = sections[sections.len() - 1].1;
    let mut out = elf_header(1, 0, (at_modinfo + modinfo.len()) as u64, sections.len() as u16);
    out.extend_from_slice(strings);
    out.resize(at_modinfo, 7);
    out.extend_from_slice(modinfo.as_bytes());
    for (name, offset, size) in sections {
        let start = out.len();
        out.extend_from_slice(&name.to_le_bytes());
        out.resize(start + 24, 0);
        out.extend_from_slice(&(offset as u64).to_le_bytes());
        out.extend_from_slice(&(size as u64).to_le_bytes());
        out.resize(start + 64, 0);
    }
    out
}

/// A bzImage of one setup sector around `payload`.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut compressed = zstd::encode_all(payload, 3).unwrap();
    compressed.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut out = vec![0; 1024];
    out[0x1f1] = 1;
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    out[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
    out[0x24c..0x250].copy_from_slice(&(compressed.len() as u32).to_le_bytes());
    out.resize(1024 + 16, 0);
    out.extend_from_slice(&compressed);
    out
}
