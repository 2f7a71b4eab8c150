//! Netlink in one network namespace: its interfaces, addresses and routes, and the redirection between an interface and its tap.

use super::NetworkError;
use futures_util::TryStreamExt;
use protocol::api;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressScope},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType},
        tc::TcHandle,
    },
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

/// `ETH_P_ALL` (linux/if_ether.h), in network byte order as traffic control wants it.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();
/// `ffff:0000`, the ingress qdisc's handle (linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_0000;

/// One interface of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) addresses: Vec<String>,
}

/// A netlink connection to one namespace.
pub(super) struct Links {
    netns: PathBuf,
    handle: Handle,
}

impl Links {
    /// Connects to the namespace of this thread, which is `netns`.
    pub(super) fn connect(netns: PathBuf) -> Result<Self, NetworkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetworkError::Namespace { netns: netns.clone(), source })?;
        tokio::spawn(connection);
        Ok(Self { netns, handle })
    }

    pub(super) fn namespace_error(&self, source: io::Error) -> NetworkError {
        NetworkError::Namespace { netns: self.netns.clone(), source }
    }

    fn failed(&self, what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
        let (netns, what) = (self.netns.clone(), what.into());
        move |source| NetworkError::Netlink { netns, what, source }
    }

    /// The interfaces that are up and have a MAC address: all but loopback and what nobody uses.
    pub(super) async fn list(&self) -> Result<Vec<Link>, NetworkError> {
        let messages: Vec<LinkMessage> = self.handle.link().get().execute().try_collect().await.map_err(self.failed("list links"))?;
        let mut links: Vec<Link> = messages.iter().filter_map(usable_link).collect();
        let addresses: Vec<_> = self.handle.address().get().execute().try_collect().await.map_err(self.failed("list addresses"))?;
        for message in addresses {
            let Some(link) = links.iter_mut().find(|link| link.index == message.header.index) else { continue };
            // The guest's kernel makes link-local addresses itself.
            let local = message.header.scope == AddressScope::Link && message.header.family == AddressFamily::Inet6;
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            if let (Some(address), false) = (address, local) {
                link.addresses.push(format!("{address}/{}", message.header.prefix_len));
            }
        }
        Ok(links)
    }

    /// Routes of the main table that lead over `links`, but for those that the kernel makes of the addresses.
    pub(super) async fn routes(&self, links: &[Link]) -> Result<Vec<api::Route>, NetworkError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut routes = Vec::new();
        for query in [v4, v6] {
            let found: Vec<RouteMessage> =
                self.handle.route().get(query).execute().try_collect().await.map_err(self.failed("list routes"))?;
            routes.extend(found.iter().filter_map(|message| usable_route(message, links)));
        }
        Ok(routes)
    }

    /// The permanent neighbours of `links`: what the pod's network has written down because nobody would answer a question for it.
    pub(super) async fn neighbours(&self, links: &[Link]) -> Result<Vec<api::Neighbour>, NetworkError> {
        let found: Vec<NeighbourMessage> =
            self.handle.neighbours().get().execute().try_collect().await.map_err(self.failed("list neighbours"))?;
        Ok(found.iter().filter_map(|message| permanent_neighbour(message, links)).collect())
    }

    /// Every frame that arrives at the interface leaves by the tap, and the other way round.
    pub(super) async fn redirect(&self, link: &Link, tap: &str) -> Result<(), NetworkError> {
        let other = self.index(tap).await?;
        let up = LinkUnspec::new_with_index(other).mtu(link.mtu).up().build();
        self.handle.link().set(up).execute().await.map_err(self.failed(format!("bring up {tap}")))?;
        for (from, to) in [(link.index, other), (other, link.index)] {
            let what = format!("redirect {} and {tap}", link.name);
            let index = i32::try_from(from).map_err(|e| self.namespace_error(io::Error::other(e)))?;
            self.handle.qdisc().add(index).ingress().execute().await.map_err(self.failed(what.clone()))?;
            let filter = self.handle.traffic_filter(index).add().parent(INGRESS).protocol(ALL_PROTOCOLS);
            let filter = filter.redirect(to).map_err(self.failed(what.clone()))?;
            filter.execute().await.map_err(self.failed(what))?;
        }
        Ok(())
    }

    /// Takes the redirection off an interface; its filters go with the qdisc.
    pub(super) async fn stop_redirecting(&self, name: &str) -> Result<(), NetworkError> {
        let index = self.index(name).await?;
        let index = i32::try_from(index).map_err(|e| self.namespace_error(io::Error::other(e)))?;
        let mut request = self.handle.qdisc().del(index);
        let header = &mut request.message_mut().header;
        (header.parent, header.handle) = (TcHandle::INGRESS, TcHandle::from(INGRESS));
        request.execute().await.map_err(self.failed(format!("stop redirecting {name}")))
    }

    async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        let found = found.map_err(self.failed(format!("find {name}")))?;
        found.map(|m| m.header.index).ok_or_else(|| self.namespace_error(io::Error::from(io::ErrorKind::NotFound)))
    }
}

fn usable_link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    if flags.contains(LinkFlags::Loopback) || !flags.contains(LinkFlags::Up) {
        return None;
    }
    let mut link = Link { index: message.header.index, name: String::new(), mac: [0; 6], mtu: 1500, addresses: Vec::new() };
    let mut has_mac = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) if address.len() == 6 => {
                link.mac.copy_from_slice(address);
                has_mac = true;
            }
            _ => {}
        }
    }
    has_mac.then_some(link)
}

fn usable_route(message: &RouteMessage, links: &[Link]) -> Option<api::Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast || header.protocol == RouteProtocol::Kernel {
        return None;
    }
    let mut route = api::Route { ipv6: header.address_family == AddressFamily::Inet6, ..Default::default() };
    let mut out = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => route.destination = format!("{}/{}", address(to)?, header.destination_prefix_length),
            RouteAttribute::Gateway(by) => route.gateway = address(by)?.to_string(),
            RouteAttribute::PrefSource(source) => route.source = address(source)?.to_string(),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => out = Some(*index),
            _ => {}
        }
    }
    route.onlink = header.flags.contains(RouteFlags::Onlink);
    route.interface = links.iter().find(|link| Some(link.index) == out)?.name.clone();
    Some(route)
}

fn permanent_neighbour(message: &NeighbourMessage, links: &[Link]) -> Option<api::Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let interface = links.iter().find(|link| link.index == message.header.ifindex)?.name.clone();
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(v4.to_string()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(v6.to_string()),
            NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => mac = Some(bytes.clone()),
            _ => {}
        }
    }
    Some(api::Neighbour { interface, address: address?, mac: mac?, ..Default::default() })
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
