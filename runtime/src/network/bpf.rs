//! The one BPF program that we need (bpf(2), Documentation/bpf/prog_sk_lookup.rst): in a network namespace, connections to any TCP port of its
//! own addresses go to one listening socket. It is attached by a link, which is a descriptor: with the last process that holds it,
//! the program is gone.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
/// `BPF_MAP_TYPE_SOCKMAP`, `BPF_PROG_TYPE_SK_LOOKUP`, `BPF_SK_LOOKUP` (linux/bpf.h).
const SOCKMAP: u32 = 15;
const SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;
/// Helper functions by their numbers.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
/// Places of the map.
const V4: u32 = 0;
const V6: u32 = 1;
/// Room for the attributes of any command here; what is not named is zero.
const ATTRIBUTES: usize = 128;

/// Sends every new TCP connection within the namespace to one of two listeners, by its family; until the descriptor is closed.
pub(super) fn steer(netns: &impl AsFd, v4: &TcpListener, v6: Option<&TcpListener>) -> io::Result<OwnedFd> {
    let map = command(MAP_CREATE, &Attributes::default().u32(SOCKMAP).u32(4).u32(8).u32(2))?;
    put(&map, V4, v4)?;
    if let Some(v6) = v6 {
        put(&map, V6, v6)?;
    }
    let program = program(map.as_raw_fd());
    // The helpers are for programs under the GPL only (include/linux/license.h).
    let licence = c"Dual MIT/GPL";
    let load = Attributes::default()
        .u32(SK_LOOKUP)
        .u32(program.len() as u32)
        .u64(program.as_ptr() as u64)
        .u64(licence.as_ptr() as u64)
        // No log: level, size, buffer; then kernel version, flags, name, interface.
        .zeroes(4 + 4 + 8 + 4 + 4 + 16 + 4)
        .u32(ATTACH_SK_LOOKUP);
    let loaded = command(PROG_LOAD, &load)?;
    let netns = netns.as_fd().as_raw_fd();
    command(LINK_CREATE, &Attributes::default().fd(loaded.as_raw_fd()).fd(netns).u32(ATTACH_SK_LOOKUP).u32(0))
}

fn put(map: &OwnedFd, place: u32, listener: &TcpListener) -> io::Result<()> {
    let socket = listener.as_raw_fd() as u64;
    let attributes = Attributes::default().fd(map.as_raw_fd()).u32(0).u64(&raw const place as u64).u64(&raw const socket as u64);
    call(MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// The attributes of a command, in the order of `union bpf_attr`.
#[derive(Clone, Copy)]
struct Attributes {
    bytes: [u8; ATTRIBUTES],
    length: usize,
}

impl Default for Attributes {
    fn default() -> Self {
        Self { bytes: [0; ATTRIBUTES], length: 0 }
    }
}

impl Attributes {
    fn u32(self, value: u32) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn fd(self, fd: i32) -> Self {
        self.u32(fd.cast_unsigned())
    }

    fn zeroes(mut self, count: usize) -> Self {
        self.length += count;
        self
    }

    fn put(mut self, value: &[u8]) -> Self {
        self.bytes[self.length..self.length + value.len()].copy_from_slice(value);
        self.length += value.len();
        self
    }
}

/// A command that gives a descriptor.
fn command(number: libc::c_long, attributes: &Attributes) -> io::Result<OwnedFd> {
    let fd = call(number, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us (with O_CLOEXEC, as all of bpf's are).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(number: libc::c_long, attributes: &Attributes) -> io::Result<i32> {
    // SAFETY: the attributes live until the call returns, and so does whatever they point to: their makers hold it meanwhile.
    let result = unsafe { libc::syscall(libc::SYS_bpf, number, attributes.bytes.as_ptr(), ATTRIBUTES) };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst).
const fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | (offset as u16 as u64) << 16 | (number as u32 as u64) << 32
}

/// In the kernel's words: `if (ctx->protocol == TCP && (sk = map[ctx->family == AF_INET6])) { assign(ctx, sk); release(sk); } pass`.
fn program(map: i32) -> [u64; 23] {
    const LOAD: u8 = 0x61;
    const STORE: u8 = 0x63;
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const IF_EQUAL: u8 = 0x15;
    const UNLESS_EQUAL: u8 = 0x55;
    const LOAD_MAP: u8 = 0x18;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// Offsets in `struct bpf_sk_lookup`.
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    [
        op(COPY, 6, 1, 0, 0),
        op(LOAD, 2, 1, PROTOCOL, 0),
        op(UNLESS_EQUAL, 2, 0, 18, libc::IPPROTO_TCP),
        op(SET, 2, 0, 0, V4 as i32),
        op(LOAD, 3, 1, FAMILY, 0),
        op(UNLESS_EQUAL, 3, 0, 1, libc::AF_INET6),
        op(SET, 2, 0, 0, V6 as i32),
        op(STORE, 10, 2, -4, 0),
        op(LOAD_MAP, 1, 1, 0, map),
        op(0, 0, 0, 0, 0),
        op(COPY, 2, 10, 0, 0),
        op(ADD, 2, 0, 0, -4),
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(IF_EQUAL, 0, 0, 7, 0),
        op(COPY, 7, 0, 0, 0),
        op(COPY, 1, 6, 0, 0),
        op(COPY, 2, 7, 0, 0),
        op(SET, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, SK_ASSIGN),
        op(COPY, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, SK_RELEASE),
        op(SET, 0, 0, 0, 1),
        op(EXIT, 0, 0, 0, 0),
    ]
}
