//! The bound of every field of `agent.proto`. The agent calls [`Bounded::check`] on each request before anything else; what breaks a
//! bound is refused as a whole (INVALID_ARGUMENT) and changes nothing.

use crate::{api, nbd::SECTOR};
use thiserror::Error;

/// Longest container, exec and sandbox id, in bytes (containerd's `identifiers.Validate` allows 76).
pub const MAX_ID: usize = 128;
/// Longest image reference, in bytes.
pub const MAX_REFERENCE: usize = 1024;
/// Longest OCI spec or process, in bytes. ttrpc frames end at 4 MiB.
pub const MAX_SPEC: usize = 3 << 20;
/// Longest initdata, compressed, in bytes; Kubernetes ends annotations at 256 KiB.
pub const MAX_INITDATA: usize = 1 << 20;
/// Most network interfaces of a pod.
pub const MAX_INTERFACES: usize = 16;
/// Most addresses of an interface.
pub const MAX_ADDRESSES: usize = 32;
/// Most routes of a pod.
pub const MAX_ROUTES: usize = 128;
/// Most permanent neighbours of a pod.
pub const MAX_NEIGHBOURS: usize = 128;
/// Most name servers, search domains or options of a pod; Kubernetes allows 3, 32 and a handful.
pub const MAX_DNS: usize = 64;
/// Most kernel parameters of a pod.
pub const MAX_SYSCTLS: usize = 128;
/// Longest name or value of a kernel parameter, in bytes.
pub const MAX_SYSCTL: usize = 256;
/// Longest hostname (`HOST_NAME_MAX`, limits.h).
pub const MAX_HOSTNAME: usize = 64;
/// Longest interface name (`IFNAMSIZ` - 1, linux/if.h).
pub const MAX_IFNAME: usize = 15;
/// Most registries that are reached by plain HTTP.
pub const MAX_PLAIN_HTTP: usize = 64;
/// Longest path (`PATH_MAX`).
pub const MAX_PATH: usize = crate::volume::MAX_PATH;
/// Most volumes of a container.
pub const MAX_VOLUMES: usize = crate::volume::MAX_VOLUMES;
/// Largest disk that is served, in bytes (`loff_t`).
pub const MAX_DISK: u64 = i64::MAX as u64;
/// Highest permission bits of an empty directory.
pub const MAX_MODE: u32 = 0o3777;
/// Highest signal number (`_NSIG`).
pub const MAX_SIGNAL: u32 = 64;
/// Highest width and height of a terminal (`struct winsize` holds 16 bits).
pub const MAX_WINSIZE: u32 = 0xffff;

/// A field outside its bound: the field, and the rule that it breaks.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field}: {rule}")]
pub struct BoundError {
    /// Name in `agent.proto`.
    pub field: &'static str,
    /// What was expected.
    pub rule: String,
}

/// Checks the bounds of a request.
pub trait Bounded {
    /// The first field that is outside its bound, if any.
    fn check(&self) -> Result<(), BoundError>;
}

fn ensure(ok: bool, field: &'static str, rule: impl Into<String>) -> Result<(), BoundError> {
    if ok { Ok(()) } else { Err(BoundError { field, rule: rule.into() }) }
}

fn at_most(len: usize, max: usize, field: &'static str, unit: &str) -> Result<(), BoundError> {
    ensure(len <= max, field, format!("at most {max} {unit}, got {len}"))
}

/// An id becomes a path inside the guest: letters, digits, `_`, `.`, `-`, beginning with a letter or digit.
pub fn check_id(field: &'static str, id: &str) -> Result<(), BoundError> {
    at_most(id.len(), MAX_ID, field, "bytes")?;
    ensure(id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()), field, "must begin with a letter or digit")?;
    ensure(
        id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')),
        field,
        "only letters, digits, '_', '.' and '-'",
    )
}

fn check_exec_id(id: &str) -> Result<(), BoundError> {
    if id.is_empty() { Ok(()) } else { check_id("exec_id", id) }
}

