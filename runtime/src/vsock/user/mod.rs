//! A vsock device that we serve ourselves (vhost-user), for hosts whose kernel has no `/dev/vhost-vsock`.

mod device;
mod table;

use device::{Commands, Connect, Device, SOCKETS};
use std::{
    collections::HashMap,
    io,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use table::Table;
use tokio::sync::{mpsc, oneshot};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// Connections of the guest that wait to be accepted, for each port.
const BACKLOG: usize = 128;

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
    /// Starts the device's threads; they end when the monitor closes the returned socket's other end. `path` is used while the two
    /// halves find each other, and is gone when this returns.
    pub fn start(path: &Path) -> io::Result<(Self, OwnedFd)> {
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

        let listener = UnixListener::bind(path)?;
        let monitor = UnixStream::connect(path);
        let unlinked = std::fs::remove_file(path);
        let monitor = monitor?;
        unlinked?;
        daemon.start(&mut Listener::from(listener)).map_err(|e| io::Error::other(e.to_string()))?;
        thread::Builder::new().name("vsock-end".into()).stack_size(128 << 10).spawn(move || {
            if let Err(error) = daemon.wait() {
                log::debug!("vsock device: {error}");
            }
            for handler in daemon.get_epoll_handlers() {
                handler.send_exit_event();
            }
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
        outcome.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))??;
        tokio::net::UnixStream::from_std(ours)
    }

    /// Takes the connections that the guest opens to a port of the host.
    pub fn listen(&self, port: u32) -> UserListener {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(port, sender);
        UserListener(receiver)
    }
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
