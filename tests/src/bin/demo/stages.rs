//! The stages of a start, from `ctr` to the first byte of output, out of the shim's log.

use std::time::Duration;

use tests::stages::stage;

use crate::story::Story;

/// What each stage's short name in the log means.
const MEANINGS: [(&str, &str); 12] = [
    ("qemu", "prepare and start QEMU"),
    ("boot", "kernel and agent, until the agent speaks"),
    ("sandbox", "initdata, network, policy"),
    ("resolve", "resolve the reference"),
    ("manifest", "fetch and verify manifest and config"),
    ("scratch", "make and format the encrypted scratch disk"),
    ("attest", "evidence to the broker, token back (began with the sandbox)"),
    ("key", "key from the broker, unwrapped"),
    ("fetch", "fetch and verify the layers (beside the others)"),
    ("unpack", "decrypt and unpack the layers"),
    ("rootfs", "root file system"),
    ("create", "create the container"),
];

/// Adds a row for each stage that the shim and the agent reported, and one for the whole.
pub fn rows(story: &mut Story, log: &[String], first_output: Duration) {
    let mut told = Duration::ZERO;
    for (name, time) in log.iter().filter_map(|line| stage(line)) {
        told += time;
        let meaning = MEANINGS.iter().find(|(short, _)| *short == name).map_or(name.as_str(), |(_, meaning)| meaning);
        story.row(&format!("  {meaning}"), time);
    }
    story.row("  ctr, containerd, and what is not told above", first_output.saturating_sub(told));
    story.row("ctr run: to the first byte of output", first_output);
}
