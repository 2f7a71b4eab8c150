//! Samples, their medians and spread, as a table and as JSON.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// Wall time.
    Seconds,
    /// Wall time of what is short.
    Milliseconds,
    /// 2^20 bytes in a second.
    Rate,
    /// 2^20 bytes.
    MiB,
    /// Of two times.
    Ratio,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::MiB => "MiB",
            Self::Rate => "MiB/s",
            Self::Ratio => "x",
        }
    }
}

struct Row {
    name: String,
    unit: Unit,
    samples: Vec<f64>,
    goal: Option<f64>,
}

/// Everything that was measured, in the order of first mention.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a sample.
    pub fn add(&mut self, name: &str, unit: Unit, sample: f64) {
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { name: name.to_owned(), unit, samples: vec![sample], goal: None }),
        }
    }

    /// The newest sample.
    pub fn last(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name)?.samples.last().copied()
    }

    /// The most that the median should be.
    pub fn goal(&mut self, name: &str, most: f64) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == name) {
            row.goal = Some(most);
        }
    }

    /// Prints the table and writes `results.json` into `directory`.
    pub fn finish(&self, directory: &Path) -> Result<()> {
        println!("\n{:52} {:>9} {:>9} {:>9} {:>4}  {:>6}", "", "median", "min", "max", "n", "goal");
        let mut rows = Vec::new();
        for row in &self.rows {
            let sorted = sorted(&row.samples);
            let (median, min, max) = (median(&sorted), sorted[0], sorted[sorted.len() - 1]);
            let goal = row.goal.map_or_else(String::new, |goal| format!("{goal:6.1} {}", if median <= goal { "met" } else { "MISSED" }));
            println!("{:52} {median:9.3} {min:9.3} {max:9.3} {:4}  {goal} {}", row.name, sorted.len(), row.unit.name());
            rows.push(json!({
                "name": row.name, "unit": row.unit.name(), "median": median, "min": min, "max": max, "samples": row.samples, "goal": row.goal,
            }));
        }
        fs::create_dir_all(directory)?;
        let path = directory.join("results.json");
        fs::write(&path, serde_json::to_string_pretty(&json!({"measurements": rows}))?).with_context(|| path.display().to_string())?;
        println!("\nJSON: {}", path.display());
        Ok(())
    }
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}
