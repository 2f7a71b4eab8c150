//! `cloister check`: whether this host can run guests, and what to do if not.

mod enclaves;
mod launch;

use crate::{commands::config, input, output};
use anyhow::Result;
use guest_image::{GuestManifest, MANIFEST_FILE};
use runtime::{
    config::{Config, Tee},
    vmm::accelerator::{self, Accelerator},
};
use serde::Serialize;
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const SHIM: &str = "containerd-shim-cloister-v2";
/// First QEMU whose options we use (`-run-with`, microvm with ACPI).
const OLDEST_QEMU: (u32, u32) = (7, 2);

/// Say whether this host can run guests, and what to do if not
///
/// The exit code is 0 when containers can be started, with or without warnings, and 1 when not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Launch a throw-away guest in the configured enclave, verify its evidence, and compare its measurement with the computed one
    #[arg(long)]
    launch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Not to be had here, which is no fault.
    No,
    Warning,
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    status: Status,
    /// What is there.
    detail: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, status: Status::Ok, detail: detail.into(), remedy: None }
    }

    fn no(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, status: Status::No, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn warning(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, status: Status::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn failed(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what, status: Status::Failed, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut findings = look();
    if args.launch {
        let config = Config::load()?;
        findings.extend(input::block_on(async { Ok(launch::launch(&config).await) })?);
    }
    if args.json {
        output::json(&findings)?;
    } else {
        output::table(&findings.iter().map(row).collect::<Vec<_>>())?;
    }
    let failed = findings.iter().any(|finding| finding.status == Status::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(finding: &Finding) -> Vec<String> {
    let mark = match finding.status {
        Status::Ok => "ok",
        Status::No => "no",
        Status::Warning => "warning",
        Status::Failed => "FAILED",
    };
    let remedy = finding.remedy.as_ref().map_or_else(String::new, |remedy| format!(": {remedy}"));
    vec![mark.to_owned(), finding.what.to_owned(), format!("{}{remedy}", finding.detail)]
}

fn look() -> Vec<Finding> {
    let config = match Config::load() {
        Ok(config) => config,
        // The rest would judge by a configuration that nobody wrote.
        Err(error) => return vec![Finding::failed("configuration", error.to_string(), "correct the file")],
    };
    let mut findings = vec![Finding::ok("configuration", config::source(None)), tee(config.tee), accelerator(&config)];
    findings.extend(enclaves::findings(&enclaves::Facts::read(&config.vmm.qemu)));
    findings.extend([
        qemu(&config.vmm.qemu),
        guest(&config),
        vsock(),
        tun(),
        root(),
        state_dir(&config.state_dir),
        scratch(&config.guest),
        shim(),
        containerd(),
    ]);
    findings
}

fn tee(tee: Tee) -> Finding {
    match runtime::tee::resolve(tee) {
        Tee::Vtpm => Finding::warning(
            "enclave",
            "tee = \"vtpm\"",
            "the TPM is this host's own: it shows a changed guest to whoever trusts this host, and protects nothing from it",
        ),
        Tee::Snp => Finding::ok("enclave", "tee = \"snp\""),
        Tee::Tdx => Finding::ok("enclave", "tee = \"tdx\""),
        Tee::None | Tee::Auto => {
            Finding::warning("enclave", "tee = \"none\"", "for development only: nothing protects a guest from this host")
        }
    }
}

fn accelerator(config: &Config) -> Finding {
    match accelerator::choose(config.vmm.accelerator) {
        Ok(choice) if choice.accelerator == Accelerator::Kvm => Finding::ok("accelerator", format!("KVM: {}", choice.reason)),
        Ok(choice) => Finding::warning(
            "accelerator",
            format!("emulation (TCG): {}", choice.reason),
            "everything works, some ten times slower; a machine with virtualisation in its processor is faster",
        ),
        Err(error) => Finding::failed("accelerator", error.to_string(), "see vmm.accelerator in the configuration"),
    }
}

fn qemu(name: &Path) -> Finding {
    const WHAT: &str = "QEMU";
    let remedy = "install it (Debian: apt-get install qemu-system-x86), or set vmm.qemu in the configuration";
    let Some(path) = find_program(name) else { return Finding::failed(WHAT, format!("{} not found", name.display()), remedy) };
    let Some(version) = first_line(&path, "--version") else {
        return Finding::failed(WHAT, format!("{} does not run", path.display()), remedy);
    };
    match parse_version(&version) {
        Some(found) if found < OLDEST_QEMU => {
            Finding::failed(WHAT, version, format!("{}.{} or newer is needed", OLDEST_QEMU.0, OLDEST_QEMU.1))
        }
        _ => Finding::ok(WHAT, format!("{}: {version}", path.display())),
    }
}

fn guest(config: &Config) -> Finding {
    const WHAT: &str = "guest image";
    let remedy = "make it with `cloister guest build`, or set guest.kernel and guest.initramfs in the configuration";
    for path in [&config.guest.kernel, &config.guest.initramfs] {
        if !path.is_file() {
            return Finding::failed(WHAT, format!("{} not found", path.display()), remedy);
        }
    }
    let directory = config.guest.initramfs.parent().unwrap_or(Path::new("/"));
    let manifest = GuestManifest::load(&directory.join(MANIFEST_FILE));
    match manifest.and_then(|manifest| manifest.verify(directory).map(|()| manifest)) {
        Ok(manifest) => Finding::ok(WHAT, format!("kernel {}, measurement {}", manifest.kernel_version, manifest.measurement)),
        Err(error) => Finding::failed(WHAT, error.to_string(), remedy),
    }
}

fn vsock() -> Finding {
    match Path::new("/dev/vhost-vsock").exists() {
        true => Finding::ok("vsock", "/dev/vhost-vsock"),
        false => Finding::ok("vsock", "no /dev/vhost-vsock: the shim serves the device itself"),
    }
}

fn tun() -> Finding {
    match Path::new("/dev/net/tun").exists() {
        true => Finding::ok("network", "/dev/net/tun"),
        false => Finding::warning("network", "/dev/net/tun not found", "containers with a network need it: modprobe tun"),
    }
}

fn root() -> Finding {
    match nix::unistd::geteuid().is_root() {
        true => Finding::ok("user", "root"),
        false => Finding::warning("user", "not root", "containerd and its shims run as root; run this check as root too"),
    }
}

/// Sockets live below it, and their paths end at 106 bytes.
fn state_dir(path: &Path) -> Finding {
    const LONGEST: usize = 60;
    let text = path.display().to_string();
    if text.len() > LONGEST {
        let remedy = format!("unix sockets below it need a path of at most {LONGEST} bytes: set state_dir in the configuration");
        return Finding::failed("state_dir", text, remedy);
    }
    Finding::ok("state_dir", text)
}

/// What a guest cannot keep in its memory goes there: in the host's memory it would be of no use.
fn scratch(guest: &runtime::config::Guest) -> Finding {
    if guest.scratch_mib == 0 {
        return Finding::ok("scratch", "in the guests' memory (guest.scratch_mib = 0)");
    }
    let text = guest.scratch_dir.display().to_string();
    // It is made with the first guest.
    let existing = guest.scratch_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statfs::statfs(existing) {
        Ok(found) if found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC => {
            Finding::warning("scratch", format!("{text} is in memory"), "set guest.scratch_dir to a directory on a disk")
        }
        Ok(found) => {
            let free = found.blocks_available().saturating_mul(u64::try_from(found.block_size()).unwrap_or(0)) >> 30;
            Finding::ok("scratch", format!("{text}, {free} GiB free, at most {} MiB a guest", guest.scratch_mib))
        }
        Err(error) => Finding::failed("scratch", format!("{}: {error}", existing.display()), "set guest.scratch_dir in the configuration"),
    }
}

fn shim() -> Finding {
    match find_program(Path::new(SHIM)) {
        Some(path) => Finding::ok("shim", path.display().to_string()),
        None => Finding::warning("shim", format!("{SHIM} not found in PATH"), "containerd looks for it in the PATH it was started with"),
    }
}

fn containerd() -> Finding {
    const WHAT: &str = "containerd";
    let version = find_program(Path::new("containerd")).and_then(|path| first_line(&path, "--version"));
    match version {
        Some(version) if parse_version(&version).is_some_and(|found| found < (1, 6)) => {
            Finding::warning(WHAT, version, "1.6 is the oldest that is tested")
        }
        Some(version) => Finding::ok(WHAT, version),
        None => Finding::warning(WHAT, "containerd not found in PATH", "install it, or CRI-O (Debian: apt-get install containerd)"),
    }
}

/// As execvp(3) finds it.
fn find_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return name.is_file().then(|| name.to_owned());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn first_line(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

/// The first `major.minor` in a line.
fn parse_version(line: &str) -> Option<(u32, u32)> {
    line.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(parse_version("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u13)"), Some((7, 2)));
        assert_eq!(parse_version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3"), Some((1, 6)));
        assert_eq!(parse_version("containerd github.com/containerd/containerd/v2 v2.1.9 abc"), Some((2, 1)));
        assert_eq!(parse_version("no version"), None);
    }

    #[test]
    fn what_is_not_there_is_said_with_a_remedy() {
        let finding = qemu(Path::new("/nonexistent/qemu"));
        assert_eq!(finding.status, Status::Failed);
        assert!(finding.detail.contains("/nonexistent/qemu") && finding.remedy.is_some());
        let config = Config::default();
        let config = Config { guest: runtime::config::Guest { kernel: "/nonexistent/vmlinux".into(), ..config.guest }, ..config };
        assert!(guest(&config).detail.contains("/nonexistent/vmlinux"));
        assert_eq!(state_dir(Path::new(&"/x".repeat(40))).status, Status::Failed);
        let scratch = |dir: &str| scratch(&runtime::config::Guest { scratch_dir: dir.into(), ..config.guest.clone() }).status;
        assert_eq!((scratch("/dev/shm/none/yet"), scratch("/proc")), (Status::Warning, Status::Ok));
    }

    #[test]
    fn a_problem_always_has_a_remedy() {
        for finding in look() {
            assert_eq!(finding.status != Status::Ok, finding.remedy.is_some(), "{finding:?}");
        }
    }
}
