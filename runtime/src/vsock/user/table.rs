//! The connections of one guest's vsock device: virtio 1.2 §5.10.6 without the virtqueues, so that tests need no guest.
//!
//! Each connection ends here in a socket whose other half a caller holds. Flow control is by credit: what the guest may send is
//! what we can hold, what we send is what it said it can; nothing here grows beyond that, whatever the guest does.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

/// `VMADDR_CID_HOST`.
const HOST_CID: u64 = 2;
/// Most connections of one guest.
const MAX_CONNECTIONS: usize = 1024;
/// What we hold of one connection for a caller that does not read, in bytes.
const BUFFER: u32 = 128 << 10;
/// Control packets that wait for room in the guest's queue; a guest that lets them pile up loses its connections.
const MAX_CONTROL: usize = 4 * MAX_CONNECTIONS;
/// First port number of connections that the host opens.
const FIRST_EPHEMERAL: u32 = 1 << 30;

/// Operations, `enum virtio_vsock_op` of linux/virtio_vsock.h.
pub(super) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}
/// Flags of [`op::SHUTDOWN`].
const SHUTDOWN_RECEIVE: u32 = 1;
const SHUTDOWN_SEND: u32 = 2;

/// The fields of `struct virtio_vsock_hdr` that vary; ports as the *guest* (`peer`) and the host (`local`) number them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) local: u32,
    pub(super) peer: u32,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// Host port and guest port.
pub(super) type Key = (u32, u32);

/// Somebody waits for the guest's answer to a connection that the host opens.
pub(super) type Answer = Box<dyn FnOnce(io::Result<()>) + Send + Sync>;
/// Takes the host's half of a connection that the guest opens; false where nobody listens.
pub(super) type Accept = Box<dyn FnMut(u32, UnixStream) -> bool + Send + Sync>;

struct Connection {
    socket: UnixStream,
    /// Set until the guest has answered.
    answer: Option<Answer>,
    /// From the guest, not yet taken by the caller; at most [`BUFFER`] bytes.
    pending: VecDeque<u8>,
    /// Bytes that the caller has taken; tells the guest how much it may send.
    forwarded: u32,
    /// The value of `forwarded` that the guest was last told.
    told: u32,
    /// The guest's buffer, what it has taken of it, and what we sent.
    peer_alloc: u32,
    peer_forwarded: u32,
    sent: u32,
    /// The caller has written something, or ended, as far as we know.
    readable: bool,
    /// We told the guest that no more comes.
    host_done: bool,
    /// The guest told us that no more comes.
    guest_done: bool,
    /// The guest takes no more.
    guest_deaf: bool,
}

impl Connection {
    fn new(socket: UnixStream, answer: Option<Answer>) -> Self {
        Self {
            socket,
            answer,
            pending: VecDeque::new(),
            forwarded: 0,
            told: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
            readable: false,
            host_done: false,
            guest_done: false,
            guest_deaf: false,
        }
    }

    fn credit(&self) -> usize {
        // All three wrap; a guest that lies about them only starves or overfills itself.
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded)) as usize
    }

    /// Hands pending bytes to the caller; false where the caller is gone.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            match self.socket.write(front) {
                Ok(0) => return false,
                Ok(n) => {
                    self.pending.drain(..n);
                    self.forwarded = self.forwarded.wrapping_add(n as u32);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.pending.shrink_to(4096);
        if self.guest_done {
            // Only now: what the guest sent before its end comes first.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        true
    }
}

/// All connections of one guest.
pub(super) struct Table {
    connections: HashMap<Key, Connection>,
    control: VecDeque<Header>,
    /// Connections that nobody watches yet.
    fresh: Vec<Key>,
    /// Connections with something to send, in turn.
    ready: VecDeque<Key>,
    next_port: u32,
    accept: Accept,
}

impl Table {
    pub(super) fn new(accept: Accept) -> Self {
        Self {
            connections: HashMap::new(),
            control: VecDeque::new(),
            fresh: Vec::new(),
            ready: VecDeque::new(),
            next_port: FIRST_EPHEMERAL,
            accept,
        }
    }

