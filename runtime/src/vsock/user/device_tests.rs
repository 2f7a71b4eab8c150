//! The device against a driver of our own in plain memory, well behaved and not.

#![allow(clippy::unwrap_used)]

use super::*;
use std::{
    io::{Read, Write},
    time::Duration,
};
use vm_memory::{Bytes, GuestAddress};

const GUEST_CID: u32 = 3;
/// Entries of each queue.
const SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
/// Where each queue's rings are, by queue.
const RINGS: [u64; 2] = [0x1000, 0x5000];
const DATA: u64 = 0x10000;
const MEMORY: usize = 1 << 20;

/// The rings of one queue, as the driver fills them.
struct Driver {
    base: u64,
    /// Descriptors and avail entries that were given out.
    descriptors: u16,
    available: u16,
    data: u64,
}

struct Bed {
    device: Device,
    memory: Memory,
    vrings: Vec<VringRwLock<Memory>>,
    rx: Driver,
    tx: Driver,
    accepted: Arc<Mutex<Vec<UnixStream>>>,
}

fn bed() -> Bed {
    let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
    let accepted: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
    let sink = accepted.clone();
    let table = Table::new(Box::new(move |_, socket| {
        sink.lock().unwrap().push(socket);
        true
    }));
    let mut device = Device::new(GUEST_CID, table, Arc::new(Commands::new().unwrap())).unwrap();
    device.update_memory(memory.clone()).unwrap();
    let vrings = RINGS.map(|base| {
        let vring = VringRwLock::new(memory.clone(), QUEUE_SIZE as u16).unwrap();
        vring.set_queue_size(SIZE);
        vring.set_queue_info(base, base + 0x1000, base + 0x2000).unwrap();
        vring.set_queue_ready(true);
        vring
    });
    let driver = |base: u64| Driver { base, descriptors: 0, available: 0, data: DATA + base * 16 };
    Bed { device, memory, vrings: vrings.into(), rx: driver(RINGS[0]), tx: driver(RINGS[1]), accepted }
}

impl Driver {
    fn descriptor(&mut self, memory: &Memory, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + u64::from(self.descriptors % SIZE) * 16;
        let memory = memory.memory();
        memory.write_obj(address, GuestAddress(at)).unwrap();
        memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        self.descriptors += 1;
    }

    /// Makes the chain that begins at `head` available.
    fn offer(&mut self, memory: &Memory, head: u16) {
        let avail = self.base + 0x1000;
        memory.memory().write_obj(head, GuestAddress(avail + 4 + u64::from(self.available % SIZE) * 2)).unwrap();
        self.available += 1;
        memory.memory().write_obj(self.available, GuestAddress(avail + 2)).unwrap();
    }

    /// Offers `bytes` in pieces of the given lengths.
    fn send(&mut self, memory: &Memory, bytes: &[u8], pieces: &[usize]) {
        let head = self.descriptors % SIZE;
        let mut rest = bytes;
        for (n, piece) in pieces.iter().enumerate() {
            let (now, later) = rest.split_at(*piece);
            memory.memory().write_slice(now, GuestAddress(self.data)).unwrap();
            let more = if n + 1 < pieces.len() { NEXT } else { 0 };
            self.descriptor(memory, self.data, *piece as u32, more, (self.descriptors + 1) % SIZE);
            self.data += *piece as u64;
            rest = later;
        }
        assert!(rest.is_empty());
        self.offer(memory, head);
    }

    fn used(&self, memory: &Memory) -> u16 {
        memory.memory().read_obj(GuestAddress(self.base + 0x2002)).unwrap()
    }
}

impl Bed {
    fn packet(op: u16, data: &[u8]) -> Vec<u8> {
        let header = Header { local: 1025, peer: 5000, op, buf_alloc: 1 << 18, ..Header::default() };
        let packet = Packet { guest_cid: GUEST_CID.into(), host_cid: 2, kind: TYPE_STREAM, len: data.len() as u32, header };
        let mut bytes = Vec::new();
        packet.write(data, &mut bytes).unwrap();
        // As the guest sends it: it is the source.
        bytes[..16].rotate_left(8);
        bytes[16..24].rotate_left(4);
        bytes
    }

    fn kick(&mut self, queue: u16) {
        self.device.handle_event(queue, EventSet::IN, &self.vrings, 0).unwrap();
    }

