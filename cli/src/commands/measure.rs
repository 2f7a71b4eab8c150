//! `cloister measure`: what a guest will attest, computed from its files, without launching it.

use crate::{input, output};
use anyhow::{Context, Result, bail, ensure};
use attestation::tpm::predict::{self, Prediction};
use guest_image::{GuestManifest, MANIFEST_FILE};
use runtime::{
    config::{Config, Tee},
    tee::{self, Inputs},
};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};

/// Largest file that is measured, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// Print the launch measurement of the guest that the configuration would launch, without launching it
///
///   cloister measure
///   cloister image encrypt … --tee tpm --launch-measurement "$(cloister measure)" --init-data initdata.toml
///
/// It is computed from the files that the configuration names: firmware, kernel, initramfs, and the command line. A guest whose pod asks
/// for other sizes than the configuration's has another measurement: give its sizes.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Virtual CPUs, instead of the configuration's
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB, instead of the configuration's
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// PCR 0 of a firmware that is not known (vtpm only); `cloister check --launch` shows it
    #[arg(long, value_name = "HEX")]
    pcr0: Option<String>,
    /// Print JSON, with what the measurement is made of
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    /// The TEE, as release rules name it.
    pub(crate) tee: attestation::Tee,
    /// Hex.
    pub(crate) launch_measurement: String,
    vcpus: u32,
    memory_mib: u32,
    /// The kernel command line, where it is measured.
    #[serde(skip_serializing_if = "String::is_empty")]
    cmdline: String,
    /// The registers of a TPM, hex.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) pcrs: BTreeMap<usize, String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = Config::load()?;
    let pcr0 = args.pcr0.as_deref().map(read_pcr).transpose()?;
    let sizes = (args.vcpus.unwrap_or(config.guest.vcpus), args.memory.unwrap_or(config.guest.memory_mib));
    let measured = measure(&config, sizes, pcr0)?;
    if args.json { output::json(&measured) } else { output::line(&measured.launch_measurement) }
}

fn read_pcr(text: &str) -> Result<[u8; 32]> {
    let mut pcr = [0; 32];
    hex::decode_to_slice(text, &mut pcr).with_context(|| format!("--pcr0 {text:?} is not 32 bytes of hex"))?;
    Ok(pcr)
}

/// Measures the guest of this configuration with so many CPUs and MiB.
pub(crate) fn measure(config: &Config, (vcpus, memory_mib): (u32, u32), pcr0: Option<[u8; 32]>) -> Result<Measured> {
    let tee = tee::resolve(config.tee);
    ensure!(pcr0.is_none() || tee == Tee::Vtpm, "--pcr0 is of tee = \"vtpm\"; the configuration has another");
    let inputs = tee::inputs(config, vcpus, memory_mib)?;
    let empty =
        |tee, launch_measurement| Measured { tee, launch_measurement, vcpus, memory_mib, cmdline: String::new(), pcrs: BTreeMap::new() };
    match tee {
        Tee::None | Tee::Auto => Ok(empty(attestation::Tee::Sample, of_manifest(&inputs)?)),
        Tee::Vtpm => {
            let prediction = of_tpm(&inputs, pcr0)?;
            let pcrs = prediction.pcrs.iter().map(|(index, pcr)| (*index, hex::encode(pcr))).collect();
            let measured = empty(attestation::Tee::Tpm, hex::encode(prediction.measurement()));
            Ok(Measured { cmdline: inputs.cmdline, pcrs, ..measured })
        }
        Tee::Snp | Tee::Tdx => bail!("the measurement for this TEE cannot be computed by this version"),
    }
}

/// The stand-in that a guest without a TEE says of itself.
fn of_manifest(inputs: &Inputs) -> Result<String> {
    let directory = inputs.initramfs.parent().unwrap_or(Path::new("/"));
    let manifest = GuestManifest::load(&directory.join(MANIFEST_FILE))?;
    manifest.verify(directory)?;
    Ok(manifest.measurement)
}

fn of_tpm(inputs: &Inputs, pcr0: Option<[u8; 32]>) -> Result<Prediction> {
    let firmware = inputs.shape.firmware.as_deref().context("this machine has no firmware")?;
    let [firmware, kernel, initramfs] = [firmware, &inputs.kernel, &inputs.initramfs].map(|path| input::read(path, MAX_FILE));
    let (firmware, kernel, initramfs) = (firmware?, kernel?, initramfs?);
    let launch = predict::Launch {
        firmware: &firmware,
        pcr0,
        kernel: &kernel,
        initramfs: &initramfs,
        cmdline: &inputs.cmdline,
        memory_mib: inputs.memory_mib,
    };
    Ok(predict::predict(&launch)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_pcr_is_32_bytes() {
        assert_eq!(read_pcr(&"ab".repeat(32)).unwrap(), [0xab; 32]);
        assert!(read_pcr("ab").unwrap_err().to_string().contains("--pcr0"));
    }

    #[test]
    fn an_unknown_firmware_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["firmware", "vmlinuz", "initramfs"] {
            fs::write(path(name), name).unwrap();
        }
        let mut config = Config { tee: Tee::Vtpm, ..Config::default() };
        (config.vmm.firmware, config.guest.efi_kernel, config.guest.initramfs) =
            (Some(path("firmware")), path("vmlinuz"), path("initramfs"));
        let error = measure(&config, (1, 512), None).unwrap_err().to_string();
        assert!(error.contains("check --launch"), "{error}");
        let error = measure(&config, (1, 512), Some([0; 32])).unwrap_err().to_string();
        assert!(error.contains("bzImage"), "{error}");
        config.tee = Tee::None;
        assert!(measure(&config, (1, 512), Some([0; 32])).unwrap_err().to_string().contains("--pcr0"));
    }
}
