#![allow(clippy::unwrap_used)]

use super::*;
use std::process::Command;

/// A network namespace with a pair of interfaces in it, gone with this value.
pub(super) struct Netns(String);

impl Netns {
    pub(super) fn new(name: &str) -> Self {
        let name = format!("cloister-{name}-{}", std::process::id());
        run(&["netns", "add", &name]);
        let netns = Self(name);
        netns.ip(&["link", "add", "eth0", "address", "02:00:00:00:00:07", "mtu", "1400", "type", "veth", "peer", "name", "far"]);
        netns.ip(&["address", "add", "10.9.0.2/24", "dev", "eth0"]);
        netns.ip(&["address", "add", "fd00:9::2/64", "dev", "eth0", "nodad"]);
        netns.ip(&["link", "set", "eth0", "up"]);
        netns.ip(&["route", "add", "default", "via", "10.9.0.1"]);
        // As some clouds have it: a gateway that no address covers, and that answers no question.
        netns.ip(&["route", "add", "10.77.0.0/16", "via", "169.254.1.1", "dev", "eth0", "onlink", "src", "10.9.0.2", "metric", "50"]);
        netns.ip(&["neigh", "add", "169.254.1.1", "lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent"]);
        netns.ip(&["neigh", "add", "fd00:9::1", "lladdr", "02:00:00:00:00:02", "dev", "eth0", "nud", "permanent"]);
        netns.ip(&["neigh", "add", "10.9.0.77", "lladdr", "02:00:00:00:00:03", "dev", "eth0", "nud", "stale"]);
        netns
    }

    pub(super) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub(super) fn ip(&self, arguments: &[&str]) -> String {
        run(&[&["-n", &self.0], arguments].concat())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        run(&["netns", "delete", &self.0]);
    }
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_pods_network_becomes_the_guests_and_is_given_back() {
    let netns = Netns::new("attach");
    let state = std::env::temp_dir().join(format!("cloister-network-{}", std::process::id()));
    let mut record = Record::create(&state, "a").unwrap();
    let network = attach(&netns.path(), Some(&mut record)).await.unwrap();

    let [interface] = &network.interfaces[..] else { panic!("{:?}", network.interfaces) };
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
    assert_eq!(interface.mac, [2, 0, 0, 0, 0, 7]);
    assert_eq!(interface.addresses, ["10.9.0.2/24", "fd00:9::2/64"]);
    let [route, by_cloud] = &network.routes[..] else { panic!("{:?}", network.routes) };
    assert_eq!((route.gateway.as_str(), route.interface.as_str(), route.destination.as_str()), ("10.9.0.1", "eth0", ""));
    assert_eq!((by_cloud.gateway.as_str(), by_cloud.source.as_str(), by_cloud.metric), ("169.254.1.1", "10.9.0.2", 50));
    assert!(by_cloud.onlink && !route.onlink);
    let mut neighbours: Vec<_> = network.neighbours.iter().map(|n| (n.address.as_str(), n.mac[5])).collect();
    neighbours.sort();
    assert_eq!(neighbours, [("169.254.1.1", 1), ("fd00:9::1", 2)], "what the kernel has learned by itself is not the pod's");
    assert!(netns.ip(&["link", "show", "cloister0"]).contains("mtu 1400"));

    drop(network);
    let path = netns.path();
    tokio::task::spawn_blocking({
        let state = state.clone();
        move || crate::record::remove(&state, "a")
    })
    .await
    .unwrap()
    .unwrap();
    assert!(!netns.ip(&["link", "show"]).contains("cloister0"));
    // A second attach finds the interface as it was: no qdisc of ours is left to be in the way.
    let mut record = Record::create(&state, "b").unwrap();
    assert_eq!(attach(&path, Some(&mut record)).await.unwrap().interfaces.len(), 1);
    tokio::task::spawn_blocking(move || {
        crate::record::remove(&state, "b").unwrap();
        std::fs::remove_dir_all(&state).unwrap();
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_nodes_own_network_is_refused() {
    let state = std::env::temp_dir().join(format!("cloister-network-own-{}", std::process::id()));
    let mut record = Record::create(&state, "a").unwrap();
    let error = attach(Path::new("/proc/self/ns/net"), Some(&mut record)).await.unwrap_err();
    assert!(matches!(error, NetworkError::Host(_)), "{error}");
    std::fs::remove_dir_all(&state).unwrap();
}
