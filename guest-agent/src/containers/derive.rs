//! The container's process, derived from the image's verified config. What the host's spec says differently is an *override*: listed here
//! for the policy to decide on, and applied only then.

use crate::containers::{
    devices::Access,
    host_spec::{HostSpec, all_capabilities},
    users::{self, Ids, UserError},
};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use policy::{DEFAULT_CAPABILITIES, Image, Overrides, Stdio, Wanted};
use protocol::IMAGE_USER;
use std::collections::BTreeSet;
use thiserror::Error;

/// PATH of an image that sets none, as every runtime has it.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why no process could be derived.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeriveError {
    /// Nothing to run.
    #[error("the image names no command and none was given; add one to the image or to the command line")]
    NoCommand,
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A value of the image.
    #[error("image config: {0}")]
    Image(String),
}

/// What the image says about its process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageProcess {
    /// Entrypoint and command.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty is `/`.
    pub cwd: String,
    /// `user[:group]`, by name or number.
    pub user: String,
    /// Directories that the image declares as volumes.
    pub volumes: Vec<String>,
}

/// A process that is ready to be run, and how it differs from the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Derived {
    /// Command line, not empty.
    pub args: Vec<String>,
    /// Environment, each name once.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// User and groups.
    pub ids: Ids,
    /// The user's home directory, for a HOME that nobody sets.
    pub home: String,
    /// `CAP_…`, of which the bounding, effective and permitted sets are made.
    pub capabilities: BTreeSet<String>,
    /// Set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// What the host changed.
    pub overrides: Overrides,
}

impl Derived {
    /// The container as the policy is asked about it.
    pub fn wanted(&self, image: Image, stdio: Stdio, accounts: &Accounts) -> Wanted {
        let own = || format!("{}:{}", self.ids.uid, self.ids.gid);
        Wanted {
            image,
            args: self.args.clone(),
            env: self.env.clone(),
            user: self.overrides.user.clone().unwrap_or_else(own),
            user_of_image: self.user_of_image(accounts),
            cwd: self.cwd.clone(),
            overrides: self.overrides.clone(),
            empty: Vec::new(),
            copied: Vec::new(),
            disks: Vec::new(),
            stdio,
        }
    }

    /// The user without the groups that the image gives him by itself; `None` if his own group is another.
    fn user_of_image(&self, accounts: &Accounts) -> Option<String> {
        let unknown = || Ids { uid: self.ids.uid, ..Ids::default() };
        let own = users::by_number(self.ids.uid, &accounts.passwd, &accounts.group).unwrap_or_else(unknown);
        let further: Vec<String> = self.ids.groups.iter().filter(|gid| !own.groups.contains(gid)).map(u32::to_string).collect();
        let text = if further.is_empty() { own.uid.to_string() } else { format!("{}::{}", own.uid, further.join(",")) };
        (self.ids.gid == own.gid).then_some(text)
    }
}

/// Who is who in the image: its /etc/passwd and /etc/group.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// /etc/passwd.
    pub passwd: String,
    /// /etc/group.
    pub group: String,
}

