//! The typed policy of a workload, `policy.toml` in the initdata, and its decisions.
//!
//! ```toml
//! [[image]]                          # without any [[image]] and [[container]]: every image that verifies
//! digest = "sha256:9f2c…"            # of the manifest, or of the index above it
//! repository = "ghcr.io/acme/api"    # narrows it further
//! mixed = true                       # some of its layers may be plain while others are encrypted
//!
//! [[container]]                      # what must be, exactly: see [`crate::container`]
//!
//! [pod]
//! order = true                       # [[container]] entries are created in the order of the file
//! complete_within_s = 60             # all of them within this time of the first, or the machine ends
//! network = false                    # no interface and no route
//!
//! [allow]                            # what the host may change or do; each is false, true or a list
//! args = [["/bin/api", "--verbose"]] # whole command lines
//! env = ["TZ", "KUBERNETES_*", "MODE=batch"] # a name or its beginning with any value, or a name with this value
//! user = ["1000:1000"]
//! cwd = ["/srv"]
//! capabilities = ["CAP_NET_ADMIN"]   # beyond the runtime's default set
//! mounts = ["/cache", "/tmp:noexec"] # something empty in the image's place: tmpfs, emptyDir; and where a copied directory is mounted
//! devices = ["/dev/tpm0"]            # of the guest; a host has none to give
//! sysctls = ["net.core.somaxconn=1024"] # of the pod's network: a name with any value, or a name with this value
//! privileged = false                 # every device of the guest, and its /sys writable: the container then is the guest
//! copy_in = ["/etc/tls", "/etc/app.toml=sha256:…"] # files: anything at and below a path, or one with this content
//! exec = false                       # whole command lines
//! signals = [1, 10]                  # beyond INT, QUIT, KILL and TERM
//! secrets = ["kbs:///acme/api/*", "token"] # what containers may have at 127.0.0.1:8006
//! terminal = false
//! stdin = false
//! output = true                      # stdout and stderr reach the host
//! stats = true                       # numbers of processes, memory and processor time reach the host
//! share_processes = false            # containers of the pod see each other's processes
//! port_forward = false               # ports of the pod's loopback
//! ```
//!
//! Every entry of a list is compared whole; there are no regular expressions, and `*` stands only at an end.
//!
//! Four doors, from the widest:
//! 1. no initdata: whatever the host asks for is done. The evidence says so, and no broker releases anything to it;
//! 2. initdata without `policy.toml`: any image that verifies, as its own config describes it: nothing changed, no exec, no
//!    stdin, no terminal; its output reaches the host. Which image that can usefully be is decided by the release of its keys;
//! 3. initdata with `policy.toml`: that, and what is written under `[allow]`;
//! 4. with `[[container]]` entries: these containers and no others.
//!
//! An entry under `[[image]]` needs a digest. A repository alone would be no rule at all: the name is the host's word.
//!
//! `allow.secrets` needs images that the owner knows: `[[image]]` or `[[container]]`, or signatures demanded by the initdata's `cdh.toml`. Any
//! image could else read the secrets and print them, also one that the host has made for that.

pub use crate::rules::PolicyError;
use crate::{
    allow::Allow,
    container::{ContainerRule, Image},
    image_settings::ImageSettings,
    initdata::Initdata,
    rules::{AllowRules, Rules, repository, short},
};
use std::sync::Arc;
use thiserror::Error;

/// The file of the initdata that is the policy.
pub const POLICY_FILE: &str = "policy.toml";

/// Signals that a host may always send: it can end the whole VM as well. INT, QUIT, KILL, TERM.
const ENDING_SIGNALS: [u32; 4] = [2, 3, 9, 15];

/// A refusal, on one line: what was asked, which rule, what to change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("denied by policy: {asked}: {rule}; {remedy}")]
pub struct Denial {
    /// What the host wanted.
    pub asked: String,
    /// The rule that does not let it.
    pub rule: String,
    /// What the owner would change to let it.
    pub remedy: String,
}