/// `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// A registry or broker authority: no white space, no control bytes, no path.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

impl Bounded for api::CreateSandboxRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("sandbox_id", &self.sandbox_id)?;
        at_most(self.hostname.len(), MAX_HOSTNAME, "hostname", "bytes")?;
        // A newline here once became a line of /etc/hosts elsewhere (attack 4).
        ensure(
            self.hostname.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
            "hostname",
            "only letters, digits, '.', '-' and '_'",
        )?;
        at_most(self.interfaces.len(), MAX_INTERFACES, "interfaces", "entries")?;
        for interface in &self.interfaces {
            interface.check()?;
        }
        at_most(self.routes.len(), MAX_ROUTES, "routes", "entries")?;
        for route in &self.routes {
            route.check()?;
        }
        at_most(self.neighbours.len(), MAX_NEIGHBOURS, "neighbours", "entries")?;
        for neighbour in &self.neighbours {
            neighbour.check()?;
        }
        self.dns.check()?;
        at_most(self.sysctls.len(), MAX_SYSCTLS, "sysctls", "entries")?;
        for (name, value) in &self.sysctls {
            check_sysctl(name, value)?;
        }
        at_most(self.initdata.len(), MAX_INITDATA, "initdata", "bytes")?;
        ensure((0..=253_402_300_799).contains(&self.host_time), "host_time", "seconds since 1970, up to the year 9999")
    }
}

impl Bounded for api::Interface {
    fn check(&self) -> Result<(), BoundError> {
        check_ifname("interfaces.name", &self.name)?;
        // Devices are found by this address, and the machine's own loopback has one of zeros: it is not the host's to configure.
        ensure(self.name != "lo", "interfaces.name", "not the machine's own")?;
        let station = self.mac.len() == 6 && self.mac[0] & 1 == 0 && self.mac != [0; 6];
        ensure(station, "interfaces.mac", "six bytes, the address of one station")?;
        ensure((68..=65535).contains(&self.mtu), "interfaces.mtu", "68 to 65535")?;
        at_most(self.addresses.len(), MAX_ADDRESSES, "interfaces.addresses", "entries")?;
        ensure(self.addresses.iter().all(|a| is_cidr(a)), "interfaces.addresses", "CIDR notation")
    }
}

impl Bounded for api::Route {
    fn check(&self) -> Result<(), BoundError> {
        check_ifname("routes.interface", &self.interface)?;
        ensure(self.destination.is_empty() || is_cidr(&self.destination), "routes.destination", "CIDR notation or empty")?;
        ensure(self.gateway.is_empty() || is_address(&self.gateway), "routes.gateway", "an address or empty")?;
        ensure(self.source.is_empty() || is_address(&self.source), "routes.source", "an address or empty")
    }
}

impl Bounded for api::Neighbour {
    fn check(&self) -> Result<(), BoundError> {
        check_ifname("neighbours.interface", &self.interface)?;
        ensure(is_address(&self.address), "neighbours.address", "an address")?;
        ensure(self.mac.len() == 6, "neighbours.mac", "six bytes")
    }
}

impl Bounded for api::Dns {
    fn check(&self) -> Result<(), BoundError> {
        at_most(self.servers.len(), MAX_DNS, "dns.servers", "entries")?;
        ensure(self.servers.iter().all(|s| is_address(s)), "dns.servers", "addresses")?;
        // They become words of a file whose lines mean something.
        for (field, words) in [("dns.searches", &self.searches), ("dns.options", &self.options)] {
            at_most(words.len(), MAX_DNS, field, "entries")?;
            ensure(words.iter().all(|w| is_word(w)), field, "letters, digits, '.', '-', '_' and ':', at most 255 bytes")?;
        }
        Ok(())
    }
}

fn is_word(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'))
}

fn is_address(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
}

