//! The pod's network: the guest's virtio devices take the names, addresses and routes that the host gives.
//!
//! None of it is trusted: the host carries the traffic in any case. What matters is that a bad value changes nothing else.

mod device;
mod netlink;

use crate::boot::modules::{ModuleError, Modules, Stage};
use device::Devices;
use log::info;
use netlink::{Netlink, Route};
use protocol::api;
use std::{io, net::IpAddr};
use thiserror::Error;

/// Why the network could not be set up.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// Kernel modules.
    #[error("network: {0}")]
    Modules(#[from] ModuleError),
    /// No device has the address.
    #[error("network: interface {name}: no device has the address {mac}; the host must give the machine one")]
    NoDevice {
        /// The interface.
        name: String,
        /// Its address.
        mac: String,
    },
    /// A name that is not an interface of the request.
    #[error("network: route or neighbour by {0}: no such interface")]
    NoInterface(String),
    /// The kernel refused it.
    #[error("network: {what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// An address or route.
    #[error("network: {0:?} is not an address with its prefix")]
    Address(String),
}

fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Refused { what, source }
}

/// 127.0.0.1 and ::1, which everybody expects.
pub fn raise_loopback() -> io::Result<()> {
    Devices::open()?.up("lo")
}

/// Sets up the pod's interfaces, then its routes and neighbours. Blocks.
pub fn set_up(modules: &Modules, pod: &api::CreateSandboxRequest) -> Result<(), NetworkError> {
    let (interfaces, routes) = (&pod.interfaces, &pod.routes);
    if interfaces.is_empty() {
        return Ok(());
    }
    modules.load(Stage::Net)?;
    let devices = Devices::open().map_err(refused("open"))?;
    let mut netlink = Netlink::open().map_err(refused("open"))?;
    // Out of each other's way first: the kernel may have given one of them the name that another is to have.
    let aside = interfaces.iter().enumerate().map(|(n, interface)| set_aside(&devices, n, interface));
    let aside = aside.collect::<Result<Vec<_>, _>>()?;
    let mut indexes = Vec::new();
    for (interface, (now, index)) in interfaces.iter().zip(aside) {
        raise(&devices, &mut netlink, interface, &now, index)?;
        indexes.push((interface.name.as_str(), index));
    }
    // Routes on the link first: a gateway must be reachable when it is named.
    let (direct, by_gateway): (Vec<_>, Vec<_>) = routes.iter().partition(|route| route.gateway.is_empty());
    let index_of = |name: &str| {
        let found = indexes.iter().find(|(known, _)| *known == name).map(|(_, index)| *index);
        found.ok_or_else(|| NetworkError::NoInterface(name.to_owned()))
    };
    for route in direct.into_iter().chain(by_gateway) {
        add_route(&mut netlink, route, index_of(&route.interface)?)?;
    }
    for neighbour in &pod.neighbours {
        let what = format!("neighbour {} of {}", neighbour.address, neighbour.interface);
        let (index, address) = (index_of(&neighbour.interface)?, address(&neighbour.address)?);
        netlink.add_neighbour(index, address, &neighbour.mac).map_err(refused(what))?;
    }
    info!(interfaces = interfaces.len(), routes = routes.len(), neighbours = pod.neighbours.len(); "network is up");
    Ok(())
}

/// Finds an interface's device: its name from here on, which is nobody else's, and its index.
fn set_aside(devices: &Devices, n: usize, interface: &api::Interface) -> Result<(String, u32), NetworkError> {
    let name = &interface.name;
    let what = |what: &str| refused(format!("interface {name}: {what}"));
    let found = device::by_mac(&interface.mac).map_err(what("find device"))?;
    let no_device = || NetworkError::NoDevice { name: name.clone(), mac: hex::encode(&interface.mac) };
    let (old, index) = found.ok_or_else(no_device)?;
    if old == *name {
        return Ok((old, index));
    }
    let aside = format!("moving{n}");
    devices.rename(&old, &aside).map_err(what("name"))?;
    Ok((aside, index))
}

fn raise(devices: &Devices, netlink: &mut Netlink, interface: &api::Interface, now: &str, index: u32) -> Result<(), NetworkError> {
    let name = &interface.name;
    let what = |what: &str| refused(format!("interface {name}: {what}"));
    if now != name {
        devices.rename(now, name).map_err(what("name"))?;
    }
    devices.set_mtu(name, interface.mtu).map_err(what("MTU"))?;
    devices.up(name).map_err(what("up"))?;
    for text in &interface.addresses {
        let (address, prefix) = cidr(text)?;
        netlink.add_address(index, address, prefix).map_err(what(text))?;
    }
    Ok(())
}

fn add_route(netlink: &mut Netlink, route: &api::Route, index: u32) -> Result<(), NetworkError> {
    let any = if route.ipv6 { "::/0" } else { "0.0.0.0/0" };
    let text = if route.destination.is_empty() { any } else { &route.destination };
    let (destination, prefix) = cidr(text)?;
    let optional = |text: &str| if text.is_empty() { Ok(None) } else { address(text).map(Some) };
    let (gateway, source) = (optional(&route.gateway)?, optional(&route.source)?);
    let what = format!("route {text} by {} {}", route.interface, route.gateway);
    let route = Route { destination, prefix, gateway, source, metric: route.metric, onlink: route.onlink };
    netlink.add_route(index, &route).map_err(refused(what))
}

fn address(text: &str) -> Result<IpAddr, NetworkError> {
    text.parse().map_err(|_| NetworkError::Address(text.to_owned()))
}

fn cidr(text: &str) -> Result<(IpAddr, u8), NetworkError> {
    let bad = || NetworkError::Address(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    Ok((address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::OwnedFd};

    #[test]
    fn addresses_have_a_prefix() {
        assert_eq!(cidr("10.0.0.2/24").unwrap(), ("10.0.0.2".parse().unwrap(), 24));
        for text in ["10.0.0.2", "x/24", "10.0.0.2/x", "10.0.0.2/256", ""] {
            assert!(cidr(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_that_the_host_did_not_give_is_named() {
        // A directory without a list of modules: all are built in.
        let modules = Modules::open(&OwnedFd::from(File::open("/proc").unwrap())).unwrap();
        set_up(&modules, &api::CreateSandboxRequest::default()).unwrap();
        let interface = api::Interface { name: "eth9".into(), mac: vec![2, 1, 1, 1, 1, 2], mtu: 1500, ..Default::default() };
        let error =
            set_up(&modules, &api::CreateSandboxRequest { interfaces: vec![interface], ..Default::default() }).unwrap_err().to_string();
        assert!(error.contains("eth9") && error.contains("020101010102"), "{error}");
    }
}
