//! The pod's network: the guest's virtio devices take the names, addresses and routes that the host gives.
//!
//! None of it is trusted: the host carries the traffic in any case. What matters is that a bad value changes nothing else.

use crate::boot::modules::{ModuleError, Modules, Stage};
use futures_util::TryStreamExt;
use log::info;
use protocol::api;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder, new_connection,
    packet_route::{link::LinkAttribute, route::RouteScope},
};
use std::{fs, io, net::IpAddr, sync::Arc};
use thiserror::Error;

/// Why the network could not be set up.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// Kernel modules.
    #[error("network: {0}")]
    Modules(#[from] ModuleError),
    /// The connection to the kernel.
    #[error("network: netlink: {0}")]
    Netlink(#[source] io::Error),
    /// No device has the address.
    #[error("network: interface {name}: no device has the address {mac}; the host must give the machine one")]
    NoDevice {
        /// The interface.
        name: String,
        /// Its address.
        mac: String,
    },
    /// A name that is not an interface of the request.
    #[error("network: route by {0}: no such interface")]
    NoInterface(String),
    /// The kernel refused it.
    #[error("network: {what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// An address or route.
    #[error("network: {0:?} is not an address with its prefix")]
    Address(String),
}

/// Sets up `interfaces`, then `routes`.
pub async fn set_up(modules: Arc<Modules>, interfaces: &[api::Interface], routes: &[api::Route]) -> Result<(), NetworkError> {
    if interfaces.is_empty() {
        return Ok(());
    }
    let loaded = tokio::task::spawn_blocking(move || modules.load(Stage::Net)).await;
    loaded.map_err(|e| NetworkError::Netlink(io::Error::other(e)))??;
    let (connection, handle, _) = new_connection().map_err(NetworkError::Netlink)?;
    let driver = tokio::spawn(connection);
    let result = configure(&handle, interfaces, routes).await;
    driver.abort();
    result
}

async fn configure(handle: &Handle, interfaces: &[api::Interface], routes: &[api::Route]) -> Result<(), NetworkError> {
    let mut indexes = Vec::new();
    for interface in interfaces {
        let index = find_by_mac(handle, interface).await?;
        raise(handle, index, interface).await?;
        indexes.push((interface.name.as_str(), index));
    }
    // Routes on the link first: a gateway must be reachable when it is named.
    let (direct, by_gateway): (Vec<_>, Vec<_>) = routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(by_gateway) {
        let index = indexes.iter().find(|(name, _)| *name == route.interface).map(|(_, index)| *index);
        add_route(handle, route, index.ok_or_else(|| NetworkError::NoInterface(route.interface.clone()))?).await?;
    }
    info!(interfaces = interfaces.len(), routes = routes.len(); "network is up");
    Ok(())
}

async fn find_by_mac(handle: &Handle, interface: &api::Interface) -> Result<u32, NetworkError> {
    let refused = |source| NetworkError::Refused { what: "list devices".into(), source };
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(refused)? {
        if link.attributes.iter().any(|a| matches!(a, LinkAttribute::Address(mac) if *mac == interface.mac)) {
            return Ok(link.header.index);
        }
    }
    Err(NetworkError::NoDevice { name: interface.name.clone(), mac: hex::encode(&interface.mac) })
}

async fn raise(handle: &Handle, index: u32, interface: &api::Interface) -> Result<(), NetworkError> {
    let name = &interface.name;
    let refused = |what: &str| {
        let what = format!("interface {name}: {what}");
        move |source| NetworkError::Refused { what, source }
    };
    // A device is renamed while it is down.
    let link = LinkUnspec::new_with_index(index).down().name(name).mtu(interface.mtu).build();
    handle.link().set(link).execute().await.map_err(refused("name and MTU"))?;
    // The address is the pod's already: nobody has to be asked for a second's time whether it is free.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(refused("up"))?;
    for text in &interface.addresses {
        let (address, prefix) = cidr(text)?;
        handle.address().add(index, address, prefix).execute().await.map_err(refused(text))?;
    }
    Ok(())
}

async fn add_route(handle: &Handle, route: &api::Route, index: u32) -> Result<(), NetworkError> {
    let any = if route.ipv6 { "::/0" } else { "0.0.0.0/0" };
    let text = if route.destination.is_empty() { any } else { &route.destination };
    let (destination, prefix) = cidr(text)?;
    let what = format!("route {text} by {} {}", route.interface, route.gateway);
    let mut builder = RouteMessageBuilder::<IpAddr>::new().output_interface(index);
    builder = builder.destination_prefix(destination, prefix).map_err(|_| NetworkError::Address(text.to_owned()))?;
    if route.gateway.is_empty() {
        builder = builder.scope(RouteScope::Link);
    } else {
        let gateway: IpAddr = route.gateway.parse().map_err(|_| NetworkError::Address(route.gateway.clone()))?;
        builder = builder.gateway(gateway).map_err(|_| NetworkError::Address(route.gateway.clone()))?;
    }
    handle.route().add(builder.build()).execute().await.map_err(|source| NetworkError::Refused { what, source })
}

fn cidr(text: &str) -> Result<(IpAddr, u8), NetworkError> {
    let bad = || NetworkError::Address(text.to_owned());
    let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
    Ok((address.parse().map_err(|_| bad())?, prefix.parse().map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_prefix() {
        assert_eq!(cidr("10.0.0.2/24").unwrap(), ("10.0.0.2".parse().unwrap(), 24));
        for text in ["10.0.0.2", "x/24", "10.0.0.2/x", "10.0.0.2/256", ""] {
            assert!(cidr(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_pod_without_interfaces_needs_nothing() {
        let root = std::os::fd::OwnedFd::from(fs::File::open("/proc").unwrap());
        let modules = Arc::new(Modules::open(&root).unwrap());
        set_up(modules, &[], &[]).await.unwrap();
    }
}
