//! One test bed: containerd, registry, broker and snapshotter, below `build/t/NAME`, and gone afterwards.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::broker::{Broker, Release};
use crate::configuration::{Configuration, Initdata};
use crate::containerd::{Containerd, Options};
use crate::cri::Cri;
use crate::cri::configuration::{Node, Runtimes};
use crate::cri::network::Network;
use crate::ctr::{Ctr, Run};
use crate::daemon::{self, Daemon};
use crate::leaks::{self, Watch};
use crate::oci::{Image, Layout};
use crate::place;
use crate::registry::Registry;

const START: Duration = Duration::from_secs(60);

/// The policy that lets `ctr run` of an image work as it is: `ctr` connects standard input, whether anything is typed or not.
pub const POLICY: &str = "[allow]\nstdin = true\n";

/// What distinguishes one bed from another.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// Name of its directory; short, because it is part of socket paths.
    pub name: &'a str,
    /// One of [`place::CONTAINERD_VERSIONS`].
    pub containerd: &'a str,
}

/// A running test bed.
#[derive(Debug)]
pub struct Bed {
    base: PathBuf,
    /// Version of containerd.
    pub version: String,
    /// Changed by tests that run alone in their bed.
    pub configuration: Configuration,
    /// The registry.
    pub registry: Registry,
    /// The broker.
    pub broker: Broker,
    snapshotter: Mutex<Daemon>,
    /// Held while an image is made and pushed: tests side by side make the same one in the same place.
    images: Mutex<()>,
    containerd: Containerd,
    pods: Option<(Cri, Node)>,
    watch: Watch,
    count: AtomicUsize,
}

impl Bed {
    /// Starts everything, after ending what an interrupted run of the same bed may have left.
    pub fn start(setup: &Setup<'_>) -> Result<Self> {
        Self::start_as(setup, None)
    }

    /// The same with a CRI, and a network for its pods, which all are of Cloister and have our snapshotter.
    pub fn start_with_cri(setup: &Setup<'_>) -> Result<Self> {
        Self::start_as(setup, Some(Runtimes::Ours))
    }

    /// The same with runc beside us: `runtimes` says who has which snapshotter.
    pub fn start_with_runc(setup: &Setup<'_>, runtimes: Runtimes) -> Result<Self> {
        Self::start_as(setup, Some(runtimes))
    }

    fn start_as(setup: &Setup<'_>, cri: Option<Runtimes>) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "containerd needs root: run `make test`, which uses sudo where needed");
        let base = place::build()?.join("t").join(setup.name);
        clear(&base)?;
        fs::create_dir_all(&base)?;

        let state = base.join("v");
        // The longest of all: the shim's socket, named by 32 hexadecimal digits.
        place::socket(state.join("s").join("0".repeat(32)))?;
        let containerd_directory = base.join("c");
        let mut watch = Watch::new(&base, &state, &containerd_directory.join("state"));

        let registry = Registry::start(&base, "registry")?;
        let broker = Broker::start(&base, "broker")?;
        let mut configuration = Configuration::working(state)?;
        configuration.authorities = vec![registry.authority.clone(), broker.authority.clone()];
        let file = base.join("cloister.toml");
        configuration.write(&file)?;
        let flags = cri.map_or(&[][..], Runtimes::flags);
        let (snapshotter, socket) = start_snapshotter("snapshotter", &base, &containerd_directory.join("c.sock"), flags)?;
        let snapshotter = Mutex::new(snapshotter);
        let node = cri.map(|runtimes| Node::new(&base, setup.name, setup.containerd, &registry, runtimes)).transpose()?;
        let options = Options {
            version: setup.containerd,
            directory: &containerd_directory,
            shim_configuration: &file,
            snapshotter: &socket,
            pods: node.as_ref(),
        };
        let containerd = Containerd::start(&options)?;
        let connected = node.map(|node| Ok::<_, anyhow::Error>((Cri::connect(&containerd.socket(), &base.join("logs"))?, node)));
        let pods = connected.transpose()?;
        let version = setup.containerd.to_owned();
        watch.is_idle();
        Ok(Self {
            base,
            version,
            configuration,
            registry,
            broker,
            snapshotter,
            images: Mutex::new(()),
            containerd,
            pods,
            watch,
            count: AtomicUsize::new(0),
        })
    }

