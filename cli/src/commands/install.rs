//! `cloister install` and `cloister uninstall`.

use crate::{
    install::{
        Action, Change, Plan, containerd, diff, kubernetes,
        node::{self, Request},
    },
    output,
};
use anyhow::{Context, Result, bail};
use runtime::config::Config;
use serde::Serialize;
use std::{
    env, fs,
    os::unix::{fs::chroot, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

/// Where, for both.
#[derive(Debug, clap::Args)]
struct Place {
    /// The node's root directory, where it is not this one: a DaemonSet has it mounted
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
    /// Directory of the binaries on the node
    #[arg(long, value_name = "DIRECTORY", default_value = "/usr/local/bin")]
    bin: PathBuf,
    /// containerd's configuration file on the node
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// Show what would be done, with every change of a text file, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Install Cloister on this node: binaries, guest image, configuration of containerd and CRI-O
///
/// Doing it again changes nothing. A file that is changed is kept beside the new one as FILE.cloister-backup. Running pods are not
/// touched: files are replaced in one step, and containerd and CRI-O, which read their configuration when they start, are not restarted.
/// The RuntimeClass for Kubernetes is printed.
#[derive(Debug, clap::Args)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    place: Place,
    /// Directory with the shim and this command, if not that of this command
    #[arg(long, value_name = "DIRECTORY")]
    from: Option<PathBuf>,
    /// Directory with the guest image, as `cloister guest build` makes it; without it the node's own is left as it is
    #[arg(long, value_name = "DIRECTORY")]
    guest: Option<PathBuf>,
    /// Configure containerd, also where it is not found
    #[arg(long, overrides_with = "no_containerd")]
    containerd: bool,
    /// Leave containerd as it is
    #[arg(long)]
    no_containerd: bool,
    /// Configure CRI-O, also where it is not found
    #[arg(long, overrides_with = "no_crio")]
    crio: bool,
    /// Leave CRI-O as it is
    #[arg(long)]
    no_crio: bool,
    /// containerd's version, such as 1.7, where it cannot be asked
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    containerd_version: Option<containerd::Version>,
    /// Have systemd restart containerd and CRI-O where their configuration has changed; running pods survive that
    #[arg(long)]
    restart: bool,
    /// Have containerd use `cloister snapshotter` at this socket for pods of Cloister
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = "/run/cloister/snapshotter.sock")]
    snapshotter: Option<PathBuf>,
}

/// Take back what `cloister install` has done to this node
///
/// The parts of containerd's and CRI-O's configuration, binaries and guest image go; what an administrator has changed stays. Refused
/// while pods run with Cloister, because nobody could clean up after them.
#[derive(Debug, clap::Args)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    place: Place,
    /// Do it even while pods run
    #[arg(long)]
    force: bool,
}

pub(crate) fn install(args: &InstallArgs) -> Result<()> {
    let mut request = request(&args.place);
    request.from = Some(match &args.from {
        Some(from) => from.clone(),
        None => env::current_exe()?.parent().context("this program has no directory")?.to_owned(),
    });
    request.guest.clone_from(&args.guest);
    request.containerd = (args.containerd || args.no_containerd).then_some(args.containerd);
    request.crio = (args.crio || args.no_crio).then_some(args.crio);
    request.version = args.containerd_version.or_else(|| ask_version(&request.root));
    request.snapshotter.clone_from(&args.snapshotter);
    let plan = node::install(&request)?;
    let memory = Config::from_file(&request.root.join("etc/cloister/config.toml")).unwrap_or_default().guest.memory_mib;
    carry_out(&args.place, &plan, Some(kubernetes::runtime_class(memory)))?;
    if args.restart && !args.place.dry_run {
        plan.restart.iter().try_for_each(|daemon| restart(&args.place.root, daemon))?;
    }
    Ok(())
}