    /// Opens a connection to a guest port; `answer` is called with its outcome.
    pub(super) fn connect(&mut self, port: u32, socket: UnixStream, answer: Answer) {
        if self.connections.len() >= MAX_CONNECTIONS {
            return answer(Err(io::Error::other("too many vsock connections")));
        }
        while self.connections.contains_key(&(self.next_port, port)) {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_EPHEMERAL);
        }
        let key = (self.next_port, port);
        self.next_port = self.next_port.wrapping_add(1).max(FIRST_EPHEMERAL);
        self.connections.insert(key, Connection::new(socket, Some(answer)));
        self.fresh.push(key);
        self.say(key, op::REQUEST, 0);
    }

    /// A packet of the guest.
    pub(super) fn from_guest(&mut self, header: Header, data: &[u8]) {
        let key = (header.local, header.peer);
        if header.op == op::REQUEST {
            return self.request(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            if header.op != op::RST {
                self.say(key, op::RST, 0);
            }
            return;
        };
        connection.peer_alloc = header.buf_alloc;
        connection.peer_forwarded = header.fwd_cnt;
        let established = connection.answer.is_none();
        match header.op {
            op::RESPONSE if !established => {
                if let Some(answer) = connection.answer.take() {
                    answer(Ok(()));
                }
            }
            op::RST => return self.remove(key),
            op::RW if established && !connection.guest_done => {
                // A guest that sends more than it was given room for is not served further.
                if connection.pending.len() + data.len() > BUFFER as usize {
                    return self.reset(key);
                }
                connection.pending.extend(data);
                if !connection.flush() {
                    return self.reset(key);
                }
                if connection.forwarded.wrapping_sub(connection.told) >= BUFFER / 2 {
                    self.say(key, op::CREDIT_UPDATE, 0);
                }
            }
            op::CREDIT_UPDATE if established => {}
            op::CREDIT_REQUEST if established => self.say(key, op::CREDIT_UPDATE, 0),
            op::SHUTDOWN if established => {
                connection.guest_done |= header.flags & SHUTDOWN_SEND != 0;
                connection.guest_deaf |= header.flags & SHUTDOWN_RECEIVE != 0;
                if !connection.flush() || (connection.guest_done && connection.guest_deaf && connection.pending.is_empty()) {
                    return self.reset(key);
                }
            }
            _ => return self.reset(key),
        }
        self.wake(key);
    }

    fn request(&mut self, key: Key, header: Header) {
        if self.connections.len() >= MAX_CONNECTIONS || self.connections.contains_key(&key) {
            return self.reset(key);
        }
        let Ok((ours, theirs)) = UnixStream::pair() else { return self.say(key, op::RST, 0) };
        if ours.set_nonblocking(true).is_err() || !(self.accept)(header.local, theirs) {
            return self.say(key, op::RST, 0);
        }
        let mut connection = Connection::new(ours, None);
        connection.peer_alloc = header.buf_alloc;
        connection.peer_forwarded = header.fwd_cnt;
        self.connections.insert(key, connection);
        self.fresh.push(key);
        self.say(key, op::RESPONSE, 0);
    }

    /// Something changed at the caller's socket: it can be read, or takes more, or has ended.
    pub(super) fn socket_ready(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if !connection.flush() {
            return self.reset(key);
        }
        if connection.guest_done && connection.guest_deaf && connection.pending.is_empty() {
            return self.reset(key);
        }
        connection.readable = true;
        if connection.forwarded.wrapping_sub(connection.told) >= BUFFER / 2 {
            self.say(key, op::CREDIT_UPDATE, 0);
        }
        self.wake(key);
    }

    /// The next packet for the guest, its data in `room`. `None` where there is nothing to say.
    pub(super) fn to_guest(&mut self, room: &mut [u8]) -> Option<(Header, usize)> {
        if let Some(header) = self.control.pop_front() {
            return Some((self.stamp(header), 0));
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            let room_here = connection.credit().min(room.len());
            if connection.guest_deaf || !connection.readable || connection.host_done || room_here == 0 {
                continue;
            }
            match connection.socket.read(&mut room[..room_here]) {
                Ok(0) => {
                    connection.host_done = true;
                    return Some((self.stamp(header(key, op::SHUTDOWN, SHUTDOWN_SEND)), 0));
                }
                Ok(n) => {
                    connection.sent = connection.sent.wrapping_add(n as u32);
                    // Behind the others, so that one busy stream does not starve them.
                    self.ready.push_back(key);
                    return Some((self.stamp(header(key, op::RW, 0)), n));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    connection.readable = false;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => self.ready.push_front(key),
                Err(_) => {
                    self.remove(key);
                    return Some((self.stamp(header(key, op::RST, 0)), 0));
                }
            }
        }
        None
    }

    /// Whether [`Table::to_guest`] may have something.
    pub(super) fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.ready.is_empty()
    }

    /// The sockets of connections made since the last call, to be watched edge-triggered in both directions.
    pub(super) fn take_fresh(&mut self) -> impl Iterator<Item = (Key, RawFd)> {
        let connections = &self.connections;
        self.fresh.drain(..).filter_map(|key| Some((key, connections.get(&key)?.socket.as_raw_fd())))
    }

    fn wake(&mut self, key: Key) {
        if self.connections.get(&key).is_some_and(|c| c.readable && c.answer.is_none()) && !self.ready.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn say(&mut self, key: Key, op: u16, flags: u32) {
        if self.control.len() < MAX_CONTROL {
            self.control.push_back(header(key, op, flags));
        } else {
            self.remove(key);
        }
    }

    fn reset(&mut self, key: Key) {
        self.remove(key);
        self.say(key, op::RST, 0);
    }

    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            if let Some(answer) = connection.answer {
                answer(Err(ErrorKind::ConnectionRefused.into()));
            }
        }
    }

    /// Adds what the guest is to know of our side of the connection at the moment of sending.
    fn stamp(&mut self, mut header: Header) -> Header {
        if let Some(connection) = self.connections.get_mut(&(header.local, header.peer)) {
            header.buf_alloc = BUFFER;
            header.fwd_cnt = connection.forwarded;
            connection.told = connection.forwarded;
        }
        header
    }
}

fn header((local, peer): Key, op: u16, flags: u32) -> Header {
    Header { local, peer, op, flags, ..Header::default() }
}

/// The context id that packets to the host carry.
pub(super) fn is_for_host(cid: u64) -> bool {
    cid == HOST_CID
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
