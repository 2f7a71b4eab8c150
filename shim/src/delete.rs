//! `delete`: removes what a shim has left, from disk alone. containerd runs it after every dropped connection, with five seconds for
//! it, also for one container of a living pod: that one owns no record, so that nothing of its pod is touched.

use crate::{args::Args, bundle::Bundle, group, owner, socket, start};
use anyhow::{Context, Result};
use containerd_shim_protos::api::DeleteResponse;
use nix::mount::{MntFlags, umount2};
use protobuf::{Message, MessageField, well_known_types::timestamp::Timestamp};
use runtime::{config::Config, sandbox};
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// What a process that was killed reports: 128 + SIGKILL.
const KILLED: u32 = 137;
/// How long `poststop` hooks may take, of the five seconds.
const HOOKS: Duration = Duration::from_millis(2500);
/// Most mounts that are taken off one after the other; a bundle has one.
const MAX_MOUNTS: usize = 64;

/// Runs `delete` and writes the answer. What cannot be removed is a warning: containerd logs it, and removes the bundle.
pub fn run(args: &Args) -> Result<()> {
    start::check(args)?;
    let bundle = start::bundle_dir(args)?;
    if let Err(error) = remove(args, &bundle) {
        eprintln!("{}", crate::line(&error));
    }
    let response =
        DeleteResponse { exit_status: KILLED, exited_at: MessageField::some(Timestamp::from(SystemTime::now())), ..Default::default() };
    let bytes = response.write_to_bytes().context("answer")?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("standard output")
}

fn remove(args: &Args, bundle: &Path) -> Result<()> {
    unmount(&bundle.join("rootfs"));
    let group = start::group(args, bundle);
    let removed = match group == group::Group::new(&args.address, &args.namespace, &args.id) {
        true => remove_sandbox(&group, bundle),
        false => Ok(()),
    };
    run_hooks(args, bundle).and(removed)
}

/// Removes what the shim of the bundle has made.
fn remove_sandbox(group: &group::Group, bundle: &Path) -> Result<()> {
    let config = Config::load()?;
    // The VM first: the shim sees its end, and its own end then meets nothing half-way.
    let removed = sandbox::remove(&config, &group.sandbox_id());
    owner::end(bundle);
    // A shim that died before its address was written has a socket all the same, under the name that its group gives it.
    let usual = group.socket(&group::socket_dir(&config.state_dir)).ok();
    for path in read_address(bundle).into_iter().chain(usual) {
        socket::remove_dead(&path);
    }
    Ok(removed?)
}

/// `poststop` hooks that the shim did not come to: CNI gives addresses and port mappings back through them.
fn run_hooks(args: &Args, path: &Path) -> Result<()> {
    let Ok(bundle) = Bundle::read(path) else { return Ok(()) };
    let hooks = bundle.hooks(&args.id, path);
    if !hooks.is_owed() || hooks.check().is_err() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async { tokio::time::timeout(HOOKS, hooks.after_delete()).await });
    done.with_context(|| format!("poststop hooks did not end within {} ms", HOOKS.as_millis()))
}

/// Path of the socket that the bundle's shim had.
fn read_address(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join(start::ADDRESS_FILE)).ok()?;
    address.trim().strip_prefix("unix://").map(PathBuf::from)
}

/// Takes off whatever is mounted on `path`, with all below it.
fn unmount(path: &Path) {
    for _ in 0..MAX_MOUNTS {
        if umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            return;
        }
    }
}
