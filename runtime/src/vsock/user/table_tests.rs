#![allow(clippy::unwrap_used)]

use super::*;
use std::sync::{Arc, Mutex};

const GUEST: u32 = 5000;

struct Bed {
    table: Table,
    accepted: Arc<Mutex<Vec<UnixStream>>>,
}

fn bed() -> Bed {
    let accepted: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
    let sink = accepted.clone();
    let accept: Accept = Box::new(move |port, socket| {
        sink.lock().unwrap().push(socket);
        port == 1025
    });
    Bed { table: Table::new(accept), accepted }
}

impl Bed {
    fn guest(&mut self, local: u32, op: u16, flags: u32, data: &[u8]) {
        let header = Header { local, peer: GUEST, op, flags, buf_alloc: 64, fwd_cnt: 0 };
        self.table.receive(header, data);
    }

    fn next(&mut self) -> Option<(u16, Vec<u8>)> {
        let mut room = [0; 4096];
        self.table.next_packet(&mut room).map(|(header, n)| (header.op, room[..n].to_vec()))
    }

    fn accepted(&mut self) -> UnixStream {
        self.guest(1025, op::REQUEST, 0, b"");
        assert_eq!(self.next(), Some((op::RESPONSE, vec![])));
        self.accepted.lock().unwrap().pop().unwrap()
    }
}

#[test]
fn bytes_go_both_ways() {
    let mut bed = bed();
    let mut caller = bed.accepted();
    bed.guest(1025, op::RW, 0, b"from the guest");
    let mut seen = [0; 64];
    let n = caller.read(&mut seen).unwrap();
    assert_eq!(&seen[..n], b"from the guest");

    caller.write_all(b"from the host").unwrap();
    bed.table.socket_ready((1025, GUEST), false);
    assert_eq!(bed.next(), Some((op::RW, b"from the host".to_vec())));
    assert_eq!(bed.next(), None);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut bed = bed();
    let mut caller = bed.accepted();
    caller.write_all(&[7; 100]).unwrap();
    bed.table.socket_ready((1025, GUEST), false);
    assert_eq!(bed.next().unwrap().1.len(), 64);
    assert_eq!(bed.next(), None);
    let header = Header { local: 1025, peer: GUEST, op: op::CREDIT_UPDATE, flags: 0, buf_alloc: 64, fwd_cnt: 64 };
    bed.table.receive(header, b"");
    assert_eq!(bed.next().unwrap().1.len(), 36);
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut bed = bed();
    let _caller = bed.accepted();
    let chunk = vec![0; 60 << 10];
    for _ in 0..64 {
        bed.guest(1025, op::RW, 0, &chunk);
    }
    let ops: Vec<u16> = std::iter::from_fn(|| bed.next()).map(|(op, _)| op).collect();
    assert!(ops.contains(&op::RST), "{ops:?}");
    assert!(bed.table.connections.is_empty());
}

#[test]
fn the_end_of_one_direction_leaves_the_other() {
    let mut bed = bed();
    let mut caller = bed.accepted();
    bed.guest(1025, op::RW, 0, b"last");
    bed.guest(1025, op::SHUTDOWN, SHUTDOWN_SEND, b"");
    let mut seen = Vec::new();
    caller.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"last");

    caller.write_all(b"answer").unwrap();
    caller.shutdown(Shutdown::Write).unwrap();
    bed.table.socket_ready((1025, GUEST), false);
    assert_eq!(bed.next(), Some((op::RW, b"answer".to_vec())));
    assert_eq!(bed.next(), Some((op::SHUTDOWN, vec![])));
    bed.guest(1025, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, b"");
    assert_eq!(bed.next(), Some((op::RST, vec![])));
    assert!(bed.table.connections.is_empty());
}

/// The flags of the next packet, which is a SHUTDOWN.
fn next_end(bed: &mut Bed) -> u32 {
    let (header, _) = bed.table.next_packet(&mut [0; 64]).unwrap();
    assert_eq!(header.op, op::SHUTDOWN);
    header.flags
}