/// Derives the container's first process. `hostname` is the one it will see.
pub fn derive(image: &ImageProcess, host: &HostSpec, accounts: &Accounts, hostname: &str) -> Result<Derived, DeriveError> {
    check_image(image)?;
    let process = &host.process;
    let mut overrides = Overrides { terminal: process.terminal().unwrap_or(false), ..Overrides::default() };

    let wanted = process.args().clone().unwrap_or_default();
    let args = if wanted.is_empty() || wanted == image.args {
        image.args.clone()
    } else {
        overrides.args = Some(wanted.clone());
        wanted
    };
    if args.first().is_none_or(String::is_empty) {
        return Err(DeriveError::NoCommand);
    }

    let mut env = normalized(&image.env);
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.insert(0, ("PATH".into(), DEFAULT_PATH.into()));
    }
    overrides.env = env_overrides(&env, process, hostname);
    let env = merged(env, &normalized(process.env().as_deref().unwrap_or_default()));

    let image_cwd = if image.cwd.is_empty() { "/" } else { &image.cwd };
    let mut cwd = image_cwd.to_owned();
    let wanted = process.cwd().to_str().unwrap_or_default();
    if !wanted.is_empty() && wanted != image_cwd {
        overrides.cwd = Some(wanted.to_owned());
        cwd = wanted.to_owned();
    }

    let image_ids = users::resolve(&image.user, &accounts.passwd, &accounts.group)?;
    let (ids, user) = override_ids(&image_ids, process, accounts);
    overrides.user = user;
    let default = default_names();
    let capabilities = process.capabilities().as_ref().map_or_else(|| default.clone(), all_capabilities);
    overrides.capabilities = capabilities.difference(&default).cloned().collect();
    overrides.dropped_capabilities = default.difference(&capabilities).cloned().collect();
    overrides.share_processes = host.shares.pid;
    overrides.mounts = host.mounts.overrides();
    overrides.sysctls = host.sysctl.clone();
    match &host.devices {
        Access::All => overrides.privileged = true,
        Access::Some(paths) => overrides.devices = paths.clone(),
    }
    overrides.read_only = host.readonly_root;
    overrides.no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let home = users::home(ids.uid, &accounts.passwd).to_owned();
    let no_new_privileges = overrides.no_new_privileges;
    Ok(Derived { args, env, cwd, ids, home, capabilities, no_new_privileges, overrides })
}

/// Derives the process of an exec from the container's own: what differs is an override; its command line is asked about by itself.
pub fn derive_exec(container: &Derived, process: &Process, accounts: &Accounts) -> Result<Derived, DeriveError> {
    let mut overrides = Overrides { terminal: process.terminal().unwrap_or(false), ..Overrides::default() };
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(DeriveError::NoCommand);
    }
    let base = normalized(&container.env);
    overrides.env = env_overrides(&base, process, "");
    let env = merged(base, &normalized(process.env().as_deref().unwrap_or_default()));
    let wanted = process.cwd().to_str().unwrap_or_default();
    let mut cwd = container.cwd.clone();
    if !wanted.is_empty() && wanted != cwd {
        overrides.cwd = Some(wanted.to_owned());
        cwd = wanted.to_owned();
    }
    let (ids, user) = override_ids(&container.ids, process, accounts);
    overrides.user = user;
    // More than its container has is an override, also where every container has it by default.
    let capabilities = process.capabilities().as_ref().map_or_else(|| container.capabilities.clone(), all_capabilities);
    overrides.capabilities = capabilities.difference(&container.capabilities).cloned().collect();
    let home = users::home(ids.uid, &accounts.passwd).to_owned();
    // A host cannot give to a process what its container may not gain.
    let no_new_privileges = container.no_new_privileges || process.no_new_privileges().unwrap_or(false);
    Ok(Derived { args, env, cwd, ids, home, capabilities, no_new_privileges, overrides })
}

/// The capability sets of a process that has these, and none that its programs inherit.
pub fn capability_sets(names: &BTreeSet<String>) -> LinuxCapabilities {
    // The names come from the parsed spec, so none is lost here.
    let all: Capabilities = names.iter().filter_map(|name| name.strip_prefix("CAP_")?.parse::<Capability>().ok()).collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()));
    sets.set_effective(Some(all.clone()));
    sets.set_permitted(Some(all));
    sets.set_inheritable(None);
    sets.set_ambient(None);
    sets
}

fn default_names() -> BTreeSet<String> {
    DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()
}

/// Strings of the image become C strings and paths as well.
fn check_image(image: &ImageProcess) -> Result<(), DeriveError> {
    let strings = image.args.iter().chain(&image.env).chain([&image.cwd, &image.user]);
    if strings.into_iter().any(|s| s.contains('\0')) {
        return Err(DeriveError::Image("a string holds a NUL".into()));
    }
    if !image.cwd.is_empty() && !image.cwd.starts_with('/') {
        return Err(DeriveError::Image("WorkingDir is not an absolute path".into()));
    }
    Ok(())
}

