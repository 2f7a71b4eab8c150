//! The virtqueues of the vsock device: packets out of the guest's memory into the [`Table`], and back.

use super::{
    packet::{HEADER_LEN, MAX_DATA, Packet, TYPE_STREAM},
    table::{Answer, Header, Key, Table, op},
};
use crate::rate::Rate;
use std::{
    io,
    ops::Deref,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringRwLock, VringT};
use virtio_bindings::bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
    eventfd::EventFd,
};

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

/// Queues as virtio 1.2 §5.10.2 numbers them; the event queue is QEMU's.
const RX: u16 = 0;
const TX: u16 = 1;
const QUEUES: usize = 3;
const QUEUE_SIZE: usize = 1024;
/// Token of our own epoll descriptor within the daemon's; above those that it keeps for itself.
pub(super) const SOCKETS: u16 = QUEUES as u16 + 1;
/// What our epoll descriptor carries for the wake-up of new commands; no connection has port 0 on both sides.
const WAKE: u64 = 0;
/// After moving so many bytes, we let go of the guest's pages: each that we touched counts as ours until then.
const LET_GO_AFTER: usize = 4 << 20;

/// A connection that the host opens.
pub(super) struct Connect {
    pub(super) port: u32,
    pub(super) socket: UnixStream,
    pub(super) answer: Answer,
}

/// Commands for the device's thread; what is pushed after its end is dropped, so that nobody waits for an answer.
pub(super) struct Commands {
    /// `None` once the device has ended.
    queue: Mutex<Option<Vec<Connect>>>,
    wake: EventFd,
}

impl Commands {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::new(Some(Vec::new())), wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)? })
    }

    pub(super) fn push(&self, command: Connect) {
        if let Some(queue) = &mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            queue.push(command);
            // Fails only when the counter is full, and then the thread is awake.
            let _ = self.wake.write(1);
        }
    }

    pub(super) fn close(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn take(&self) -> Vec<Connect> {
        let _ = self.wake.read();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// The device's back end, driven by the vhost-user daemon's thread.
pub(super) struct Device {
    guest_cid: u64,
    table: Table,
    commands: Arc<Commands>,
    sockets: Epoll,
    memory: Option<Memory>,
    buffer: Box<[u8; MAX_DATA]>,
    /// Bytes moved since the guest's pages were let go of.
    moved: usize,
    rate: Rate,
    exit: Option<(EventConsumer, EventNotifier)>,
}

impl Device {
    pub(super) fn new(guest_cid: u32, table: Table, commands: Arc<Commands>) -> io::Result<Self> {
        let sockets = Epoll::new()?;
        sockets.ctl(ControlOperation::Add, commands.wake.as_raw_fd(), EpollEvent::new(EventSet::IN, WAKE))?;
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        Ok(Self {
            guest_cid: guest_cid.into(),
            table,
            commands,
            sockets,
            memory: None,
            buffer: Box::new([0; MAX_DATA]),
            moved: 0,
            rate: Rate::new(Instant::now()),
            exit: Some(exit),
        })
    }

    /// The descriptor that the daemon's loop is to watch under [`SOCKETS`].
    pub(super) fn sockets_fd(&self) -> RawFd {
        self.sockets.as_raw_fd()
    }

    fn poll_sockets(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 64];
        loop {
            let n = match self.sockets.wait(0, &mut events) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            for event in &events[..n] {
                match event.data() {
                    WAKE => self.commands.take().into_iter().for_each(|c| self.table.connect(c.port, c.socket, c.answer)),
                    packed => {
                        let gone = event.events() & (libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
                        self.table.socket_ready(unpack(packed), gone);
                    }
                }
            }
            if n < events.len() {
                return Ok(());
            }
        }
    }

    fn watch_fresh(&mut self) {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        for (key, fd) in self.table.take_fresh() {
            if let Err(error) = self.sockets.ctl(ControlOperation::Add, fd, EpollEvent::new(events, pack(key))) {
                log::warn!("vsock: cannot watch a connection: {error}");
            }
        }
    }

    fn take_packets(&mut self, vring: &VringRwLock<Memory>) -> io::Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let memory = memory.memory();
        let mut used = false;
        let mut state = vring.get_mut();
        // In batches, so that a guest that never stops sending is still answered.
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = state.get_queue_mut().pop_descriptor_chain(memory.clone()) else { break };
            let head = chain.head_index();
            let packet = chain.reader(memory.deref()).map_err(io::Error::other);
            match packet.and_then(|mut reader| Packet::read(&mut reader, &mut self.buffer)) {
                Ok((packet, data)) => {
                    self.moved += data.unwrap_or_default();
                    self.packet(packet, data);
                }
                Err(error) => complain(&mut self.rate, &format!("malformed packet: {error}")),
            }
            state.add_used(head, 0).map_err(io::Error::other)?;
            used = true;
        }
        if used { state.signal_used_queue() } else { Ok(()) }
    }

    fn packet(&mut self, packet: Packet, data: Option<usize>) {
        if packet.kind != TYPE_STREAM || packet.host_cid != u64::from(protocol::HOST_CID) || packet.guest_cid != self.guest_cid {
            return complain(&mut self.rate, "packet of another type or address");
        }
        match data {
            Some(len) => self.table.receive(packet.header, &self.buffer[..len]),
            // Its connection has a hole now: it ends.
            None => self.table.receive(Header { op: op::INVALID, ..packet.header }, &[]),
        }
    }

    fn give_packets(&mut self, vring: &VringRwLock<Memory>) -> io::Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let memory = memory.memory();
        let mut used = false;
        let mut state = vring.get_mut();
        while self.table.has_output() {
            let Some(chain) = state.get_queue_mut().pop_descriptor_chain(memory.clone()) else { break };
            let head = chain.head_index();
            let mut length = 0;
            let mut nothing = false;
            match chain.writer(memory.deref()) {
                Ok(mut writer) if writer.available_bytes() >= HEADER_LEN => {
                    let room = (writer.available_bytes() - HEADER_LEN).min(MAX_DATA);
                    match self.table.next_packet(&mut self.buffer[..room]) {
                        Some((header, n)) => {
                            self.moved += n;
                            let packet = Packet {
                                guest_cid: self.guest_cid,
                                host_cid: protocol::HOST_CID.into(),
                                kind: TYPE_STREAM,
                                len: n as u32,
                                header,
                            };
                            length = packet.write(&self.buffer[..n], &mut writer)?;
                        }
                        None => nothing = true,
                    }
                }
                Ok(_) => complain(&mut self.rate, "a buffer that is too small for a header"),
                Err(error) => complain(&mut self.rate, &format!("malformed buffer: {error}")),
            }
            if nothing {
                state.get_queue_mut().go_to_previous_position();
                break;
            }
            state.add_used(head, length).map_err(io::Error::other)?;
            used = true;
        }
        if used { state.signal_used_queue() } else { Ok(()) }
    }

    /// Takes the guest's memory out of our page tables. It stays what it is: the mapping is shared, and comes back on the next touch.
    fn let_go(&mut self) {
        let Some(memory) = &self.memory else { return };
        for region in memory.memory().iter() {
            // SAFETY: the range is one whole mapping that the region keeps alive; for a shared mapping MADV_DONTNEED changes no
            // content, whoever reads or writes it meanwhile.
            let done = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTNEED) };
            if done < 0 {
                log::debug!("vsock: madvise: {}", io::Error::last_os_error());
            }
        }
        self.moved = 0;
    }
}

