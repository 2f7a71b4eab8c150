//! `policy.toml` as it is written; what each key means stands in [`crate::workload`] and [`crate::container`].

use crate::{allow::Allow, container::ContainerRule, copied::check_entry, initdata::one_line};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Entries of any list in a policy.
const MAX_ENTRIES: usize = 1024;

/// Longest time that a pod may take to be complete, in seconds: a day.
const MAX_COMPLETE_WITHIN_S: u32 = 86_400;

/// A policy that cannot be used. The agent then starts nothing.
#[derive(Debug, Error)]
#[error("policy.toml in the initdata: {0}")]
pub struct PolicyError(String);

/// An image that may run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// `sha256:…` of the manifest, or of the index above it.
    pub digest: String,
    /// Narrows it to references into this repository, without tag and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Some of its layers may be plain while others are encrypted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mixed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    pub(crate) copy_in: Allow<String>,
    pub(crate) exec: Allow<Vec<String>>,
    pub(crate) signals: Allow<u32>,
    pub(crate) secrets: Allow<String>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) output: bool,
    pub(crate) stats: bool,
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
            copy_in: Allow::default(),
            exec: Allow::default(),
            signals: Allow::default(),
            secrets: Allow::default(),
            terminal: false,
            stdin: false,
            // Output is what the workload itself chose to print; a job whose result cannot be seen is rarely what is wanted. Numbers
            // of processes, pages and processor time are what a host can count from outside anyway.
            output: true,
            stats: true,
            share_processes: false,
            port_forward: Allow::default(),
        }
    }
}

/// What holds for all containers together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PodRules {
    pub(crate) order: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) complete_within_s: Option<u32>,
    pub(crate) network: bool,
}

impl Default for PodRules {
    fn default() -> Self {
        Self { order: false, complete_within_s: None, network: true }
    }
}

/// `policy.toml` as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rules {
    pub(crate) image: Vec<ImageRule>,
    pub(crate) pod: PodRules,
    pub(crate) container: Vec<ContainerRule>,
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
        let allow = &self.allow;
        let lengths = [
            ("image", Some(self.image.len())),
            ("container", Some(self.container.len())),
            ("allow.args", allow.args.length()),
            ("allow.env", allow.env.length()),
            ("allow.user", allow.user.length()),
            ("allow.cwd", allow.cwd.length()),
            ("allow.capabilities", allow.capabilities.length()),
            ("allow.mounts", allow.mounts.length()),
            ("allow.sysctls", allow.sysctls.length()),
            ("allow.copy_in", allow.copy_in.length()),
            ("allow.exec", allow.exec.length()),
            ("allow.signals", allow.signals.length()),
            ("allow.secrets", allow.secrets.length()),
            ("allow.devices", allow.devices.length()),
            ("allow.port_forward", allow.port_forward.length()),
        ];
        if let Some((key, _)) = lengths.iter().find(|(_, length)| length.is_some_and(|n| n > MAX_ENTRIES)) {
            return Err(PolicyError(format!("{key}: more than {MAX_ENTRIES} entries")));
        }
        self.image.iter().try_for_each(|rule| rule.check("image"))?;
        if let Allow::Only(entries) = &allow.copy_in {
            entries.iter().try_for_each(|entry| check_entry("allow.copy_in", entry))?;
        }
        for (index, rule) in self.container.iter().enumerate() {
            rule.check()?;
            if self.container[..index].iter().any(|earlier| earlier.name == rule.name) {
                return Err(PolicyError(format!("container.name {:?}: used twice", short(&rule.name))));
            }
        }
        if !self.image.is_empty() && !self.container.is_empty() {
            return Err(PolicyError("[[image]] beside [[container]]: each [[container]] names its image; remove [[image]]".into()));
        }
        let pod = &self.pod;
        if self.container.is_empty() && (pod.order || pod.complete_within_s.is_some()) {
            return Err(PolicyError("pod.order and pod.complete_within_s need [[container]] entries to be about".into()));
        }
        match pod.complete_within_s {
            Some(0) => Err(PolicyError("pod.complete_within_s: at least 1".into())),
            Some(seconds) if seconds > MAX_COMPLETE_WITHIN_S => {
                Err(PolicyError(format!("pod.complete_within_s: at most {MAX_COMPLETE_WITHIN_S}")))
            }
            _ => Ok(()),
        }
    }
}

impl ImageRule {
    pub(crate) fn check(&self, key: &str) -> Result<(), PolicyError> {
        let digits = self.digest.strip_prefix("sha256:").unwrap_or_default();
        if digits.len() != 64 || digits.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(PolicyError(format!("{key}.digest {:?}: expected sha256: and 64 lower-case hex digits", short(&self.digest))));
        }
        match &self.repository {
            Some(name) if repository(name) != name => {
                Err(PolicyError(format!("{key}.repository {:?}: without tag and digest", short(name))))
            }
            _ => Ok(()),
        }
    }
}

impl PolicyError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
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
        let container = format!("[[container]]\nname = \"a\"\nimage.digest = {DIGEST:?}\n");
        let cases = [
            ("[allow]\nargs = 1\n", "true, false or a list"),
            ("[allow]\nexecs = true\n", "execs"),
            ("[[image]]\nrepository = \"x\"\n", "digest"),
            ("[[image]]\ndigest = \"sha256:AA\"\n", "64 lower-case"),
            (&format!("[[image]]\ndigest = {DIGEST:?}\nrepository = \"x:1\"\n"), "without tag"),
            (&format!("[allow]\nsignals = [{}]\n", "1,".repeat(MAX_ENTRIES + 1)), "allow.signals"),
            ("images = []\n", "images"),
            ("[[container]]\nname = \"a\"\n", "image"),
            (&format!("{container}{container}"), "used twice"),
            (&format!("{container}[[image]]\ndigest = {DIGEST:?}\n"), "remove [[image]]"),
            (&format!("{container}env = [\"=x\"]\n"), "container \"a\": env"),
            (&format!("{container}args = []\n"), "container \"a\": args"),
            (&format!("{container}user = \"app\"\n"), "container \"a\": user"),
            (&format!("{container}drop_capabilities = [\"CHOWN\"]\n"), "CAP_"),
            (&format!("{container}mounts = [\"/m\"]\nshared = [\"/m\"]\n"), "container \"a\": shared"),
            (&format!("{container}shared = [\"/m=x\"]\n"), "among mounts"),
            (&format!("{container}[pod]\ncomplete_within_s = 0\n"), "at least 1"),
            ("[pod]\norder = true\n", "need [[container]]"),
        ];
        for (text, wanted) in cases {
            let error = Rules::parse(text).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{text:?}: {error}");
        }
        assert!(Rules::parse(&container).is_ok());
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
