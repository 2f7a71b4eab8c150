//! What a pod costs its host: the processor time and the memory of its VM's process, which the guest cannot lie about.

use containerd_shim_protos::cgroups_v2::metrics::{CPUStat, MemoryStat, Metrics};
use protobuf::MessageField;
use std::fs;

/// Clock ticks of `/proc/<pid>/stat` in a second: 100 on every architecture that Linux has (`USER_HZ`).
const TICKS: u64 = 100;
/// Bytes of a page on x86-64.
const PAGE: u64 = 4096;

/// The usage of a process, in the type that containerd has for a cgroup's. Zeroes once it is gone.
pub fn of(pid: u32) -> Metrics {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    metrics(&read("stat"), &read("statm"))
}

fn metrics(stat: &str, statm: &str) -> Metrics {
    // proc(5): the second field, the name, may hold spaces and parentheses; 14 and 15 are user and system time.
    let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let micros = |n: usize| fields.get(n).and_then(|ticks| ticks.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1_000_000 / TICKS);
    let pages = |n: usize| statm.split_whitespace().nth(n).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0).saturating_mul(PAGE);
    let (user, system) = (micros(11), micros(12));
    let (resident, shared) = (pages(1), pages(2));
    let cpu = CPUStat { usage_usec: user.saturating_add(system), user_usec: user, system_usec: system, ..Default::default() };
    let memory = MemoryStat { usage: resident, anon: resident.saturating_sub(shared), file: shared, ..Default::default() };
    Metrics { cpu: MessageField::some(cpu), memory: MessageField::some(memory), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 200";
        let metrics = metrics(stat, "1000 200 50 1 0 90 0");
        assert_eq!((metrics.cpu.user_usec, metrics.cpu.system_usec, metrics.cpu.usage_usec), (2_500_000, 500_000, 3_000_000));
        assert_eq!((metrics.memory.usage, metrics.memory.anon), (200 * PAGE, 150 * PAGE));
        let gone = super::metrics("", "");
        assert_eq!((gone.cpu.usage_usec, gone.memory.usage), (0, 0));
        assert!(of(std::process::id()).memory.usage > 0);
    }
}
