//! Which accelerator a VM gets, and why: the reason stands in the shim's log and in `cloister check`.

use crate::config::Accelerator as Wanted;
use std::{fs, path::Path};
use thiserror::Error;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's hypervisor.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// KVM was demanded and is not there.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("vmm.accelerator is \"kvm\", but {0}; set it to \"auto\" to emulate instead")]
pub struct NoKvm(String);

/// A choice and its reason, a sentence without its full stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The choice.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
}

/// Chooses for this host.
pub fn choose(wanted: Wanted) -> Result<Choice, NoKvm> {
    choose_from(wanted, Path::new("/dev/kvm"), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn choose_from(wanted: Wanted, device: &Path, cpuinfo: &str) -> Result<Choice, NoKvm> {
    let tcg = |reason: String| Choice { accelerator: Accelerator::Tcg, reason };
    let missing = match (wanted, why_not_kvm(device, cpuinfo)) {
        (Wanted::Tcg, _) => return Ok(tcg("the configuration says so".into())),
        (_, None) => {
            let reason = format!("{} opens and the processor has virtualisation", device.display());
            return Ok(Choice { accelerator: Accelerator::Kvm, reason });
        }
        (_, Some(missing)) => missing,
    };
    match wanted {
        Wanted::Kvm => Err(NoKvm(missing)),
        _ => Ok(tcg(missing)),
    }
}

fn why_not_kvm(device: &Path, cpuinfo: &str) -> Option<String> {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open(device) {
        return Some(format!("{} cannot be opened: {error}", device.display()));
    }
    // A nested KVM without the flag opens and even starts a VM, and an ordinary kernel then dies of an emulation failure.
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let capable = flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    (!capable)
        .then(|| format!("{} opens, but the processor shows neither vmx nor svm and could not run an ordinary kernel", device.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const PLAIN: &str = "processor\t: 0\nflags\t\t: fpu sse2\n";
    const CAPABLE: &str = "processor\t: 0\nflags\t\t: fpu svm sse2\n";

    #[test]
    fn kvm_needs_the_device_and_the_flag() {
        let openable = Path::new("/dev/null");
        assert_eq!(choose_from(Wanted::Auto, openable, CAPABLE).unwrap().accelerator, Accelerator::Kvm);
        for (device, cpuinfo, word) in [(openable, PLAIN, "vmx"), (Path::new("/nonexistent"), CAPABLE, "/nonexistent")] {
            let choice = choose_from(Wanted::Auto, device, cpuinfo).unwrap();
            assert_eq!(choice.accelerator, Accelerator::Tcg);
            assert!(choice.reason.contains(word), "{}", choice.reason);
            assert!(choose_from(Wanted::Kvm, device, cpuinfo).unwrap_err().to_string().contains(word));
        }
    }

    #[test]
    fn emulation_can_be_demanded() {
        assert_eq!(choose_from(Wanted::Tcg, Path::new("/dev/null"), CAPABLE).unwrap().accelerator, Accelerator::Tcg);
    }
}
