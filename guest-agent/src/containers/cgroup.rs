//! A container's cgroup (Documentation/admin-guide/cgroup-v2.rst): limits, the freezer, statistics, and who is in it.

use super::devices;
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

    /// Makes it, with the controllers of its parent, and lets nothing in it open a device beyond the usual ones. Before its first
    /// process: libcontainer takes a cgroup that is there as it is.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir(&self.path)?;
        devices::restrict(&self.path)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets what `resources` names and leaves the rest.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        for (file, value) in settings(resources) {
            self.write(file, &value)?;
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

    /// Process ids, in the guest's first pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, CgroupError> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// How often the kernel killed a process here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        self.read("memory.events").map_or(0, |text| keyed(&text).get("oom_kill").copied().unwrap_or(0))
    }

    /// Removes it; it must be empty.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Statistics; a file that is missing (a controller that the kernel does not have) counts as zero.
    pub fn stats(&self) -> StatsContainerResponse {
        let number = |file: &str| self.read(file).map_or(0, |text| single(&text));
        let cpu = self.read("cpu.stat").map(|text| keyed(&text)).unwrap_or_default();
        let of_cpu = |key: &str| cpu.get(key).copied().unwrap_or(0);
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
            oom_kills: self.oom_kills(),
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
fn settings(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let limit = |value: i64| if value <= 0 { "max".to_owned() } else { value.to_string() };
    let mut settings = Vec::new();
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
        if let Some(cpus) = cpu.cpus().as_deref().filter(|c| !c.is_empty()) {
            settings.push(("cpuset.cpus", cpus.to_owned()));
        }
    }
    if let Some(pids) = resources.pids() {
        settings.push(("pids.max", limit(pids.limit())));
    }
    settings
}

/// Shares of cgroup v1, 2 to 262144, as a weight of v2, 1 to 10000 (the formula of the OCI runtime spec).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: serde_json::Value) -> Vec<(&'static str, String)> {
        settings(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn limits_become_files() {
        let resources = json!({"memory": {"limit": 4096}, "cpu": {"shares": 1024, "quota": 50000, "cpus": "0-1"}, "pids": {"limit": 10}});
        let expected =
            [("memory.max", "4096"), ("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("cpuset.cpus", "0-1"), ("pids.max", "10")];
        assert_eq!(of(resources), expected.map(|(file, value)| (file, value.to_owned())));
    }

    #[test]
    fn no_limit_is_max_and_nothing_is_nothing() {
        let resources = json!({"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 20000}, "pids": {"limit": -1}});
        assert_eq!(of(resources).iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(), ["max", "max 20000", "max"]);
        assert!(of(json!({})).is_empty());
    }

    #[test]
    fn weights_stay_in_their_range() {
        assert_eq!([weight(1), weight(2), weight(1024), weight(u64::MAX)], [1, 1, 39, 10000]);
    }

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!((single("max\n"), single("42\n"), single("?")), (u64::MAX, 42, 0));
        assert_eq!(keyed("oom 1\noom_kill 2\nbroken\n").get("oom_kill"), Some(&2));
    }
}
