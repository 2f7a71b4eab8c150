//! `cloister guest`: the guest image.

use crate::output;
use anyhow::{Context, Result};
use clap::Subcommand;
use guest_image::{BuildSpec, GuestManifest, MANIFEST_FILE};
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub(crate) enum Guest {
    /// Build kernel, initramfs and guest.json out of a kernel package and the agent
    ///
    /// The same inputs give the same bytes on every machine. The package is unpacked, not installed:
    ///
    ///   apt-get download linux-image-cloud-amd64 …
    ///   dpkg-deb -x linux-image-*.deb kernel
    ///   cloister guest build --kernel-package kernel --agent cloister-agent --out /usr/lib/cloister
    #[command(verbatim_doc_comment)]
    Build {
        /// Root of an unpacked kernel package (with boot/vmlinuz-* and lib/modules)
        #[arg(long, alias = "kernel", value_name = "DIR")]
        kernel_package: PathBuf,
        /// The agent: a static executable
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// Firmware of an enclave, out of its package (Debian: ovmf, ovmf-amdsev); it becomes part of the guest. May be given more than once
        #[arg(long, value_name = "FILE")]
        firmware: Vec<PathBuf>,
        /// Directory that receives vmlinux, vmlinuz, initramfs.cpio, firmware and guest.json
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Print guest.json
        #[arg(long)]
        json: bool,
    },
    /// Show what a guest consists of, and check its files against guest.json
    Inspect {
        /// Directory of the guest, or its guest.json
        #[arg(default_value = "/usr/lib/cloister", value_name = "PATH")]
        path: PathBuf,
        /// Print guest.json
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(command: &Guest) -> Result<()> {
    match command {
        Guest::Build { kernel_package, agent, firmware, out, json } => {
            let (kernel_package, agent, firmware, out) = (kernel_package.clone(), agent.clone(), firmware.clone(), out.clone());
            let spec = BuildSpec { kernel_package, agent, firmware, out };
            let manifest = guest_image::build(&spec).context("build the guest")?;
            show(&manifest, *json)
        }
        Guest::Inspect { path, json } => {
            let path = if path.is_dir() { path.join(MANIFEST_FILE) } else { path.clone() };
            let manifest = GuestManifest::load(&path)?;
            manifest.verify(path.parent().unwrap_or(Path::new(".")))?;
            show(&manifest, *json)
        }
    }
}

fn show(manifest: &GuestManifest, json: bool) -> Result<()> {
    if json {
        return output::json(manifest);
    }
    let file = |what: &str, name: &str, size: u64| vec![what.to_owned(), name.to_owned(), output::size(size)];
    let mut rows = vec![
        file("kernel", &format!("{} ({})", manifest.kernel.name, manifest.kernel_version), manifest.kernel.size),
        file("kernel, EFI", &manifest.efi_kernel.name, manifest.efi_kernel.size),
        file("initramfs", &format!("{} (compression: {})", manifest.initramfs.name, manifest.compression), manifest.initramfs.size),
        file("agent", "/init", manifest.agent.size),
    ];
    rows.extend(manifest.firmware.iter().map(|firmware| file("firmware", &firmware.name, firmware.size)));
    rows.extend(manifest.modules.iter().map(|module| file(&format!("module, {}", module.stage), &module.file, module.size)));
    output::table(&rows)?;
    output::line(&format!("measurement  {}", manifest.measurement))
}
