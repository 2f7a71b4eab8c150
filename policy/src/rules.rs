//! `policy.toml` as it is written; what each key means stands in [`crate::workload`].

use crate::{allow::Allow, initdata::one_line};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Entries of any list in a policy.
const MAX_ENTRIES: usize = 1024;

/// A policy that cannot be used. The agent then starts nothing.
#[derive(Debug, Error)]
#[error("policy.toml in the initdata: {0}")]
pub struct PolicyError(String);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageRule {
    pub(crate) digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<String>,
    /// Some of its layers may be plain while others are encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) mixed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AllowRules {
    pub(crate) args: Allow<Vec<String>>,
    pub(crate) env: Allow<String>,
    pub(crate) user: Allow<String>,
    pub(crate) cwd: Allow<String>,
    pub(crate) capabilities: Allow<String>,
    pub(crate) mounts: Allow<String>,
    pub(crate) devices: Allow<String>,
    pub(crate) sysctls: Allow<String>,
    pub(crate) privileged: bool,
    pub(crate) exec: Allow<Vec<String>>,
    pub(crate) signals: Allow<u32>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) output: bool,
    pub(crate) share_processes: bool,
    pub(crate) port_forward: Allow<u16>,
}

impl Default for AllowRules {
    fn default() -> Self {
        Self {
            args: Allow::default(),
            env: Allow::default(),
            user: Allow::default(),
            cwd: Allow::default(),
            capabilities: Allow::default(),
            mounts: Allow::default(),
            devices: Allow::default(),
            sysctls: Allow::default(),
            privileged: false,
            exec: Allow::default(),
            signals: Allow::default(),
            terminal: false,
            stdin: false,
            // Output is what the workload itself chose to print; a job whose result cannot be seen is rarely what is wanted.
            output: true,
            share_processes: false,
            port_forward: Allow::default(),
        }
    }
}

/// `policy.toml` as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rules {
    pub(crate) image: Vec<ImageRule>,
    pub(crate) allow: AllowRules,
}

impl Rules {
    /// Reads a policy; unknown keys are errors.
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
        let rules: Self = toml::from_str(text).map_err(|e| PolicyError(one_line(text, &e)))?;
        rules.check()?;
        Ok(rules)
    }

    /// What the types cannot say.
    fn check(&self) -> Result<(), PolicyError> {
        let lengths = [
            ("image", Some(self.image.len())),
            ("allow.args", self.allow.args.length()),
            ("allow.env", self.allow.env.length()),
            ("allow.user", self.allow.user.length()),
            ("allow.cwd", self.allow.cwd.length()),
            ("allow.capabilities", self.allow.capabilities.length()),
            ("allow.mounts", self.allow.mounts.length()),
            ("allow.devices", self.allow.devices.length()),
            ("allow.sysctls", self.allow.sysctls.length()),
            ("allow.exec", self.allow.exec.length()),
            ("allow.signals", self.allow.signals.length()),
            ("allow.port_forward", self.allow.port_forward.length()),
        ];
        if let Some((key, _)) = lengths.iter().find(|(_, length)| length.is_some_and(|n| n > MAX_ENTRIES)) {
            return Err(PolicyError(format!("{key}: more than {MAX_ENTRIES} entries")));
        }
        for rule in &self.image {
            let digits = rule.digest.strip_prefix("sha256:").unwrap_or_default();
            if digits.len() != 64 || digits.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return Err(PolicyError(format!("image.digest {:?}: expected sha256: and 64 lower-case hex digits", short(&rule.digest))));
            }
            if let Some(name) = &rule.repository
                && repository(name) != name
            {
                return Err(PolicyError(format!("image.repository {:?}: without tag and digest", short(name))));
            }
        }
        Ok(())
    }
}

/// A reference without its tag and digest.
pub(crate) fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or_default();
    // A colon before the last slash is a registry's port.
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    name[start..].find(':').map_or(name, |colon| &name[..start + colon])
}

/// A hostile string for an error text: bounded, and on one line.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(160).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn malformed_policies_are_refused() {
        let cases = [
            ("[allow]\nargs = 1\n", "true, false or a list"),
            ("[allow]\nexecs = true\n", "execs"),
            ("[[image]]\nrepository = \"x\"\n", "digest"),
            ("[[image]]\ndigest = \"sha256:AA\"\n", "64 lower-case"),
            (&format!("[[image]]\ndigest = {DIGEST:?}\nrepository = \"x:1\"\n"), "without tag"),
            (&format!("[allow]\nsignals = [{}]\n", "1,".repeat(MAX_ENTRIES + 1)), "allow.signals"),
            ("images = []\n", "images"),
        ];
        for (text, wanted) in cases {
            let error = Rules::parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn references_lose_tag_and_digest() {
        for (reference, wanted) in
            [("a:1", "a"), ("h:5000/a", "h:5000/a"), ("h:5000/a:1@sha256:x", "h:5000/a"), ("a@sha256:x", "a"), ("", "")]
        {
            assert_eq!(repository(reference), wanted, "{reference}");
        }
    }
}
