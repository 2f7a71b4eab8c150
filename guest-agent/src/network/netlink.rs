//! The messages of rtnetlink(7) that have no ioctl for IPv6: a new address, a new route, a new neighbour. Each is acknowledged by
//! the kernel.

use crate::netlink::{self, attribute};
use nix::sys::socket::SockProtocol;
use std::{io, net::IpAddr};

const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE`.
const NEW: u16 = 0x1 | 0x4 | 0x400;
/// `NLM_F_REPLACE`: the kernel has made the route of an address's own network already.
const REPLACE: u16 = 0x100;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// The address is the pod's already: nobody has to be asked for a second's time whether it is free.
const IFA_F_NODAD: u8 = 0x2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTNH_F_ONLINK: u32 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;

/// A route, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: IpAddr,
    /// How many of its bits count.
    pub prefix: u8,
    /// By whom; `None` is straight.
    pub gateway: Option<IpAddr>,
    /// From which of our addresses.
    pub source: Option<IpAddr>,
    /// Lower goes first; zero is the kernel's default.
    pub metric: u32,
    /// The gateway is on the link, whatever the addresses say.
    pub onlink: bool,
}

/// A connection to the kernel's network configuration.
pub struct Netlink(netlink::Netlink);

impl Netlink {
    /// Opens one.
    pub fn open() -> io::Result<Self> {
        netlink::Netlink::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// Gives the device with this index an address.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let message = address_message(index, address, prefix);
        self.request(RTM_NEWADDR, NEW, &message)
    }

    /// Adds a route by the device with this index.
    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        self.request(RTM_NEWROUTE, NEW | REPLACE, &route_message(index, route))
    }

    /// Writes down a neighbour's hardware address for good.
    pub fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: &[u8]) -> io::Result<()> {
        self.request(RTM_NEWNEIGH, NEW | REPLACE, &neighbour_message(index, address, mac))
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.0.request(kind, flags, body).map(drop)
    }
}

/// `struct ifaddrmsg` and its attributes.
fn address_message(index: u32, address: IpAddr, prefix: u8) -> Vec<u8> {
    let mut message = vec![family(address), prefix, IFA_F_NODAD, RT_SCOPE_UNIVERSE];
    message.extend(index.to_ne_bytes());
    attribute(&mut message, IFA_LOCAL, &octets(address));
    attribute(&mut message, IFA_ADDRESS, &octets(address));
    message
}

/// `struct rtmsg` and its attributes.
fn route_message(index: u32, route: &Route) -> Vec<u8> {
    let destination = route.destination;
    let scope = if route.gateway.is_some() || destination.is_ipv6() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
    let mut message = vec![family(destination), route.prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST];
    let flags = if route.onlink { RTNH_F_ONLINK } else { 0 };
    message.extend(flags.to_ne_bytes());
    if route.prefix > 0 {
        attribute(&mut message, RTA_DST, &octets(destination));
    }
    if let Some(gateway) = route.gateway {
        attribute(&mut message, RTA_GATEWAY, &octets(gateway));
    }
    if let Some(source) = route.source {
        attribute(&mut message, RTA_PREFSRC, &octets(source));
    }
    if route.metric > 0 {
        attribute(&mut message, RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    attribute(&mut message, RTA_OIF, &index.to_ne_bytes());
    message
}

/// `struct ndmsg` and its attributes.
fn neighbour_message(index: u32, address: IpAddr, mac: &[u8]) -> Vec<u8> {
    let mut message = vec![family(address), 0, 0, 0];
    message.extend(index.to_ne_bytes());
    message.extend(NUD_PERMANENT.to_ne_bytes());
    message.extend([0, 0]);
    attribute(&mut message, NDA_DST, &octets(address));
    attribute(&mut message, NDA_LLADDR, mac);
    message
}

fn family(address: IpAddr) -> u8 {
    // AF_INET is 2 and AF_INET6 is 10.
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernels_layout() {
        let address = address_message(3, "10.0.0.2".parse().unwrap(), 24);
        assert_eq!(&address[..8], &[2, 24, IFA_F_NODAD, 0, 3, 0, 0, 0]);
        assert_eq!(&address[8..16], &[8, 0, 2, 0, 10, 0, 0, 2]);
        let any = Route {
            destination: "0.0.0.0".parse().unwrap(),
            prefix: 0,
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: None,
            metric: 0,
            onlink: false,
        };
        let route = route_message(3, &any);
        assert_eq!(&route[..12], &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        assert_eq!(&route[12..], &[8, 0, 5, 0, 10, 0, 0, 1, 8, 0, 4, 0, 3, 0, 0, 0]);
        let all = route_message(3, &Route { source: Some("10.0.0.2".parse().unwrap()), metric: 50, onlink: true, ..any });
        assert_eq!(&all[8..12], &[4, 0, 0, 0]);
        assert_eq!(&all[20..36], &[8, 0, 7, 0, 10, 0, 0, 2, 8, 0, 6, 0, 50, 0, 0, 0]);
        let v6 = Route { destination: "fd00::".parse().unwrap(), prefix: 64, gateway: None, ..any };
        assert_eq!(route_message(3, &v6)[6], RT_SCOPE_UNIVERSE);
        assert_eq!(route_message(3, &Route { prefix: 8, gateway: None, ..any })[6], RT_SCOPE_LINK);
        let neighbour = neighbour_message(3, "10.0.0.9".parse().unwrap(), &[2, 0, 0, 0, 0, 1]);
        assert_eq!(&neighbour[..12], &[2, 0, 0, 0, 3, 0, 0, 0, 0x80, 0, 0, 0]);
        assert_eq!(&neighbour[12..], &[8, 0, 1, 0, 10, 0, 0, 9, 10, 0, 2, 0, 2, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_kernel_answers() {
        // An index that no device has: refused, whoever asks.
        let refused = Netlink::open().unwrap().add_address(u32::MAX >> 1, "192.0.2.1".parse().unwrap(), 32).unwrap_err();
        assert!(matches!(refused.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{refused}");
    }
}
