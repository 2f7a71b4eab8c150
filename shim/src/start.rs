//! `start`: finds or makes the group's shim and says where it is. Nothing but the answer is written: containerd reads standard
//! output and standard error as one.

use crate::{
    args::Args,
    bundle::Bundle,
    caller::{self, Caller},
    group::{self, Group},
    owner,
    socket::{self, Claim},
};
use anyhow::{Context, Result, bail, ensure};
use runtime::config::Config;
use std::{
    env, fs, io,
    io::Write,
    os::{
        fd::{AsRawFd, RawFd},
        unix::{net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The descriptor under which the daemon finds its socket, as Go's shims do it.
pub const SOCKET_FD: RawFd = 3;
/// The file in a bundle that says where its shim is; containerd 1.x and CRI-O read it after their own restart.
pub const ADDRESS_FILE: &str = "address";

/// Runs `start` and writes the answer.
pub fn run(args: &Args) -> Result<()> {
    check(args)?;
    let stdin = caller::read_stdin(io::stdin().lock())?;
    let caller = Caller::detect(args, |name| env::var(name).ok(), &stdin);
    // Here and not in the daemon: an error in the configuration is then the user's error message.
    let config = Config::load()?;
    let bundle = bundle_dir(args)?;
    let path = socket_path(args, &caller, &config, &bundle)?;
    let address = socket::address(&path);
    match socket::claim(&path)? {
        Claim::Served => write_address(&bundle, &address)?,
        Claim::Bound(listener) => {
            let started = spawn(args, &caller, &bundle, &listener).and_then(|mut child| {
                // Noted here, not by the daemon itself: `delete` may come before that has run a line.
                let noted = owner::note(&bundle, child.id()).with_context(|| format!("write in {}", bundle.display()));
                noted.and_then(|()| write_address(&bundle, &address)).inspect_err(|_| {
                    let _ = child.kill();
                })
            });
            started.inspect_err(|_| {
                let _ = fs::remove_file(&path);
            })?;
        }
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(&caller.answer(&address)).and_then(|()| stdout.flush()).context("standard output")
}

/// What every action but `-v` and `-info` needs.
pub fn check(args: &Args) -> Result<()> {
    ensure!(!args.namespace.is_empty(), "shim namespace cannot be empty: pass -namespace");
    protocol::bounds::check_id("id", &args.id).context("-id")
}

/// The bundle: the working directory, unless the caller names another.
pub fn bundle_dir(args: &Args) -> Result<PathBuf> {
    match &args.bundle {
        Some(bundle) => Ok(bundle.clone()),
        None => env::current_dir().context("working directory"),
    }
}

/// The group that the bundle belongs to. Without a readable `config.json` (a sandbox of the Sandbox API may have none) it is one
/// of its own.
pub fn group(args: &Args, bundle: &Path) -> Group {
    let bundle = Bundle::read(bundle);
    let id = bundle.as_ref().map_or(args.id.as_str(), |bundle| bundle.group(&args.id));
    Group::new(&args.address, &args.namespace, id)
}

fn socket_path(args: &Args, caller: &Caller, config: &Config, bundle: &Path) -> Result<PathBuf> {
    let asked = caller.params().and_then(|params| params.socket_dir.clone()).filter(|dir| !dir.is_empty());
    let dir = asked.map_or_else(|| group::socket_dir(&config.state_dir), PathBuf::from);
    match group(args, bundle).socket(&dir) {
        Ok(path) => Ok(path),
        Err(path) => bail!("socket {}: longer than 106 bytes; choose a shorter state_dir in the configuration", path.display()),
    }
}

/// Starts the daemon: this program without an action, its socket as descriptor 3, in a session of its own, and with none of our
/// standard streams: the caller waits until they are closed.
fn spawn(args: &Args, caller: &Caller, bundle: &Path, listener: &UnixListener) -> Result<Child> {
    let program = env::current_exe().context("path of this program")?;
    let mut command = Command::new(&program);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address]);
    if args.debug || caller.wants_debug() {
        command.arg("-debug");
    }
    let events = caller.params().map(|params| params.containerd_ttrpc_address.clone()).filter(|address| !address.is_empty());
    if let Some(address) = events {
        command.env("TTRPC_ADDRESS", address);
    }
    command.current_dir(bundle).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: between fork and exec only async-signal-safe calls are made: setsid, dup2, fcntl.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            inherit(fd)
        });
    }
    command.spawn().with_context(|| format!("start {}", program.display()))
}

/// Makes `fd` the descriptor [`SOCKET_FD`] of the program that is executed next.
fn inherit(fd: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on numbers; `fd` is open, and nothing of ours is under SOCKET_FD in the child.
    let done = unsafe { if fd == SOCKET_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, SOCKET_FD) } };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes the file in one step, so that nobody reads half an address.
fn write_address(bundle: &Path, address: &str) -> Result<()> {
    let (path, new) = (bundle.join(ADDRESS_FILE), bundle.join(".address"));
    fs::write(&new, address).and_then(|()| fs::rename(&new, &path)).with_context(|| format!("write {}", path.display()))
}
