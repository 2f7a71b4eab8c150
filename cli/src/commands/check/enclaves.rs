//! Which enclaves this host can run, each with the first thing that is missing and what to do about it. An answer of "no" is no fault of the
//! host: only the enclave that the configuration names has to work.

use super::{Finding, find_program};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What an enclave depends on, as this host has it.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// `vendor_id` of /proc/cpuinfo.
    vendor: String,
    /// Its `flags`.
    flags: Vec<String>,
    /// `/sys/module/kvm_amd/parameters/sev_snp`, and whether there is `/dev/sev`.
    snp: (Option<bool>, bool),
    /// `/sys/module/kvm_intel/parameters/tdx`.
    tdx: Option<bool>,
    /// QEMU, if it is there, and the object types and devices that it knows.
    qemu: Option<(PathBuf, String)>,
    /// swtpm, if it is there.
    swtpm: Option<PathBuf>,
}

impl Facts {
    /// Looks.
    pub(super) fn read(qemu: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let switch = |path: &str| fs::read_to_string(path).ok().map(|text| matches!(text.trim(), "Y" | "1"));
        let known = |program: PathBuf| {
            let lists = ["-object", "-device"].map(|option| {
                let output = Command::new(&program).args(["-machine", "none", option, "help"]).output();
                output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
            });
            (program, lists.concat())
        };
        Self {
            vendor: field("vendor_id"),
            flags: field("flags").split(' ').map(str::to_owned).collect(),
            snp: (switch("/sys/module/kvm_amd/parameters/sev_snp"), Path::new("/dev/sev").exists()),
            tdx: switch("/sys/module/kvm_intel/parameters/tdx"),
            qemu: find_program(qemu).map(known),
            swtpm: find_program(Path::new("swtpm")),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|have| have == flag)
    }

    /// Why QEMU cannot have it, if it cannot: it is not there, or does not know `word`.
    fn qemu_without(&self, word: &str, since: &str) -> Option<(String, String)> {
        match &self.qemu {
            None => Some(("QEMU not found".to_owned(), "install QEMU (Debian: apt-get install qemu-system-x86)".to_owned())),
            Some((path, known)) if !known.contains(word) => {
                Some((format!("{} has no {word}", path.display()), format!("install QEMU {since} or newer, or set vmm.qemu")))
            }
            Some(_) => None,
        }
    }
}

/// One finding for each enclave.
pub(super) fn findings(facts: &Facts) -> [Finding; 4] {
    [
        answer("tee snp", snp(facts), "AMD SEV-SNP: a guest whose memory this host cannot read"),
        answer("tee tdx", tdx(facts), "Intel TDX: a guest whose memory this host cannot read"),
        answer("tee vtpm", vtpm(facts), "a TPM that this host emulates: shows what was started to whoever trusts this host"),
        answer("tee none", none(facts), "development: no protection from this host"),
    ]
}

type Missing = Option<(String, String)>;

fn answer(what: &'static str, missing: Missing, kind: &str) -> Finding {
    match missing {
        None => Finding::ok(what, format!("this host can run it ({kind})")),
        Some((detail, remedy)) => Finding::no(what, detail, remedy),
    }
}

fn missing(detail: impl Into<String>, remedy: impl Into<String>) -> Missing {
    Some((detail.into(), remedy.into()))
}

fn snp(facts: &Facts) -> Missing {
    if facts.vendor != "AuthenticAMD" {
        return missing("the processor is not AMD's", "use a machine with an AMD EPYC 7003 (Milan) or newer");
    }
    if !facts.has("sev_snp") {
        return missing(
            "the processor has no SEV-SNP, or its firmware has switched it off",
            "switch on SMEE, SEV-SNP and IOMMU in the machine's firmware, and run on the metal: a VM of a cloud hides them",
        );
    }
    match facts.snp {
        (None, _) => missing("kvm_amd is not loaded", "modprobe kvm_amd"),
        (Some(false), _) => missing("kvm_amd runs without SNP", "run Linux 6.11 or newer with kvm_amd.sev_snp=1"),
        (Some(true), false) => missing("/dev/sev not found", "modprobe ccp, and see dmesg for the firmware that it loads"),
        (Some(true), true) => facts.qemu_without("sev-snp-guest", "9.1"),
    }
}

