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
    pub(crate) const INVALID: u16 = 0;
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
    /// In the queue of those with something to send.
    queued: bool,
    /// A credit update waits to be sent.
    update_waits: bool,
    /// The caller has closed its half: what is still in the socket is its last.
    caller_gone: bool,
    /// What we told the guest of our end, flags of [`op::SHUTDOWN`].
    told_end: u32,
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
            queued: false,
            update_waits: false,
            caller_gone: false,
            told_end: 0,
            guest_done: false,
            guest_deaf: false,
        }
    }

    fn credit(&self) -> usize {
        // All three wrap; a guest that lies about them only starves or overfills itself.
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded)) as usize
    }

    /// Takes bytes of the guest; false where the caller is gone or the guest has sent more than it was given room for.
    fn take(&mut self, mut data: &[u8]) -> bool {
        if self.pending.len() + data.len() > BUFFER as usize {
            return false;
        }
        if self.pending.is_empty() {
            match self.write(data) {
                Some(n) => data = &data[n..],
                None => return false,
            }
        }
        self.pending.extend(data);
        true
    }

    /// Hands pending bytes to the caller; false where the caller is gone.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            let chunk = std::mem::take(&mut self.pending);
            let (front, back) = chunk.as_slices();
            let written = match self.write(front) {
                Some(n) if n == front.len() => self.write(back).map(|more| n + more),
                other => other,
            };
            self.pending = chunk;
            match written {
                Some(0) => return true,
                Some(n) => drop(self.pending.drain(..n)),
                None => return false,
            }
        }
        self.pending.shrink_to(4096);
        if self.guest_done {
            // Only now: what the guest sent before its end comes first.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
        true
    }

    /// Writes as much as the caller's socket takes at once; `None` where the caller is gone.
    fn write(&mut self, data: &[u8]) -> Option<usize> {
        let mut written = 0;
        while written < data.len() {
            match self.socket.write(&data[written..]) {
                Ok(0) => return None,
                Ok(n) => written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        self.forwarded = self.forwarded.wrapping_add(written as u32);
        Some(written)
    }

    /// Neither side of the guest's end is open, and the caller has all of it.
    fn is_over(&self) -> bool {
        self.guest_done && self.guest_deaf && self.pending.is_empty()
    }

    /// The guest should hear of the room that the caller has made.
    fn wants_update(&self) -> bool {
        !self.update_waits && self.forwarded.wrapping_sub(self.told) >= BUFFER / 2
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
    pub(super) fn receive(&mut self, header: Header, data: &[u8]) {
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
                if !connection.take(data) {
                    return self.reset(key);
                }
                self.tell_credit(key, false);
            }
            op::CREDIT_UPDATE if established => {}
            op::CREDIT_REQUEST if established => self.tell_credit(key, true),
            op::SHUTDOWN if established => {
                connection.guest_done |= header.flags & SHUTDOWN_SEND != 0;
                if header.flags & SHUTDOWN_RECEIVE != 0 {
                    connection.guest_deaf = true;
                    // The caller's next write fails instead of vanishing.
                    let _ = connection.socket.shutdown(Shutdown::Read);
                }
                if !connection.flush() || connection.is_over() {
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

    /// Something changed at the caller's socket: it can be read, or takes more, or has ended; `gone` when the caller has closed it.
    pub(super) fn socket_ready(&mut self, key: Key, gone: bool) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        // A caller that gave up waiting for the guest's answer has nobody left to tell.
        if !connection.flush() || connection.is_over() || (gone && connection.answer.is_some()) {
            return self.reset(key);
        }
        connection.readable = true;
        connection.caller_gone |= gone;
        let told = connection.told_end;
        if gone && told == SHUTDOWN_SEND {
            // It closed after it had ended its own direction: the guest writes to nobody and must not wait for credit.
            connection.told_end = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
            self.say(key, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
        }
        self.tell_credit(key, false);
        self.wake(key);
    }

    /// The next packet for the guest, its data in `room`. `None` where there is nothing to say.
    pub(super) fn next_packet(&mut self, room: &mut [u8]) -> Option<(Header, usize)> {
        if let Some(header) = self.control.pop_front() {
            return Some((self.stamp(header), 0));
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            let room_here = connection.credit().min(room.len());
            if connection.guest_deaf || !connection.readable || connection.told_end != 0 || room_here == 0 {
                continue;
            }
            match connection.socket.read(&mut room[..room_here]) {
                Ok(0) => {
                    connection.told_end = if connection.caller_gone { SHUTDOWN_SEND | SHUTDOWN_RECEIVE } else { SHUTDOWN_SEND };
                    let flags = connection.told_end;
                    return Some((self.stamp(header(key, op::SHUTDOWN, flags)), 0));
                }
                Ok(n) => {
                    connection.sent = connection.sent.wrapping_add(n as u32);
                    // Behind the others, so that one busy stream does not starve them.
                    connection.queued = true;
                    self.ready.push_back(key);
                    return Some((self.stamp(header(key, op::RW, 0)), n));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    connection.readable = false;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {
                    connection.queued = true;
                    self.ready.push_front(key);
                }
                Err(_) => {
                    self.remove(key);
                    return Some((self.stamp(header(key, op::RST, 0)), 0));
                }
            }
        }
        None
    }

    /// Whether [`Table::next_packet`] may have something.
    pub(super) fn has_output(&self) -> bool {
        !self.control.is_empty() || !self.ready.is_empty()
    }

    /// The sockets of connections made since the last call, to be watched edge-triggered in both directions.
    pub(super) fn take_fresh(&mut self) -> impl Iterator<Item = (Key, RawFd)> {
        let connections = &self.connections;
        self.fresh.drain(..).filter_map(|key| Some((key, connections.get(&key)?.socket.as_raw_fd())))
    }

    /// Ends every connection, those that wait for an answer too.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.control.clear();
        self.ready.clear();
    }

    fn wake(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && connection.readable
            && connection.answer.is_none()
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Tells the guest how much more it may send: when that is news, or when it asks.
    fn tell_credit(&mut self, key: Key, asked: bool) {
        if let Some(connection) = self.connections.get_mut(&key)
            && (connection.wants_update() || (asked && !connection.update_waits))
        {
            connection.update_waits = true;
            self.say(key, op::CREDIT_UPDATE, 0);
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
        if let Some(connection) = self.connections.remove(&key)
            && let Some(answer) = connection.answer
        {
            answer(Err(ErrorKind::ConnectionRefused.into()));
        }
    }

    /// Adds what the guest is to know of our side of the connection at the moment of sending.
    fn stamp(&mut self, mut header: Header) -> Header {
        if let Some(connection) = self.connections.get_mut(&(header.local, header.peer)) {
            header.buf_alloc = BUFFER;
            header.fwd_cnt = connection.forwarded;
            connection.told = connection.forwarded;
            connection.update_waits = false;
        }
        header
    }
}

fn header((local, peer): Key, op: u16, flags: u32) -> Header {
    Header { local, peer, op, flags, ..Header::default() }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
