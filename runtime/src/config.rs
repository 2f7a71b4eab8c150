//! The node's configuration: one TOML file, every key optional, an unknown key an error that names its line.

use crate::tee::{SnpSettings, TdxSettings, VtpmSettings};
use serde::Deserialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Where the configuration is where nothing says otherwise.
pub const DEFAULT_PATH: &str = "/etc/cloister/config.toml";
/// Names another file; containerd hands its own environment to the shim.
pub const PATH_VARIABLE: &str = "CLOISTER_CONFIG";
/// Longest configuration, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// Most shared directories: each has a device and a process of its own.
const MAX_SHARED: usize = 8;
/// Longest initdata file, in bytes.
const MAX_INITDATA: u64 = 1 << 20;

/// Why the configuration was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not what it should be; the text names line and key.
    #[error("configuration {path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, key and expectation, in one line.
        message: String,
    },
    /// A value outside its bound.
    #[error("configuration {path}: {key}: {rule}")]
    Bound {
        /// The file.
        path: PathBuf,
        /// The key, with its table.
        key: &'static str,
        /// What is expected.
        rule: String,
    },
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// One folder per sandbox below it: record and sockets.
    pub state_dir: PathBuf,
    /// Which enclave.
    pub tee: Tee,
    /// Initdata (TOML) for containers that bring none.
    pub initdata: Option<PathBuf>,
    /// The guest.
    pub guest: Guest,
    /// The virtual machine monitor.
    pub vmm: Vmm,
    /// What a guest may have of the node.
    pub courier: Courier,
    /// For `tee = "snp"`.
    pub snp: SnpSettings,
    /// For `tee = "tdx"`.
    pub tdx: TdxSettings,
    /// For `tee = "vtpm"`.
    pub vtpm: VtpmSettings,
}

/// Which enclave a guest runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tee {
    /// No enclave: development. The host can read the guest's memory.
    None,
    /// A TPM that the host emulates: shows what was started, to whoever trusts the host.
    Vtpm,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// SNP or TDX where the machine has it, else none.
    Auto,
}

/// The guest's files and sizes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guest {
    /// Uncompressed kernel with a PVH entry.
    pub kernel: PathBuf,
    /// The same kernel as an EFI program (bzImage), for every enclave: its firmware starts and measures it.
    pub efi_kernel: PathBuf,
    /// Initramfs with the agent as `/init`.
    pub initramfs: PathBuf,
    /// Virtual CPUs, 1 to 256, unless the pod's limits say more.
    pub vcpus: u32,
    /// Memory in MiB, 128 to 1 TiB, unless the pod's limits say more.
    pub memory_mib: u32,
    /// Where scratch files are, which have no names. A disk: what the guest cannot keep in its memory goes there.
    pub scratch_dir: PathBuf,
    /// Size of the sparse scratch file in MiB; 0 is no disk: everything in memory.
    pub scratch_mib: u64,
    /// Directories of the host's that containers may mount as they are, at most 8; only where there is no enclave.
    pub shared: Vec<PathBuf>,
    /// Appended to the kernel command line, for debugging. It is measured.
    pub cmdline_extra: String,
    /// Whether an SNP guest reads the host's ACPI tables, which are unmeasured code; without them it has one CPU. Not set is no.
    pub acpi: Option<bool>,
}

/// The virtual machine monitor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vmm {
    /// QEMU: a name in `PATH`, or a path.
    pub qemu: PathBuf,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The firmware of an enclave; found in the distribution's package where it is not set. It is measured.
    pub firmware: Option<PathBuf>,
    /// The program that serves a shared directory; found in the distribution's package where it is not set.
    pub virtiofsd: Option<PathBuf>,
    /// Seconds from QEMU's start to the agent's first word, 1 to 3600.
    pub boot_timeout_s: u64,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM where it can run an ordinary kernel, else emulation.
    Auto,
    /// KVM.
    Kvm,
    /// Emulation by QEMU.
    Tcg,
}

