//! `cloister measure`: what a guest will attest, computed from its files, without launching it.

mod hardware;

use crate::{input, output};
use anyhow::{Context, Result, ensure};
use attestation::{
    measure::tdx::InitrdWord,
    tpm::predict::{self, Prediction},
};
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
    /// The firmware is of EDK II before stable202508, which puts its own word behind the command line (tdx, and vtpm with --pcr0)
    #[arg(long)]
    old_firmware: bool,
    /// QEMU is older than 10.2, which writes into the kernel's header before the firmware measures it (tdx only)
    #[arg(long)]
    old_qemu: bool,
    /// Print the measurements for 1 to 64 CPUs of each processor model (snp only)
    #[arg(long, conflicts_with = "trustee")]
    shapes: bool,
    /// Print reference values for Trustee: the body of a request to its /kbs/v0/reference-value (snp, tdx)
    #[arg(long, conflicts_with = "json")]
    trustee: bool,
    /// Print JSON, with what the measurement is made of
    #[arg(long)]
    json: bool,
}

/// What the files do not say. `cloister check --launch` finds out what is true of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Assumptions {
    /// PCR 0 of a firmware that is not known.
    pub(crate) pcr0: Option<[u8; 32]>,
    /// EDK II before stable202508.
    pub(crate) old_firmware: bool,
    /// QEMU before 10.2.
    pub(crate) old_qemu: bool,
}

impl Assumptions {
    /// The command that makes them.
    pub(crate) fn command(&self) -> String {
        let pcr0 = self.pcr0.map_or_else(String::new, |pcr0| format!(" --pcr0 {}", hex::encode(pcr0)));
        let flag = |set, flag| if set { flag } else { "" };
        format!("cloister measure{pcr0}{}{}", flag(self.old_firmware, " --old-firmware"), flag(self.old_qemu, " --old-qemu"))
    }

    fn word(&self) -> InitrdWord {
        if self.old_firmware { InitrdWord::Last } else { InitrdWord::First }
    }
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
    /// The registers of TDX that the measurement is made of, hex.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    registers: BTreeMap<&'static str, String>,
}

impl Measured {
    fn empty(tee: attestation::Tee, (vcpus, memory_mib): (u32, u32)) -> Self {
        let (launch_measurement, cmdline) = (String::new(), String::new());
        Self { tee, launch_measurement, vcpus, memory_mib, cmdline, pcrs: BTreeMap::new(), registers: BTreeMap::new() }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = Config::load()?;
    let pcr0 = args.pcr0.as_deref().map(read_pcr).transpose()?;
    let sizes = (args.vcpus.unwrap_or(config.guest.vcpus), args.memory.unwrap_or(config.guest.memory_mib));
    if args.shapes {
        return shapes(&config, sizes, args.json);
    }
    let measured = measure(&config, sizes, &Assumptions { pcr0, old_firmware: args.old_firmware, old_qemu: args.old_qemu })?;
    if args.trustee {
        return output::json(&hardware::trustee(&measured)?);
    }
    if args.json { output::json(&measured) } else { output::line(&measured.launch_measurement) }
}

/// Prints the measurements of SEV-SNP guests of other shapes than the configuration's.
fn shapes(config: &Config, (vcpus, memory_mib): (u32, u32), json: bool) -> Result<()> {
    ensure!(tee::resolve(config.tee) == Tee::Snp, "--shapes is of tee = \"snp\"; the configuration has another");
    let rows = hardware::snp_shapes(&tee::inputs(config, vcpus, memory_mib)?)?;
    if json {
        #[derive(Serialize)]
        struct Row {
            cpu: String,
            vcpus: u32,
            launch_measurement: String,
        }
        let row = |(cpu, vcpus, launch_measurement)| Row { cpu, vcpus, launch_measurement };
        return output::json(&rows.into_iter().map(row).collect::<Vec<_>>());
    }
    let row = |(cpu, vcpus, digest): (String, u32, String)| vec![cpu, vcpus.to_string(), digest];
    output::table(&rows.into_iter().map(row).collect::<Vec<_>>())
}

fn read_pcr(text: &str) -> Result<[u8; 32]> {
    let mut pcr = [0; 32];
    hex::decode_to_slice(text, &mut pcr).with_context(|| format!("--pcr0 {text:?} is not 32 bytes of hex"))?;
    Ok(pcr)
}

/// Measures the guest of this configuration with so many CPUs and MiB.
pub(crate) fn measure(config: &Config, (vcpus, memory_mib): (u32, u32), assumptions: &Assumptions) -> Result<Measured> {
    let tee = tee::resolve(config.tee);
    ensure!(assumptions.pcr0.is_none() || tee == Tee::Vtpm, "--pcr0 is of tee = \"vtpm\"; the configuration has another");
    let inputs = tee::inputs(config, vcpus, memory_mib)?;
    let empty = |tee, launch_measurement| Measured { launch_measurement, ..Measured::empty(tee, (vcpus, memory_mib)) };
    match tee {
        Tee::None | Tee::Auto => Ok(empty(attestation::Tee::Sample, of_manifest(&inputs)?)),
        Tee::Vtpm => {
            let prediction = of_tpm(&inputs, assumptions)?;
            let pcrs = prediction.pcrs.iter().map(|(index, pcr)| (*index, hex::encode(pcr))).collect();
            let measured = empty(attestation::Tee::Tpm, hex::encode(prediction.measurement()));
            Ok(Measured { cmdline: inputs.cmdline, pcrs, ..measured })
        }
        Tee::Snp => {
            let measured = empty(attestation::Tee::Snp, hardware::snp(&inputs)?);
            Ok(Measured { cmdline: inputs.cmdline, ..measured })
        }
        Tee::Tdx => {
            let (launch_measurement, registers) = hardware::tdx(&inputs, assumptions)?;
            Ok(Measured { cmdline: inputs.cmdline, registers, ..empty(attestation::Tee::Tdx, launch_measurement) })
        }
    }
}

/// The stand-in that a guest without a TEE says of itself.
fn of_manifest(inputs: &Inputs) -> Result<String> {
    let directory = inputs.initramfs.parent().unwrap_or(Path::new("/"));
    let manifest = GuestManifest::load(&directory.join(MANIFEST_FILE))?;
    manifest.verify(directory)?;
    Ok(manifest.measurement)
}

fn of_tpm(inputs: &Inputs, assumptions: &Assumptions) -> Result<Prediction> {
    let firmware = inputs.shape.firmware.as_deref().context("this machine has no firmware")?;
    let [firmware, kernel, initramfs] = [firmware, &inputs.kernel, &inputs.initramfs].map(|path| input::read(path, MAX_FILE));
    let (firmware, kernel, initramfs) = (firmware?, kernel?, initramfs?);
    let launch = predict::Launch {
        firmware: &firmware,
        pcr0: assumptions.pcr0,
        initrd_word: assumptions.word(),
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
        let error = measure(&config, (1, 512), &Assumptions::default()).unwrap_err().to_string();
        assert!(error.contains("check --launch"), "{error}");
        let assumed = Assumptions { pcr0: Some([0; 32]), old_firmware: true, old_qemu: false };
        assert_eq!(assumed.command(), format!("cloister measure --pcr0 {} --old-firmware", "00".repeat(32)));
        let error = measure(&config, (1, 512), &assumed).unwrap_err().to_string();
        assert!(error.contains("bzImage"), "{error}");
        config.tee = Tee::None;
        assert!(measure(&config, (1, 512), &assumed).unwrap_err().to_string().contains("--pcr0"));
    }
}
