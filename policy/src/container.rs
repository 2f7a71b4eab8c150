//! `[[container]]`: what a container is, exactly. `[allow]` says what a host *may* change; this says what *must* be, so that leaving
//! something out is a refusal like changing it.
//!
//! ```toml
//! [[container]]
//! name = "api"                       # for messages
//! image = { digest = "sha256:9f2c…", repository = "ghcr.io/acme/api" }
//! args = ["/bin/api", "--verbose"]   # whole command line; absent: the image's
//! env = ["MODE=batch", "POD_IP"]     # NAME=value must be there; NAME may be there with any value
//! user = "1000:1000"                 # absent: the image's
//! cwd = "/srv"                       # absent: the image's
//! drop_capabilities = ["ALL"]        # from the runtime's default set
//! add_capabilities = ["CAP_NET_BIND_SERVICE"]
//! mounts = ["/cache"]                # tmpfs, by destination
//! files = ["/etc/app.toml=sha256:…", "/etc/tls"]  # copied in: this content, or anything below this path
//! read_only = true                   # root file system
//! no_new_privileges = true
//! terminal = false
//! stdin = false
//! secrets = ["kbs:///acme/api/*"]    # what it may have at the workload API, as in allow.secrets
//! restart = true                     # may be created again after its end
//! init = false                       # must have ended with 0 before the next container
//! ```

