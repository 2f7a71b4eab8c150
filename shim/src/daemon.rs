//! The shim itself: serves its socket until containerd asks it to end, a signal does, or nobody needs it any more.

use crate::{
    args::Args,
    connections,
    events::Events,
    guest::Machines,
    info, log as shim_log, service,
    start::{self, SOCKET_FD},
    task::{Settings, Tasks},
};
use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    os::{
        fd::FromRawFd,
        unix::{fs::FileTypeExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use ttrpc::asynchronous::{Server, transport::Listener};

/// How long a shim without containers and without callers waits for one of either. `start` may have been killed before its answer
/// was read, and containerd may have died: nobody would come to end it.
const IDLE: Duration = Duration::from_secs(60);
/// How long the last events may take.
const DRAIN: Duration = Duration::from_secs(5);
/// How long callers may take to hang up after the last answer.
const HANG_UP: Duration = Duration::from_secs(2);
/// The kernel's highest `oom_score_adj`.
const MAX_OOM_SCORE: i32 = 1000;

/// Runs the daemon to its end.
pub fn run(args: &Args) -> Result<()> {
    start::check(args)?;
    let listener = inherited()?;
    let bundle = start::bundle_dir(args)?;
    shim_log::start(&bundle.join("log"), args.debug);
    adjust_oom_score();
    // Two threads: one may be in a file of the host while the other answers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_stack_size(512 << 10).enable_all().build()?;
    let result = runtime.block_on(serve(args, &bundle, listener));
    // Whatever is still in a system call (a slow file, a dead fifo) does not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// The socket that `start` has bound.
fn inherited() -> Result<UnixListener> {
    let inherited = fs::metadata(format!("/proc/self/fd/{SOCKET_FD}")).is_ok_and(|meta| meta.file_type().is_socket());
    ensure!(inherited, "no socket is inherited: this program is started by containerd; see -v, -info, start and delete");
    // SAFETY: the descriptor is open, a socket, and nobody else of this process has it.
    let listener = unsafe { UnixListener::from_raw_fd(SOCKET_FD) };
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).context("socket")?;
    listener.set_nonblocking(true).context("socket")?;
    Ok(listener)
}

/// A shim goes after containerd and before a container's VM does. Not being allowed to say so does no harm.
fn adjust_oom_score() {
    let score = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let _ = fs::write("/proc/self/oom_score_adj", (score + 1).min(MAX_OOM_SCORE).to_string());
    }
}

async fn serve(args: &Args, bundle: &Path, listener: UnixListener) -> Result<()> {
    let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
    let (incoming, callers) = connections::accept(tokio::net::UnixListener::from_std(listener).context("socket")?);
    let events = Events::new(&args.namespace, &env::var("TTRPC_ADDRESS").unwrap_or_default());
    tokio::spawn(events.clone().run());
    let settings = Settings { namespace: args.namespace.clone(), address: args.address.clone(), group: start::group(args, bundle) };
    let tasks = Arc::new(Tasks::new(settings, Box::new(Machines), events.clone()));
    let mut server = Server::new().add_listener(Listener::new(incoming)).register_service(service::all(&tasks));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    server.start().await.context("socket")?;
    log::info!(id = args.id, namespace = args.namespace, version = info::VERSION; "shim started");

    tokio::select! {
        () = tasks.asked_to_end() => log::debug!("asked to end"),
        () = idle(tasks.watch_count(), callers.clone(), IDLE) => log::info!("nobody needs this shim"),
        _ = terminate.recv() => log::info!("SIGTERM"),
        _ = interrupt.recv() => log::info!("SIGINT"),
    }
    // Unlinked while it is still served: a `start` that comes now makes a new shim instead of finding one that ends.
    if let Some(path) = path {
        let _ = fs::remove_file(path);
    }
    tasks.give_up().await;
    events.drained(DRAIN).await;
    hang_up(callers).await;
    log::info!(id = args.id; "shim ended");
    Ok(())
}

/// Returns once there has been no container and no caller for some time.
async fn idle(mut containers: watch::Receiver<usize>, mut callers: watch::Receiver<usize>, limit: Duration) {
    loop {
        let busy = *containers.borrow_and_update() > 0 || *callers.borrow_and_update() > 0;
        let changed = async {
            // A sender that is gone changes nothing any more.
            tokio::select! {
                Ok(()) = containers.changed() => {}
                Ok(()) = callers.changed() => {}
                else => std::future::pending().await,
            }
        };
        if busy {
            changed.await;
        } else if timeout(limit, changed).await.is_err() {
            return;
        }
    }
}

/// Waits until all callers have hung up: by then they have the last answer.
async fn hang_up(mut callers: watch::Receiver<usize>) {
    let _ = timeout(HANG_UP, callers.wait_for(|count| *count == 0)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_nobody_needs_is_idle() {
        const LIMIT: Duration = Duration::from_millis(50);
        let (containers, of_containers) = watch::channel(1);
        let (callers, of_callers) = watch::channel(1);
        let mut idle = tokio::spawn(idle(of_containers, of_callers, LIMIT));
        let running = async |idle: &mut tokio::task::JoinHandle<()>| timeout(LIMIT * 4, idle).await.is_err();
        assert!(running(&mut idle).await);
        callers.send_replace(0);
        assert!(running(&mut idle).await);
        callers.send_replace(1);
        containers.send_replace(0);
        assert!(running(&mut idle).await);
        callers.send_replace(0);
        idle.await.unwrap();
    }
}
