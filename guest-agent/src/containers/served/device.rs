//! A block device of the kernel's that asks at a socket (drivers/block/nbd.c), by generic netlink (include/uapi/linux/nbd-netlink.h): there is
//! one when the kernel has answered.

use crate::{
    containers::disks::Disk,
    netlink::{self, Netlink, attribute},
};
use nix::sys::socket::SockProtocol;
use protocol::nbd::{ANSWER, SECTOR};
use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// Of `struct nlmsghdr`: a request.
const REQUEST: u16 = 1;
/// And one that is acknowledged.
const ACKNOWLEDGED: u16 = 4;
/// include/uapi/linux/genetlink.h.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const GENL_HEADER: usize = 4;
const NBD_CMD_CONNECT: u8 = 1;
const NBD_CMD_DISCONNECT: u8 = 2;
const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_ATTR_TIMEOUT: u16 = 4;
const NBD_ATTR_SERVER_FLAGS: u16 = 5;
const NBD_ATTR_CLIENT_FLAGS: u16 = 6;
const NBD_ATTR_SOCKETS: u16 = 7;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;
const NESTED: u16 = 0x8000;
/// `NBD_FLAG_HAS_FLAGS`, and that the host flushes, forces unit access and trims.
const SERVER: u64 = 1 | 1 << 2 | 1 << 3 | 1 << 5;
const SERVER_READ_ONLY: u64 = 1 << 1;
/// `NBD_CFLAG_DESTROY_ON_DISCONNECT`.
const DESTROYED: u64 = 1;

/// A device of the kernel's. Dropping it ends it: what is still asked of it fails.
#[derive(Debug)]
pub struct Device {
    index: u32,
    disk: Disk,
}

impl Device {
    /// Makes one with this index and size that asks at `socket`. Blocks, and not for long.
    pub fn connect(index: u32, socket: UnixStream, bytes: u64, readonly: bool) -> io::Result<Self> {
        let socket = OwnedFd::from(socket);
        Control::open()?.ask(NBD_CMD_CONNECT, REQUEST, &connection(index, socket.as_raw_fd(), bytes, readonly))?;
        let nothing = Disk { major: 0, minor: 0, bytes: 0, readonly };
        let mut device = Self { index, disk: nothing };
        let found = Disk::named(&device.name()).filter(|disk| (disk.bytes, disk.readonly) == (bytes, readonly));
        device.disk = found.ok_or_else(|| io::Error::other(format!("{} is not what was asked for", device.name())))?;
        Ok(device)
    }

    /// As the kernel calls it.
    pub fn name(&self) -> String {
        format!("nbd{}", self.index)
    }

    /// As containers have it.
    pub fn disk(&self) -> Disk {
        self.disk
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut message = Vec::new();
        attribute(&mut message, NBD_ATTR_INDEX, &self.index.to_ne_bytes());
        let disconnect = || Control::open()?.ask(NBD_CMD_DISCONNECT, REQUEST | ACKNOWLEDGED, &message);
        if let Err(error) = disconnect() {
            log::warn!(disk = self.index; "disconnect: {error}");
        }
    }
}

fn connection(index: u32, socket: i32, bytes: u64, readonly: bool) -> Vec<u8> {
    let flags = if readonly { SERVER | SERVER_READ_ONLY } else { SERVER };
    let (mut fd, mut item, mut message) = (Vec::new(), Vec::new(), Vec::new());
    attribute(&mut fd, NBD_SOCK_FD, &socket.to_ne_bytes());
    attribute(&mut item, NBD_SOCK_ITEM | NESTED, &fd);
    attribute(&mut message, NBD_ATTR_INDEX, &index.to_ne_bytes());
    for (kind, value) in [
        (NBD_ATTR_SIZE_BYTES, bytes),
        (NBD_ATTR_BLOCK_SIZE_BYTES, SECTOR),
        (NBD_ATTR_TIMEOUT, ANSWER.as_secs()),
        (NBD_ATTR_SERVER_FLAGS, flags),
        (NBD_ATTR_CLIENT_FLAGS, DESTROYED),
    ] {
        attribute(&mut message, kind, &value.to_ne_bytes());
    }
    attribute(&mut message, NBD_ATTR_SOCKETS | NESTED, &item);
    message
}

/// The module's family of generic netlink.
struct Control {
    netlink: Netlink,
    family: u16,
}

impl Control {
    fn open() -> io::Result<Self> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let family = family(&mut netlink, c"nbd")?;
        Ok(Self { netlink, family })
    }

    fn ask(&mut self, command: u8, flags: u16, attributes: &[u8]) -> io::Result<Vec<u8>> {
        self.netlink.request(self.family, flags, &[&[command, 1, 0, 0], attributes].concat())
    }
}

fn family(netlink: &mut Netlink, name: &std::ffi::CStr) -> io::Result<u16> {
    let mut message = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    attribute(&mut message, CTRL_ATTR_FAMILY_NAME, name.to_bytes_with_nul());
    let answer = netlink.request(GENL_ID_CTRL, REQUEST, &message)?;
    let id = netlink::find(answer.get(GENL_HEADER..).unwrap_or_default(), CTRL_ATTR_FAMILY_ID);
    let id = id.and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes);
    id.ok_or_else(|| io::Error::other("generic netlink: a family without a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_the_kernels_layout() {
        let message = connection(3, 9, 1 << 20, true);
        assert_eq!(message[..8], [8, 0, 1, 0, 3, 0, 0, 0]);
        let number = |kind| u64::from_ne_bytes(netlink::find(&message, kind).unwrap().try_into().unwrap());
        assert_eq!((number(NBD_ATTR_SIZE_BYTES), number(NBD_ATTR_BLOCK_SIZE_BYTES), number(NBD_ATTR_TIMEOUT)), (1 << 20, 512, 30));
        assert_eq!(number(NBD_ATTR_SERVER_FLAGS), 0b10_1111);
        // SOCKETS { ITEM { FD = 9 } }
        assert_eq!(message[message.len() - 16..], [16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn the_kernel_knows_its_families() {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric).unwrap();
        assert_eq!(family(&mut netlink, c"nlctrl").unwrap(), GENL_ID_CTRL);
        let missing = family(&mut netlink, c"no-such-family").unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT), "{missing}");
    }
}