use crate::{
    rules::{AllowRules, ImageRule, PolicyError, repository, short},
    workload::{Denial, Overrides, Stdio, covers_env, covers_file, covers_secret, env_entry, list},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What a runtime gives to a container where nothing else is said: containerd's and Docker's set.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Those of them that CRI-O does not give; whether they are there is the runtime's choice, not an override.
const RUNTIMES_CHOICE: [&str; 5] = ["CAP_AUDIT_WRITE", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SYS_CHROOT"];

/// Entries of any list of a container.
const MAX_ENTRIES: usize = 1024;

/// One container of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a key of the file")]
pub struct ContainerRule {
    /// For messages.
    pub name: String,
    /// What it runs.
    pub image: ImageRule,
    /// The whole command line; `None` is the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// `NAME=value`, or a name that may have any value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// `uid[:gid[:group,…]]`; `None` is the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory; `None` is the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Beyond the default set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_capabilities: Vec<String>,
    /// Out of the default set, or `ALL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_capabilities: Vec<String>,
    /// Destinations of tmpfs mounts, with options where they are not the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
    /// Files that are copied into it: `path=sha256:…`, or a path below which anything may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What it may have at the workload API, beside what all may: `kbs:///…`, with `*` at its end for any, `token`, `evidence`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// `name=value` of its IPC namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<String>,
    /// A read-only root file system.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// Set-user-id programs gain nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_new_privileges: bool,
    /// A terminal.
    #[serde(default, skip_serializing_if = "is_false")]
    pub terminal: bool,
    /// The host writes to it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// It may be created again after its end.
    #[serde(default, skip_serializing_if = "is_false")]
    pub restart: bool,
    /// It must have ended with 0 before the next container is created.
    #[serde(default, skip_serializing_if = "is_false")]
    pub init: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde wants")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// An image that the agent has verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// As the host wrote it.
    pub reference: String,
    /// `sha256:…` of the manifest, and of the index that led to it.
    pub digests: Vec<String>,
}

/// A container as it would run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its image.
    pub image: Image,
    /// The whole command line.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// `uid:gid` with `:group,…` for further groups.
    pub user: String,
    /// Working directory.
    pub cwd: String,
    /// What of this is not the image's.
    pub overrides: Overrides,
    /// Streams.
    pub stdio: Stdio,
}

impl ImageRule {
    /// Whether `image` is what this describes.
    pub fn covers(&self, image: &Image) -> bool {
        self.has_digest(image) && self.repository.as_deref().is_none_or(|name| name == repository(&image.reference))
    }

    pub(crate) fn has_digest(&self, image: &Image) -> bool {
        image.digests.contains(&self.digest)
    }
}

impl ContainerRule {
    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        let bad = |what: String| Err(PolicyError::new(format!("container {:?}: {what}", short(&self.name))));
        if self.name.is_empty() {
            return bad("name: empty".into());
        }
        self.image.check("container.image")?;
        let lists = [&self.secrets, &self.env, &self.add_capabilities, &self.drop_capabilities, &self.mounts, &self.files, &self.sysctls];
        if lists.iter().any(|list| list.len() > MAX_ENTRIES) || self.args.as_ref().is_some_and(|args| args.len() > MAX_ENTRIES) {
            return bad(format!("more than {MAX_ENTRIES} entries in a list"));
        }
        if self.args.as_ref().is_some_and(Vec::is_empty) {
            return bad("args: empty; leave it out for the image's own command".into());
        }
        if let Some(entry) = self.env.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
            return bad(format!("env: {:?} has no name", short(entry)));
        }
        if self.user.as_ref().is_some_and(|user| user.split([':', ',']).any(|id| id.parse::<u32>().is_err())) {
            return bad("user: expected numbers, uid[:gid[:group,…]]".into());
        }
        let mut capabilities = self.add_capabilities.iter().chain(&self.drop_capabilities);
        if let Some(name) = capabilities.find(|name| !name.starts_with("CAP_") && *name != "ALL") {
            return bad(format!("capability {:?}: expected CAP_… or ALL", short(name)));
        }
        Ok(())
    }

    /// Everything in which `wanted` differs from this container, the image first.
    pub(crate) fn differences(&self, wanted: &Wanted, allow: &AllowRules) -> Vec<Denial> {
        let mut found = Differences { rule: self, list: Vec::new() };
        if !self.image.covers(&wanted.image) {
            found.add(format!("image {}", short(&wanted.image.reference)), "image", "its digest and repository");
        }
        let overrides = &wanted.overrides;
        let same = |rule: &Option<Vec<String>>| rule.as_ref().map_or(overrides.args.is_none(), |args| *args == wanted.args);
        if !same(&self.args) && !allow.args.allows(|allowed| *allowed == wanted.args) {
            found.add(format!("command line {}", list(&wanted.args)), "args", &list(&wanted.args));
        }
        self.environment(wanted, allow, &mut found);
        let same_user = match self.user.as_deref() {
            None => overrides.user.is_none(),
            Some(user) if user.contains(':') => user == wanted.user,
            // The group is then the user's own in the image, or 0 where the host could not look it up.
            Some(uid) => match wanted.user.strip_prefix(uid) {
                Some(":0") => true,
                Some(group) => group.starts_with(':') && overrides.user.is_none(),
                None => false,
            },
        };
        if !same_user && !allow.user.allows(|allowed| *allowed == wanted.user) {
            found.add(format!("user {}", short(&wanted.user)), "user", &format!("{:?}", short(&wanted.user)));
        }
        let same_cwd = self.cwd.as_ref().map_or(overrides.cwd.is_none(), |cwd| *cwd == wanted.cwd);
        if !same_cwd && !allow.cwd.allows(|allowed| *allowed == wanted.cwd) {
            found.add(format!("working directory {}", short(&wanted.cwd)), "cwd", &format!("{:?}", short(&wanted.cwd)));
        }
        self.capabilities(overrides, allow, &mut found);
        found.both_ways("mount at", "mounts", &self.mounts, &overrides.mounts, |mount| allow.mounts.allows(|m| m == mount));
        let sysctls: Vec<String> = overrides.sysctls.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let allowed = |sysctl: &String| sysctl.split_once('=').is_some_and(|(n, v)| allow.sysctls.allows(|entry| covers_env(entry, n, v)));
        found.both_ways("sysctl", "sysctls", &self.sysctls, &sysctls, allowed);
        for device in overrides.devices.iter().filter(|device| !allow.devices.allows(|entry| entry == *device)) {
            found.add(format!("device {}", short(device)), "image", "what needs it there, or the device into allow.devices,");
        }
        let flags = [
            ("a read-only root", "read_only", overrides.read_only, self.read_only, false),
            ("no_new_privileges", "no_new_privileges", overrides.no_new_privileges, self.no_new_privileges, false),
            ("all devices of the guest", "image", overrides.privileged, false, allow.privileged),
            ("the pod's process namespace", "image", overrides.share_processes, false, allow.share_processes),
            ("a terminal", "terminal", wanted.stdio.terminal || overrides.terminal, self.terminal, allow.terminal),
            ("standard input", "stdin", wanted.stdio.stdin, self.stdin, allow.stdin),
        ];
        for (what, key, asked, rule, either) in flags {
            if asked != rule && !either {
                let what = if asked { what.to_owned() } else { format!("without {what}") };
                found.add(what, key, &asked.to_string());
            }
        }
        found.list
    }

    fn environment(&self, wanted: &Wanted, allow: &AllowRules, found: &mut Differences<'_>) {
        for (name, value) in &wanted.overrides.env {
            if !self.env.iter().any(|entry| covers_env(entry, name, value)) && !allow.env.allows(|entry| covers_env(entry, name, value)) {
                found.add(format!("environment variable {}", short(name)), "env", &env_entry(name, value));
            }
        }
        for entry in self.env.iter().filter(|entry| entry.contains('=')) {
            if !wanted.env.contains(entry) {
                let name = entry.split('=').next().unwrap_or_default();
                found.add(format!("environment without {} as it must be", short(name)), "env", "another value");
            }
        }
    }

    fn capabilities(&self, overrides: &Overrides, allow: &AllowRules, found: &mut Differences<'_>) {
        let names = |list: &[String]| -> BTreeSet<String> { list.iter().cloned().collect() };
        let default: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
        let add = names(&self.add_capabilities);
        let dropped =
            if self.drop_capabilities.iter().any(|name| name == "ALL") { default.clone() } else { names(&self.drop_capabilities) };
        let must_lack: BTreeSet<String> = dropped.intersection(&default).filter(|name| !add.contains(*name)).cloned().collect();
        let must_have: BTreeSet<String> = add.difference(&default).cloned().collect();
        let (added, lacking) = (names(&overrides.capabilities), names(&overrides.dropped_capabilities));
        let allowed = |name: &String| allow.capabilities.allows(|entry| entry == name);
        for name in added.difference(&must_have).chain(must_lack.difference(&lacking)).filter(|name| !allowed(name)) {
            found.add(format!("capability {}", short(name)), "add_capabilities", &format!("{:?}", short(name)));
        }
        let optional = |name: &String| RUNTIMES_CHOICE.contains(&name.as_str()) && !add.contains(name);
        for name in must_have.difference(&added).chain(lacking.difference(&must_lack).filter(|name| !optional(name))) {
            found.add(format!("without capability {}", short(name)), "drop_capabilities", &format!("{:?}", short(name)));
        }
    }

    /// May it have this at the workload API?
    pub fn has_secret(&self, name: &str) -> bool {
        self.secrets.iter().any(|entry| covers_secret(entry, name))
    }

    /// May this file be copied in?
    pub(crate) fn takes_file(&self, path: &str, digest: &str) -> bool {
        self.files.iter().any(|entry| covers_file(entry, path, digest))
    }
}

/// What was found, as denials that name the container.
struct Differences<'a> {
    rule: &'a ContainerRule,
    list: Vec<Denial>,
}

impl Differences<'_> {
    fn add(&mut self, asked: String, key: &str, value: &str) {
        let name = short(&self.rule.name);
        self.list.push(Denial {
            asked,
            rule: format!("container {name:?} is not so"),
            remedy: format!("put {value} into {key} of that [[container]] in policy.toml of the initdata"),
        });
    }

    /// What is too much and what is missing.
    fn both_ways(&mut self, what: &str, key: &str, rule: &[String], asked: &[String], allowed: impl Fn(&String) -> bool) {
        for entry in asked.iter().filter(|entry| !rule.contains(entry) && !allowed(entry)) {
            self.add(format!("{what} {}", short(entry)), key, &format!("{:?}", short(entry)));
        }
        for (index, entry) in asked.iter().enumerate() {
            if asked[..index].contains(entry) {
                self.add(format!("{what} {} twice", short(entry)), key, "it once");
            }
        }
        for entry in rule.iter().filter(|entry| !asked.contains(entry)) {
            self.add(format!("without {what} {}", short(entry)), key, "it no longer, if it is not needed,");
        }
    }
}