fn tdx(facts: &Facts) -> Missing {
    if facts.vendor != "GenuineIntel" {
        return missing("the processor is not Intel's", "use a machine with an Intel Xeon of the 5th generation or newer");
    }
    if !facts.has("tdx_host_platform") {
        return missing(
            "the processor has no TDX, or its firmware has switched it off",
            "switch on TME-MT and TDX in the machine's firmware, and run on the metal with a kernel that knows TDX (6.16 or newer)",
        );
    }
    match facts.tdx {
        None => missing("kvm_intel is not loaded, or is too old for TDX", "run Linux 6.16 or newer, and modprobe kvm_intel"),
        Some(false) => missing("kvm_intel runs without TDX", "boot with kvm_intel.tdx=1, and see dmesg for what the TDX module says"),
        Some(true) => facts.qemu_without("tdx-guest", "10.1"),
    }
}

fn vtpm(facts: &Facts) -> Missing {
    if facts.swtpm.is_none() {
        return missing("swtpm not found", "install it (Debian: apt-get install swtpm)");
    }
    facts.qemu_without("tpm-crb", "7.2")
}

fn none(facts: &Facts) -> Missing {
    facts.qemu_without("vhost-user-vsock", "7.2")
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    fn facts(vendor: &str, flags: &[&str]) -> Facts {
        let known = "sev-snp-guest tdx-guest tpm-crb vhost-user-vsock-device".to_owned();
        Facts {
            vendor: vendor.into(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            qemu: Some(("/usr/bin/qemu".into(), known)),
            swtpm: Some("/usr/bin/swtpm".into()),
            ..Facts::default()
        }
    }

    fn can(facts: &Facts) -> [bool; 4] {
        findings(facts).map(|finding| finding.status == Status::Ok)
    }

    fn detail(facts: &Facts, at: usize) -> String {
        findings(facts)[at].detail.clone()
    }

    #[test]
    fn a_machine_without_an_enclave_can_do_the_rest() {
        assert_eq!(can(&facts("GenuineIntel", &["vmx"])), [false, false, true, true]);
        let without = Facts { swtpm: None, qemu: None, ..facts("AuthenticAMD", &[]) };
        assert_eq!(can(&without), [false; 4]);
        assert!(findings(&without).iter().all(|finding| finding.status == Status::No && finding.remedy.is_some()));
    }

    #[test]
    fn each_step_to_snp_is_named() {
        let mut host = facts("GenuineIntel", &[]);
        for (step, words) in [
            (|_: &mut Facts| {}) as fn(&mut Facts),
            |host| host.vendor = "AuthenticAMD".into(),
            |host| host.flags = vec!["sev_snp".into()],
            |host| host.snp = (Some(false), false),
            |host| host.snp = (Some(true), false),
            |host| (host.snp, host.qemu) = ((Some(true), true), Some(("/old/qemu".into(), String::new()))),
        ]
        .into_iter()
        .zip(["not AMD's", "switched it off", "not loaded", "without SNP", "/dev/sev", "/old/qemu has no sev-snp-guest"])
        {
            step(&mut host);
            assert!(detail(&host, 0).contains(words), "{words}: {}", detail(&host, 0));
        }
        let ready = Facts { snp: (Some(true), true), ..facts("AuthenticAMD", &["sev_snp"]) };
        assert_eq!(can(&ready), [true, false, true, true]);
    }

    #[test]
    fn each_step_to_tdx_is_named() {
        let mut host = facts("AuthenticAMD", &[]);
        for (step, words) in [
            (|_: &mut Facts| {}) as fn(&mut Facts),
            |host| host.vendor = "GenuineIntel".into(),
            |host| host.flags = vec!["tdx_host_platform".into()],
            |host| host.tdx = Some(false),
            |host| (host.tdx, host.qemu) = (Some(true), Some(("/old/qemu".into(), String::new()))),
        ]
        .into_iter()
        .zip(["not Intel's", "switched it off", "not loaded", "without TDX", "/old/qemu has no tdx-guest"])
        {
            step(&mut host);
            assert!(detail(&host, 1).contains(words), "{words}: {}", detail(&host, 1));
        }
        assert_eq!(can(&Facts { tdx: Some(true), ..facts("GenuineIntel", &["tdx_host_platform"]) }), [false, true, true, true]);
    }
}
