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
//! mounts = ["/cache", "/etc/app"]    # something empty (tmpfs, emptyDir), or a directory of what `files` says
//! shared = ["/cache=scratch"]        # the same directory as whatever container has `scratch`; any other is its own
//! files = ["/etc/app/a.toml=sha256:…", "/etc/tls"] # copied in: this content must be there, anything may be at and below a path
//! read_only = true                   # root file system
//! no_new_privileges = true
//! terminal = false
//! stdin = false
//! disks = [{ destination = "/data", key = "kbs:///acme/api/disk" }] # of the host's, opened by a key: see [`crate::DiskRule`]
//! secrets = ["kbs:///acme/api/*"]    # what it may have at the workload API, as in allow.secrets
//! restart = true                     # may be created again after its end
//! init = false                       # must have ended with 0 before the next container
//! ```

use crate::{
    copied::{Copied, FileRules, check_entry},
    disks::DiskRule,
    rules::{AllowRules, ImageRule, PolicyError, repository, short},
    secrets::covers_secret,
    workload::{Denial, Overrides, Stdio, covers_env, env_entry, list},
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// `uid[:[gid][:group,…]]`; without a gid, the groups that the image gives that user. `None` is the image's own.
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
    /// Destinations of what is mounted empty (tmpfs, emptyDir), with options where they are not the usual ones; and of directories that are
    /// copied in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<String>,
    /// `path=name` of those that are empty directories which several containers have, or one has at several places: the same for the same
    /// name. Any other is of this container alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<String>,
    /// Files that are copied into it: `path=sha256:…`, which must be there, or a path at and below which anything may be.
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
    /// Disks that are mounted in it, each opened by a key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskRule>,
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
    /// The same without what the image gives the user by itself: `uid` or `uid::group,…`. `None` where the group is another.
    pub user_of_image: Option<String>,
    /// Working directory.
    pub cwd: String,
    /// What of this is not the image's.
    pub overrides: Overrides,
    /// Which directory of the machine's is at each place that is an empty directory: the same name for the same one.
    pub empty: Vec<(String, String)>,
    /// What the host has copied in, each at its own place.
    pub copied: Vec<Copied>,
    /// Where disks of the host's are mounted.
    pub disks: Vec<String>,
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
        let lists = [
            &self.shared,
            &self.secrets,
            &self.env,
            &self.add_capabilities,
            &self.drop_capabilities,
            &self.mounts,
            &self.files,
            &self.sysctls,
        ];
        if lists.iter().any(|list| list.len() > MAX_ENTRIES)
            || self.disks.len() > MAX_ENTRIES
            || self.args.as_ref().is_some_and(|args| args.len() > MAX_ENTRIES)
        {
            return bad(format!("more than {MAX_ENTRIES} entries in a list"));
        }
        if self.args.as_ref().is_some_and(Vec::is_empty) {
            return bad("args: empty; leave it out for the image's own command".into());
        }
        if let Some(entry) = self.env.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
            return bad(format!("env: {:?} has no name", short(entry)));
        }
        if self.user.as_ref().is_some_and(|user| !is_user(user)) {
            return bad("user: expected numbers, uid[:[gid][:group,…]]".into());
        }
        let is_mount = |path: &str| self.mounts.iter().any(|mount| mount.split(':').next() == Some(path));
        if let Some(entry) = self.shared.iter().find(|entry| !entry.split_once('=').is_some_and(|(p, n)| is_mount(p) && !n.is_empty())) {
            return bad(format!("shared: {:?}: expected path=name, with the path among mounts", short(entry)));
        }
        if let Some(fault) = self.disks.iter().find_map(DiskRule::fault) {
            return bad(format!("disks: {fault}"));
        }
        if let Some(twice) = (1..self.disks.len()).find(|n| self.disks[..*n].iter().any(|d| d.destination == self.disks[*n].destination)) {
            return bad(format!("disks: {:?} twice", short(&self.disks[twice].destination)));
        }
        self.files.iter().try_for_each(|entry| check_entry(&format!("container {:?}: files", short(&self.name)), entry))?;
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
        let same_user = match &self.user {
            None => overrides.user.is_none(),
            Some(user) => *user == wanted.user || wanted.user_of_image.as_ref() == Some(user),
        };
        if !same_user && !allow.user.allows(|allowed| *allowed == wanted.user) {
            found.add(format!("user {}", short(&wanted.user)), "user", &format!("{:?}", short(&wanted.user)));
        }
        let same_cwd = self.cwd.as_ref().map_or(overrides.cwd.is_none(), |cwd| *cwd == wanted.cwd);
        if !same_cwd && !allow.cwd.allows(|allowed| *allowed == wanted.cwd) {
            found.add(format!("working directory {}", short(&wanted.cwd)), "cwd", &format!("{:?}", short(&wanted.cwd)));
        }
        self.capabilities(overrides, allow, &mut found);
        self.mounts(wanted, allow, &mut found);
        let disks: Vec<String> = self.disks.iter().map(|disk| disk.destination.clone()).collect();
        found.both_ways("disk mounted at", "disks", &disks, &wanted.disks, |_| false);
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

    /// The name under which others have the empty directory at this place; none where it is its own.
    pub(crate) fn shared_as(&self, destination: &str) -> Option<&str> {
        self.shared.iter().filter_map(|entry| entry.split_once('=')).find(|(path, _)| *path == destination).map(|(_, name)| name)
    }

    /// May it have this at the workload API?
    pub fn has_secret(&self, name: &str) -> bool {
        self.secrets.iter().any(|entry| covers_secret(entry, name))
    }

    /// What is mounted and what is in it. A directory of copied files is a mount like an empty one.
    fn mounts(&self, wanted: &Wanted, allow: &AllowRules, found: &mut Differences<'_>) {
        let mounts = &wanted.overrides.mounts;
        let listed = |copied: &&Copied| self.mounts.contains(&copied.destination);
        let all: Vec<String> = mounts.iter().cloned().chain(wanted.copied.iter().filter(listed).map(|c| c.destination.clone())).collect();
        found.both_ways("mount at", "mounts", &self.mounts, &all, |mount| allow.mounts.allows(|m| m == mount));
        let rules = FileRules { allow, containers: std::slice::from_ref(self) };
        found.list.extend(wanted.copied.iter().filter_map(|copied| rules.check(copied).err()));
        for entry in FileRules::missing(self, &wanted.copied, mounts) {
            let path = entry.split('=').next().unwrap_or_default();
            found.add(format!("without file {}", short(path)), "files", "it no longer, if it is not needed,");
        }
    }
}

/// `uid[:[gid][:group,…]]`, in numbers.
fn is_user(text: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().is_ok();
    match *text.splitn(3, ':').collect::<Vec<_>>() {
        [uid] => number(uid),
        [uid, gid] => number(uid) && number(gid),
        [uid, gid, groups] => number(uid) && (gid.is_empty() || number(gid)) && groups.split(',').all(number),
        _ => false,
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
