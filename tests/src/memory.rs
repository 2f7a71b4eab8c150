//! What the processes beside the guest take.

use std::fs;

use crate::leaks;
use anyhow::{Context, Result};

/// The pid of the `program` that serves the container `id`.
pub fn process(program: &str, id: &str) -> Result<u32> {
    let mut found = leaks::pids_with(id).into_iter().filter(|(_, line)| line.split(' ').next().is_some_and(|name| name.contains(program)));
    Ok(found.next().with_context(|| format!("no {program} of {id} is running"))?.0)
}

/// A process's arguments.
pub fn command_line(pid: u32) -> Result<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    let mut words: Vec<String> = line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    words.pop();
    Ok(words)
}

/// Proportional set size (`Pss` of `/proc/PID/smaps`, proc(5)) without mappings of the guest's RAM, which is a memfd that QEMU and the vsock
/// device both map, in MiB.
pub fn private_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let maps = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut guest = false;
    let mut kib = 0_u64;
    for line in maps.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["Pss:", amount, "kB"] if !guest => kib += amount.parse::<u64>()?,
            // A mapping's first line: addresses, permissions, offset, device, inode, and perhaps a name.
            [range, _, _, _, _, ..] if range.contains('-') => guest = line.contains("/memfd:"),
            _ => {}
        }
    }
    Ok(kib as f64 / 1024.0)
}

/// All that a process has resident (`VmRSS` of `/proc/PID/status`, proc(5)), in MiB.
pub fn resident_mib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| format!("process {pid} has no memory"))?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}

/// `MemAvailable` of `/proc/meminfo` (proc(5)), in MiB.
pub fn available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable in /proc/meminfo")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
}

/// The agent's resident set as the shim logged it at the sandbox's end, in MiB.
pub fn agent_mib(log: &[String]) -> Option<f64> {
    let line = log.iter().rev().find(|line| line.contains("agent_rss_kib="))?;
    let digits: String =
        line.split("agent_rss_kib=").nth(1)?.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    Some(digits.parse::<f64>().ok()? / 1024.0)
}