/// A name becomes a path below /proc/sys: words between single dots, or between slashes where a word has a dot in it (an interface).
fn check_sysctl(name: &str, value: &str) -> Result<(), BoundError> {
    at_most(name.len(), MAX_SYSCTL, "sysctls", "bytes")?;
    let separator = if name.contains('/') { '/' } else { '.' };
    let word = |word: &str| {
        !word.is_empty()
            && word != "."
            && word != ".."
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@'))
    };
    ensure(name.split(separator).all(word), "sysctls", "names as net.core.somaxconn")?;
    at_most(value.len(), MAX_SYSCTL, "sysctls", "bytes")?;
    ensure(value.bytes().all(|b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t')), "sysctls", "values of one line")
}

fn check_ifname(field: &'static str, name: &str) -> Result<(), BoundError> {
    ensure(
        (1..=MAX_IFNAME).contains(&name.len())
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@')),
        field,
        format!("1 to {MAX_IFNAME} letters, digits, '.', '-', '_' or '@'"),
    )
}

fn is_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let max = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    prefix.parse::<u8>().is_ok_and(|p| p <= max)
}

impl Bounded for api::CreateContainerRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        at_most(self.image_reference.len(), MAX_REFERENCE, "image_reference", "bytes")?;
        ensure(self.image_reference.bytes().all(|b| b.is_ascii_graphic()), "image_reference", "printable ASCII without spaces")?;
        ensure(
            self.image_digest_hint.is_empty() || is_digest(&self.image_digest_hint),
            "image_digest_hint",
            "empty or sha256: and 64 lower-case hexadecimal digits",
        )?;
        at_most(self.spec.len(), MAX_SPEC, "spec", "bytes")?;
        at_most(self.plain_http_registries.len(), MAX_PLAIN_HTTP, "plain_http_registries", "entries")?;
        ensure(self.plain_http_registries.iter().all(|r| is_host(r)), "plain_http_registries", "host[:port]")
    }
}

impl Bounded for api::PrepareVolumesRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        at_most(self.volumes.len(), MAX_VOLUMES, "volumes", "entries")?;
        self.volumes.iter().try_for_each(Bounded::check)?;
        let mut destinations: Vec<&str> = self.volumes.iter().map(|volume| volume.destination.as_str()).collect();
        destinations.sort_unstable();
        ensure(destinations.windows(2).all(|pair| pair[0] != pair[1]), "volumes.destination", "each once")
    }
}

impl Bounded for api::Volume {
    fn check(&self) -> Result<(), BoundError> {
        at_most(self.destination.len(), MAX_PATH, "volumes.destination", "bytes")?;
        let rest = self.destination.strip_prefix('/');
        ensure(rest.is_some_and(is_shortest), "volumes.destination", "an absolute path in its shortest spelling, not the root")?;
        ensure(self.kind.enum_value().is_ok(), "volumes.kind", "one of the known kinds")?;
        ensure(self.mode <= MAX_MODE, "volumes.mode", format!("at most {MAX_MODE:o}"))?;
        match self.kind.enum_value() {
            Ok(api::VolumeKind::EMPTY | api::VolumeKind::EMPTY_MEMORY) => {
                check_id("volumes.name", &self.name)?;
                check_part(&self.path)
            }
            Ok(api::VolumeKind::DISK) => {
                // Never the scratch disk's.
                ensure(is_numbered(&self.name, "disk"), "volumes.name", "disk and a number")
            }
            Ok(api::VolumeKind::SERVED_DISK) => {
                check_id("volumes.name", &self.name)?;
                let whole = self.size > 0 && self.size.is_multiple_of(SECTOR) && self.size <= MAX_DISK;
                ensure(whole, "volumes.size", format!("whole sectors of {SECTOR} bytes, at most {MAX_DISK} bytes"))
            }
            Ok(api::VolumeKind::SHARED) => {
                ensure(is_numbered(&self.name, "share"), "volumes.name", "share and a number")?;
                check_part(&self.path)
            }
            _ => Ok(()),
        }
    }
}

