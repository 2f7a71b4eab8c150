//! Reading ahead: the step before ours works in a thread of its own while we work on what it gave us last. Decrypting, decompressing
//! and unpacking a layer then keep as many processors busy as there are.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, Scope},
};

/// Bytes of a buffer.
pub(crate) const BUFFER: usize = 128 << 10;
/// Buffers between two steps: one that is filled, one that is read, and two for their being uneven.
const BUFFERS: usize = 4;

/// `reader`, buffered; read by a thread of its own where there is a processor for it. Whoever drops it ends the thread.
pub(crate) fn buffered<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    reader: impl Read + Send + 'a,
) -> Box<dyn BufRead + Send + 'scope> {
    if thread::available_parallelism().map_or(1, usize::from) == 1 {
        return Box::new(BufReader::with_capacity(BUFFER, reader));
    }
    let (to_fill, empty) = sync_channel(BUFFERS);
    let (full, to_read) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all of them.
        let _ = to_fill.send(vec![0; BUFFER]);
    }
    scope.spawn(move || fill(reader, &empty, &full));
    Box::new(Ahead { to_read, to_fill, current: Filled { buffer: Vec::new(), length: 0 }, at: 0, ended: false })
}

struct Filled {
    buffer: Vec<u8>,
    length: usize,
}

/// Fills buffers until the end, which is one of length zero, an error, or until nobody reads any more.
fn fill(mut reader: impl Read, empty: &Receiver<Vec<u8>>, full: &SyncSender<io::Result<Filled>>) {
    while let Ok(mut buffer) = empty.recv() {
        let filled = read_full(&mut reader, &mut buffer).map(|length| Filled { buffer, length });
        let last = filled.as_ref().map_or(true, |filled| filled.length == 0);
        if full.send(filled).is_err() || last {
            return;
        }
    }
}

/// Reads until the buffer is full: handing it over costs more than a short read is worth.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

struct Ahead {
    to_read: Receiver<io::Result<Filled>>,
    to_fill: SyncSender<Vec<u8>>,
    current: Filled,
    at: usize,
    ended: bool,
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.length && !self.ended {
            let next = self.to_read.recv().map_err(|_| io::Error::other("the step before ended without its end"))??;
            let used = std::mem::replace(&mut self.current, next);
            (self.at, self.ended) = (0, self.current.length == 0);
            if !used.buffer.is_empty() {
                // The other thread may have come to its end.
                let _ = self.to_fill.send(used.buffer);
            }
        }
        Ok(&self.current.buffer[self.at..self.current.length])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.current.length);
    }
}

impl Read for Ahead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_ahead_is_what_was_there() {
        for length in [0, 1, BUFFER - 1, BUFFER, BUFFER * 9 + 5] {
            let bytes: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
            let mut out = Vec::new();
            thread::scope(|scope| buffered(scope, bytes.as_slice()).read_to_end(&mut out)).unwrap();
            assert!(out == bytes, "{length}");
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_a_reader_may_leave() {
        struct Failing(usize);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let n = self.0.min(buffer.len());
                self.0 -= n;
                if n == 0 { Err(io::Error::new(io::ErrorKind::InvalidData, "damaged")) } else { Ok(n) }
            }
        }
        let mut out = Vec::new();
        let error = thread::scope(|scope| buffered(scope, Failing(BUFFER * 2)).read_to_end(&mut out)).unwrap_err();
        assert_eq!((out.len(), error.to_string().as_str()), (BUFFER * 2, "damaged"));
        // Endless, and dropped after a byte: the scope ends.
        thread::scope(|scope| buffered(scope, io::repeat(1)).read_exact(&mut [0])).unwrap();
    }
}