fn restart(root: &Path, daemon: &str) -> Result<()> {
    let output = on_node(root, "systemctl").args(["restart", daemon]).output().context("systemctl")?;
    if !output.status.success() {
        bail!("systemctl restart {daemon}: {}; all files are in place", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

pub(crate) fn uninstall(args: &UninstallArgs) -> Result<()> {
    carry_out(&args.place, &node::uninstall(&request(&args.place), args.force)?, None)
}

fn request(place: &Place) -> Request {
    Request {
        root: place.root.clone(),
        bin: place.bin.clone(),
        from: None,
        guest: None,
        containerd: None,
        crio: None,
        version: None,
        containerd_config: place.containerd_config.clone(),
        snapshotter: None,
    }
}

fn carry_out(place: &Place, plan: &Plan, runtime_class: Option<String>) -> Result<()> {
    // Before anything is done: afterwards there is no difference to show.
    let report = report(plan, runtime_class.clone(), place.dry_run)?;
    if !place.dry_run {
        if !nix::unistd::geteuid().is_root() && place.root == Path::new("/") {
            bail!("only root can change this node; --dry-run shows what would be done");
        }
        plan.apply()?;
    }
    if place.json {
        return output::json(&report);
    }
    for (change, entry) in plan.changes.iter().zip(&report.changes) {
        output::note(&describe(change));
        if place.dry_run && !entry.diff.is_empty() {
            output::note(entry.diff.trim_end());
        }
    }
    if plan.changes.is_empty() {
        output::note("nothing to do: all is as it should be");
    }
    for note in &plan.notes {
        output::note(&format!("note: {note}"));
    }
    for daemon in &plan.restart {
        output::note(&format!("{daemon} reads this when it starts; running pods survive that: systemctl restart {daemon}"));
    }
    match runtime_class {
        Some(manifest) => output::raw(manifest.as_bytes()),
        None => Ok(()),
    }
}

fn describe(change: &Change) -> String {
    let path = change.path.display();
    match &change.action {
        Action::Write { old: None, .. } => format!("create {path}"),
        Action::Write { old: Some(_), .. } => format!("change {path} (before: {})", node::backup(&change.path).display()),
        Action::Copy { from, .. } => format!("copy {} to {path}", from.display()),
        Action::Remove => format!("remove {path}"),
    }
}

/// What changes in a text file.
fn text_of(change: &Change) -> Result<String> {
    let name = change.path.display().to_string();
    Ok(match &change.action {
        Action::Write { old, new } => diff(&name, old.as_deref(), Some(new)),
        // A binary has no lines to show.
        Action::Remove => fs::read_to_string(&change.path).map_or(String::new(), |old| diff(&name, Some(&old), None)),
        Action::Copy { .. } => String::new(),
    })
}

#[derive(Serialize)]
struct Report {
    dry_run: bool,
    changes: Vec<Entry>,
    restart: Vec<&'static str>,
    notes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_class: Option<String>,
}

#[derive(Serialize)]
struct Entry {
    path: PathBuf,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backup: Option<PathBuf>,
    #[serde(skip_serializing_if = "String::is_empty")]
    diff: String,
}

fn report(plan: &Plan, runtime_class: Option<String>, dry_run: bool) -> Result<Report> {
    let entry = |change: &Change| {
        let (action, from, backup) = match &change.action {
            Action::Write { old: None, .. } => ("create", None, None),
            Action::Write { old: Some(_), .. } => ("change", None, Some(node::backup(&change.path))),
            Action::Copy { from, .. } => ("copy", Some(from.clone()), None),
            Action::Remove => ("remove", None, None),
        };
        Ok(Entry { path: change.path.clone(), action, from, backup, diff: text_of(change)? })
    };
    let changes = plan.changes.iter().map(entry).collect::<Result<_>>()?;
    Ok(Report { dry_run, changes, restart: plan.restart.clone(), notes: plan.notes.clone(), runtime_class })
}

/// The version of the node's containerd, if it can be run here.
fn ask_version(root: &Path) -> Option<containerd::Version> {
    let output = on_node(root, "containerd").arg("--version").output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().find_map(|word| parse_version(word).ok())
}

/// A program of the node.
fn on_node(root: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    if root != Path::new("/") {
        let root = root.to_owned();
        // SAFETY: between fork and exec only chroot and chdir are called; the path was made before.
        unsafe {
            command.pre_exec(move || {
                chroot(&root)?;
                env::set_current_dir("/")
            });
        }
    }
    command
}

/// `major.minor`, whatever follows.
fn parse_version(text: &str) -> Result<containerd::Version, String> {
    let mut parts = text.trim_start_matches('v').split(['.', '~', '-', '+']);
    let mut number = || parts.next().and_then(|part| part.parse().ok());
    match (number(), number()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err(format!("{text:?} is no version such as 1.7 or v2.1.4")),
    }
}
