//! `struct virtio_vsock_hdr` (linux/virtio_vsock.h, virtio 1.2 §5.10.6) in the guest's buffers. A driver may cut a packet into as many
//! descriptors as it likes, and Linux does.

use super::table::Header;
use std::io::{self, Read, Write};

/// Length of the header in bytes.
pub(super) const HEADER_LEN: usize = 44;
/// Largest data of a packet in either direction, `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` of Linux.
pub(super) const MAX_DATA: usize = 64 << 10;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub(super) const TYPE_STREAM: u16 = 1;

/// A packet's whole header. Its `Header` is as the host sees it: `local` is the host's port, whichever way the packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) guest_cid: u64,
    pub(super) host_cid: u64,
    pub(super) kind: u16,
    pub(super) len: u32,
    pub(super) header: Header,
}

impl Packet {
    /// Reads a packet of the guest; its data is in `data` up to the returned length, or `None` where it has less than it says or more
    /// than fits.
    pub(super) fn read(from: &mut impl Read, data: &mut [u8; MAX_DATA]) -> io::Result<(Self, Option<usize>)> {
        let mut bytes = [0; HEADER_LEN];
        from.read_exact(&mut bytes)?;
        let packet = Self::decode(&bytes);
        let read = data.get_mut(..packet.len as usize).map(|data| from.read_exact(data));
        Ok((packet, matches!(read, Some(Ok(()))).then_some(packet.len as usize)))
    }

    /// Writes a packet for the guest; gives the length of the whole.
    pub(super) fn write(&self, data: &[u8], to: &mut impl Write) -> io::Result<u32> {
        to.write_all(&self.encode())?;
        to.write_all(data)?;
        Ok((HEADER_LEN + data.len()) as u32)
    }

    /// From the guest: it is the source.
    fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let header = Header {
            peer: word(bytes, 16),
            local: word(bytes, 20),
            op: half(bytes, 30),
            flags: word(bytes, 32),
            buf_alloc: word(bytes, 36),
            fwd_cnt: word(bytes, 40),
        };
        Self { guest_cid: long(bytes, 0), host_cid: long(bytes, 8), len: word(bytes, 24), kind: half(bytes, 28), header }
    }

    /// To the guest: the host is the source.
    fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.host_cid.to_le_bytes());
        put(8, &self.guest_cid.to_le_bytes());
        put(16, &self.header.local.to_le_bytes());
        put(20, &self.header.peer.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.header.op.to_le_bytes());
        put(32, &self.header.flags.to_le_bytes());
        put(36, &self.header.buf_alloc.to_le_bytes());
        put(40, &self.header.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn half(bytes: &[u8; HEADER_LEN], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

fn long(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As Linux lays it out: source 3:5000, destination 2:1025, two bytes of data, stream, RW.
    const RECORDED: [u8; HEADER_LEN + 2] = [
        3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x13, 0, 0, 1, 4, 0, 0, 2, 0, 0, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 9, 0,
        0, 0, b'h', b'i',
    ];

    fn read(bytes: &[u8]) -> io::Result<(Packet, Option<usize>)> {
        Packet::read(&mut &bytes[..], &mut [0; MAX_DATA])
    }

    #[test]
    fn a_recorded_packet_is_understood() {
        let (packet, len) = read(&RECORDED).unwrap();
        let header = Header { local: 1025, peer: 5000, op: 5, flags: 0, buf_alloc: 256 << 10, fwd_cnt: 9 };
        assert_eq!(packet, Packet { guest_cid: 3, host_cid: 2, kind: TYPE_STREAM, len: 2, header });
        assert_eq!(len, Some(2));
    }

    #[test]
    fn what_is_written_goes_the_other_way() {
        let (packet, _) = read(&RECORDED).unwrap();
        let mut bytes = Vec::new();
        assert_eq!(packet.write(b"hi", &mut bytes).unwrap(), 46);
        let mut turned = RECORDED;
        turned[..16].rotate_left(8);
        turned[16..24].rotate_left(4);
        assert_eq!(bytes, turned);
    }

    #[test]
    fn a_length_that_lies_is_no_data() {
        for len in [3_u32, 70_000, u32::MAX] {
            let mut bytes = RECORDED;
            bytes[24..28].copy_from_slice(&len.to_le_bytes());
            assert_eq!(read(&bytes).unwrap().1, None, "{len}");
        }
        assert!(read(&RECORDED[..HEADER_LEN - 1]).is_err());
    }
}
