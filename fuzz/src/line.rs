//! What crosses the line between host and guest, as functions of arbitrary bytes that must neither panic nor hang, and what must be true of
//! each whatever the bytes are.

use protobuf::Message;
use protocol::{
    api,
    bounds::{Bounded, MAX_ID},
    courier, forward,
    line::{self, MAX_LINE},
    stream::StreamId,
    volume::{Entry, MAX_DEPTH, VolumeId},
};
use std::{
    fmt::Debug,
    path::{Component, Path},
};

/// A request of the host: the first byte says which, the rest is its message. What is within its bounds names nothing by a path.
pub fn request(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'S' => check(bytes, |m: &api::CreateSandboxRequest| {
            name(&m.sandbox_id);
            assert!(!m.hostname.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/'), "{:?}", m.hostname);
            assert!(m.interfaces.iter().all(|interface| interface.name != "lo" && interface.mac != [0; 6]), "the guest's loopback");
            m.interfaces.iter().for_each(|interface| beneath(&interface.name));
            m.sysctls.keys().for_each(|key| beneath(&if key.contains('/') { key.clone() } else { key.replace('.', "/") }));
            let words = m.dns.searches.iter().chain(&m.dns.options);
            words.for_each(|word| assert!(!word.contains(|c: char| c.is_control() || c.is_whitespace()), "{word:?}"));
        }),
        b'C' => check(bytes, |m: &api::CreateContainerRequest| {
            name(&m.container_id);
            assert!(!m.image_reference.contains(|c: char| c.is_control() || c.is_whitespace()), "{:?}", m.image_reference);
        }),
        b'V' => check(bytes, |m: &api::PrepareVolumesRequest| {
            name(&m.container_id);
            m.volumes.iter().for_each(|volume| beneath(volume.destination.trim_start_matches('/')));
        }),
        b'R' => check(bytes, |m: &api::ReadVolumeRequest| name(&m.container_id)),
        b'E' => check(bytes, |m: &api::ExecProcessRequest| names(&m.container_id, &m.exec_id)),
        b'K' => check(bytes, |m: &api::SignalProcessRequest| names(&m.container_id, &m.exec_id)),
        b'B' => check(bytes, |m: &api::StartProcessRequest| names(&m.container_id, &m.exec_id)),
        b'W' => check(bytes, |m: &api::WaitProcessRequest| names(&m.container_id, &m.exec_id)),
        b'D' => check(bytes, |m: &api::DeleteProcessRequest| names(&m.container_id, &m.exec_id)),
        b'T' => check(bytes, |m: &api::ResizePtyRequest| names(&m.container_id, &m.exec_id)),
        b'M' => check(bytes, |m: &api::WaitOutOfMemoryRequest| name(&m.container_id)),
        b'L' => check(bytes, |m: &api::ListProcessesRequest| name(&m.container_id)),
        b'P' => check(bytes, |m: &api::ContainerRequest| name(&m.container_id)),
        b'U' => check(bytes, |m: &api::UpdateContainerRequest| name(&m.container_id)),
        _ => check(bytes, |_: &api::Empty| ()),
    }
}

/// An answer of the guest, which the host decodes: the first byte says which. It is what it was after another trip.
pub fn answer(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'S' => drop(decode::<api::CreateSandboxResponse>(bytes)),
        b'C' => drop(decode::<api::CreateContainerResponse>(bytes)),
        b'V' => drop(decode::<api::PrepareVolumesResponse>(bytes)),
        b'R' => drop(decode::<api::ReadVolumeResponse>(bytes)),
        b'B' => drop(decode::<api::StartProcessResponse>(bytes)),
        b'W' => drop(decode::<api::WaitProcessResponse>(bytes)),
        b'M' => drop(decode::<api::WaitOutOfMemoryResponse>(bytes)),
        b'L' => drop(decode::<api::ListProcessesResponse>(bytes)),
        b'P' => drop(decode::<api::StatsContainerResponse>(bytes)),
        _ => drop(decode::<api::GuestInfoResponse>(bytes)),
    }
}

/// The greeting of a raw connection, of either side. What is taken is read the same when it is written again.
pub fn greeting(data: &[u8]) {
    if let Ok(line) = block_on(line::read_line(&mut &data[..])) {
        assert!(line.len() <= MAX_LINE && line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
    }
    let text = String::from_utf8_lossy(data);
    if let Ok(id) = StreamId::parse(&text) {
        names(&id.container_id, &id.exec_id);
        assert_eq!(StreamId::parse(&id.to_line()).ok(), Some(id));
    }
    if let Ok(id) = VolumeId::parse(&text) {
        name(&id.container_id);
        assert_eq!(VolumeId::parse(&id.to_line()).ok(), Some(id));
    }
    if let Ok(request) = courier::Request::parse(&text) {
        assert_eq!(courier::Request::parse(&request.to_line()).ok(), Some(request));
    }
    if let Some(port) = forward::parse(&text) {
        assert_eq!(text, format!("FORWARD {port}"));
    }
}

/// The entries of a volume that the host copies in. None leads out of it.
pub fn entries(data: &[u8]) {
    let mut rest = data;
    while let Ok(entry) = block_on(Entry::read(&mut rest)) {
        match entry {
            Entry::End => break,
            Entry::Link(path, _) => inside(&path),
            Entry::Directory(attributes) | Entry::File(attributes, _) => {
                assert_eq!(attributes.mode & !0o3777, 0, "setuid");
                inside(&attributes.path);
            }
        }
    }
}

fn decode<M: Message + Debug>(bytes: &[u8]) -> Option<M> {
    let message = M::parse_from_bytes(bytes).ok()?;
    let again = M::parse_from_bytes(&message.write_to_bytes().expect("a message that was read"));
    assert_eq!(again.as_ref().ok(), Some(&message));
    Some(message)
}

fn check<M: Message + Bounded + Debug>(bytes: &[u8], true_of_it: impl FnOnce(&M)) {
    let Some(message) = decode::<M>(bytes) else { return };
    match message.check() {
        Ok(()) => true_of_it(&message),
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of more than a line"),
    }
}

/// An id that becomes a file's name.
fn name(id: &str) {
    beneath(id);
    assert!((1..=MAX_ID).contains(&id.len()) && !id.contains(['/', '\0', '\n']), "{id:?}");
}

fn names(container: &str, exec: &str) {
    name(container);
    if !exec.is_empty() {
        name(exec);
    }
}

/// A path that stays below its directory.
fn beneath(path: &str) {
    assert!(Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) && !path.is_empty(), "{path:?}");
}

fn inside(path: &str) {
    if !path.is_empty() {
        beneath(path);
    }
    assert!(path.split('/').count() <= MAX_DEPTH && !path.contains('\0'), "{path:?}");
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}
