//! GuestInfo: the agent's memory and the marks of its start.

use crate::boot::marks;
use protocol::api;
use std::fs;

/// What the host may know about the agent itself.
pub fn guest_info() -> api::GuestInfoResponse {
    api::GuestInfoResponse {
        agent_rss_kib: fs::read_to_string("/proc/self/status").map_or(0, |status| resident_kib(&status)),
        boot: stages(&marks::all()),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_version: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        ..Default::default()
    }
}

/// Names and microseconds as the host gets them.
pub fn stages(list: &[(&str, u64)]) -> Vec<api::Stage> {
    list.iter().map(|(name, micros)| api::Stage { name: (*name).to_owned(), micros: *micros, ..Default::default() }).collect()
}

/// `VmRSS` of /proc/<pid>/status (proc_pid_status(5)).
fn resident_kib(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_set_is_found() {
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    5120 kB\nRssAnon:\t 1 kB\n"), 5120);
        assert_eq!(resident_kib(""), 0);
        assert!(guest_info().agent_rss_kib > 0);
    }
}
