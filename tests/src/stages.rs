//! The stages of a start, as the shim logs them.

use std::time::Duration;

/// What the cost of an image is made of: from its reference to its root file system, without what every container costs.
const OF_IMAGE: [&str; 6] = ["resolve", "manifest", "key", "fetch", "unpack", "rootfs"];

/// Name and time out of `… stage=NAME … micros=N …`; None for any other line.
pub fn stage(line: &str) -> Option<(String, Duration)> {
    let field = |key: &str| {
        let rest = &line[line.find(&format!("{key}="))? + key.len() + 1..];
        let rest = rest.trim_start_matches(['"', '\\']);
        Some(rest[..rest.find(['"', '\\', ' ']).unwrap_or(rest.len())].to_owned())
    };
    Some((field("stage")?, Duration::from_micros(field("micros")?.parse().ok()?)))
}

/// What the way of the layers took, from the first byte that was asked for to the last file.
pub fn unpacking(log: &[String]) -> Duration {
    sum(log, &["fetch", "unpack"])
}

/// The part of it until the last blob was whole, hashed and on scratch.
pub fn fetching(log: &[String]) -> Duration {
    sum(log, &["fetch"])
}

/// What the image itself cost a container, out of the lines of its log.
pub fn of_image(log: &[String]) -> Duration {
    sum(log, &OF_IMAGE)
}

fn sum(log: &[String], names: &[&str]) -> Duration {
    log.iter().filter_map(|line| stage(line)).filter(|(name, _)| names.contains(&name.as_str())).map(|(_, time)| time).sum()
}
