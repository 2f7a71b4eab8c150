//! Three guests, their images, and a monitor that adds devices of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use runtime::config::Config;
use runtime::courier::{Blob, BlobSource};
use runtime::sandbox::{Sandbox, SandboxSpec};
use tests::configuration::{Configuration, Initdata};
use tests::leaks::Watch;
use tests::oci::{Image, Layout};
use tests::place;
use tests::runner::TestBed;
use tokio::runtime::Runtime;

use crate::host::Host;
use crate::inside::SCRIPT;

/// Devices that nobody asked for, as the monitor's option spells them.
pub const UNASKED: [&str; 2] = ["virtio-balloon-device", "virtio-rng-device"];

/// The manifests' digests.
pub struct Images {
    /// Runs [`SCRIPT`].
    pub app: String,
    /// Verifies like any other, and no policy lists it.
    pub other: String,
    /// Has no layer.
    pub layerless: String,
}

/// What the tests share.
pub struct HostileBed {
    /// Runs their requests.
    pub runtime: Runtime,
    pub images: Images,
    config: Config,
    blobs: Arc<Blobs>,
    watch: Watch,
    fresh: OnceLock<Host>,
    closed: OnceLock<Host>,
    open: OnceLock<Host>,
}

impl HostileBed {
    pub fn start() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "a VM's sockets and cgroups need root: run `make test`, which uses sudo where needed");
        let base = place::build()?.join("t/hostile");
        match fs::remove_dir_all(&base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)?,
            _ => fs::create_dir_all(&base)?,
        }
        log_to(&base.join("log"))?;
        let app = Image::busybox(SCRIPT)?.write(&base.join("images/app"), "1")?;
        let other = Image::busybox("echo another; sleep 3600")?.write(&base.join("images/other"), "1")?;
        let layerless = Image { cmd: vec!["/bin/sh"], ..Image::default() }.write(&base.join("images/layerless"), "1")?;
        let digest = |layout: &Layout| layout.digests().map(|digests| digests.manifest);
        let images = Images { app: digest(&app)?, other: digest(&other)?, layerless: digest(&layerless)? };
        let blobs = base.join("blobs");
        fs::create_dir_all(&blobs)?;
        for layout in [&app, &other, &layerless] {
            for blob in fs::read_dir(layout.directory.join("blobs/sha256"))? {
                let blob = blob?;
                fs::copy(blob.path(), blobs.join(blob.file_name()))?;
            }
        }
        let state = base.join("v");
        place::socket(state.join("s").join("0".repeat(32)))?;
        let watch = Watch::new(&base, &state, &base.join("bundles"));
        let mut configuration = Configuration::working(state)?;
        configuration.qemu = hostile_monitor(&base, &configuration.qemu)?.display().to_string();
        let file = base.join("cloister.toml");
        configuration.write(&file)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        Ok(Self {
            runtime,
            images,
            config: Config::from_file(&file)?,
            blobs: Arc::new(Blobs { directory: blobs, lie: Mutex::default() }),
            watch,
            fresh: OnceLock::new(),
            closed: OnceLock::new(),
            open: OnceLock::new(),
        })
    }

    /// The policy of the closed door.
    pub fn policy(&self) -> String {
        format!(
            "[[container]]\nname = \"app\"\nimage.digest = {app:?}\nenv = [\"MODE=batch\"]\nrestart = true\n\n\
             [[container]]\nname = \"locked\"\nimage.digest = {app:?}\nargs = [\"/bin/sh\", \"-c\", {locked:?}]\nread_only = true\n\
             restart = true\n\n[[container]]\nname = \"layerless\"\nimage.digest = {layerless:?}\nrestart = true\n\n\
             [allow]\nexec = [[\"/bin/echo\", \"allowed\"]]\n",
            app = self.images.app,
            locked = crate::inside::LOCKED,
            layerless = self.images.layerless,
        )
    }

    /// Initdata with this policy, as it is sent.
    pub fn initdata(policy: &str) -> Result<Vec<u8>> {
        Ok(STANDARD.decode(Initdata::new("http://127.0.0.1:1", policy).annotation()?)?)
    }

    /// A guest that has been asked for nothing.
    pub fn fresh(&self) -> Result<&Host> {
        guest(&self.fresh, || self.runtime.block_on(Sandbox::power_on(&self.config, &spec("fresh", Vec::new()))).map_err(Into::into))
    }

    /// A guest with initdata.
    pub fn closed(&self) -> Result<&Host> {
        guest(&self.closed, || self.boot("closed", Self::initdata(&self.policy())?))
    }

    /// A guest without.
    pub fn open(&self) -> Result<&Host> {
        guest(&self.open, || self.boot("open", Vec::new()))
    }

    fn boot(&self, name: &str, initdata: Vec<u8>) -> Result<Sandbox> {
        let sandbox = self.runtime.block_on(Sandbox::boot(&self.config, spec(name, initdata)))?;
        sandbox.courier().set_blobs(self.blobs.clone());
        Ok(sandbox)
    }

    /// From here on who asks for the blob `asked` gets `served`; `None` ends it.
    pub fn lie(&self, asked_and_served: Option<(&str, &str)>) {
        let lie = asked_and_served.map(|(asked, served)| (asked.to_owned(), served.to_owned()));
        *self.blobs.lie.lock().unwrap_or_else(PoisonError::into_inner) = lie;
    }
}