/// What the host's OCI spec adds to or changes of the image's verified config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The whole command line, where it is not the image's.
    pub args: Option<Vec<String>>,
    /// Variables that the image does not set, or sets to something else.
    pub env: Vec<(String, String)>,
    /// `uid:gid`, where it is not the image's.
    pub user: Option<String>,
    /// Working directory, where it is not the image's.
    pub cwd: Option<String>,
    /// Capabilities beyond the default set, `CAP_…`.
    pub capabilities: Vec<String>,
    /// Capabilities of the default set that it is not to have.
    pub dropped_capabilities: Vec<String>,
    /// Destinations of mounts beyond the default set, with options that are not the usual ones.
    pub mounts: Vec<String>,
    /// A read-only root file system. That alone is no denial: it takes away.
    pub read_only: bool,
    /// Set-user-id programs gain nothing. That alone is no denial: it takes away.
    pub no_new_privileges: bool,
    /// Devices of the guest beyond the usual ones.
    pub devices: Vec<String>,
    /// Kernel parameters of the IPC namespace and of the pod's network, name and value.
    pub sysctls: Vec<(String, String)>,
    /// All devices of the guest.
    pub privileged: bool,
    /// A terminal instead of pipes.
    pub terminal: bool,
    /// The process namespace of the pod instead of one of its own.
    pub share_processes: bool,
}

/// Streams that the host wants to connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stdio {
    /// The host writes.
    pub stdin: bool,
    /// The host reads stdout or stderr.
    pub output: bool,
    /// The process gets a terminal.
    pub terminal: bool,
}

/// The decision maker of one VM.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `None` is the open door.
    rules: Option<Arc<Rules>>,
    /// Whether the initdata demands signatures of images.
    signed: bool,
}

impl Policy {
    /// The policy of a VM that was started with this initdata; `None` gives the open door.
    pub fn from_initdata(initdata: Option<&Initdata>) -> Result<Self, PolicyError> {
        let Some(initdata) = initdata else { return Ok(Self { rules: None, signed: false }) };
        let policy = Self::parse(initdata.file(POLICY_FILE).unwrap_or_default())?;
        // Settings that cannot be read demand nothing; who reads them for their own sake says why.
        let signed = ImageSettings::from_initdata(Some(initdata)).is_ok_and(|settings| settings.demands_signatures());
        let policy = Self { signed, ..policy };
        policy.secrets_for_any_image().map_or(Ok(policy.clone()), |reason| Err(PolicyError::new(reason)))
    }

