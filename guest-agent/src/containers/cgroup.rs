//! A container's cgroup (Documentation/admin-guide/cgroup-v2.rst): limits, the freezer, statistics, and who is in it.

use oci_spec::runtime::LinuxResources;
use protocol::api::StatsContainerResponse;
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The containers' part of it.
pub const PARENT: &str = "cloister";
/// The period that `cpu.max` has where none is given, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// Most cgroups that are looked at below a container's own.
const MAX_TREE: usize = 4096;
/// Longest value of a file that the host names itself.
const MAX_VALUE: usize = 256;
/// Controllers whose files the host may name itself (`linux.resources.unified`); the kubelet sets `memory.oom.group` so.
const UNIFIED: &[&str] = &["cpu", "memory", "pids"];

/// Why a file of the cgroup could not be used.
#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct CgroupError {
    /// Which file.
    pub path: String,
    /// The cause.
    pub source: io::Error,
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of the container with the internal name `name`; it need not exist.
    pub fn of(name: &str) -> Self {
        Self { path: Path::new(ROOT).join(PARENT).join(name) }
    }

    /// Its path in an OCI spec, relative to the mount.
    pub fn spec_path(name: &str) -> PathBuf {
        Path::new("/").join(PARENT).join(name)
    }

    /// Makes it, with the controllers of its parent. Before its first process: libcontainer takes a cgroup that is there as it is.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir(&self.path)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets what `resources` names and leaves the rest.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let processors = fs::read_to_string(Path::new(ROOT).join("cpuset.cpus.effective")).unwrap_or_default();
        for (file, value) in settings(resources, &processors) {
            self.write(&file, &value)?;
        }
        Ok(())
    }

    /// Stops or resumes all its processes.
    pub fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Kills all its processes at once.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Process ids, in the guest's first pid namespace; also those of cgroups that a privileged container made below its own.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in self.tree() {
            let procs = Self { path: directory }.read("cgroup.procs")?;
            pids.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        Ok(pids)
    }

    /// Its directory and those below it, parents first; a bounded number.
    fn tree(&self) -> Vec<PathBuf> {
        let mut tree = vec![self.path.clone()];
        let mut next = 0;
        while next < tree.len() && tree.len() < MAX_TREE {
            let below = fs::read_dir(&tree[next]).into_iter().flatten().flatten();
            tree.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
            next += 1;
        }
        tree
    }

    /// How often the kernel killed a process here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.read("memory.events").map_or(0, |text| oom_kills(&text))
    }

    /// Removes it with all below it; there must be no process in it.
    pub fn remove(&self) -> io::Result<()> {
        for directory in self.tree().iter().rev() {
            match fs::remove_dir(directory) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Statistics; a file that is missing (a controller that the kernel does not have) counts as zero.
    pub fn stats(&self) -> StatsContainerResponse {
        let number = |file: &str| self.read(file).map_or(0, |text| single(&text));
        let cpu = self.read("cpu.stat").map(|text| keyed(&text)).unwrap_or_default();
        let of_cpu = |key: &str| cpu.get(key).copied().unwrap_or(0);
        let events = self.read("memory.events").map(|text| keyed(&text)).unwrap_or_default();
        StatsContainerResponse {
            memory_usage: number("memory.current"),
            memory_limit: number("memory.max"),
            memory_peak: number("memory.peak"),
            cpu_usage_usec: of_cpu("usage_usec"),
            cpu_user_usec: of_cpu("user_usec"),
            cpu_system_usec: of_cpu("system_usec"),
            pids_current: number("pids.current"),
            pids_limit: number("pids.max"),
            memory_stat: self.read("memory.stat").map(|text| keyed(&text)).unwrap_or_default(),
            oom_kills: events.get("oom_kill").copied().unwrap_or(0),
            memory_events: events,
            cpu_stat: cpu,
            ..Default::default()
        }
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(|source| CgroupError { path: path.display().to_string(), source })
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value).map_err(|source| CgroupError { path: path.display().to_string(), source })
    }
}

/// The kills for want of memory of a `memory.events`.
pub(super) fn oom_kills(events: &str) -> u64 {
    keyed(events).get("oom_kill").copied().unwrap_or(0)
}

