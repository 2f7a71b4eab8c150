//! Is anything left of a sandbox on this machine? Processes, mounts, interfaces, network namespaces, sockets, cgroups, files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long what is being removed may take to go: the end of a VM is not the end of `ctr`.
const SETTLE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What runs for a sandbox on a node.
const PROGRAMS: [&str; 3] = ["containerd-shim-cloister-v2", "qemu-system", "virtiofsd"];

/// What is there, each with a prefix that says of which kind it is.
pub type Traces = BTreeSet<String>;

/// The places where a sandbox of one test bed can leave something.
#[derive(Clone, Debug)]
pub struct Watch {
    base: PathBuf,
    state: PathBuf,
    bundles: PathBuf,
    before: Traces,
    /// With the bed's own, which stays as long as it does.
    idle: Traces,
}

impl Watch {
    /// Looks at the machine as it is now: `base` is the bed's directory, `state` the shims' state directory.
    pub fn new(base: &Path, state: &Path, bundles: &Path) -> Self {
        let mut watch = Self {
            base: base.to_owned(),
            state: state.to_owned(),
            bundles: bundles.to_owned(),
            before: Traces::new(),
            idle: Traces::new(),
        };
        watch.before = watch.machine();
        watch
    }

    /// Looks again once the bed is up and no sandbox is.
    pub fn is_idle(&mut self) {
        self.idle = self.machine();
    }

    /// Fails, naming each trace, unless every trace of the container or sandbox `id` goes.
    pub fn nothing_of(&self, id: &str) -> Result<()> {
        gone(&format!("of {id}"), || self.of(id))
    }

    /// Fails, naming each trace, unless the machine becomes as it was before the bed, with no sandbox at all. Daemons of the bed itself
    /// have to be ended before, or named in `daemons`.
    pub fn nothing(&self, daemons: &[u32]) -> Result<()> {
        gone("of any sandbox", || &self.of_any(&self.before) | &processes(&self.base.display().to_string(), daemons))
    }

    /// Fails, naming each trace, unless every sandbox of the bed goes, while its daemons run on.
    pub fn no_sandbox(&self) -> Result<()> {
        let base = self.base.display().to_string();
        let is_sandboxs = |trace: &String| PROGRAMS.iter().any(|program| trace.contains(program));
        gone("of any sandbox", || {
            self.of_any(&self.idle).into_iter().chain(processes(&base, &[]).into_iter().filter(is_sandboxs)).collect()
        })
    }

    fn of_any(&self, before: &Traces) -> Traces {
        let mut traces: Traces = self.machine().difference(before).cloned().collect();
        traces.extend(mounts(&self.base.display().to_string()));
        // Directories right below are the shims' own, made once; what is in them is of a sandbox.
        traces.extend(files(&self.state, &|path| path.parent() != Some(&self.state) || !path.is_dir()));
        traces
    }

    fn of(&self, id: &str) -> Traces {
        let mut traces = processes(id, &[]);
        traces.extend(mounts(id));
        let named = |path: &Path| path.components().any(|part| part.as_os_str().to_string_lossy().contains(id));
        traces.extend(files(&self.state, &named));
        traces.extend(files(&self.bundles, &named));
        traces.extend(cgroups().into_iter().filter(|path| path.contains(id)));
        traces
    }

    /// What has no sandbox's name on it.
    fn machine(&self) -> Traces {
        let mut traces = cgroups();
        traces.extend(list("/sys/class/net", "interface"));
        traces.extend(list("/run/netns", "network namespace"));
        traces.extend(list("/run/containerd/s", "socket"));
        traces
    }
}

fn gone(what: &str, look: impl Fn() -> Traces) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let traces = look();
        if traces.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let traces: Vec<_> = traces.into_iter().collect();
            ensure!(traces.is_empty(), "left behind {what} after {} s: {}", SETTLE.as_secs(), traces.join(", "));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Processes whose command line has `text` in it, but for this one, `except`, and zombies that somebody else has to reap.
pub fn processes(text: &str, except: &[u32]) -> Traces {
    pids_with(text)
        .into_iter()
        .filter(|(pid, _)| !except.contains(pid))
        .map(|(pid, line)| format!("process {pid} ({})", line.chars().take(100).collect::<String>()))
        .collect()
}

/// Ids and command lines of the processes whose command line has `text` in it, but for this one. A VM's scratch file has no name that could
/// stand there: of QEMU, what it has open counts too.
pub fn pids_with(text: &str) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != std::process::id())
        .filter_map(|pid: u32| {
            // Empty for a zombie and for a kernel thread.
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (line.contains(text) || (line.contains("qemu-system") && has_open(pid, text))).then_some((pid, line))
        })
        .collect()
}

fn has_open(pid: u32, text: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| target.to_string_lossy().contains(text))
}

/// The `program` with `text` in its command line that serves a sandbox. The short-lived `start` and `delete` of a shim carry their verb.
pub fn serving(program: &str, text: &str) -> Option<u32> {
    let verb = |line: &str| line.split_whitespace().any(|word| word == "start" || word == "delete");
    pids_with(text).into_iter().find(|(_, line)| line.contains(program) && !verb(line)).map(|(pid, _)| pid)
}

fn mounts(text: &str) -> Traces {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(text)).map(|line| format!("mount {}", line.split(' ').nth(4).unwrap_or(line))).collect()
}

fn files(directory: &Path, wanted: &dyn Fn(&Path) -> bool) -> Traces {
    let Ok(entries) = fs::read_dir(directory) else { return Traces::new() };
    let mut traces = Traces::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if wanted(&path) {
            traces.insert(format!("file {}", path.display()));
        }
        if directory {
            traces.extend(files(&path, wanted));
        }
    }
    traces
}

fn cgroups() -> Traces {
    fn walk(directory: &Path, depth: u32, traces: &mut Traces) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            traces.insert(format!("cgroup {}", entry.path().display()));
            if depth > 0 {
                walk(&entry.path(), depth - 1, traces);
            }
        }
    }
    let mut traces = Traces::new();
    walk(Path::new("/sys/fs/cgroup"), 5, &mut traces);
    traces
}

fn list(directory: &str, kind: &str) -> Traces {
    let Ok(entries) = fs::read_dir(directory) else { return Traces::new() };
    entries.flatten().map(|entry| format!("{kind} {}", entry.file_name().to_string_lossy())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn a_file_and_a_process_are_found_by_the_sandbox_name_and_another_is_not() {
        let base = std::env::temp_dir().join(format!("cloister-leaks-{}", std::process::id()));
        let state = base.join("v");
        fs::create_dir_all(state.join("leaky-one")).unwrap();
        fs::write(state.join("leaky-one/record"), "").unwrap();
        let watch = Watch::new(&base, &state, &base.join("bundles"));
        let mut child = std::process::Command::new("sleep").arg0("leaky-one").arg("600").spawn().unwrap();
        // The kernel shows a program's arguments a moment after it was started.
        let process = format!("process {}", child.id());
        let deadline = Instant::now() + SETTLE;
        while !watch.of("leaky-one").iter().any(|trace| trace.starts_with(&process)) {
            assert!(Instant::now() < deadline, "{:?}", watch.of("leaky-one"));
        }
        let traces = watch.of("leaky-one");
        assert!(traces.iter().any(|trace| trace.starts_with("file") && trace.ends_with("record")), "{traces:?}");
        assert!(watch.of("leaky-two").is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(base).unwrap();
    }
}
