//! A node as a whole: our files, and the configuration of what runs pods on it.

use super::{Action, Change, InstallError, Plan, apply, containerd, crio, read};
use guest_image::{GuestManifest, INITRAMFS_FILE, KERNEL_FILE, MANIFEST_FILE};
use runtime::config::{Config, DEFAULT_PATH};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The shim.
pub(crate) const SHIM: &str = "containerd-shim-cloister-v2";
/// The command.
const COMMAND: &str = "cloister";
/// Where a guest is, unless the configuration says otherwise.
const GUEST: &str = "usr/lib/cloister";
/// The first configuration of a node: nothing that the defaults do not say, so that an upgrade may change them.
const CONFIGURATION: &str =
    "# The node's configuration of Cloister; every key has a default. See the operator's guide; `cloister config check` reads this file.\n";

/// Where and what.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The node's root directory.
    pub(crate) root: PathBuf,
    /// Directory of the binaries on the node.
    pub(crate) bin: PathBuf,
    /// Where the binaries come from; `None` leaves them as they are.
    pub(crate) from: Option<PathBuf>,
    /// Where the guest image comes from; `None` leaves it as it is.
    pub(crate) guest: Option<PathBuf>,
    /// Whether to configure containerd; `None` if it is there.
    pub(crate) containerd: Option<bool>,
    /// Whether to configure CRI-O; `None` if it is there.
    pub(crate) crio: Option<bool>,
    /// containerd's version, where it is known.
    pub(crate) version: Option<containerd::Version>,
    /// containerd's configuration file on the node.
    pub(crate) containerd_config: PathBuf,
    /// Socket of the snapshotter, if it is to be used.
    pub(crate) snapshotter: Option<PathBuf>,
}

impl Request {
    /// A path of the node, as we see it.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn wants(&self, asked: Option<bool>, programs: &[&str], folder: &str) -> bool {
        asked.unwrap_or_else(|| self.at(folder).is_dir() || programs.iter().any(|program| self.at(program).is_file()))
    }

    fn wants_containerd(&self) -> bool {
        // A configuration file in another place that is there was named on purpose.
        self.wants(self.containerd, &["usr/bin/containerd", "usr/local/bin/containerd"], "etc/containerd")
            || (self.containerd.is_none() && self.at(&self.containerd_config).is_file())
    }

    fn wants_crio(&self) -> bool {
        self.wants(self.crio, &["usr/bin/crio", "usr/local/bin/crio"], "etc/crio")
    }
}

/// What installing does.
pub(crate) fn install(request: &Request) -> Result<Plan, InstallError> {
    let mut plan = Plan::default();
    let (containerd, crio) = (request.wants_containerd(), request.wants_crio());
    if !containerd && !crio && (request.containerd.is_none() || request.crio.is_none()) {
        return Err(InstallError::NoRuntime(request.root.clone()));
    }
    if let Some(from) = &request.from {
        for name in [SHIM, COMMAND] {
            let remedy = "build it with `make build`, or say where it is with --from";
            plan_copy(&mut plan, from.join(name), request.at(request.bin.join(name)), 0o755, remedy)?;
        }
    }
    if let Some(guest) = &request.guest {
        let broken = |problem: String| InstallError::Configuration { path: guest.clone(), problem };
        let manifest = GuestManifest::load(&guest.join(MANIFEST_FILE)).map_err(|error| broken(error.to_string()))?;
        manifest.verify(guest).map_err(|error| broken(error.to_string()))?;
        for name in [KERNEL_FILE, INITRAMFS_FILE, MANIFEST_FILE] {
            plan_copy(&mut plan, guest.join(name), request.at(GUEST).join(name), 0o644, "build it with `cloister guest build`")?;
        }
    } else if !request.at(GUEST).join(MANIFEST_FILE).exists() {
        plan.notes.push("no guest image: make one with `cloister guest build --out /usr/lib/cloister`".to_owned());
    }
    let configuration = request.at(DEFAULT_PATH);
    if read(&configuration)?.is_none() {
        plan.text(configuration, None, CONFIGURATION.to_owned());
    }
    if containerd {
        configure_containerd(request, &mut plan)?;
    }
    if crio {
        let shim = request.bin.join(SHIM);
        let path = request.at(crio::DROP_IN);
        let old = read(&path)?;
        if plan.text(path, old, crio::drop_in(&shim, Path::new(DEFAULT_PATH))) {
            plan.restart.push("crio");
        }
    }
    Ok(plan)
}