/// Whether a relative path is the only one that leads where it leads, but for links, and leads down.
fn is_shortest(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0')
}

fn check_part(path: &str) -> Result<(), BoundError> {
    at_most(path.len(), MAX_PATH, "volumes.path", "bytes")?;
    ensure(path.is_empty() || is_shortest(path), "volumes.path", "a relative path in its shortest spelling, or nothing")
}

/// A word and a number of up to three digits.
fn is_numbered(name: &str, word: &str) -> bool {
    let number = name.strip_prefix(word).unwrap_or_default();
    (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit())
}

impl Bounded for api::ReadVolumeRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        ensure((self.number as usize) < MAX_VOLUMES, "number", format!("below {MAX_VOLUMES}"))
    }
}

impl Bounded for api::ExecProcessRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        check_id("exec_id", &self.exec_id)?;
        at_most(self.process.len(), MAX_SPEC, "process", "bytes")
    }
}

impl Bounded for api::SignalProcessRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        check_exec_id(&self.exec_id)?;
        ensure(self.signal <= MAX_SIGNAL, "signal", format!("0 to {MAX_SIGNAL}"))
    }
}

impl Bounded for api::ResizePtyRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        check_exec_id(&self.exec_id)?;
        ensure(self.width <= MAX_WINSIZE, "width", format!("at most {MAX_WINSIZE}"))?;
        ensure(self.height <= MAX_WINSIZE, "height", format!("at most {MAX_WINSIZE}"))
    }
}

impl Bounded for api::UpdateContainerRequest {
    fn check(&self) -> Result<(), BoundError> {
        check_id("container_id", &self.container_id)?;
        at_most(self.resources.len(), MAX_SPEC, "resources", "bytes")
    }
}

macro_rules! only_ids {
    ($($message:ident),*) => {$(
        impl Bounded for api::$message {
            fn check(&self) -> Result<(), BoundError> {
                check_id("container_id", &self.container_id)?;
                check_exec_id(&self.exec_id)
            }
        }
    )*};
}
only_ids!(StartProcessRequest, WaitProcessRequest, DeleteProcessRequest);

macro_rules! only_container {
    ($($message:ident),*) => {$(
        impl Bounded for api::$message {
            fn check(&self) -> Result<(), BoundError> {
                check_id("container_id", &self.container_id)
            }
        }
    )*};
}
only_container!(ContainerRequest, ListProcessesRequest, WaitOutOfMemoryRequest);