    /// Reads a policy by itself; unknown keys are errors. Whether its secrets are for images that the owner knows depends on the rest of the
    /// initdata: see [`Self::secrets_for_any_image`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Ok(Self { rules: Some(Rules::parse(text)?.into()), signed: false })
    }

    /// Whether the initdata, as far as it is known, demands signatures of images.
    pub(crate) fn is_signed(&self) -> bool {
        self.signed
    }

    /// Whether the host may do as it likes: the VM was started without initdata.
    pub fn is_open(&self) -> bool {
        self.rules.is_none()
    }

    /// The containers that the policy lists; none where it does not list them.
    pub fn containers(&self) -> &[ContainerRule] {
        self.rules.as_ref().map_or(&[], |rules| &rules.container)
    }

    /// Seconds in which all containers must have been created, counted from the first.
    pub fn complete_within_s(&self) -> Option<u32> {
        self.rules.as_ref().and_then(|rules| rules.pod.complete_within_s)
    }

    pub(crate) fn in_order(&self) -> bool {
        self.rules.as_ref().is_some_and(|rules| rules.pod.order)
    }

    /// What a closed door lets through; `None` for the open one.
    pub(crate) fn closed(&self) -> Option<&AllowRules> {
        self.rules.as_ref().map(|rules| &rules.allow)
    }

    pub(crate) fn rules(&self) -> Option<&Rules> {
        self.rules.as_deref()
    }

    /// May this image run?
    pub fn image(&self, image: &Image) -> Result<(), Denial> {
        let Some(rules) = self.rules() else { return Ok(()) };
        let listed: Vec<_> = rules.image.iter().chain(rules.container.iter().map(|container| &container.image)).collect();
        if listed.is_empty() || listed.iter().any(|rule| rule.covers(image)) {
            return Ok(());
        }
        let digest = image.digests.first().map(|digest| short(digest)).unwrap_or_default();
        let asked = format!("image {} with manifest {digest}", short(&image.reference));
        if !listed.iter().any(|rule| rule.has_digest(image)) {
            let key = if rules.container.is_empty() { "[[image]]" } else { "[[container]]" };
            return Err(denial(asked, &format!("no {key} has this digest"), format!("add one with digest = {digest:?}")));
        }
        Err(denial(
            asked,
            "the entry with this digest names another repository",
            format!("set its repository = {:?} or remove that key", short(repository(&image.reference))),
        ))
    }

    /// May the pod have this network?
    pub fn network(&self, interfaces: usize, routes: usize) -> Result<(), Denial> {
        let off = self.rules.as_ref().is_some_and(|rules| !rules.pod.network);
        if off && interfaces + routes > 0 {
            let asked = format!("a network of {interfaces} interfaces and {routes} routes");
            return Err(denial(asked, "pod.network is false", "set pod.network = true".into()));
        }
        Ok(())
    }

    /// May some layers of this image be plain while others are encrypted? `digests` are those of its manifest and of the index above
    /// it. Only where the owner pinned the image: else whoever holds the registry could put a layer over the encrypted ones.
    pub fn mixed(&self, digests: &[&str]) -> bool {
        self.rules.as_ref().is_some_and(|rules| {
            rules
                .image
                .iter()
                .chain(rules.container.iter().map(|c| &c.image))
                .any(|rule| rule.mixed && digests.contains(&rule.digest.as_str()))
        })
    }

    /// May the host change these things?
    pub fn overrides(&self, overrides: &Overrides) -> Result<(), Denial> {
        let Some(Rules { allow, .. }) = self.rules() else { return Ok(()) };
        if let Some(args) = &overrides.args
            && !allow.args.allows(|allowed| allowed == args)
        {
            return Err(not_allowed(format!("command line {}", list(args)), "args", &list(args)));
        }
        for (name, value) in &overrides.env {
            if !allow.env.allows(|entry| covers_env(entry, name, value)) {
                return Err(not_allowed(format!("environment variable {}", short(name)), "env", &env_entry(name, value)));
            }
        }
        let one = |value: &Option<String>, rule: &Allow<String>, what: &str, key: &str| match value {
            Some(value) if !rule.allows(|allowed| allowed == value) => {
                Err(not_allowed(format!("{what} {}", short(value)), key, &format!("{:?}", short(value))))
            }
            _ => Ok(()),
        };
        one(&overrides.user, &allow.user, "user", "user")?;
        one(&overrides.cwd, &allow.cwd, "working directory", "cwd")?;
        for capability in &overrides.capabilities {
            one(&Some(capability.clone()), &allow.capabilities, "capability", "capabilities")?;
        }
        for mount in &overrides.mounts {
            one(&Some(mount.clone()), &allow.mounts, "mount at", "mounts")?;
        }
        if overrides.share_processes && !allow.share_processes {
            return Err(off("the pod's process namespace", "share_processes"));
        }
        for device in &overrides.devices {
            one(&Some(device.clone()), &allow.devices, "device", "devices")?;
        }
        for (name, value) in &overrides.sysctls {
            if !allow.sysctls.allows(|entry| covers_env(entry, name, value)) {
                let setting = short(&format!("{name}={value}"));
                return Err(not_allowed(format!("sysctl {setting}"), "sysctls", &format!("{setting:?}")));
            }
        }
        if overrides.privileged && !allow.privileged {
            let remedy = "set allow.privileged = true".to_owned();
            return Err(denial("a privileged container".into(), "allow.privileged is false", remedy));
        }
        self.stdio(Stdio { terminal: overrides.terminal, ..Stdio::default() })
    }

    /// May the host mount something empty here (as [`Overrides::mounts`] spells it), in any container? Asked when it is announced.
    pub fn mount(&self, mount: &str) -> Result<(), Denial> {
        let Some(Rules { allow, .. }) = self.rules() else { return Ok(()) };
        let listed = self.containers().iter().any(|rule| rule.mounts.iter().any(|entry| entry == mount));
        if listed || allow.mounts.allows(|entry| entry == mount) {
            return Ok(());
        }
        Err(not_allowed(format!("mount at {}", short(mount)), "mounts", &format!("{:?}", short(mount))))
    }

    /// May the host run one more process with this command line in a container?
    pub fn exec(&self, args: &[String]) -> Result<(), Denial> {
        let Some(Rules { allow, .. }) = self.rules() else { return Ok(()) };
        if allow.exec.allows(|allowed| allowed == args) {
            return Ok(());
        }
        Err(not_allowed(format!("exec of {}", list(args)), "exec", &list(args)))
    }

    /// May the host connect these streams?
    pub fn stdio(&self, stdio: Stdio) -> Result<(), Denial> {
        let Some(Rules { allow, .. }) = self.rules() else { return Ok(()) };
        let wanted = [
            (stdio.stdin, allow.stdin, "standard input", "stdin"),
            (stdio.output, allow.output, "standard output", "output"),
            (stdio.terminal, allow.terminal, "a terminal", "terminal"),
        ];
        for (asked, allowed, what, key) in wanted {
            if asked && !allowed {
                return Err(off(what, key));
            }
        }
        Ok(())
    }

    /// May the host connect to this port of the pod's loopback?
    pub fn port_forward(&self, port: u16) -> Result<(), Denial> {
        let Some(Rules { allow, .. }) = self.rules() else { return Ok(()) };
        if allow.port_forward.allows(|allowed| *allowed == port) {
            return Ok(());
        }
        Err(not_allowed(format!("connection to port {port}"), "port_forward", &port.to_string()))
    }

    /// May the host send this signal?
    pub fn signal(&self, number: u32) -> Result<(), Denial> {
        let Some(Rules { allow, .. }) = self.rules() else { return Ok(()) };
        if ENDING_SIGNALS.contains(&number) || allow.signals.allows(|allowed| *allowed == number) {
            return Ok(());
        }
        Err(not_allowed(format!("signal {number}"), "signals", &number.to_string()))
    }

    /// May the host know how many processes there are and what they use?
    pub fn stats(&self) -> Result<(), Denial> {
        match &self.rules {
            Some(rules) if !rules.allow.stats => Err(denial("statistics".into(), "allow.stats is false", "set allow.stats = true".into())),
            _ => Ok(()),
        }
    }
}