/// What uninstalling does. `force`: even while pods run.
pub(crate) fn uninstall(request: &Request, force: bool) -> Result<Plan, InstallError> {
    let configuration = request.at(DEFAULT_PATH);
    let config = Config::from_file(&configuration).unwrap_or_default();
    let records = request.at(config.state_dir.join("sandboxes"));
    let count = fs::read_dir(&records).map_or(0, Iterator::count);
    if count > 0 && !force {
        return Err(InstallError::InUse { count, path: records });
    }
    let mut plan = Plan::default();
    // First what would start pods, then what they would need.
    let main = request.at(&request.containerd_config);
    let old = read(&main)?;
    let target = containerd::uninstall(&request.containerd_config, old.as_deref());
    if write_containerd(request, &mut plan, old, target)? {
        plan.restart.push("containerd");
    }
    let drop_in = request.at(crio::DROP_IN);
    if drop_in.exists() {
        plan.changes.push(Change { path: drop_in, action: Action::Remove });
        plan.restart.push("crio");
    }
    if read(&configuration)?.as_deref() == Some(CONFIGURATION) {
        plan.changes.push(Change { path: configuration, action: Action::Remove });
    } else if configuration.exists() {
        plan.notes.push(format!("{DEFAULT_PATH} was changed since it was installed: it stays"));
    }
    let ours = [SHIM, COMMAND].map(|name| request.at(request.bin.join(name)));
    let guest = [KERNEL_FILE, INITRAMFS_FILE, MANIFEST_FILE].map(|name| request.at(GUEST).join(name));
    for path in ours.into_iter().chain(guest).filter(|path| path.exists()) {
        plan.changes.push(Change { path, action: Action::Remove });
    }
    Ok(plan)
}

fn configure_containerd(request: &Request, plan: &mut Plan) -> Result<(), InstallError> {
    let main = request.at(&request.containerd_config);
    let old = read(&main)?;
    let settings = containerd::Settings { bin: request.bin.clone(), snapshotter: request.snapshotter.clone() };
    let target = containerd::install(&request.containerd_config, old.as_deref(), request.version, &settings)
        .map_err(|problem| InstallError::Configuration { path: main.clone(), problem })?;
    if old.as_deref().is_some_and(containerd::is_cri_disabled) {
        let path = request.containerd_config.display();
        plan.notes.push(format!("{path} switches CRI off (disabled_plugins): ctr and nerdctl can run Cloister, Kubernetes cannot"));
    }
    if old.as_deref().is_some_and(|text| containerd::may_be_hidden(text, request.version)) {
        let path = request.containerd_config.display();
        plan.notes.push(format!(
            "{path} imports other files: one that has settings of the CRI plugin replaces all of this file's before containerd 2.0, the \
             runtime's among them; `containerd config dump` shows what counts"
        ));
    }
    if write_containerd(request, plan, old, target)? {
        plan.restart.push("containerd");
    }
    Ok(())
}

/// Brings main file and drop-in to what they should be; whether there is anything to do.
fn write_containerd(request: &Request, plan: &mut Plan, old: Option<String>, target: containerd::Target) -> Result<bool, InstallError> {
    let before = plan.changes.len();
    let drop_in = request.at(&target.drop_in);
    let old_drop_in = read(&drop_in)?;
    let main = request.at(&request.containerd_config);
    for (path, old, new) in [(drop_in, old_drop_in, target.drop_in_text), (main, old, target.main)] {
        match (old, new) {
            (old, Some(new)) => {
                plan.text(path, old, new);
            }
            // The main file goes if it was ours alone; then there was nothing before it to go back to.
            (Some(_), None) => plan.changes.push(Change { path, action: Action::Remove }),
            (None, None) => {}
        }
    }
    Ok(plan.changes.len() > before)
}

fn plan_copy(plan: &mut Plan, from: PathBuf, to: PathBuf, mode: u32, remedy: &'static str) -> Result<(), InstallError> {
    if !from.is_file() {
        return Err(InstallError::Missing { path: from, remedy });
    }
    if !is_same(&from, &to).map_err(|source| InstallError::Io { path: to.clone(), source })? {
        plan.changes.push(Change { path: to, action: Action::Copy { from, mode } });
    }
    Ok(())
}

/// Whether both are one file, or have the same content.
fn is_same(from: &Path, to: &Path) -> io::Result<bool> {
    let (Ok(from_path), Ok(to_path)) = (from.canonicalize(), to.canonicalize()) else { return Ok(false) };
    if from_path == to_path {
        return Ok(true);
    }
    let (mut one, mut other) = (fs::File::open(from_path)?, fs::File::open(to_path)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    same_content(&mut one, &mut other)
}

fn same_content(one: &mut impl io::Read, other: &mut impl io::Read) -> io::Result<bool> {
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = one.read(&mut a)?;
        if count == 0 {
            return Ok(true);
        }
        match other.read_exact(&mut b[..count]) {
            Ok(()) if a[..count] == b[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Beside a configuration file, as it was before.
pub(crate) fn backup(path: &Path) -> PathBuf {
    apply::beside(path, apply::BACKUP)
}