    /// Its directory.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The client of its containerd.
    pub fn ctr(&self) -> &Ctr {
        self.containerd.ctr()
    }

    /// Its containerd.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// The client of its CRI.
    pub fn cri(&self) -> Result<&Cri> {
        Ok(&self.pods.as_ref().context("this bed has no CRI")?.0)
    }

    /// The network of its pods.
    pub fn network(&self) -> Result<&Network> {
        Ok(&self.pods.as_ref().context("this bed has no CRI")?.1.network)
    }

    /// Process id of the snapshotter.
    pub fn snapshotter_pid(&self) -> u32 {
        self.snapshotter.lock().unwrap_or_else(PoisonError::into_inner).pid()
    }

    /// The shims' configuration file.
    pub fn configuration_file(&self) -> PathBuf {
        self.base.join("cloister.toml")
    }

    /// A container id that nobody has used: `what` makes it readable in logs.
    pub fn id(&self, what: &str) -> String {
        format!("{what}-{}-{}", self.count.fetch_add(1, Ordering::Relaxed), std::process::id())
    }

    /// Writes `image` as a layout named `name`.
    pub fn layout(&self, image: &Image, name: &str) -> Result<Layout> {
        image.write(&self.base.join("images").join(name), "1")
    }

    /// Pushes an image as it is and pulls it; returns its reference.
    pub fn plain(&self, image: &Image, name: &str) -> Result<String> {
        let _turn = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        self.provide(&self.layout(image, name)?, name)
    }

    /// Pushes a layout and pulls it; returns the reference.
    pub fn provide(&self, layout: &Layout, name: &str) -> Result<String> {
        let reference = self.registry.push(layout, name, "1")?;
        self.ctr().pull(&reference)?;
        Ok(reference)
    }

    /// Initdata that names this bed's broker.
    pub fn initdata(&self, policy: &str) -> Initdata {
        Initdata::new(&self.broker.url(), policy)
    }

    /// Encrypts an image so that its key goes to the working guest with `initdata`.
    pub fn encrypt(&self, image: &Image, name: &str, initdata: &Initdata) -> Result<Layout> {
        self.encrypt_layout(&self.layout(image, name)?, name, initdata)
    }

    /// The same with a layout.
    pub fn encrypt_layout(&self, layout: &Layout, name: &str, initdata: &Initdata) -> Result<Layout> {
        let file = self.base.join("images").join(format!("{name}.initdata"));
        fs::write(&file, &initdata.text)?;
        let release = Release { key: &format!("kbs:///tests/image/{name}"), initdata: &file, tee: "sample", launch_measurement: None };
        self.broker.encrypt(layout, "1", &release)
    }

    /// Encrypts, pushes and pulls an image; returns its reference.
    pub fn encrypted(&self, image: &Image, name: &str, initdata: &Initdata) -> Result<String> {
        let _turn = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        self.provide(&self.encrypt(image, name, initdata)?, name)
    }

    /// Expects a run to fail in one line that has every one of `words` in it, with no output, a non-zero exit, and nothing left.
    pub fn refused(&self, run: &Run<'_>, words: &[&str]) -> Result<()> {
        let finished = self.ctr().run(run)?;
        ensure!(!finished.status.success() && finished.stdout.is_empty(), "it ran: {finished:?}");
        ensure!(finished.stderr.trim_end().lines().count() == 1, "not one line: {}", finished.stderr);
        let parts: Vec<&str> = finished.stderr.trim_end().split(": ").collect();
        ensure!(parts.windows(2).all(|pair| pair[0] != pair[1]), "says something twice: {}", finished.stderr);
        for word in words {
            ensure!(finished.stderr.contains(word), "'{word}' is not in: {}", finished.stderr);
        }
        println!("  {}: {}", run.id, finished.stderr.trim_end());
        self.nothing_of(run.id)
    }