    /// Offers a buffer and gives the packet that the device puts into it.
    fn receive(&mut self) -> Option<(u16, Vec<u8>)> {
        let (at, head, before) = (self.rx.data, self.rx.descriptors % SIZE, self.rx.used(&self.memory));
        self.rx.data += 4096;
        // In two pieces: header and data need not be in one.
        self.rx.descriptor(&self.memory, at, 10, NEXT | WRITABLE, (head + 1) % SIZE);
        self.rx.descriptor(&self.memory, at + 10, 4086, WRITABLE, 0);
        self.rx.offer(&self.memory, head);
        self.kick(RX);
        if self.rx.used(&self.memory) == before {
            return None;
        }
        let memory = self.memory.memory();
        let entry = self.rx.base + 0x2004 + u64::from(before % SIZE) * 8;
        let len: u32 = memory.read_obj(GuestAddress(entry + 4)).unwrap();
        let mut bytes = vec![0; len as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let op = u16::from_le_bytes([bytes[30], bytes[31]]);
        Some((op, bytes.split_off(HEADER_LEN)))
    }

    fn connected() -> (Self, UnixStream) {
        let mut bed = bed();
        bed.tx.send(&bed.memory, &Self::packet(op::REQUEST, b""), &[HEADER_LEN]);
        bed.kick(TX);
        assert_eq!(bed.receive(), Some((op::RESPONSE, vec![])));
        let caller = bed.accepted.lock().unwrap().pop().unwrap();
        caller.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (bed, caller)
    }
}

#[test]
fn a_packet_may_be_cut_anywhere() {
    let (mut bed, mut caller) = Bed::connected();
    let data: Vec<u8> = (0..=255).collect();
    bed.tx.send(&bed.memory, &Bed::packet(op::RW, &data), &[20, 30, 200, 50]);
    bed.kick(TX);
    let mut seen = [0; 256];
    caller.read_exact(&mut seen).unwrap();
    assert_eq!(&seen[..], data);
}

#[test]
fn what_the_host_writes_waits_for_a_buffer() {
    let (mut bed, mut caller) = Bed::connected();
    caller.write_all(b"ping").unwrap();
    bed.kick(SOCKETS);
    assert_eq!(bed.receive(), Some((op::RW, b"ping".to_vec())));
    drop(caller);
    bed.kick(SOCKETS);
    assert_eq!(bed.receive(), Some((op::SHUTDOWN, vec![])));
}

#[test]
fn a_length_that_lies_ends_its_connection_only() {
    let (mut bed, mut caller) = Bed::connected();
    let mut bytes = Bed::packet(op::RW, b"four");
    bytes[24] = 5;
    bed.tx.send(&bed.memory, &bytes, &[HEADER_LEN, 4]);
    bed.kick(TX);
    assert_eq!(bed.receive(), Some((op::RST, vec![])));
    assert_eq!(caller.read(&mut [0; 8]).unwrap(), 0);
    bed.tx.send(&bed.memory, &Bed::packet(op::REQUEST, b""), &[HEADER_LEN]);
    bed.kick(TX);
    assert_eq!(bed.receive(), Some((op::RESPONSE, vec![])));
}

#[test]
fn broken_chains_are_given_back_unread() {
    let mut bed = bed();
    let outside = MEMORY as u64 - 8;
    // Too short; beyond memory; a loop; a length that wraps; a buffer that is for the device to write.
    for (address, len, flags, next) in
        [(DATA, 3, 0, 0), (outside, 44, 0, 0), (DATA, 4, NEXT, 2), (u64::MAX - 4, u32::MAX, 0, 0), (DATA, 44, WRITABLE, 0)]
    {
        let (head, before) = (bed.tx.descriptors % SIZE, bed.tx.used(&bed.memory));
        bed.tx.descriptor(&bed.memory, address, len, flags, next);
        bed.tx.offer(&bed.memory, head);
        bed.kick(TX);
        assert_eq!(bed.tx.used(&bed.memory), before + 1, "{address:#x} {len}");
    }
    bed.tx.offer(&bed.memory, 0xfff0);
    bed.kick(TX);
    assert!(bed.accepted.lock().unwrap().is_empty());
    assert!(!bed.device.table.has_output());
}

#[test]
fn rings_that_are_no_memory_end_the_connections() {
    let (mut bed, mut caller) = Bed::connected();
    bed.tx.send(&bed.memory, &Bed::packet(op::RW, b"x"), &[HEADER_LEN + 1]);
    bed.vrings[usize::from(TX)].set_queue_info(RINGS[1], RINGS[1] + 0x1000, MEMORY as u64 - 4).unwrap();
    bed.kick(TX);
    let mut seen = Vec::new();
    caller.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"x");
}

#[test]
fn a_guests_other_addresses_are_not_served() {
    let mut bed = bed();
    for at in [0, 8, 28] {
        let mut bytes = Bed::packet(op::REQUEST, b"");
        bytes[at] = 9;
        bed.tx.send(&bed.memory, &bytes, &[HEADER_LEN]);
        bed.kick(TX);
    }
    assert!(bed.accepted.lock().unwrap().is_empty());
    assert_eq!(bed.receive(), None);
}

#[test]
fn commands_after_the_end_are_answered_by_nobody() {
    let commands = Commands::new().unwrap();
    commands.close();
    let (_ours, socket) = UnixStream::pair().unwrap();
    let held = Arc::new(());
    let theirs = held.clone();
    commands.push(Connect { port: 1, socket, answer: Box::new(move |_| drop(theirs)) });
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(commands.take().is_empty());
}
