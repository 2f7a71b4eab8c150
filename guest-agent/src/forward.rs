//! Port forwarding (`protocol::forward`): the host's connections to ports of the pod's loopback, where the owner's policy lets it.

use crate::{service::Gate, vsock};
use log::{debug, warn};
use protocol::{
    forward,
    line::{self, LineError},
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_vsock::VsockListener;

/// How long the host may take for its greeting, and a port for its answer.
const GREETING: Duration = Duration::from_secs(10);
/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// Ports of the agent itself, which gives secrets to whoever asks on loopback: the workload API.
const OWN: [u16; 1] = [8006];

/// Accepts connections for ever.
pub async fn serve(listener: VsockListener, gate: Arc<Gate>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match vsock::accept(&listener).await {
            Ok(stream) => stream,
            Err(e) => {
                warn!("forward port: {e}");
                continue;
            }
        };
        let gate = gate.clone();
        tokio::spawn(async move {
            let allowed = |port| gate.admit_forward(port).map_err(|denial| denial.to_string());
            if let Err(e) = carry(stream, allowed).await {
                debug!("forward: {e}");
            }
            drop(place);
        });
    }
}

async fn carry<S>(mut host: S, allowed: impl Fn(u16) -> Result<(), String>) -> Result<(), LineError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let greeting = timeout(GREETING, line::read_line(&mut host)).await.map_err(|_| LineError::Ended)??;
    let Some(port) = forward::parse(&greeting) else { return line::refuse(&mut host, "not a port").await };
    let allowed = if OWN.contains(&port) { Err("a port of the agent itself".to_owned()) } else { allowed(port) };
    if let Err(reason) = allowed {
        warn!("port forward to {port} refused: {reason}");
        return line::refuse(&mut host, &reason).await;
    }
    let mut port = match dial(port).await {
        Ok(port) => port,
        Err(e) => return line::refuse(&mut host, &format!("port {port}: {e}")).await,
    };
    line::accept(&mut host).await?;
    copy_bidirectional(&mut host, &mut port).await?;
    Ok(())
}

/// Whoever listens on IPv4 goes first, as with other runtimes.
async fn dial(port: u16) -> io::Result<TcpStream> {
    let dial = async {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => Ok(stream),
            Err(_) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await,
        }
    };
    timeout(GREETING, dial).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
        net::TcpListener,
    };

    fn guest(allowed: bool) -> DuplexStream {
        let (host, guest) = tokio::io::duplex(64);
        let allowed = move |_| if allowed { Ok(()) } else { Err("denied".to_owned()) };
        tokio::spawn(async move { carry(guest, allowed).await });
        host
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_their_end_too() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut host = guest(true);
            let (connected, accepted) = tokio::join!(forward::connect(&mut host, port), listener.accept());
            connected.unwrap();
            let (mut service, _) = accepted.unwrap();
            host.write_all(b"ping").await.unwrap();
            host.shutdown().await.unwrap();
            let mut asked = String::new();
            service.read_to_string(&mut asked).await.unwrap();
            service.write_all(b"pong").await.unwrap();
            drop(service);
            let mut answered = String::new();
            host.read_to_string(&mut answered).await.unwrap();
            assert_eq!((asked.as_str(), answered.as_str()), ("ping", "pong"));
        }
    }

    #[tokio::test]
    async fn a_refusal_says_why() {
        let refusal = async |allowed, port| forward::connect(&mut guest(allowed), port).await.unwrap_err().to_string();
        assert_eq!(refusal(false, 80).await, "denied");
        assert_eq!(refusal(true, 8006).await, "a port of the agent itself");
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        assert!(refusal(true, free).await.starts_with(&format!("port {free}: ")));
        let mut host = guest(true);
        line::write_line(&mut host, "FORWARD x").await.unwrap();
        assert!(matches!(line::read_answer(&mut host).await, Err(LineError::Refused(_))));
    }
}
