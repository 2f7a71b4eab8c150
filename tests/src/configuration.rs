//! The shims' configuration and the owner's initdata, as a user would write them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::oci;
use crate::place;

/// `cloister.toml` of one test bed.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// `tee`.
    pub tee: &'static str,
    /// `state_dir`.
    pub state: PathBuf,
    /// `[guest] kernel`.
    pub kernel: PathBuf,
    /// `[guest] efi_kernel`.
    pub efi_kernel: PathBuf,
    /// `[guest] initramfs`.
    pub initramfs: PathBuf,
    /// `[guest] shared`.
    pub shared: Vec<PathBuf>,
    /// `[guest] cmdline_extra`.
    pub cmdline_extra: String,
    /// `[guest] scratch_dir`.
    pub scratch: PathBuf,
    /// `[guest] scratch_mib`.
    pub scratch_mib: u32,
    /// `[vmm] qemu`.
    pub qemu: String,
    /// `[vmm] firmware`.
    pub firmware: PathBuf,
    /// `[courier] cache_dir`.
    pub cache: PathBuf,
    /// `host:port` of registries and brokers that the courier may reach.
    pub authorities: Vec<String>,
}

impl Configuration {
    /// The one that works, with the guest image of `make guest`.
    pub fn working(state: PathBuf) -> Result<Self> {
        let guest = place::guest()?;
        Ok(Self {
            tee: "none",
            cache: state.with_file_name("blobs"),
            scratch: state.with_file_name("scratch"),
            state,
            kernel: guest.join("vmlinux"),
            efi_kernel: guest.join("vmlinuz"),
            initramfs: guest.join("initramfs.cpio"),
            shared: Vec::new(),
            cmdline_extra: String::new(),
            scratch_mib: 2048,
            qemu: "qemu-system-x86_64".to_owned(),
            firmware: place::unpacked("firmware", "usr/share/ovmf/OVMF.fd")?,
            authorities: Vec::new(),
        })
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let list = self.authorities.iter().map(|authority| format!("{authority:?}")).collect::<Vec<_>>().join(", ");
        format!(
            "state_dir = {:?}\ntee = {:?}\n\n[guest]\nkernel = {:?}\ninitramfs = {:?}\nscratch_mib = {}\nscratch_dir = {:?}\nefi_kernel = {:?}\nshared = {:?}\ncmdline_extra = {:?}\n\n[vmm]\nqemu = {:?}\nfirmware = {:?}\n\n[courier]\nplain_http = [{list}]\nallow = [{list}]\ncache_dir = {:?}\n",
            self.state,
            self.tee,
            self.kernel,
            self.initramfs,
            self.scratch_mib,
            self.scratch,
            self.efi_kernel,
            self.shared,
            self.cmdline_extra,
            self.qemu,
            self.firmware,
            self.cache
        )
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path, self.text())?)
    }
}

/// Initdata 0.1.0 that names a broker and holds a workload policy.
#[derive(Clone, Debug)]
pub struct Initdata {
    /// The TOML document.
    pub text: String,
}

impl Initdata {
    /// `policy` is the text of `policy.toml`.
    pub fn new(broker: &str, policy: &str) -> Self {
        Self {
            text: format!(
                "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"{broker}\"\n'''\n\"policy.toml\" = '''\n{policy}'''\n"
            ),
        }
    }

    /// The same with one more file.
    pub fn with_file(mut self, name: &str, content: &str) -> Self {
        self.text.push_str(&format!("{name:?} = '''\n{content}'''\n"));
        self
    }

    /// The value of the annotation: base64 of gzip.
    pub fn annotation(&self) -> Result<String> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(self.text.as_bytes())?;
        Ok(STANDARD.encode(encoder.finish()?))
    }

    /// The digest that evidence reports and release rules name, in hexadecimal.
    pub fn digest(&self) -> String {
        oci::digest(self.text.as_bytes()).trim_start_matches("sha256:").to_owned()
    }
}