/// `NAME=value`, `NAME` with any value, or `BEGINNING*` of a name with any value. What an owner has sealed is covered by its own text alone: a
/// host could else put another container's secret into a variable that this one prints.
pub(crate) fn covers_env(entry: &str, name: &str, value: &str) -> bool {
    match entry.split_once('=') {
        Some((n, v)) => n == name && v == value,
        None if is_sealed(value) => false,
        None => entry.strip_suffix('*').map_or(entry == name, |beginning| name.starts_with(beginning)),
    }
}

/// As `attestation::sealed` writes them.
fn is_sealed(value: &str) -> bool {
    value.starts_with("sealed.")
}

/// The entry that would cover a variable. Its value may be a secret of the host's side; it is not repeated.
pub(crate) fn env_entry(name: &str, value: &str) -> String {
    let name = short(name);
    format!("{:?}", if is_sealed(value) { format!("{name}=sealed.…") } else { name })
}

pub(crate) fn denial(asked: String, rule: &str, remedy: String) -> Denial {
    Denial { asked, rule: rule.into(), remedy: format!("{remedy} in policy.toml of the initdata") }
}

fn off(asked: &str, key: &str) -> Denial {
    denial(asked.into(), &format!("allow.{key} is false"), format!("set allow.{key} = true"))
}

pub(crate) fn not_allowed(asked: String, key: &str, entry: &str) -> Denial {
    denial(asked, &format!("allow.{key} does not have it"), format!("add {entry} to allow.{key}"))
}