/// One number; `max` is no limit.
fn single(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

/// Lines of `key value`.
fn keyed(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| line.split_once(' ').and_then(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

/// Files and values for OCI limits, whose numbers are those of cgroup v1. Zero or less is "unlimited" where OCI says so.
/// `processors` are the guest's, as `cpuset.cpus.effective` has them.
fn settings(resources: &LinuxResources, processors: &str) -> Vec<(String, String)> {
    let limit = |value: i64| if value <= 0 { "max".to_owned() } else { value.to_string() };
    let mut settings: Vec<(&str, String)> = Vec::new();
    if let Some(memory) = resources.memory() {
        if let Some(value) = memory.reservation() {
            settings.push(("memory.low", value.max(0).to_string()));
        }
        if let Some(value) = memory.limit() {
            settings.push(("memory.max", limit(value)));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|s| *s > 0) {
            settings.push(("cpu.weight", weight(shares).to_string()));
        }
        if cpu.quota().is_some() || cpu.period().is_some() {
            let period = cpu.period().filter(|p| *p > 0).unwrap_or(DEFAULT_PERIOD);
            settings.push(("cpu.max", format!("{} {period}", limit(cpu.quota().unwrap_or(0)))));
        }
        if let Some(burst) = cpu.burst() {
            settings.push(("cpu.max.burst", burst.to_string()));
        }
        if let Some(idle) = cpu.idle() {
            settings.push(("cpu.idle", idle.to_string()));
        }
        // A kubelet that pins containers names processors of the host: only what the guest has as well can be meant for it.
        if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| within(cpus, processors)) {
            settings.push(("cpuset.cpus", cpus.to_owned()));
        }
    }
    if let Some(pids) = resources.pids() {
        settings.push(("pids.max", limit(pids.limit())));
    }
    let named = resources.unified().iter().flatten().filter(|(file, value)| is_unified(file, value));
    let mut named: Vec<(String, String)> = named.map(|(file, value)| (file.clone(), value.clone())).collect();
    named.sort();
    settings.into_iter().map(|(file, value)| (file.to_owned(), value)).chain(named).collect()
}

/// A file of a controller's, by a name that leads nowhere else. Of devices, huge pages and the like the guest has none: left out, as
/// where OCI's own fields are about them.
fn is_unified(file: &str, value: &str) -> bool {
    let name = |b: u8| b.is_ascii_lowercase() || b"._".contains(&b);
    let controller = file.split_once('.').is_some_and(|(controller, _)| UNIFIED.contains(&controller));
    controller && file.bytes().all(name) && value.len() <= MAX_VALUE && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// Whether every processor of a list like `0-2,7` is in another.
fn within(wanted: &str, processors: &str) -> bool {
    let parse = |list: &str| -> Option<Vec<(u32, u32)>> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        };
        list.split(',').map(range).collect()
    };
    let (Some(wanted), Some(processors)) = (parse(wanted), parse(processors)) else { return false };
    wanted.iter().all(|(first, last)| processors.iter().any(|(low, high)| low <= first && first <= last && last <= high))
}

/// Shares of cgroup v1, 2 to 262144, as a weight of v2, 1 to 10000 (the formula of the OCI runtime spec).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: serde_json::Value) -> Vec<(String, String)> {
        settings(&serde_json::from_value(value).unwrap(), "0-3\n")
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
        pairs.map(|(file, value)| (file.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn limits_become_files() {
        let resources = json!({"memory": {"limit": 4096}, "cpu": {"shares": 1024, "quota": 50000, "cpus": "0-1"}, "pids": {"limit": 10}});
        let expected =
            [("memory.max", "4096"), ("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("cpuset.cpus", "0-1"), ("pids.max", "10")];
        assert_eq!(of(resources), pairs(expected));
    }

    #[test]
    fn no_limit_is_max_and_nothing_is_nothing() {
        let resources = json!({"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 20000}, "pids": {"limit": -1}});
        assert_eq!(of(resources).iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(), ["max", "max 20000", "max"]);
        assert!(of(json!({})).is_empty());
    }

    #[test]
    fn files_that_the_host_names_are_those_of_a_controller() {
        let unified = json!({"unified": {"memory.oom.group": "1", "memory.high": "1048576", "hugetlb.2MB.max": "0",
            "memory../x": "1", "cgroup.kill": "1", "cpu/../../x.y": "1", "pids.max": "1\n2"}});
        assert_eq!(of(unified), pairs([("memory.high", "1048576"), ("memory.oom.group", "1")]));
    }

    #[test]
    fn processors_that_only_the_host_has_are_left_out() {
        for (cpus, taken) in [("0", true), ("0-3", true), ("1,3", true), ("4", false), ("2-4", false), ("", false), ("3-1", false)] {
            assert_eq!(of(json!({"cpu": {"cpus": cpus}})).len() == 1, taken, "{cpus}");
        }
    }

    #[test]
    fn weights_stay_in_their_range() {
        assert_eq!([weight(1), weight(2), weight(1024), weight(u64::MAX)], [1, 1, 39, 10000]);
    }

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!((single("max\n"), single("42\n"), single("?")), (u64::MAX, 42, 0));
        assert_eq!(keyed("oom 1\noom_kill 2\nbroken\n").get("oom"), Some(&1));
        assert_eq!((oom_kills("oom 1\noom_kill 2\n"), oom_kills("")), (2, 0));
    }
}