impl Device {
    fn work(&mut self, event: u16, rx: &VringRwLock<Memory>, tx: &VringRwLock<Memory>) -> io::Result<()> {
        if event == SOCKETS {
            self.poll_sockets()?;
        }
        // With the event index a kick may be suppressed for what arrives while we work: look again after asking for kicks.
        let mut again = false;
        loop {
            if again {
                self.poll_sockets()?;
            }
            again = true;
            tx.disable_notification().map_err(io::Error::other)?;
            self.take_packets(tx)?;
            self.watch_fresh();
            self.give_packets(rx)?;
            if !tx.enable_notification().map_err(io::Error::other)? {
                break;
            }
        }
        // Buffers that the guest adds later are news only while something waits for them.
        if self.table.has_output() && rx.enable_notification().map_err(io::Error::other)? {
            self.give_packets(rx)?;
        }
        if self.moved >= LET_GO_AFTER {
            self.let_go();
        }
        Ok(())
    }
}

/// A guest can be wrong as often as it likes; the log holds some of it.
fn complain(rate: &mut Rate, what: &str) {
    if let Some(held_back) = rate.pass(Instant::now()) {
        log::warn!(held_back; "vsock: from the guest: {what}");
    }
}

fn pack((local, peer): Key) -> u64 {
    u64::from(local) << 32 | u64::from(peer)
}

fn unpack(packed: u64) -> Key {
    ((packed >> 32) as u32, packed as u32)
}

impl VhostUserBackendMut for Device {
    type Bitmap = ();
    type Vring = VringRwLock<Memory>;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        // struct virtio_vsock_config: the guest's context id.
        let config = self.guest_cid.to_le_bytes();
        let start = (offset as usize).min(config.len());
        let end = start.saturating_add(size as usize).min(config.len());
        config[start..end].to_vec()
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = self.exit.as_ref()?;
        Some((consumer.try_clone().ok()?, notifier.try_clone().ok()?))
    }

    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[Self::Vring], _thread: usize) -> io::Result<()> {
        let (Some(rx), Some(tx)) = (vrings.get(usize::from(RX)), vrings.get(usize::from(TX))) else { return Ok(()) };
        if let Err(error) = self.work(event, rx, tx) {
            // The guest broke its queues. Returning the error would end this thread and leave every caller waiting.
            log::error!("vsock: the device ends its connections: {error}");
            self.table.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
