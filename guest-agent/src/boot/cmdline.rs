//! The kernel command line, which is measured: the one channel of configuration that the host cannot change unseen.

use log::LevelFilter;
use std::fs;

/// The value of `key=value` in /proc/cmdline.
pub fn value(key: &str) -> Option<String> {
    find(&fs::read_to_string("/proc/cmdline").ok()?, key).map(str::to_owned)
}

/// `cloister.log=<off|error|warn|info|debug|trace>`; info without it.
pub fn log_level() -> LevelFilter {
    value("cloister.log").and_then(|v| v.parse().ok()).unwrap_or(LevelFilter::Info)
}

/// The launch measurement's development stand-in, for a guest without a TEE (`cloister.measurement=<hex>`).
pub fn measurement() -> Option<String> {
    value("cloister.measurement").filter(|v| v.len() <= 128 && v.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn find<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_matched_whole() {
        let line = "quiet cloister.logs=x cloister.log=debug cloister.log=warn\n";
        assert_eq!(find(line, "cloister.log"), Some("debug"));
        assert_eq!(find(line, "cloister"), None);
        assert_eq!(find(line, "quiet"), None);
    }
}