/// What a guest may have of the node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Courier {
    /// Registries that are reached by plain HTTP, `host[:port]`.
    pub plain_http: Vec<String>,
    /// Further `host:port` that a guest may reach through the node.
    pub allow: Vec<String>,
    /// Where blobs are kept that the guests of this node share.
    pub cache_dir: PathBuf,
    /// How much of them is kept in MiB, at most 16 TiB; 0 is nothing: each guest downloads by itself.
    pub cache_mib: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/run/cloister".into(),
            tee: Tee::None,
            initdata: None,
            guest: Guest::default(),
            vmm: Vmm::default(),
            courier: Courier::default(),
            snp: SnpSettings::default(),
            tdx: TdxSettings::default(),
            vtpm: VtpmSettings::default(),
        }
    }
}

impl Default for Courier {
    fn default() -> Self {
        Self { plain_http: Vec::new(), allow: Vec::new(), cache_dir: "/var/lib/cloister/blobs".into(), cache_mib: 10 << 10 }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            kernel: "/usr/lib/cloister/vmlinux".into(),
            efi_kernel: "/usr/lib/cloister/vmlinuz".into(),
            initramfs: "/usr/lib/cloister/initramfs.cpio".into(),
            vcpus: 1,
            memory_mib: 512,
            scratch_dir: "/var/lib/cloister/scratch".into(),
            scratch_mib: 10 << 10,
            shared: Vec::new(),
            cmdline_extra: String::new(),
            acpi: None,
        }
    }
}

impl Default for Vmm {
    fn default() -> Self {
        Self { qemu: "qemu-system-x86_64".into(), accelerator: Accelerator::Auto, firmware: None, virtiofsd: None, boot_timeout_s: 120 }
    }
}

impl Config {
    /// The file that `CLOISTER_CONFIG` names, else [`DEFAULT_PATH`], else the defaults where that is not there.
    pub fn load() -> Result<Self, ConfigError> {
        match std::env::var_os(PATH_VARIABLE).filter(|p| !p.is_empty()) {
            Some(path) => Self::from_file(Path::new(&path)),
            None if Path::new(DEFAULT_PATH).exists() => Self::from_file(Path::new(DEFAULT_PATH)),
            None => Ok(Self::default()),
        }
    }

    /// Reads one file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &read_bounded(path, MAX_SIZE)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            // The whole line, because the error is about the value and names no key.
            let at = text.lines().nth(line - 1).map(|at| shortened(at.trim())).filter(|at| !at.is_empty());
            let at = at.map_or(String::new(), |at| format!(" ({at})"));
            let message = format!("line {line}{at}: {}", error.message().replace('\n', " "));
            ConfigError::Malformed { path: path.to_owned(), message }
        })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let bound = |ok: bool, key, rule: &str| {
            if ok { Ok(()) } else { Err(ConfigError::Bound { path: path.to_owned(), key, rule: rule.to_owned() }) }
        };
        bound(self.state_dir.is_absolute(), "state_dir", "an absolute path")?;
        bound((1..=256).contains(&self.guest.vcpus), "guest.vcpus", "1 to 256")?;
        bound((128..=1 << 20).contains(&self.guest.memory_mib), "guest.memory_mib", "128 to 1048576 (1 TiB)")?;
        bound(self.guest.scratch_dir.is_absolute(), "guest.scratch_dir", "an absolute path")?;
        let scratch = self.guest.scratch_mib;
        bound(scratch == 0 || (64..=1 << 20).contains(&scratch), "guest.scratch_mib", "0, or 64 to 1048576 (1 TiB)")?;
        bound(self.courier.cache_dir.is_absolute(), "courier.cache_dir", "an absolute path")?;
        bound(self.courier.cache_mib <= 16 << 20, "courier.cache_mib", "0 to 16777216 (16 TiB)")?;
        let shared = &self.guest.shared;
        bound(shared.len() <= MAX_SHARED && shared.iter().all(|dir| dir.is_absolute()), "guest.shared", "at most 8 absolute paths")?;
        // With "auto" too: the same pod would find its files on one node and not on another.
        let rule = "only with tee = \"none\": what the host shares it reads and changes";
        bound(shared.is_empty() || self.tee == Tee::None, "guest.shared", rule)?;
        bound(self.guest.cmdline_extra.len() <= 1024, "guest.cmdline_extra", "at most 1024 bytes")?;
        bound((1..=3600).contains(&self.vmm.boot_timeout_s), "vmm.boot_timeout_s", "1 to 3600 seconds")?;
        self.snp.check().map_err(|rule| ConfigError::Bound { path: path.to_owned(), key: "snp", rule: rule.to_string() })
    }

    /// The initdata of the configuration as TOML text, if it names a file.
    pub fn initdata(&self) -> Result<Option<String>, ConfigError> {
        self.initdata.as_deref().map(|path| read_bounded(path, MAX_INITDATA)).transpose()
    }
}

