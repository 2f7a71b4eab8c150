//! The loopback of the pod's namespace leads into the guest. The pod's interfaces are moved into its VM as they are, but its loopback
//! has no frames to redirect; and `kubectl port-forward`, which enters the namespace and connects to 127.0.0.1, would find nobody there.
//! So whoever connects to any TCP port of it is accepted, and has a connection to the same port of the guest's own loopback.

use super::{NetworkError, bpf, in_namespace_of};
use crate::vsock::Vsock;
use protocol::{forward, guest_port};
use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};
use tokio::{
    io::copy_bidirectional,
    net::{self, TcpStream},
    sync::Semaphore,
};

/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;

/// The listeners of a namespace. With them goes everything that was done to it: nothing is recorded, and nothing outlives this process.
#[derive(Debug)]
pub struct Loopback {
    listeners: Vec<TcpListener>,
    _steering: OwnedFd,
}

impl Loopback {
    /// Listens on every TCP port of the namespace's loopback that nobody else listens on, IPv6 where the namespace has it.
    pub async fn listen(netns: &Path) -> Result<Self, NetworkError> {
        let netns = netns.to_owned();
        let listen = move || {
            let failed = |source| NetworkError::Namespace { netns: netns.clone(), source };
            let (v4, v6) = in_namespace_of(&netns, || {
                let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                // Without IPv6 there is nothing to listen on, and nobody who could connect.
                Ok((v4, TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok()))
            })?;
            let namespace = File::open(&netns).map_err(failed)?;
            let steering = bpf::steer(&namespace, &v4, v6.as_ref()).map_err(failed)?;
            Ok(Self { listeners: [Some(v4), v6].into_iter().flatten().collect(), _steering: steering })
        };
        tokio::task::spawn_blocking(listen).await.map_err(|e| NetworkError::Thread(io::Error::other(e)))?
    }

    /// Forwards for ever.
    pub async fn serve(self, vsock: Vsock) -> io::Result<()> {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = tokio::task::JoinSet::new();
        for listener in self.listeners {
            listener.set_nonblocking(true)?;
            tasks.spawn(accept(net::TcpListener::from_std(listener)?, vsock.clone(), places.clone()));
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }
}

async fn accept(listener: net::TcpListener, vsock: Vsock, places: Arc<Semaphore>) {
    // Ended with this task: who forwards for a guest that is gone forwards nothing.
    let mut forwarded = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let vsock = vsock.clone();
                forwarded.spawn(async move {
                    if let Err(error) = carry(stream, &vsock).await {
                        log::debug!("port forward: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("port forward: {error}");
                // Out of descriptors, most likely: the listener stays readable, and without a pause this would spin.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
        while forwarded.try_join_next().is_some() {}
    }
}

/// The accepted socket's own address is the one that was asked for, not the listener's.
async fn carry(mut stream: TcpStream, vsock: &Vsock) -> Result<(), protocol::line::LineError> {
    let port = stream.local_addr()?.port();
    let mut guest = vsock.connect(guest_port::FORWARD).await?;
    // On a refusal the caller is hung up on, as by a port that nobody listens on.
    forward::connect(&mut guest, port).await?;
    copy_bidirectional(&mut stream, &mut guest).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::network::tests::Netns;
    use std::{
        io::Read,
        net::{SocketAddr, TcpStream as Std},
    };

    fn connect(netns: &Netns, address: &str) -> io::Result<Std> {
        let address: SocketAddr = address.parse().unwrap();
        in_namespace_of(&netns.path(), move || Std::connect(address)).map_err(|error| match error {
            NetworkError::Namespace { source, .. } => source,
            other => panic!("{other}"),
        })
    }

    #[tokio::test]
    async fn every_port_of_the_loopback_is_answered_until_it_is_dropped() {
        let netns = Netns::new("loopback");
        netns.ip(&["link", "set", "lo", "up"]);
        let refused = connect(&netns, "127.0.0.1:4242").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let loopback = Loopback::listen(&netns.path()).await.unwrap();
        for (n, address) in ["127.0.0.1:4242", "[::1]:80"].into_iter().enumerate() {
            let mut client = connect(&netns, address).unwrap();
            let (accepted, _) = loopback.listeners[n].accept().unwrap();
            assert_eq!(accepted.local_addr().unwrap().to_string(), address, "the port that was asked for is known");
            drop(accepted);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
        drop(loopback);
        // A process that another test starts has our descriptors from its fork to its exec.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while let Ok(client) = connect(&netns, "127.0.0.1:4242") {
            assert!(std::time::Instant::now() < deadline, "somebody still listens");
            drop(client);
        }
    }
}
