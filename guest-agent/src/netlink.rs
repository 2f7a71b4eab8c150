//! netlink(7): one request to the kernel, and its answer.

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// Flags in an attribute's kind.
const KIND: u16 = 0x3fff;

/// A connection to a part of the kernel.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and gives what the kernel answers; nothing where it only acknowledges. The request is one that has one answer.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0u8; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        payload(&answer[..length], self.sequence).map(<[u8]>::to_vec)
    }
}

/// What follows the `struct nlmsghdr` of an answer; nothing of an acknowledgement, whose error number is an error.
fn payload(answer: &[u8], sequence: u32) -> io::Result<&[u8]> {
    let u16_at = |at: usize| answer.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let u32_at = |at: usize| answer.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    let unexpected = || io::Error::other("unexpected answer of netlink");
    let (Some(length), Some(kind), Some(seen)) = (u32_at(0), u16_at(4), u32_at(8)) else { return Err(unexpected()) };
    if seen != sequence {
        return Err(unexpected());
    }
    if kind != NLMSG_ERROR {
        return answer.get(HEADER..length as usize).ok_or_else(unexpected);
    }
    match u32_at(HEADER).ok_or_else(unexpected)?.cast_signed() {
        0 => Ok(&[]),
        error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
    }
}

/// `struct nlattr`, padded to four bytes.
pub fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((ATTRIBUTE + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a kind.
pub fn find(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let [l0, l1, k0, k1] = *attributes.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) & KIND == kind {
            return attributes.get(ATTRIBUTE..length);
        }
        attributes = attributes.get(length.max(ATTRIBUTE).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; HEADER];
        answer[..4].copy_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        answer[4..6].copy_from_slice(&kind.to_ne_bytes());
        answer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        [answer, body.to_vec()].concat()
    }

    #[test]
    fn an_answer_to_somebody_else_is_none() {
        let acknowledged = answer(NLMSG_ERROR, 7, &[0; 20]);
        assert!(payload(&acknowledged, 7).unwrap().is_empty());
        assert!(payload(&acknowledged, 8).is_err());
        assert!((0..HEADER + 4).all(|length| payload(&acknowledged[..length], 7).is_err()));
        let refused = answer(NLMSG_ERROR, 7, &(-libc::EEXIST).to_ne_bytes());
        assert_eq!(payload(&refused, 7).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        let answered = answer(0x10, 7, b"data");
        assert_eq!(payload(&answered, 7).unwrap(), b"data");
        assert!(payload(&answered[..HEADER + 3], 7).is_err());
    }

    #[test]
    fn attributes_are_found_among_others() {
        let mut message = Vec::new();
        for (kind, value) in [(1, &b"a"[..]), (2, b""), (3 | 0x8000, b"nested"), (1, b"again")] {
            attribute(&mut message, kind, value);
        }
        assert_eq!((find(&message, 1), find(&message, 2), find(&message, 3)), (Some(&b"a"[..]), Some(&b""[..]), Some(&b"nested"[..])));
        assert_eq!(find(&message, 4), None);
        for length in 0..message.len() {
            let _ = (find(&message[..length], 4), find(&message[length..], 4));
        }
        assert_eq!(find(&[0; 8], 5), None, "an attribute without a length");
    }
}
