//! Carries a disk's requests from the kernel to the host, and the answers back. The kernel is given no byte of an answer before all of it is
//! there and it is known to be one: a request that it waits for can then run out of time whatever the host does, and its parser of answers
//! sees none that a host made up.
//!
//! Two threads of their own and no task: what writes dirty pages out must not wait for memory that is freed by writing them out
//! (PR_SET_IO_FLUSHER, prctl(2)), nor for a worker that does.

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        socket::{self, Shutdown, setsockopt, sockopt::SendTimeout},
        time::TimeVal,
    },
};
use protocol::nbd::{ANSWER, Command, NbdError, REPLY, REQUEST, Reply, Request};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, ErrorKind, Read, Write},
    net,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use thiserror::Error;

/// Bytes of a write that are in our hands at a time; and what is kept for answers, which are as long as what was asked for.
const CHUNK: usize = 128 << 10;
/// include/uapi/linux/prctl.h.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// Stack of each thread.
const STACK: usize = 128 << 10;

/// Why a disk has ended.
#[derive(Debug, Error)]
pub enum RelayError {
    /// Either side's socket.
    #[error("disk's connection: {0}")]
    Io(#[from] io::Error),
    /// What the host said.
    #[error(transparent)]
    Host(#[from] NbdError),
    /// An end before its time.
    #[error("disk: {0} requests are left without an answer")]
    Owing(usize),
}

/// Both sides of a disk.
pub struct Ends {
    kernel: UnixStream,
    host: File,
    shut: AtomicBool,
}

impl Ends {
    /// Takes the peer of the kernel's socket, and the host's stream.
    pub fn new(kernel: UnixStream, host: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&host, FcntlArg::F_GETFL)?);
        fcntl(&host, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        // A host that does not even read.
        setsockopt(&host, SendTimeout, &TimeVal::new(ANSWER.as_secs().try_into().unwrap_or(i64::MAX), 0))?;
        Ok(Self { kernel, host: host.into(), shut: AtomicBool::new(false) })
    }

    /// Ends both, and with them [`Ends::carry`].
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
        let _ = self.kernel.shutdown(net::Shutdown::Both);
        let _ = socket::shutdown(self.host.as_raw_fd(), Shutdown::Both);
    }

    /// Whether they have ended.
    pub fn are_shut(&self) -> bool {
        self.shut.load(Ordering::SeqCst)
    }

    /// Carries until one side ends, or the host says what it may not. Blocks; both sides are shut down afterwards.
    pub fn carry(&self) -> Result<(), RelayError> {
        let open = Open::default();
        thread::scope(|scope| {
            let asking = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
                flush_without_waiting();
                let asked = ask(&self.kernel, &self.host, &open);
                self.shut();
                asked
            });
            let asking = asking.inspect_err(|_| self.shut())?;
            flush_without_waiting();
            let answered = answer(&self.host, &self.kernel, &open);
            self.shut();
            let asked = asking.join().unwrap_or(Ok(()));
            // The host's fault is the cause, wherever both sides see the end.
            answered.and(asked)
        })
    }
}

fn flush_without_waiting() {
    // SAFETY: prctl(2) with integers.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) } < 0 {
        log::debug!("PR_SET_IO_FLUSHER: {}", io::Error::last_os_error());
    }
}

/// Requests without an answer: how many bytes each is to be answered with.
#[derive(Default)]
struct Open(Mutex<HashMap<u64, usize>>);

impl Open {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<u64, usize>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// From the kernel to the host. A kernel that needs the disk no more says so, or hangs up.
fn ask(mut kernel: impl Read, mut host: impl Write, open: &Open) -> Result<(), RelayError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let mut header = [0; REQUEST];
        match kernel.read_exact(&mut header) {
            Err(ended) if ended.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let request = Request::parse(&header)?;
        // Before the host knows of it.
        if request.command != Command::Disconnect {
            open.with(|open| open.insert(request.cookie, request.answer()));
        }
        chunk[..REQUEST].copy_from_slice(&header);
        // The header goes with the first of the data.
        let (mut filled, mut left) = (REQUEST, request.payload());
        loop {
            let part = left.min(CHUNK - filled);
            kernel.read_exact(&mut chunk[filled..filled + part])?;
            host.write_all(&chunk[..filled + part])?;
            (filled, left) = (0, left - part);
            if left == 0 {
                break;
            }
        }
        if request.command == Command::Disconnect {
            return Ok(());
        }
    }
}

