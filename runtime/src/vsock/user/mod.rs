//! A vsock device that we serve ourselves (vhost-user), for hosts whose kernel has no `/dev/vhost-vsock`.

mod device;
mod packet;
mod table;

use device::{Commands, Connect, Device, SOCKETS};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use table::Table;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// Connections of the guest that wait to be accepted, for each port.
const BACKLOG: usize = 128;

/// How long a guest may take to answer a connection; its kernel does, so this is the time of a busy host.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

type Listeners = Arc<Mutex<HashMap<u32, mpsc::Sender<UnixStream>>>>;

/// The host's end of the device.
#[derive(Clone)]
pub struct UserVsock {
    commands: Arc<Commands>,
    listeners: Listeners,
}

impl std::fmt::Debug for UserVsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserVsock").finish_non_exhaustive()
    }
}

impl UserVsock {
    /// Starts the device's threads; they end when the monitor closes the returned socket's other end. `dir` holds a socket while the
    /// two halves find each other.
    pub fn start(dir: &Path) -> io::Result<(Self, OwnedFd)> {
        let commands = Arc::new(Commands::new()?);
        let listeners = Listeners::default();
        let waiting = listeners.clone();
        let table = Table::new(Box::new(move |port, socket| {
            let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&port).cloned();
            sender.is_some_and(|sender| sender.try_send(socket).is_ok())
        }));
        let device = Device::new(protocol::OWN_DEVICE_CID, table, commands.clone())?;
        let sockets = device.sockets_fd();
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon =
            VhostUserDaemon::new("vsock".into(), Arc::new(Mutex::new(device)), memory).map_err(|e| io::Error::other(e.to_string()))?;
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(sockets, EventSet::IN, u64::from(SOCKETS))?;
        }

        let (listener, monitor) = rendezvous(dir)?;
        daemon.start(&mut Listener::from(listener)).map_err(|e| io::Error::other(e.to_string()))?;
        let (ending, unheard) = (commands.clone(), listeners.clone());
        thread::Builder::new().name("vsock-end".into()).stack_size(128 << 10).spawn(move || {
            if let Err(error) = daemon.wait() {
                log::debug!("vsock device: {error}");
            }
            // Whoever waits for a connection hears that there will be none.
            ending.close();
            unheard.lock().unwrap_or_else(PoisonError::into_inner).clear();
            // Ends the device's thread, and with it every connection.
            drop(daemon);
        })?;
        Ok((Self { commands, listeners }, monitor.into()))
    }

    /// Connects to a port of the guest.
    pub async fn connect(&self, port: u32) -> io::Result<tokio::net::UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let (done, outcome) = oneshot::channel();
        self.commands.push(Connect { port, socket: theirs, answer: Box::new(|result| drop(done.send(result))) });
        match timeout(CONNECT_LIMIT, outcome).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        tokio::net::UnixStream::from_std(ours)
    }

    /// Takes the connections that the guest opens to a port of the host.
    pub fn listen(&self, port: u32) -> UserListener {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(port, sender);
        UserListener(receiver)
    }
}

/// A listener and a connection that waits at it. The daemon takes only listeners; a socket in a folder of root's own is one that nobody
/// else connects to, and by way of the folder's descriptor its path is short whatever the folder's is (`sun_path` holds 108 bytes).
fn rendezvous(dir: &Path) -> io::Result<(UnixListener, UnixStream)> {
    let folder = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/vsock", folder.as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    let monitor = UnixStream::connect(&path);
    std::fs::remove_file(&path)?;
    Ok((listener, monitor?))
}

/// Connections of the guest to one port of the host.
#[derive(Debug)]
pub struct UserListener(mpsc::Receiver<UnixStream>);

impl UserListener {
    /// The next connection.
    pub async fn accept(&mut self) -> io::Result<tokio::net::UnixStream> {
        let socket = self.0.recv().await.ok_or(io::ErrorKind::ConnectionAborted)?;
        socket.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(socket)
    }
}