impl TestBed for HostileBed {
    fn end(self) -> Result<()> {
        for host in [self.fresh, self.closed, self.open].into_iter().filter_map(OnceLock::into_inner) {
            self.runtime.block_on(host.end())?;
        }
        self.runtime.shutdown_background();
        self.watch.nothing(&[])
    }
}

fn spec(name: &str, initdata: Vec<u8>) -> SandboxSpec {
    SandboxSpec { id: format!("hostile-{name}-{}", std::process::id()), initdata, ..SandboxSpec::default() }
}

/// Boots it for whoever comes first.
fn guest(cell: &OnceLock<Host>, boot: impl FnOnce() -> Result<Sandbox>) -> Result<&Host> {
    if let Some(host) = cell.get() {
        return Ok(host);
    }
    cell.set(Host::new(boot()?)).map_err(|_| anyhow!("two at once"))?;
    cell.get().context("just set")
}

/// A program in the monitor's place that starts it with more devices.
fn hostile_monitor(base: &Path, qemu: &str) -> Result<PathBuf> {
    let path = base.join("qemu");
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|directory| directory.join(qemu)).find(|path| path.is_file());
    let qemu = found.with_context(|| format!("{qemu} is missing: run `make setup`"))?;
    let more: String = UNASKED.iter().map(|device| format!(" -device {device}")).collect();
    fs::write(&path, format!("#!/bin/sh\nexec {} \"$@\"{more}\n", qemu.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// What containerd's content store would serve, and what a liar would.
struct Blobs {
    directory: PathBuf,
    lie: Mutex<Option<(String, String)>>,
}

#[async_trait::async_trait]
impl BlobSource for Blobs {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        let lie = self.lie.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let served = lie.filter(|(asked, _)| asked == digest).map_or_else(|| digest.to_owned(), |(_, served)| served);
        let path = self.directory.join(served.trim_start_matches("sha256:"));
        match tokio::fs::File::open(path).await {
            Ok(file) => Ok(Some((file.metadata().await?.len(), Box::new(file)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The guests' log and the host's, for whoever looks for the cause of a failure.
fn log_to(path: &Path) -> Result<()> {
    struct Logger(Mutex<File>);

    impl log::Log for Logger {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(file, "{} {}", record.level(), record.args());
        }

        fn flush(&self) {}
    }

    log::set_boxed_logger(Box::new(Logger(Mutex::new(File::create(path)?)))).map_err(|error| anyhow!("{error}"))?;
    log::set_max_level(log::LevelFilter::Info);
    Ok(())
}