/// From the host to the kernel.
fn answer(mut host: impl Read, mut kernel: impl Write, open: &Open) -> Result<(), RelayError> {
    let mut message = Vec::new();
    loop {
        let mut header = [0; REPLY];
        match host.read_exact(&mut header) {
            Err(ended) if ended.kind() == ErrorKind::UnexpectedEof => match open.with(|open| open.len()) {
                0 => return Ok(()),
                owing => return Err(RelayError::Owing(owing)),
            },
            read => read?,
        }
        let reply = Reply::parse(&header)?;
        let length = open.with(|open| open.remove(&reply.cookie)).ok_or(NbdError::Unasked(reply.cookie))?;
        let length = if reply.error == 0 { length } else { 0 };
        message.resize(REPLY + length, 0);
        message[..REPLY].copy_from_slice(&header);
        host.read_exact(&mut message[REPLY..])?;
        kernel.write_all(&message)?;
        message.clear();
        message.shrink_to(CHUNK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::nbd::error;
    use std::sync::mpsc::{Receiver, channel};

    struct Bench {
        kernel: UnixStream,
        host: UnixStream,
        ended: Receiver<Result<(), RelayError>>,
    }

    fn bench() -> Bench {
        let (kernel, ours) = UnixStream::pair().unwrap();
        let (host, stream) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let ends = Ends::new(ours, stream.into()).unwrap();
        let (end, ended) = channel();
        thread::spawn(move || end.send(ends.carry()));
        Bench { kernel, host, ended }
    }

    fn request(command: Command, cookie: u64, length: u32) -> Request {
        Request { command, fua: false, cookie, offset: 0, length }
    }

    impl Bench {
        /// Asks, and sees that the host is asked.
        fn ask(&mut self, request: Request) {
            self.kernel.write_all(&request.to_bytes()).unwrap();
            self.kernel.write_all(&vec![b'w'; request.payload()]).unwrap();
            let mut seen = vec![0; REQUEST + request.payload()];
            self.host.read_exact(&mut seen).unwrap();
            assert_eq!(seen[..REQUEST], request.to_bytes());
            assert!(seen[REQUEST..].iter().all(|byte| *byte == b'w'));
        }

        /// What the host says, and what the kernel hears before the end.
        fn end(mut self, said: &[u8]) -> (Vec<u8>, Result<(), RelayError>) {
            let _ = self.host.write_all(said);
            let _ = self.host.shutdown(net::Shutdown::Write);
            let mut heard = Vec::new();
            self.kernel.read_to_end(&mut heard).unwrap();
            assert_eq!(self.host.read(&mut [0]).unwrap_or(0), 0, "the host's side is closed too");
            (heard, self.ended.recv().unwrap())
        }
    }

    #[test]
    fn what_is_asked_is_answered_in_any_order() {
        let mut bench = bench();
        let long = 3 * CHUNK as u32 + 5;
        bench.ask(request(Command::Read, 1, long));
        bench.ask(request(Command::Flush, 2, 0));
        let mut writer = bench.kernel.try_clone().unwrap();
        let write = request(Command::Write, 3, long);
        // More than the sockets take.
        let writing = thread::spawn(move || {
            writer.write_all(&write.to_bytes()).unwrap();
            writer.write_all(&vec![b'w'; write.payload()]).unwrap();
        });
        let mut seen = vec![0; REQUEST + write.payload()];
        bench.host.read_exact(&mut seen).unwrap();
        writing.join().unwrap();
        assert!(seen[..REQUEST] == write.to_bytes() && seen[REQUEST..].iter().all(|byte| *byte == b'w'));
        let reply = |cookie, error| Reply { error, cookie }.to_bytes();
        let said = [&reply(3, error::ENOSPC)[..], &reply(2, 0)[..], &reply(1, 0)[..], &vec![b'r'; long as usize][..]].concat();
        let mut host = bench.host.try_clone().unwrap();
        let sent = said.clone();
        let saying = thread::spawn(move || host.write_all(&sent).unwrap());
        let mut heard = vec![0; said.len()];
        bench.kernel.read_exact(&mut heard).unwrap();
        saying.join().unwrap();
        assert!(heard == said);
        // The kernel says that it needs the disk no more; the host is told, and both sides end.
        bench.ask(request(Command::Disconnect, 0, 0));
        let (heard, ended) = bench.end(&[]);
        assert!(heard.is_empty() && ended.is_ok(), "{ended:?}");
    }

    #[test]
    fn of_a_host_that_lies_the_kernel_hears_nothing() {
        let reply = |cookie, error| Reply { error, cookie }.to_bytes().to_vec();
        let data = |length| [reply(1, 0), vec![b'x'; length]].concat();
        for (what, said, words) in [
            ("no answer at all", vec![0; REPLY], "where a message begins"),
            ("nobody's answer", reply(7, 0), "nobody waits for"),
            ("half an answer", reply(1, 0)[..REPLY - 1].to_vec(), "2 requests are left"),
            ("too little data", data(511), "connection"),
            ("nothing", Vec::new(), "2 requests are left"),
        ] {
            let mut bench = bench();
            bench.ask(request(Command::Read, 1, 512));
            bench.ask(request(Command::Read, 2, 512));
            let (heard, ended) = bench.end(&said);
            let ended = ended.unwrap_err().to_string();
            assert!(heard.is_empty() && ended.contains(words) && !ended.contains('\n'), "{what}: {} bytes, {ended}", heard.len());
        }
        // What was right before is heard; the same answer a second time is not, nor data where there is an error.
        for more in [data(512), reply(2, error::EIO), [reply(2, error::EIO), vec![0; REPLY]].concat()] {
            let mut bench = bench();
            bench.ask(request(Command::Read, 1, 512));
            bench.ask(request(Command::Flush, 2, 0));
            let (heard, ended) = bench.end(&[data(512), more.clone()].concat());
            let wanted = if more.starts_with(&reply(2, error::EIO)) { [data(512), reply(2, error::EIO)].concat() } else { data(512) };
            assert_eq!((heard, ended.is_err()), (wanted, more.len() != REPLY), "{ended:?}");
        }
    }

    #[test]
    fn nothing_of_an_answer_is_heard_before_its_last_byte() {
        let mut bench = bench();
        bench.ask(request(Command::Read, 1, 4));
        bench.host.write_all(&Reply { error: 0, cookie: 1 }.to_bytes()).unwrap();
        bench.host.write_all(b"abc").unwrap();
        bench.kernel.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
        assert_eq!(bench.kernel.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        bench.kernel.set_read_timeout(None).unwrap();
        bench.host.write_all(b"d").unwrap();
        let mut heard = [0; REPLY + 4];
        bench.kernel.read_exact(&mut heard).unwrap();
        assert_eq!(&heard[REPLY..], b"abcd");
        // A kernel that gives up on a host that is silent.
        bench.ask(request(Command::Read, 2, 4));
        bench.kernel.shutdown(net::Shutdown::Both).unwrap();
        assert!(bench.ended.recv().is_ok());
    }

    #[test]
    fn whoever_needs_the_disk_no_more_ends_it() {
        let (kernel, ours) = UnixStream::pair().unwrap();
        let (_host, stream) = UnixStream::pair().unwrap();
        let ends = Ends::new(ours, stream.into()).unwrap();
        thread::scope(|scope| {
            let carrying = scope.spawn(|| ends.carry());
            ends.shut();
            assert!(carrying.join().unwrap().is_ok());
        });
        assert_eq!((&kernel).read(&mut [0]).unwrap(), 0);
    }
}
