//! Which container a connection to 127.0.0.1 comes from. The containers share the machine's network, and so its table of connections; the
//! socket's inode in it leads to the process that holds it, and the process's cgroup is its container's.

use crate::containers::{Container, Containers};
use std::{fs, net::SocketAddr, sync::Arc};

/// The container of the peer; `None` where no container's process holds the other end (any more).
pub fn container(containers: &Containers, peer: SocketAddr, port: u16) -> Option<Arc<Container>> {
    let inode = socket_inode(&fs::read_to_string("/proc/net/tcp").ok()?, peer, port)?;
    let link = format!("socket:[{inode}]");
    containers.all().into_iter().find(|container| container.cgroup().pids().unwrap_or_default().into_iter().any(|pid| holds(pid, &link)))
}

/// The inode of the socket `peer` → 127.0.0.1:`port` (proc_pid_net(5), /proc/net/tcp: addresses in hexadecimal of the machine's byte order).
fn socket_inode(table: &str, peer: SocketAddr, port: u16) -> Option<u64> {
    let SocketAddr::V4(peer) = peer else { return None };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(peer.ip().octets()), peer.port());
    let remote = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (own, other) = (fields.nth(1)?, fields.next()?);
        if own == local && other.ends_with(&remote) { fields.nth(6)?.parse().ok().filter(|inode| *inode != 0) } else { None }
    })
}

fn holds(pid: u32, link: &str) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_connection_leads_to_the_process_that_holds_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_server, peer) = listener.accept().unwrap();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let inode = socket_inode(&table, peer, port).unwrap();
        assert!(holds(std::process::id(), &format!("socket:[{inode}]")));
        assert!(!holds(1, &format!("socket:[{inode}]")) || std::process::id() == 1);
        assert_eq!(socket_inode(&table, SocketAddr::from(([127, 0, 0, 1], 1)), port), None);
        assert_eq!(socket_inode(&table, peer, 1), None);
        drop(stream);
    }
}