/// A command line as TOML writes it, bounded.
pub(crate) fn list(args: &[String]) -> String {
    let shown: Vec<String> = args.iter().take(16).map(|a| format!("{:?}", short(a))).collect();
    let more = if args.len() > 16 { ", …" } else { "" };
    short(&format!("[{}{more}]", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    fn image(reference: &str, digest: &str) -> Image {
        Image { reference: reference.into(), digests: vec![digest.into()] }
    }

    /// One override each, so that a test can go through all of them.
    fn each_override() -> Vec<(&'static str, Overrides)> {
        let none = Overrides::default();
        vec![
            ("allow.args", Overrides { args: Some(strings(&["/bin/sh", "-c", "id"])), ..none.clone() }),
            ("allow.env", Overrides { env: vec![("LD_PRELOAD".into(), "/x.so".into())], ..none.clone() }),
            ("allow.user", Overrides { user: Some("0:0".into()), ..none.clone() }),
            ("allow.cwd", Overrides { cwd: Some("/tmp".into()), ..none.clone() }),
            ("allow.capabilities", Overrides { capabilities: strings(&["CAP_SYS_ADMIN"]), ..none.clone() }),
            ("allow.mounts", Overrides { mounts: strings(&["/etc"]), ..none.clone() }),
            ("allow.devices", Overrides { devices: strings(&["/dev/tpm0"]), ..none.clone() }),
            ("allow.sysctls", Overrides { sysctls: vec![("net.ipv4.ip_forward".into(), "1".into())], ..none.clone() }),
            ("allow.privileged", Overrides { privileged: true, ..none.clone() }),
            ("allow.terminal", Overrides { terminal: true, ..none.clone() }),
            ("allow.share_processes", Overrides { share_processes: true, ..none }),
        ]
    }

    #[test]
    fn without_initdata_the_door_is_open() {
        let policy = Policy::from_initdata(None).unwrap();
        assert!(policy.is_open());
        for (key, overrides) in each_override() {
            assert_eq!(policy.overrides(&overrides), Ok(()), "{key}");
        }
        assert_eq!(policy.exec(&strings(&["id"])), Ok(()));
        assert_eq!(policy.image(&image("x", OTHER)), Ok(()));
        assert_eq!(policy.signal(10), Ok(()));
        assert_eq!(policy.port_forward(80), Ok(()));
        assert_eq!(policy.stdio(Stdio { stdin: true, output: true, terminal: true }), Ok(()));
    }

    #[test]
    fn initdata_without_a_policy_runs_images_as_they_are() {
        let (initdata, _) = Initdata::parse_toml("version = \"0.1.0\"\nalgorithm = \"sha256\"\n").unwrap();
        let policy = Policy::from_initdata(Some(&initdata)).unwrap();
        assert!(!policy.is_open());
        assert_eq!(policy.image(&image("anything:1", OTHER)), Ok(()));
        assert_eq!(policy.overrides(&Overrides::default()), Ok(()));
        assert_eq!(policy.stdio(Stdio { output: true, ..Stdio::default() }), Ok(()));
        for (key, overrides) in each_override() {
            let text = policy.overrides(&overrides).unwrap_err().to_string();
            assert!(text.contains(key) && !text.contains('\n'), "{key}: {text}");
        }
        assert!(policy.exec(&strings(&["id"])).is_err());
        assert!(policy.stdio(Stdio { stdin: true, ..Stdio::default() }).is_err());
        assert!(policy.signal(10).is_err());
        assert!(policy.port_forward(80).is_err());
        assert_eq!(policy.signal(15), Ok(()));
    }

    #[test]
    fn a_policy_in_the_initdata_is_the_one_that_counts() {
        let text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.toml\" = \"[allow]\\nexec = true\"\n";
        let (initdata, _) = Initdata::parse_toml(text).unwrap();
        assert_eq!(Policy::from_initdata(Some(&initdata)).unwrap().exec(&strings(&["id"])), Ok(()));
        let (broken, _) = Initdata::parse_toml(&text.replace("exec", "exce")).unwrap();
        let error = Policy::from_initdata(Some(&broken)).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("exce"), "{error}");
    }

    #[test]
    fn images_are_known_by_digest() {
        let policy = Policy::parse(&format!("[[image]]\ndigest = {DIGEST:?}\nrepository = \"127.0.0.1:5000/demo\"\n")).unwrap();
        assert_eq!(policy.image(&image("127.0.0.1:5000/demo:1", DIGEST)), Ok(()));
        assert_eq!(policy.image(&image(&format!("127.0.0.1:5000/demo@{DIGEST}"), DIGEST)), Ok(()));
        let text = policy.image(&image("127.0.0.1:5000/demo:1", OTHER)).unwrap_err().to_string();
        assert!(text.contains(OTHER) && text.contains("add one with digest"), "{text}");
        let text = policy.image(&image("127.0.0.1:5000/evil:1", DIGEST)).unwrap_err().to_string();
        assert!(text.contains("another repository"), "{text}");
        let text = policy.image(&image("a\nb", OTHER)).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
    }

    #[test]
    fn layers_are_mixed_only_in_an_image_that_is_pinned_so() {
        let policy = Policy::parse(&format!("[[image]]\ndigest = {DIGEST:?}\nmixed = true\n[[image]]\ndigest = {OTHER:?}\n")).unwrap();
        assert!(policy.mixed(&[DIGEST]) && policy.mixed(&["sha256:x", DIGEST]) && !policy.mixed(&[OTHER]) && !policy.mixed(&[]));
        assert!(!Policy::from_initdata(None).unwrap().mixed(&[DIGEST]));
    }

    #[test]
    fn lists_allow_what_they_name_and_no_more() {
        let policy = Policy::parse(
            "[allow]\nargs = [[\"/bin/sh\", \"-c\", \"id\"]]\nenv = [\"TZ\", \"MODE=batch\"]\nuser = [\"0:0\"]\ncwd = [\"/tmp\"]\n\
             capabilities = [\"CAP_SYS_ADMIN\"]\nmounts = [\"/etc\"]\ndevices = [\"/dev/tpm0\"]\n\
             sysctls = [\"net.ipv4.ip_forward=1\"]\nprivileged = true\nexec = [[\"id\"]]\nsignals = [10]\nterminal = true\n\
             share_processes = true\nport_forward = [8080]\noutput = false\n",
        )
        .unwrap();
        for (key, overrides) in each_override() {
            assert_eq!(policy.overrides(&overrides).is_ok(), key != "allow.env", "{key}");
        }
        let env = |name: &str, value: &str| Overrides { env: vec![(name.into(), value.into())], ..Overrides::default() };
        assert_eq!(policy.overrides(&env("TZ", "anything")), Ok(()));
        assert_eq!(policy.overrides(&env("MODE", "batch")), Ok(()));
        let text = policy.overrides(&env("MODE", "hunter2")).unwrap_err().to_string();
        assert!(!text.contains("hunter2"), "a value is not repeated: {text}");
        let text = policy.overrides(&env("TZ", "sealed.a.b.c")).unwrap_err().to_string();
        assert!(text.contains("TZ=sealed.…") && !text.contains("a.b.c"), "{text}");
        assert!(policy.overrides(&Overrides { args: Some(strings(&["/bin/sh", "-c"])), ..Overrides::default() }).is_err());
        let forward = |value: &str| Overrides { sysctls: vec![("net.ipv4.ip_forward".into(), value.into())], ..Overrides::default() };
        assert!(policy.overrides(&forward("0")).unwrap_err().to_string().contains("net.ipv4.ip_forward=0"));
        assert!(policy.mount("/etc").is_ok() && policy.mount("/etc/hosts").unwrap_err().to_string().contains("allow.mounts"));
        assert_eq!(policy.exec(&strings(&["id"])), Ok(()));
        assert!(policy.exec(&strings(&["id", "-u"])).is_err());
        assert_eq!(policy.signal(10), Ok(()));
        assert!(policy.signal(12).is_err());
        assert_eq!(policy.port_forward(8080), Ok(()));
        assert!(policy.port_forward(8081).unwrap_err().to_string().contains("allow.port_forward"));
        assert!(policy.stdio(Stdio { output: true, ..Stdio::default() }).is_err());
    }

    #[test]
    fn a_beginning_is_anchored_and_a_value_is_whole() {
        for (entry, name, value, covered) in [
            ("FOO=ok", "FOO", "ok", true),
            ("FOO=ok", "FOO", "ok;evil", false),
            ("FOO=ok", "FOO", "evilok", false),
            ("FOO", "FOOBAR", "x", false),
            ("KUBERNETES_*", "KUBERNETES_SERVICE_HOST", "10.0.0.1", true),
            ("KUBERNETES_*", "XKUBERNETES_", "x", false),
            ("A.B", "AxB", "x", false),
            ("POD_IP", "POD_IP", "sealed.a.b.c", false),
            ("KUBERNETES_*", "KUBERNETES_SERVICE_HOST", "sealed.a.b.c", false),
            ("DB=sealed.a.b.c", "DB", "sealed.a.b.c", true),
            ("DB=sealed.a.b.c", "DB", "sealed.a.b.d", false),
        ] {
            assert_eq!(covers_env(entry, name, value), covered, "{entry} {name}={value}");
        }
    }

    #[test]
    fn network_statistics_and_secrets() {
        let policy =
            Policy::parse("[pod]\nnetwork = false\n[allow]\nstats = false\nsecrets = [\"kbs:///acme/api/*\", \"token\"]\n").unwrap();
        assert_eq!(policy.network(0, 0), Ok(()));
        assert!(policy.network(1, 0).unwrap_err().to_string().contains("pod.network"));
        assert!(policy.network(0, 1).is_err());
        assert!(policy.stats().unwrap_err().to_string().contains("allow.stats"));
        for (name, allowed) in
            [("kbs:///acme/api/db", true), ("token", true), ("evidence", false), ("kbs:///acme/other/x", false), ("tokens", false)]
        {
            assert_eq!(policy.secret(name).is_ok(), allowed, "{name}");
        }
        let open = Policy::from_initdata(None).unwrap();
        assert_eq!((open.network(9, 9), open.stats()), (Ok(()), Ok(())));
        assert!(open.secret("token").is_err(), "nothing was attested");
    }
}
