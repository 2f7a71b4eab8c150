//! The stages of a start, from `ctr` to the first byte of output, out of the shim's log.

use std::time::Duration;

use crate::story::Story;

/// Adds a row for each stage that the shim and the agent reported, and one for the whole.
pub fn rows(story: &mut Story, log: &[String], first_output: Duration) {
    let mut told = Duration::ZERO;
    for (name, time) in log.iter().filter_map(|line| stage(line)) {
        told += time;
        story.row(&format!("  {name}"), time);
    }
    story.row("  ctr, containerd, and what is not told above", first_output.saturating_sub(told));
    story.row("ctr run: to the first byte of output", first_output);
}

/// `… stage=NAME … micros=N …`, as the shim writes it.
fn stage(line: &str) -> Option<(String, Duration)> {
    let field = |key: &str| {
        let rest = &line[line.find(&format!("{key}="))? + key.len() + 1..];
        let rest = rest.trim_start_matches(['"', '\\']);
        Some(rest[..rest.find(['"', '\\', ' ']).unwrap_or(rest.len())].to_owned())
    };
    Some((field("stage")?, Duration::from_micros(field("micros")?.parse().ok()?)))
}