#[test]
fn a_caller_that_closes_ends_both_directions_after_its_last_bytes() {
    let mut bed = bed();
    let mut caller = bed.accepted();
    caller.write_all(b"last").unwrap();
    drop(caller);
    bed.table.socket_ready((1025, GUEST), true);
    assert_eq!(bed.next(), Some((op::RW, b"last".to_vec())));
    assert_eq!(next_end(&mut bed), SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn a_caller_that_closes_after_its_end_of_file_is_reported_again() {
    let mut bed = bed();
    let caller = bed.accepted();
    caller.shutdown(Shutdown::Write).unwrap();
    bed.table.socket_ready((1025, GUEST), false);
    assert_eq!(next_end(&mut bed), SHUTDOWN_SEND);
    drop(caller);
    bed.table.socket_ready((1025, GUEST), true);
    assert_eq!(next_end(&mut bed), SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
    bed.table.socket_ready((1025, GUEST), true);
    assert_eq!(bed.next(), None);
}

#[test]
fn a_caller_that_no_longer_waits_takes_its_request_back() {
    let mut bed = bed();
    let (ours, _) = UnixStream::pair().unwrap();
    bed.table.connect(GUEST, ours, Box::new(drop));
    assert_eq!(bed.next().unwrap().0, op::REQUEST);
    bed.table.socket_ready((FIRST_EPHEMERAL, GUEST), true);
    assert_eq!(bed.next().unwrap().0, op::RST);
    assert!(bed.table.connections.is_empty());
}

#[test]
fn a_slow_caller_holds_the_guest_back_and_loses_nothing() {
    let mut bed = bed();
    let mut caller = bed.accepted();
    let sent: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
    let (mut seen, mut at, mut told) = (Vec::new(), 0, 0_u32);
    while seen.len() < sent.len() {
        // As a driver does: no more than the device has said that it takes.
        let room = (BUFFER as usize).saturating_sub(at - told as usize);
        let end = (at + room.min(3000)).min(sent.len());
        if end > at {
            bed.guest(1025, op::RW, 0, &sent[at..end]);
            at = end;
        } else {
            let mut chunk = [0; 5000];
            let n = caller.read(&mut chunk).unwrap();
            seen.extend_from_slice(&chunk[..n]);
            bed.table.socket_ready((1025, GUEST), false);
        }
        while let Some((header, _)) = bed.table.next_packet(&mut [0; 64]) {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    assert_eq!(seen, sent);
}

#[test]
fn the_host_learns_whether_the_guest_listens() {
    for (op, ok) in [(op::RESPONSE, true), (op::RST, false)] {
        let mut bed = bed();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let outcome: Arc<Mutex<Option<bool>>> = Arc::default();
        let sink = outcome.clone();
        bed.table.connect(GUEST, ours, Box::new(move |result| *sink.lock().unwrap() = Some(result.is_ok())));
        assert_eq!(bed.next().unwrap().0, op::REQUEST);
        bed.guest(FIRST_EPHEMERAL, op, 0, b"");
        assert_eq!(*outcome.lock().unwrap(), Some(ok));
    }
}

#[test]
fn a_hostile_guest_gets_a_reset_and_no_more() {
    let mut bed = bed();
    for (local, op) in [(9, op::REQUEST), (1025, op::RW), (1025, 99), (1025, op::SHUTDOWN), (1025, op::RESPONSE)] {
        bed.guest(local, op, 0, b"x");
        assert_eq!(bed.next(), Some((op::RST, vec![])), "op {op}");
    }
    bed.guest(1025, op::RST, 0, b"");
    assert_eq!(bed.next(), None);
}

#[test]
fn the_number_of_connections_is_bounded() {
    let mut bed = bed();
    for peer in 0..MAX_CONNECTIONS as u32 + 10 {
        bed.table.receive(Header { local: 1025, peer, op: op::REQUEST, ..Header::default() }, b"");
        bed.accepted.lock().unwrap().clear();
        while bed.next().is_some() {}
    }
    assert!(bed.table.connections.len() <= MAX_CONNECTIONS);
}