    /// Fails unless every trace of the container `id` goes.
    pub fn nothing_of(&self, id: &str) -> Result<()> {
        self.watch.nothing_of(id)
    }

    /// Fails unless every sandbox of this bed is gone with every trace.
    pub fn no_sandbox(&self) -> Result<()> {
        self.watch.no_sandbox()
    }

    /// Kills the snapshotter and starts it again with `flags`.
    pub fn restart_snapshotter(&self, flags: &[&str]) -> Result<()> {
        let mut daemon = self.snapshotter.lock().map_err(|_| anyhow!("a test panicked with the snapshotter"))?;
        daemon.kill()?;
        // What a killed one leaves; the new one takes its place, and its appearance says that it listens.
        fs::remove_file(self.base.join("snap.sock"))?;
        let name = format!("snapshotter-{}", self.count.fetch_add(1, Ordering::Relaxed));
        *daemon = start_snapshotter(&name, &self.base, &self.base.join("c/c.sock"), flags)?.0;
        // containerd calls it again after a while of its own; and not to answer what it knows by itself, as that there are no snapshots.
        let snapshot = |verb| self.ctr().call(&["snapshot", "--snapshotter", "cloister", verb, &name]);
        let deadline = Instant::now() + START;
        while !snapshot("prepare")?.status.success() {
            ensure!(Instant::now() < deadline, "containerd does not find its snapshotter again");
            std::thread::sleep(Duration::from_millis(100));
        }
        snapshot("rm")?.succeeded()?;
        Ok(())
    }

    /// The lines of containerd's log, where the shims' logs end up, that have `text` in them.
    pub fn log_lines(&self, text: &str) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.containerd.log())?;
        Ok(log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect())
    }

    /// Ends everything and fails where anything is left.
    pub fn end(mut self) -> Result<()> {
        let sandboxes = leaks::processes("containerd-shim-cloister-v2", &[]);
        let ours: Vec<_> = sandboxes.iter().filter(|line| line.contains(&self.base.display().to_string())).collect();
        ensure!(ours.is_empty(), "containers are still running at the end: {ours:?}");
        self.containerd.stop()?;
        self.snapshotter.into_inner().map_err(|_| anyhow!("a test panicked with the snapshotter"))?.stop()?;
        self.broker.stop()?;
        self.registry.stop()?;
        if let Some((_, node)) = &self.pods {
            node.network.remove()?;
        }
        self.watch.nothing(&[])
    }
}

fn start_snapshotter(name: &str, base: &Path, containerd: &Path, flags: &[&str]) -> Result<(Daemon, PathBuf)> {
    let socket = place::socket(base.join("snap.sock"))?;
    let mut command = Command::new(place::ours("cloister")?);
    command.arg("snapshotter").arg("--socket").arg(&socket).arg("--root").arg(base.join("snap"));
    command.arg("--containerd").arg(containerd).args(flags).env("CLOISTER_CONFIG", base.join("cloister.toml"));
    let mut daemon = Daemon::start(name, base, command)?;
    daemon.wait_until(START, "listening", || socket.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket()))?;
    Ok((daemon, socket))
}

/// Removes what an interrupted run left: its daemons by their records; shims and VMs, which outlive containerd by design, by their command
/// lines, which name this bed's directory; mounts; then the files.
fn clear(base: &Path) -> Result<()> {
    daemon::end_stale(base)?;
    daemon::end_stale(&base.join("c"))?;
    let name = format!("{}/", base.display());
    for (pid, line) in leaks::pids_with(&name) {
        if line.contains("containerd-shim-cloister-v2") || line.contains("qemu-system") {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).ok();
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(|point| point.starts_with(&name)) {
        nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH).with_context(|| format!("unmounting {point}"))?;
    }
    match fs::remove_dir_all(base) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => bail!("removing {}: {error}", base.display()),
        _ => Ok(()),
    }
}