/// Name and value, the last of each name; what is not `NAME=value` is nothing that a process could look up.
fn normalized(env: &[String]) -> Vec<(String, String)> {
    let pairs = env.iter().filter_map(|e| e.split_once('=')).filter(|(name, _)| !name.is_empty());
    merged_pairs(Vec::new(), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())))
}

fn merged(base: Vec<(String, String)>, changes: &[(String, String)]) -> Vec<String> {
    merged_pairs(base, changes.iter().cloned()).into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn merged_pairs(mut base: Vec<(String, String)>, changes: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    for (name, value) in changes {
        match base.iter_mut().find(|(n, _)| *n == name) {
            Some(entry) => entry.1 = value,
            None => base.push((name, value)),
        }
    }
    base
}

/// Variables that the host adds or changes, but for what runtimes add to every container.
fn env_overrides(base: &[(String, String)], process: &Process, hostname: &str) -> Vec<(String, String)> {
    let usual = |name: &str, value: &str| match name {
        "TERM" => process.terminal() == Some(true) && value == "xterm",
        "HOSTNAME" => value == hostname,
        _ => false,
    };
    let wanted = normalized(process.env().as_deref().unwrap_or_default());
    wanted.into_iter().filter(|pair| !base.contains(pair) && !usual(&pair.0, &pair.1)).collect()
}

/// The ids to run with, and the override in the policy's spelling: `uid:gid`, with `:group,…` for further groups.
///
/// A host that did not unpack the image cannot know a user's groups: it says 0, and means that it does not know. The image knows. Where the
/// image names its user, such a host knows no number at all and says so.
fn override_ids(own: &Ids, process: &Process, accounts: &Accounts) -> (Ids, Option<String>) {
    let user = process.user();
    let (uid, gid) = (user.uid(), user.gid());
    let unknown = |id: u32| id == IMAGE_USER;
    let same_user = (uid == own.uid || unknown(uid)) && (gid == own.gid || gid == 0 || unknown(gid));
    let ids = if same_user {
        own.clone()
    } else {
        let known = (gid == 0).then(|| users::by_number(uid, &accounts.passwd, &accounts.group)).flatten();
        known.unwrap_or(Ids { uid, gid, groups: Vec::new() })
    };
    let wanted: BTreeSet<u32> = user.additional_gids().iter().flatten().copied().collect();
    let extra: Vec<u32> = wanted.into_iter().filter(|g| *g != ids.gid && *g != 0 && !unknown(*g) && !ids.groups.contains(g)).collect();
    if same_user && extra.is_empty() {
        return (ids, None);
    }
    let mut text = format!("{}:{}", ids.uid, ids.gid);
    if !extra.is_empty() {
        text += &format!(":{}", extra.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    }
    let mut groups = [ids.groups.clone(), extra].concat();
    groups.sort_unstable();
    (Ids { groups, ..ids }, Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn image() -> ImageProcess {
        ImageProcess {
            args: vec!["/bin/app".into(), "serve".into()],
            env: vec!["PATH=/bin".into(), "MODE=prod".into()],
            cwd: "/srv".into(),
            user: "app".into(),
            volumes: Vec::new(),
        }
    }

    fn accounts() -> Accounts {
        Accounts { passwd: "app:x:1000:1000::/:\n".into(), group: "app:x:1000:\naudio:x:29:app\n".into() }
    }

    fn host(process: Value) -> HostSpec {
        let mut base = json!({"user": {"uid": 1000, "gid": 1000}, "cwd": ""});
        for (key, value) in process.as_object().unwrap() {
            base[key] = value.clone();
        }
        HostSpec { process: serde_json::from_value(base).unwrap(), ..HostSpec::default() }
    }

    fn derived(process: Value) -> Derived {
        let mut host = host(process);
        // oci-spec fills in sets of its own where a spec has none.
        host.process.set_capabilities(None);
        derive(&image(), &host, &accounts(), "pod").unwrap()
    }

    #[test]
    fn a_host_that_says_what_the_image_says_changes_nothing() {
        let spec = json!({"args": ["/bin/app", "serve"], "env": ["MODE=prod", "PATH=/bin"], "cwd": "/srv"});
        for spec in [json!({}), spec] {
            let derived = derived(spec);
            assert_eq!(derived.overrides, Overrides::default());
            assert_eq!(derived.args, ["/bin/app", "serve"]);
            assert_eq!(derived.env, ["PATH=/bin", "MODE=prod"]);
            assert_eq!((derived.cwd.as_str(), derived.ids.uid, derived.ids.gid), ("/srv", 1000, 1000));
            assert_eq!(derived.ids.groups, [29]);
        }
    }

    #[test]
    fn every_difference_is_an_override() {
        let derived =
            derived(json!({"args": ["/bin/sh"], "env": ["MODE=test", "LD_PRELOAD=/x"], "cwd": "/tmp", "user": {"uid": 0, "gid": 0}}));
        assert_eq!(derived.overrides.args, Some(vec!["/bin/sh".to_owned()]));
        assert_eq!(derived.overrides.env, [("MODE".into(), "test".into()), ("LD_PRELOAD".into(), "/x".into())]);
        assert_eq!(derived.overrides.cwd.as_deref(), Some("/tmp"));
        assert_eq!(derived.overrides.user.as_deref(), Some("0:0"));
        assert_eq!(derived.ids, Ids::default());
        assert_eq!(derived.env, ["PATH=/bin", "MODE=test", "LD_PRELOAD=/x"]);
    }

    #[test]
    fn a_host_cannot_take_the_images_variables_away() {
        assert!(derived(json!({"env": ["OTHER=1"]})).env.contains(&"MODE=prod".to_owned()));
    }

    #[test]
    fn a_host_that_does_not_know_the_group_does_not_override_it() {
        let derived = derived(json!({"user": {"uid": 1000, "gid": 0, "additionalGids": [0, 29]}}));
        assert_eq!((derived.ids.gid, derived.overrides.user), (1000, None));
    }

    #[test]
    fn a_user_of_the_hosts_choice_has_the_groups_that_the_image_gives_him() {
        let accounts = Accounts { passwd: "db:x:70:71::/:\n".into(), group: "ssl:x:99:db\n".into() };
        let of =
            |user: Value| derive(&ImageProcess { user: String::new(), ..image() }, &host(json!({"user": user})), &accounts, "").unwrap();
        let named = of(json!({"uid": 70, "gid": 0}));
        assert_eq!((named.ids.gid, named.ids.groups, named.overrides.user.as_deref()), (71, vec![99], Some("70:71")));
        let (other, group) = (of(json!({"uid": 4242, "gid": 0})), of(json!({"uid": 70, "gid": 5})));
        assert_eq!((other.ids.gid, group.ids.gid, group.ids.groups), (0, 5, vec![]));
    }

    #[test]
    fn a_policy_may_leave_a_users_groups_to_the_image() {
        let accounts = Accounts { passwd: "db:x:70:71::/:\n".into(), group: "ssl:x:99:db\n".into() };
        let of = |user: Value| {
            let image = ImageProcess { user: String::new(), ..image() };
            derive(&image, &host(json!({"user": user})), &accounts, "").unwrap().user_of_image(&accounts)
        };
        // A host that has not unpacked the image, and one that has.
        assert_eq!(of(json!({"uid": 70, "gid": 0})).as_deref(), Some("70"));
        assert_eq!(of(json!({"uid": 70, "gid": 71, "additionalGids": [71, 99]})).as_deref(), Some("70"));
        assert_eq!(of(json!({"uid": 70, "gid": 0, "additionalGids": [2000, 4]})).as_deref(), Some("70::4,2000"));
        assert_eq!(of(json!({"uid": 70, "gid": 5})), None, "a group of the host's choice");
        assert_eq!(of(json!({"uid": 4242, "gid": 0})).as_deref(), Some("4242"));
        assert_eq!(of(json!({"uid": 4242, "gid": 1})), None);
    }

    #[test]
    fn a_host_that_knows_names_only_does_not_override_the_user() {
        let by_name = derived(json!({"user": {"uid": IMAGE_USER, "gid": IMAGE_USER, "additionalGids": [IMAGE_USER]}}));
        assert_eq!((by_name.ids.uid, by_name.ids.gid, by_name.overrides.user), (1000, 1000, None));
        // Half of it is not a way to another user's id with the image's group, or the other way round.
        let half = derived(json!({"user": {"uid": 0, "gid": IMAGE_USER}}));
        assert!(half.overrides.user.is_some());
    }

    #[test]
    fn further_groups_are_an_override() {
        let derived = derived(json!({"user": {"uid": 1000, "gid": 1000, "additionalGids": [29, 4, 1000]}}));
        assert_eq!(derived.overrides.user.as_deref(), Some("1000:1000:4"));
        assert_eq!(derived.ids.groups, [4, 29]);
    }

    #[test]
    fn what_runtimes_add_to_every_container_is_not_an_override() {
        let derived = derived(json!({"terminal": true, "env": ["TERM=xterm", "HOSTNAME=pod"]}));
        assert_eq!(derived.overrides.env, []);
        assert!(derived.overrides.terminal);
        assert_eq!(super::tests::derived(json!({"env": ["HOSTNAME=other"]})).overrides.env.len(), 1);
    }

    #[test]
    fn capabilities_beyond_the_default_are_overrides() {
        let host = host(json!({"capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN"], "ambient": ["CAP_NET_ADMIN"]}}));
        let derived = derive(&image(), &host, &accounts(), "").unwrap();
        assert_eq!(derived.overrides.capabilities, ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }

    #[test]
    fn an_image_without_a_command_needs_one() {
        let host = host(json!({}));
        assert_eq!(derive(&ImageProcess::default(), &host, &Accounts::default(), ""), Err(DeriveError::NoCommand));
        let bad = ImageProcess { cwd: "srv".into(), ..image() };
        assert!(matches!(derive(&bad, &host, &accounts(), ""), Err(DeriveError::Image(_))));
        let bad = ImageProcess { args: vec!["a\0".into()], ..image() };
        assert!(matches!(derive(&bad, &host, &accounts(), ""), Err(DeriveError::Image(_))));
    }

    #[test]
    fn an_exec_differs_from_its_container() {
        let container = derived(json!({}));
        let process = |value: Value| -> Process { serde_json::from_value(value).unwrap() };
        let same =
            process(json!({"user": {"uid": 1000, "gid": 1000}, "args": ["id"], "env": ["MODE=prod"], "cwd": "/srv", "capabilities": {}}));
        let derived = derive_exec(&container, &same, &accounts()).unwrap();
        assert_eq!(derived.overrides, Overrides::default());
        assert_eq!(derived.args, ["id"]);
        let other = process(json!({"user": {"uid": 0, "gid": 0}, "args": ["id"], "env": ["X=1"], "cwd": "/"}));
        let derived = derive_exec(&container, &other, &accounts()).unwrap();
        assert_eq!(derived.overrides.user.as_deref(), Some("0:0"));
        assert_eq!((derived.overrides.env.len(), derived.overrides.cwd.as_deref()), (1, Some("/")));
        assert!(derive_exec(&container, &process(json!({"user": {"uid": 0, "gid": 0}, "args": [], "cwd": "/"})), &accounts()).is_err());
    }
}