fn read_bounded(path: &Path, max: u64) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > max {
        return Err(failed(io::Error::other(format!("{size} bytes, at most {max} are read"))));
    }
    fs::read_to_string(path).map_err(failed)
}

/// As much of a line as an error text has room for.
fn shortened(line: &str) -> String {
    const ROOM: usize = 80;
    if line.chars().count() <= ROOM { line.to_owned() } else { line.chars().take(ROOM).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/c.toml"), text)
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_written_is_taken() {
        let config = parse("state_dir = '/x'\n[guest]\nvcpus = 2\n[courier]\nplain_http = ['127.0.0.1:5000']\n").unwrap();
        assert_eq!((config.state_dir, config.guest.vcpus), ("/x".into(), 2));
        assert_eq!(config.guest.memory_mib, 512);
        assert_eq!(config.courier.plain_http, ["127.0.0.1:5000"]);
    }

    #[test]
    fn an_error_names_file_line_and_key() {
        for (text, line, key) in [
            ("state_dir = '/x'\n[guest]\nvcpu = 2\n", "line 3", "vcpu"),
            ("tee = 'sev'\n", "line 1", "sev"),
            ("[guest]\nvcpus = 'two'\n", "line 2", "vcpus = 'two'"),
            ("[guest\n", "line 1", "unclosed table"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("configuration /etc/c.toml: line"), "{error}");
            assert!(error.contains(line) && error.contains(key) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn directories_are_shared_only_where_there_is_no_enclave() {
        assert_eq!(parse("[guest]\nshared = ['/srv/data']").unwrap().guest.shared, [PathBuf::from("/srv/data")]);
        for (text, word) in [
            ("tee = 'auto'\n[guest]\nshared = ['/srv']", "tee = \"none\""),
            ("tee = 'snp'\n[guest]\nshared = ['/srv']", "tee = \"none\""),
            ("[guest]\nshared = ['srv']", "absolute"),
            ("[guest]\nshared = ['/1', '/2', '/3', '/4', '/5', '/6', '/7', '/8', '/9']", "at most 8"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("guest.shared") && error.contains(word) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn each_enclave_has_its_table() {
        let config =
            parse("tee = 'tdx'\n[tdx]\nquote_service = 'unix:/run/qgs'\n[vtpm]\nstate = '/s'\n[snp]\ncpu = 'EPYC-Genoa'\n").unwrap();
        assert_eq!((config.tee, config.snp.cpu.as_str()), (Tee::Tdx, "EPYC-Genoa"));
        assert_eq!((config.tdx.quote_service, config.vtpm.state), (crate::tee::QuoteService::Unix("/run/qgs".into()), Some("/s".into())));
        let error = parse("[tdx]\nquote_service = 'tcp:1'").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("vsock:CID:PORT"), "{error}");
    }

    #[test]
    fn sizes_have_bounds() {
        for (text, key) in [
            ("[guest]\nvcpus = 0", "guest.vcpus"),
            ("[guest]\nmemory_mib = 64", "guest.memory_mib"),
            ("[guest]\nscratch_mib = 1", "guest.scratch_mib"),
            ("[vmm]\nboot_timeout_s = 0", "vmm.boot_timeout_s"),
            ("state_dir = 'run'", "state_dir"),
            ("[snp]\npolicy = 0xb0000", "snp"),
            ("[courier]\ncache_dir = 'blobs'", "courier.cache_dir"),
            ("[courier]\ncache_mib = 16777217", "courier.cache_mib"),
        ] {
            assert!(matches!(parse(text), Err(ConfigError::Bound { key: k, .. }) if k == key), "{text}");
        }
    }
}
