//! The guest's kernel command line: one place to tune, each word with its reason. In an enclave it is measured.

use super::accelerator::Accelerator;
use crate::tee::Machine;

/// For every guest.
const ALWAYS: &[&str] = &[
    // For the last words of a kernel or agent that dies before it can speak vsock; a line on an emulated serial port costs more than
    // what it reports, so only errors go there.
    "console=ttyS0",
    "quiet",
    // A panic ends the VM at once instead of leaving it hanging.
    "panic=-1",
    "reboot=t",
    // Self-tests of ciphers: seconds under emulation.
    "cryptomgr.notests",
    // Ports that are not there are not looked for.
    "i8042.noaux",
    "i8042.nokbd",
    "i8042.nopnp",
    "8250.nr_uarts=1",
    // No records that nobody reads; addresses come from the pod, not from router advertisements.
    "audit=0",
    "ipv6.autoconf=0",
    // The processor's generator is the first seed: nothing else in a fresh guest is unknown to its host.
    "random.trust_cpu=on",
];

/// What varies between guests.
#[derive(Debug, Clone, Copy)]
pub struct Cmdline<'a> {
    /// What executes the guest.
    pub accelerator: Accelerator,
    /// The machine.
    pub machine: Machine,
    /// Whether the kernel may use the host's ACPI tables.
    pub acpi: bool,
    /// The development stand-in of the launch measurement, in hexadecimal.
    pub measurement: Option<&'a str>,
    /// Of the configuration, for debugging.
    pub extra: &'a str,
}

impl Cmdline<'_> {
    /// The command line. `tsc_khz` is called where the guest has to be told the rate of its counter (see [`super::tsc`]).
    pub fn to_text(self, tsc_khz: impl FnOnce() -> u64) -> String {
        let mut text = ALWAYS.join(" ");
        if self.machine == Machine::Microvm {
            text += " pci=off";
        }
        if !self.acpi {
            text += " acpi=off";
        }
        // A PC has timers to find the rate by, and its command line is measured: it has to be the same on each host and each day.
        if self.accelerator == Accelerator::Tcg && self.machine == Machine::Microvm {
            // The emulated counters of all virtual CPUs are the host's one: there is nothing to compare.
            text += &format!(" tsc=reliable tsc_early_khz={}", tsc_khz());
        }
        if let Some(measurement) = self.measurement {
            text += &format!(" cloister.measurement={measurement}");
        }
        if !self.extra.is_empty() {
            text += &format!(" {}", self.extra);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measurement_and_the_configurations_words_are_in_it() {
        let cmdline =
            Cmdline { accelerator: Accelerator::Kvm, machine: Machine::Microvm, acpi: true, measurement: Some("abcd"), extra: "debug" };
        let text = cmdline.to_text(|| unreachable!("KVM has a clock of its own"));
        assert!(text.starts_with("console=ttyS0 quiet panic=-1") && text.ends_with(" cloister.measurement=abcd debug"), "{text}");
    }

    #[test]
    fn an_emulated_guest_is_told_its_rate() {
        let cmdline = Cmdline { accelerator: Accelerator::Tcg, machine: Machine::Microvm, acpi: true, measurement: None, extra: "" };
        let text = cmdline.to_text(|| 2_600_000);
        assert!(text.ends_with(" pci=off tsc=reliable tsc_early_khz=2600000"), "{text}");
        assert!(!text.contains("cloister"), "{text}");
    }

    #[test]
    fn a_measured_command_line_is_the_same_on_every_host() {
        let of = |accelerator, acpi| {
            let cmdline = Cmdline { accelerator, machine: Machine::Q35, acpi, measurement: None, extra: "" };
            cmdline.to_text(|| unreachable!("it would change the measurement"))
        };
        assert_eq!(of(Accelerator::Kvm, true), of(Accelerator::Tcg, true));
        assert!(!of(Accelerator::Kvm, true).contains("acpi") && !of(Accelerator::Kvm, true).contains("pci=off"));
        assert!(of(Accelerator::Kvm, false).ends_with(" acpi=off"));
    }
}
