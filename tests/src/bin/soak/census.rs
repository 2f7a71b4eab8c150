//! What processes hold: descriptors, threads, memory.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use tests::memory;

/// What memory may grow by and still count as flat, in MiB: a heap keeps pages that it was given back in pieces.
const MEMORY_SLACK: f64 = 3.0;

/// The holdings of some processes at one moment.
pub struct Census {
    rows: Vec<(String, f64, f64)>,
}

impl Census {
    /// Counts, now.
    pub fn of(processes: &[(&str, u32)]) -> Result<Self> {
        let mut rows = Vec::new();
        for (name, pid) in processes {
            let entries = |what: &str| -> Result<f64> {
                let path = format!("/proc/{pid}/{what}");
                Ok(fs::read_dir(&path).with_context(|| path.clone())?.count() as f64)
            };
            rows.push((format!("{name}: descriptors"), entries("fd")?, 0.0));
            rows.push((format!("{name}: threads"), entries("task")?, 0.0));
            // QEMU's heap is the guest's business: its code cache grows with what the guest runs.
            if *name != "qemu" {
                rows.push((format!("{name}: memory (PSS, MiB)"), memory::private_mib(*pid)?, MEMORY_SLACK));
            }
        }
        Ok(Self { rows })
    }

    /// What became of each number.
    pub fn growth(&self, after: &Self) -> Vec<Growth> {
        let pairs = self.rows.iter().zip(&after.rows);
        pairs
            .map(|((name, before, slack), (_, after, _))| Growth { name: name.clone(), before: *before, after: *after, slack: *slack })
            .collect()
    }
}

/// One number, before and after.
pub struct Growth {
    name: String,
    before: f64,
    after: f64,
    slack: f64,
}

impl Growth {
    /// Whether it did not grow. Worker threads that are idle for a while end, so fewer is as good.
    pub fn is_flat(&self) -> bool {
        self.after <= self.before + self.slack
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_flat() { "flat" } else { "GREW" };
        write!(f, "{:44} {:9.1} {:9.1}  {verdict}", self.name, self.before, self.after)
    }
}
