//! The measurements that SEV-SNP and TDX will report, and the same as reference values for Trustee.

use super::{Assumptions, MAX_FILE, Measured};
use crate::input;
use anyhow::{Context, Result, bail};
use attestation::{
    Tee, efi_kernel,
    measure::{
        ovmf::Ovmf,
        snp::{KernelHashes, SNP_ACTIVE, Shape, SnpFirmware},
        tdx,
        vmsa::{CPU_MODELS, CpuModel},
    },
    tdx::claims::launch_measurement,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use runtime::tee::Inputs;
use serde_json::{Value, json};
use sha2::Sha384;
use std::{borrow::Cow, collections::BTreeMap};

/// Numbers of CPUs that `--shapes` goes through.
const VCPUS: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The files of a launch, read.
struct Files {
    firmware: Vec<u8>,
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
}

impl Files {
    fn read(inputs: &Inputs) -> Result<Self> {
        let firmware = inputs.shape.firmware.as_deref().context("this machine has no firmware")?;
        let read = |path| input::read(path, MAX_FILE);
        Ok(Self { firmware: read(firmware)?, kernel: read(&inputs.kernel)?, initramfs: read(&inputs.initramfs)? })
    }
}

/// The launch digest of SEV-SNP.
pub(super) fn snp(inputs: &Inputs) -> Result<String> {
    let name = inputs.shape.cpu.as_deref().context("no processor model is configured")?;
    let files = Files::read(inputs)?;
    let firmware = SnpFirmware::new(&Ovmf::parse(&files.firmware)?)?;
    digest(&firmware, &hashes(&files, inputs), inputs.vcpus, model(name)?)
}

/// The launch digests of SEV-SNP for usual numbers of CPUs and each model: rows of model, number, digest.
pub(super) fn snp_shapes(inputs: &Inputs) -> Result<Vec<(String, u32, String)>> {
    let files = Files::read(inputs)?;
    let firmware = SnpFirmware::new(&Ovmf::parse(&files.firmware)?)?;
    let hashes = hashes(&files, inputs);
    let mut rows = Vec::new();
    for model in CPU_MODELS {
        for vcpus in VCPUS {
            rows.push((model.name.to_owned(), vcpus, digest(&firmware, &hashes, vcpus, model)?));
        }
    }
    Ok(rows)
}

fn hashes(files: &Files, inputs: &Inputs) -> KernelHashes {
    KernelHashes::new(&files.kernel, &files.initramfs, &inputs.cmdline)
}

fn model(name: &str) -> Result<CpuModel> {
    let known = || format!("processor model {name}: its CPUID signature is not known; known are {}", CPU_MODELS.map(|m| m.name).join(", "));
    CpuModel::find(name).with_context(known)
}

fn digest(firmware: &SnpFirmware, hashes: &KernelHashes, vcpus: u32, model: CpuModel) -> Result<String> {
    let shape = Shape { vcpus, cpu_signature: model.signature(), features: SNP_ACTIVE };
    Ok(hex::encode(firmware.launch_digest(Some(hashes), shape)?))
}

/// The launch measurement of TDX and the registers that it is made of.
pub(super) fn tdx(inputs: &Inputs, assumptions: &Assumptions) -> Result<(String, BTreeMap<&'static str, String>)> {
    let files = Files::read(inputs)?;
    let mr_td = tdx::mr_td(&Ovmf::parse(&files.firmware)?)?;
    let kernel = match assumptions.old_qemu {
        true => Cow::Owned(efi_kernel::as_qemu_hands_it_over(&files.kernel, files.initramfs.len(), inputs.memory_mib)?),
        false => Cow::Borrowed(&files.kernel),
    };
    let kernel: [u8; 48] = efi_kernel::authenticode::<Sha384>(&kernel)?.into();
    let (rtmr1, rtmr2) = (tdx::rtmr1(&kernel), tdx::rtmr2(&inputs.cmdline, &files.initramfs, assumptions.word()));
    // Nothing but the agent extends RTMR3, before an image runs: at the first handshake it is what the module begins with.
    let registers = [("mr_td", mr_td), ("rtmr1", rtmr1), ("rtmr2", rtmr2), ("rtmr3", [0; 48])];
    let registers = registers.map(|(name, value)| (name, hex::encode(value)));
    Ok((hex::encode(launch_measurement(&mr_td, &rtmr1, &rtmr2)), registers.into()))
}

/// The body of a request to Trustee's `/kbs/v0/reference-value`, by the names of its default policy.
pub(super) fn trustee(measured: &Measured) -> Result<Value> {
    let values = match measured.tee {
        // Written in hexadecimal by newer versions of it and in base64 by older ones: its policy asks whether one is in the list.
        Tee::Snp => {
            let bytes = hex::decode(&measured.launch_measurement)?;
            json!({"snp_launch_measurement": [measured.launch_measurement, STANDARD.encode(bytes)]})
        }
        Tee::Tdx => {
            let register = |name| measured.registers.get(name).map(|value| [value.as_str()]).unwrap_or_default();
            json!({"mr_td": register("mr_td"), "rtmr_1": register("rtmr1"), "rtmr_2": register("rtmr2")})
        }
        tee => bail!("there are reference values of Trustee for snp and tdx, not for {tee}"),
    };
    Ok(json!({"version": "0.1.0", "type": "sample", "payload": STANDARD.encode(values.to_string())}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(tee: Tee) -> Measured {
        let registers = [("mr_td", "01"), ("rtmr1", "02"), ("rtmr2", "03")].map(|(name, value)| (name, value.to_owned()));
        Measured { launch_measurement: "abcd".into(), registers: registers.into(), ..Measured::empty(tee, (1, 512)) }
    }

    #[test]
    fn trustee_is_told_in_its_own_words() {
        let payload = |tee| {
            let body = trustee(&measured(tee)).unwrap();
            assert_eq!((body["version"].as_str(), body["type"].as_str()), (Some("0.1.0"), Some("sample")));
            serde_json::from_slice::<Value>(&STANDARD.decode(body["payload"].as_str().unwrap()).unwrap()).unwrap()
        };
        assert_eq!(payload(Tee::Snp), json!({"snp_launch_measurement": ["abcd", "q80="]}));
        assert_eq!(payload(Tee::Tdx), json!({"mr_td": ["01"], "rtmr_1": ["02"], "rtmr_2": ["03"]}));
        assert!(trustee(&measured(Tee::Tpm)).is_err());
    }

    /// The command on the firmware images whose digests are published.
    #[test]
    fn files_and_command_line_of_the_configuration_are_what_is_measured() {
        let Some(folder) = vectors::folder().map(|folder| folder.join("measure")) else { return };
        let dir = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (dir.path().join("kernel"), dir.path().join("initramfs"));
        std::fs::write(&kernel, b"").unwrap();
        std::fs::write(&initramfs, b"").unwrap();
        let shape = |firmware: &str| runtime::tee::Shape {
            machine: runtime::tee::Machine::Q35,
            cpu: Some("EPYC-v4".into()),
            firmware: Some(folder.join(firmware)),
            acpi: false,
        };
        let cmdline = "console=ttyS0 loglevel=7".to_owned();
        let inputs =
            Inputs { shape: shape("ovmf_AmdSev_suffix.bin"), kernel, initramfs: initramfs.clone(), cmdline, vcpus: 1, memory_mib: 512 };
        // As the makers of sev-snp-measure publish it.
        let published = "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa";
        assert_eq!(snp(&inputs).unwrap(), published);
        let shapes = snp_shapes(&inputs).unwrap();
        assert!(shapes.contains(&("EPYC-v4".into(), 1, published.into())), "{shapes:?}");
        std::fs::write(&initramfs, b"another").unwrap();
        assert_ne!(snp(&inputs).unwrap(), published);
        let other = Inputs { shape: shape("ovmf_OvmfX64_suffix.bin"), ..inputs };
        assert!(snp(&other).unwrap_err().to_string().contains("no section for the hashes"));
    }

    /// Debian's firmware, as `scripts/setup` unpacks it, and a kernel that it would start.
    #[test]
    fn every_register_of_tdx_that_files_decide_is_printed() {
        let firmware = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/deps/firmware/usr/share/ovmf/OVMF.fd");
        let dir = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (dir.path().join("kernel"), dir.path().join("initramfs"));
        let mut program = vec![0; 0x400];
        for (at, bytes) in [(0x3c, &b"\x80"[..]), (0x80, b"PE"), (0x94, b"\xf0"), (0x98, b"\x0b\x02"), (0xd4, b"\0\x04")] {
            program[at..at + bytes.len()].copy_from_slice(bytes);
        }
        std::fs::write(&kernel, program).unwrap();
        std::fs::write(&initramfs, b"initramfs").unwrap();
        let machine = runtime::tee::Machine::Q35;
        let shape = runtime::tee::Shape { machine, cpu: None, firmware: Some(firmware), acpi: true };
        let inputs = Inputs { shape, kernel, initramfs, cmdline: "quiet".into(), vcpus: 1, memory_mib: 512 };
        let (measurement, registers) = tdx(&inputs, &Assumptions::default()).unwrap();
        assert_eq!(registers.keys().copied().collect::<Vec<_>>(), ["mr_td", "rtmr1", "rtmr2", "rtmr3"], "RTMR0 is the machine's");
        assert_eq!(registers["rtmr3"], "00".repeat(48));
        let register = |name| hex::decode(&registers[name]).unwrap().try_into().unwrap();
        assert_eq!(measurement, hex::encode(launch_measurement(&register("mr_td"), &register("rtmr1"), &register("rtmr2"))));
        // What is printed can be demanded, also that nothing was measured since.
        let rule: String = registers.iter().map(|(name, value)| format!("{name} = \"{value}\"\n")).collect();
        toml::from_str::<attestation::tdx::Requirements>(&rule).unwrap();
    }

    #[test]
    fn an_unknown_processor_model_is_named() {
        let error = model("host").unwrap_err().to_string();
        assert!(error.contains("processor model host") && error.contains("EPYC-Milan"), "{error}");
    }
}
