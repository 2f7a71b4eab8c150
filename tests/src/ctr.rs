//! containerd's own command line client, as a user runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::command::{self, Finished, Running};
use crate::place;

/// One command that starts no VM.
const SHORT: Duration = Duration::from_secs(120);
/// One that boots a VM without hardware virtualisation, on a busy machine, with somebody else's VM beside it.
pub const BOOT: Duration = Duration::from_secs(300);

/// The client of one containerd.
#[derive(Clone, Debug)]
pub struct Ctr {
    program: PathBuf,
    address: PathBuf,
    fifos: PathBuf,
    local_pull: bool,
    namespace: &'static str,
}

/// What `ctr run` is to run.
#[derive(Clone, Debug, Default)]
pub struct Run<'a> {
    /// Image reference; it must have been pulled.
    pub image: &'a str,
    /// Container id.
    pub id: &'a str,
    /// Flags beyond those that every test needs.
    pub flags: &'a [&'a str],
    /// Command in place of the image's own.
    pub args: &'a [&'a str],
    /// The annotation with initdata, already encoded.
    pub initdata: Option<&'a str>,
    /// What the container reads.
    pub input: &'a [u8],
}

impl Ctr {
    /// `local_pull`: 1.7 and newer pull in the daemon unless told otherwise.
    pub fn new(program: PathBuf, address: PathBuf, fifos: PathBuf, local_pull: bool) -> Self {
        Self { program, address, fifos, local_pull, namespace: "default" }
    }

    /// The same client in another namespace of the daemon.
    pub fn in_namespace(&self, namespace: &'static str) -> Self {
        Self { namespace, ..self.clone() }
    }

    /// Socket of the daemon.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// The command line of `ctr` with `arguments`.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--address").arg(&self.address).args(["--namespace", self.namespace]).args(arguments);
        command
    }

    /// Runs `ctr` with `arguments`, whatever comes of it.
    pub fn call(&self, arguments: &[&str]) -> Result<Finished> {
        command::run(&mut self.command(arguments), SHORT)
    }

    /// Waits until every service is registered: the socket accepts connections before that.
    pub fn wait_serving(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let answer = self.call(&["version"])?;
            if answer.status.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("containerd does not serve after {} s: {}", limit.as_secs(), answer.stderr.trim_end());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Fetches all of an image into the content store and tells containerd that nothing has to be unpacked: what every version can do.
    pub fn pull(&self, reference: &str) -> Result<()> {
        self.call(&["content", "fetch", "--plain-http", reference])?.succeeded()?;
        let mut prepare = Command::new(place::ours("cloister")?);
        prepare.args(["image", "prepare", "--address"]).arg(&self.address).arg(reference);
        command::run(&mut prepare, SHORT)?.succeeded()?;
        Ok(())
    }

    /// Pulls manifest and config only: the path of clients that know remote snapshotters, among them `ctr` from 2.0 on.
    pub fn pull_lazily(&self, reference: &str) -> Result<()> {
        self.call(&["image", "pull", "--plain-http", "--snapshotter", "cloister", reference])?.succeeded()?;
        Ok(())
    }

    /// Pulls an image and unpacks it on the host, for a snapshotter that is not ours.
    pub fn pull_unpacking(&self, reference: &str, snapshotter: &str) -> Result<()> {
        let mut arguments = vec!["image", "pull", "--plain-http", "--snapshotter", snapshotter];
        if self.local_pull {
            arguments.push("--local");
        }
        arguments.push(reference);
        self.call(&arguments)?.succeeded()?;
        Ok(())
    }

    /// The arguments of `ctr run`.
    fn run_arguments(&self, run: &Run<'_>) -> Vec<String> {
        let fifos = self.fifos.display().to_string();
        let mut arguments: Vec<String> = ["run", "--runtime", "io.containerd.cloister.v2", "--fifo-dir", &fifos].map(str::to_owned).into();
        // A spec of the caller's own is not made from an image, and has no snapshot.
        if !run.flags.contains(&"--snapshotter") && !run.flags.contains(&"--config") {
            arguments.extend(["--snapshotter", "cloister"].map(str::to_owned));
        }
        if !run.flags.contains(&"--detach") {
            arguments.push("--rm".to_owned());
        }
        if let Some(initdata) = run.initdata {
            arguments.extend(["--annotation".to_owned(), format!("dev.cloister.initdata={initdata}")]);
        }
        let image = Some(&run.image).filter(|image| !image.is_empty());
        arguments.extend(run.flags.iter().chain(image).chain([&run.id]).chain(run.args).map(|&argument| argument.to_owned()));
        arguments
    }

    /// The command line of `ctr run`, for callers that bring their own terminal.
    pub fn run_command(&self, run: &Run<'_>) -> Command {
        let arguments = self.run_arguments(run);
        self.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts `ctr run`.
    pub fn start(&self, run: &Run<'_>) -> Result<Running> {
        command::start(&mut self.run_command(run), run.input.to_vec())
    }

    /// `ctr run` to its end.
    pub fn run(&self, run: &Run<'_>) -> Result<Finished> {
        self.start(run)?.finish(BOOT)
    }

    /// `ctr task exec` to its end.
    pub fn exec(&self, id: &str, exec_id: &str, flags: &[&str], args: &[&str], input: &[u8]) -> Result<Finished> {
        command::start(&mut self.exec_command(id, exec_id, flags, args), input.to_vec())?.finish(SHORT)
    }

    /// The command line of `ctr task exec`.
    pub fn exec_command(&self, id: &str, exec_id: &str, flags: &[&str], args: &[&str]) -> Command {
        let fifos = self.fifos.display().to_string();
        let mut arguments = vec!["task", "exec", "--exec-id", exec_id, "--fifo-dir", &fifos];
        arguments.extend(flags);
        arguments.push(id);
        arguments.extend(args);
        self.command(&arguments)
    }

    /// Ends and forgets a container, in whatever state it is.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.call(&["task", "rm", "--force", id])?;
        self.call(&["container", "rm", id])?;
        Ok(())
    }
}