impl Bounded for api::Empty {
    fn check(&self) -> Result<(), BoundError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in ["", ".", "..", "../x", "a/b", "a\0b", "-x", " x", "a b", &"a".repeat(MAX_ID + 1)] {
            assert!(check_id("container_id", id).is_err(), "{id:?}");
        }
        for id in ["a", "demo-1", "0f.3_x", &"a".repeat(MAX_ID)] {
            assert_eq!(check_id("container_id", id), Ok(()));
        }
    }

    #[test]
    fn a_hostname_cannot_carry_a_line() {
        let mut request = api::CreateSandboxRequest { sandbox_id: "s".into(), ..Default::default() };
        assert_eq!(request.check(), Ok(()));
        for hostname in ["a\nb", "a b", "a\tb", &"h".repeat(65)] {
            request.hostname = hostname.to_owned();
            assert_eq!(request.check().unwrap_err().field, "hostname");
        }
    }

    #[test]
    fn names_of_a_resolver_cannot_carry_a_line() {
        let mut dns = api::Dns { servers: vec!["10.0.0.10".into(), "fd00::10".into()], ..Default::default() };
        dns.searches = vec!["default.svc.cluster.local".into()];
        dns.options = vec!["ndots:5".into()];
        assert_eq!(dns.check(), Ok(()));
        for word in ["a\nnameserver 6.6.6.6", "a b", "", &"a".repeat(256)] {
            assert_eq!(api::Dns { searches: vec![word.to_owned()], ..Default::default() }.check().unwrap_err().field, "dns.searches");
            assert_eq!(api::Dns { options: vec![word.to_owned()], ..Default::default() }.check().unwrap_err().field, "dns.options");
        }
        for server in ["dns.example", "10.0.0.10\n", ""] {
            assert_eq!(api::Dns { servers: vec![server.into()], ..Default::default() }.check().unwrap_err().field, "dns.servers");
        }
        let many = api::Dns { servers: vec!["::1".into(); MAX_DNS + 1], ..Default::default() };
        assert_eq!(many.check().unwrap_err().field, "dns.servers");
    }

    #[test]
    fn a_kernel_parameter_stays_below_its_directory() {
        for name in ["net.core.somaxconn", "net/ipv4/conf/eth0.1/rp_filter", "kernel.shm_rmid_forced", "fs.mqueue.msg_max"] {
            assert_eq!(check_sysctl(name, "1 2"), Ok(()), "{name}");
        }
        for name in ["", ".", "..", "net..x", "net/../kernel/core_pattern", "/etc/passwd", "net. x", "a\0b", &"a".repeat(MAX_SYSCTL + 1)] {
            assert_eq!(check_sysctl(name, "1").unwrap_err().field, "sysctls", "{name}");
        }
        for value in ["a\nb", "\0", &"1".repeat(MAX_SYSCTL + 1)] {
            assert_eq!(check_sysctl("net.core.somaxconn", value).unwrap_err().field, "sysctls");
        }
        let request = api::CreateSandboxRequest {
            sandbox_id: "s".into(),
            sysctls: (0..=MAX_SYSCTLS).map(|n| (format!("net.x{n}"), "1".to_owned())).collect(),
            ..Default::default()
        };
        assert_eq!(request.check().unwrap_err().field, "sysctls");
    }

    #[test]
    fn neighbours_and_routes_are_addresses() {
        let good = api::Neighbour { interface: "eth0".into(), address: "169.254.1.1".into(), mac: vec![2; 6], ..Default::default() };
        assert_eq!(good.check(), Ok(()));
        assert!(api::Neighbour { address: "169.254.1.1/32".into(), ..good.clone() }.check().is_err());
        assert!(api::Neighbour { mac: vec![2; 7], ..good.clone() }.check().is_err());
        assert!(api::Neighbour { interface: "../x".into(), ..good }.check().is_err());
        let route = api::Route { interface: "eth0".into(), source: "x".into(), ..Default::default() };
        assert_eq!(route.check().unwrap_err().field, "routes.source");
    }

    #[test]
    fn the_loopback_is_not_the_hosts_to_configure() {
        let good = api::Interface { name: "eth0".into(), mac: vec![2, 0, 0, 0, 0, 1], mtu: 1500, ..Default::default() };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(api::Interface { name: "lo".into(), ..good.clone() }.check().unwrap_err().field, "interfaces.name");
        for mac in [vec![0; 6], vec![0xff; 6], vec![1, 0, 0x5e, 0, 0, 1], vec![2; 5], Vec::new()] {
            assert_eq!(api::Interface { mac, ..good.clone() }.check().unwrap_err().field, "interfaces.mac");
        }
    }

    #[test]
    fn volumes_are_bounded() {
        let volume = |destination: &str| api::Volume { destination: destination.into(), ..Default::default() };
        let request = |volumes| api::PrepareVolumesRequest { container_id: "c".into(), volumes, ..Default::default() };
        assert_eq!(request(vec![volume("/etc/x"), volume("/etc/y")]).check(), Ok(()));
        for destination in ["", "/", "etc", "/a/../b", "/a//b", "/a/", "/.", "/a\0b", &format!("/{}", "x".repeat(MAX_PATH))] {
            assert_eq!(request(vec![volume(destination)]).check().unwrap_err().field, "volumes.destination", "{destination:?}");
        }
        assert!(request(vec![volume("/a"), volume("/b"), volume("/a")]).check().is_err());
        assert!(request((0..=MAX_VOLUMES).map(|n| volume(&format!("/{n}"))).collect()).check().is_err());
        let unknown = api::Volume { kind: protobuf::EnumOrUnknown::from_i32(9), ..volume("/a") };
        assert_eq!(unknown.check().unwrap_err().field, "volumes.kind");
        let nameless = api::Volume { kind: api::VolumeKind::EMPTY.into(), name: "../x".into(), ..volume("/a") };
        assert_eq!(nameless.check().unwrap_err().field, "volumes.name");
        let disk = |destination: &str, name: &str| {
            let kind = api::VolumeKind::DISK.into();
            api::Volume { kind, name: name.into(), ..volume(destination) }.check()
        };
        assert_eq!((disk("/dev/xvda", "disk0"), disk("/data", "disk1")), (Ok(()), Ok(())));
        for (destination, name) in [("/dev/xvda", "scratch"), ("/dev/xvda", "disk"), ("/dev/xvda", "disk-1"), ("/data", "scratch")] {
            assert!(disk(destination, name).is_err(), "{destination} {name}");
        }
        let served = |destination: &str, name: &str, size| {
            let kind = api::VolumeKind::SERVED_DISK.into();
            api::Volume { kind, name: name.into(), size, ..volume(destination) }.check().map_err(|error| error.field)
        };
        assert_eq!(served("/dev/xvda", "b7.0", 512), Ok(()));
        for size in [0, 511, 513, u64::MAX, MAX_DISK + 1] {
            assert_eq!(served("/dev/xvda", "b7.0", size), Err("volumes.size"), "{size}");
        }
        assert_eq!(served("/data", "b7.0", 512), Ok(()));
        assert_eq!(served("/dev/xvda", "../x", 512), Err("volumes.name"));
        let part = |path: &str| {
            let kind = api::VolumeKind::EMPTY.into();
            api::Volume { kind, name: "cache".into(), path: path.into(), ..volume("/a") }.check()
        };
        assert!(part("a/b").is_ok() && part("../b").is_err() && part("/b").is_err());
        let shared = |name: &str, path: &str| {
            let kind = api::VolumeKind::SHARED.into();
            api::Volume { kind, name: name.into(), path: path.into(), ..volume("/a") }.check()
        };
        assert!(shared("share0", "").is_ok() && shared("share7", "a/b c").is_ok());
        assert!(shared("scratch", "").is_err() && shared("share", "").is_err() && shared("share0/..", "").is_err());
        assert!(["/a", "../a", "a/../b", "a//b", "a/", ".", "a\0b"].iter().all(|path| shared("share0", path).is_err()));
        assert!(api::Volume { mode: 0o4755, ..volume("/a") }.check().is_err());
    }

    #[test]
    fn digests_are_exact() {
        assert!(is_digest(&format!("sha256:{}", "a1".repeat(32))));
        for text in ["sha256:../../x", &format!("sha256:{}", "A1".repeat(32)), &format!("sha512:{}", "a".repeat(128)), "sha256:abc"] {
            assert!(!is_digest(text), "{text}");
        }
    }

    #[test]
    fn addresses_are_cidr() {
        for (text, ok) in [("10.0.0.2/24", true), ("fd00::2/64", true), ("10.0.0.2", false), ("10.0.0.2/33", false), ("x/1", false)] {
            assert_eq!(is_cidr(text), ok, "{text}");
        }
    }

    #[test]
    fn every_numeric_field_has_an_end() {
        let mut signal = api::SignalProcessRequest { container_id: "c".into(), ..Default::default() };
        signal.signal = 65;
        assert_eq!(signal.check().unwrap_err().field, "signal");
        let mut resize = api::ResizePtyRequest { container_id: "c".into(), ..Default::default() };
        resize.height = 70_000;
        assert_eq!(resize.check().unwrap_err().field, "height");
    }
}
