//! The pod's network moves into the guest as it is: each interface of the pod's namespace gets a tap beside it, and the kernel's
//! traffic control passes every frame from one to the other, in both directions. The guest has the interface's own name, MAC, MTU,
//! addresses and routes; the namespace's own stack no longer sees a packet.

mod bpf;
mod links;
mod loopback;
mod tap;

pub use loopback::Loopback;

use crate::{
    record::{Record, RecordError, Redirected},
    vmm::Tap,
};
use links::{Link, Links};
use protocol::{
    api,
    bounds::{MAX_INTERFACES, MAX_NEIGHBOURS, MAX_ROUTES},
};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};
use thiserror::Error;

/// Why the pod's network cannot be moved.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The namespace cannot be entered.
    #[error("network namespace {netns}: {source}")]
    Namespace {
        /// Its path.
        netns: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is our own.
    #[error(
        "network namespace {0} is the node's own: a container in a VM cannot share the node's network; remove hostNetwork or --net-host"
    )]
    Host(PathBuf),
    /// Netlink.
    #[error("network namespace {netns}: {what}: {source}")]
    Netlink {
        /// Its path.
        netns: PathBuf,
        /// What was asked.
        what: String,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// More than the guest takes.
    #[error("network namespace {netns} has {count} {what}, at most {max} are moved into a guest")]
    TooMany {
        /// Its path.
        netns: PathBuf,
        /// Interfaces or routes.
        what: &'static str,
        /// How many.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No thread or runtime to work in.
    #[error("network thread: {0}")]
    Thread(io::Error),
}

/// What the guest is told, and the devices behind it.
#[derive(Debug, Default)]
pub struct Network {
    /// For CreateSandbox.
    pub interfaces: Vec<api::Interface>,
    /// For CreateSandbox.
    pub routes: Vec<api::Route>,
    /// For CreateSandbox.
    pub neighbours: Vec<api::Neighbour>,
    /// For the VM, in the order of the interfaces.
    pub taps: Vec<Tap>,
}

/// Moves the network of `netns` to taps; each is noted in the record before it is made. A namespace that has only loopback gives an
/// empty network. Without a record the namespace is the VM's own: it goes with it, and nothing is taken back.
pub async fn attach(netns: &Path, record: Option<&mut Record>) -> Result<Network, NetworkError> {
    let links = inside(netns, |links| async move { links.list().await }).await?;
    at_most(netns, "interfaces", links.len(), MAX_INTERFACES)?;
    if let Some(record) = record {
        for (n, link) in links.iter().enumerate() {
            record.note_redirected(Redirected { netns: netns.to_owned(), interface: link.name.clone(), tap: tap_name(n) })?;
        }
    }
    if links.is_empty() {
        return Ok(Network::default());
    }
    let network = inside(netns, move |handle| async move { redirect_all(&handle, links).await }).await?;
    at_most(netns, "routes", network.routes.len(), MAX_ROUTES)?;
    at_most(netns, "permanent neighbours", network.neighbours.len(), MAX_NEIGHBOURS)?;
    Ok(network)
}

fn at_most(netns: &Path, what: &'static str, count: usize, max: usize) -> Result<(), NetworkError> {
    if count > max { Err(NetworkError::TooMany { netns: netns.to_owned(), what, count, max }) } else { Ok(()) }
}

/// Takes back what was done for one interface, from the record alone. The tap is gone with its VM; what is gone already is no error.
pub fn undo(redirected: &Redirected) {
    let name = redirected.interface.clone();
    let done = in_namespace(&redirected.netns, move |links| async move { links.stop_redirecting(&name).await });
    if let Err(error) = done {
        log::debug!(interface = redirected.interface; "network: {error}");
    }
}

async fn redirect_all(handle: &Links, links: Vec<Link>) -> Result<Network, NetworkError> {
    // Asked before anything changes: a flush of the interface would take its neighbours along.
    let mut network = Network { neighbours: handle.neighbours(&links).await?, ..Network::default() };
    for (n, link) in links.iter().enumerate() {
        let tap = tap_name(n);
        let fd = tap::create(&tap).map_err(|source| handle.namespace_error(source))?;
        handle.redirect(link, &tap).await?;
        network.taps.push(Tap { fd, mac: link.mac });
        network.interfaces.push(api::Interface {
            name: link.name.clone(),
            mac: link.mac.to_vec(),
            mtu: link.mtu,
            addresses: link.addresses.clone(),
            ..Default::default()
        });
    }
    network.routes = handle.routes(&links).await?;
    Ok(network)
}

/// Ours among a pod's interfaces.
fn tap_name(n: usize) -> String {
    format!("cloister{n}")
}

async fn inside<T, W, F>(netns: &Path, work: W) -> Result<T, NetworkError>
where
    T: Send + 'static,
    W: FnOnce(Links) -> F + Send + 'static,
    F: Future<Output = Result<T, NetworkError>>,
{
    let netns = netns.to_owned();
    tokio::task::spawn_blocking(move || in_namespace(&netns, work)).await.map_err(|e| NetworkError::Thread(io::Error::other(e)))?
}

/// Works on a thread of its own with a netlink connection to the namespace.
fn in_namespace<T, W, F>(netns: &Path, work: W) -> Result<T, NetworkError>
where
    T: Send + 'static,
    W: FnOnce(Links) -> F + Send + 'static,
    F: Future<Output = Result<T, NetworkError>>,
{
    let path = netns.to_owned();
    entered(netns, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build().map_err(NetworkError::Thread)?;
        runtime.block_on(async { work(Links::connect(path)?).await })
    })
}

/// Does something that waits for nobody in the namespace.
fn in_namespace_of<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, NetworkError> {
    let path = netns.to_owned();
    entered(netns, move || work().map_err(|source| NetworkError::Namespace { netns: path, source }))
}

/// On a thread of its own, because a thread that has entered a namespace must never be used for anything else.
fn entered<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static) -> Result<T, NetworkError> {
    let path = netns.to_owned();
    let failed = move |source| NetworkError::Namespace { netns: path.clone(), source };
    let namespace = File::open(netns).map_err(&failed)?;
    if is_own(&namespace).map_err(&failed)? {
        return Err(NetworkError::Host(netns.to_owned()));
    }
    let enter = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| failed(e.into()))?;
        work()
    };
    let worker = thread::Builder::new().name("netns".into()).spawn(enter).map_err(NetworkError::Thread)?;
    worker.join().map_err(|_| NetworkError::Thread(io::Error::other("ended early")))?
}

fn is_own(namespace: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (theirs, ours) = (namespace.metadata()?, std::fs::metadata("/proc/self/ns/net")?);
    Ok((theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
}

#[cfg(test)]
mod tests;
