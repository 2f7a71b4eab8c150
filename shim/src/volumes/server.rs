//! One disk as its guest sees it: a file or block device of this host, opened once, and the requests that may be made of it (`protocol::nbd`).
//!
//! The guest is nobody's friend either: what it asks is bounded, and nothing outside the disk is reached.

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};
use protocol::nbd::{Command, NbdError, REPLY, REQUEST, Reply, Request, error};
use std::{
    fs::File,
    io::{self, ErrorKind, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::Path,
    sync::Arc,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a disk is served no more.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The stream.
    #[error("disk's connection: {0}")]
    Io(#[from] io::Error),
    /// A request.
    #[error(transparent)]
    Request(#[from] NbdError),
}

/// A disk that is served.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    bytes: u64,
    readonly: bool,
    name: String,
}

impl DiskFile {
    /// Opens a raw file or a block device. What it is then is what it stays: no path of it is looked at again.
    pub fn open(path: &Path, readonly: bool) -> io::Result<Self> {
        let mut file = File::options().read(true).write(!readonly).open(path)?;
        let found = file.metadata()?;
        let (bytes, name) = if found.file_type().is_block_device() {
            (file.seek(SeekFrom::End(0))?, format!("b{}", found.rdev()))
        } else if found.is_file() {
            (found.len(), format!("f{}.{}", found.dev(), found.ino()))
        } else {
            return Err(io::Error::other("neither a file nor a block device"));
        };
        Ok(Self { file, bytes, readonly, name })
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// By which it is known that two containers have the same.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does what is asked. `data` is what is written, or is filled by what was read. The error is one of `protocol::nbd::error`. Blocks.
    fn execute(&self, request: &Request, data: &mut [u8]) -> Result<(), u32> {
        self.check(request)?;
        let done = match request.command {
            Command::Read => self.file.read_exact_at(data, request.offset),
            Command::Write => self.file.write_all_at(data, request.offset),
            Command::Trim => self.trim(request),
            Command::Flush | Command::Disconnect | Command::Other(_) => Ok(()),
        };
        let flushed = request.command == Command::Flush || request.fua;
        done.and_then(|()| if flushed { self.file.sync_data() } else { Ok(()) }).map_err(|failed| match failed.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => error::ENOSPC,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => error::EPERM,
            _ => error::EIO,
        })
    }

    fn check(&self, request: &Request) -> Result<(), u32> {
        let inside = request.offset.checked_add(request.length.into()).is_some_and(|end| end <= self.bytes);
        match request.command {
            Command::Write | Command::Trim if self.readonly => Err(error::EPERM),
            Command::Write if !inside => Err(error::ENOSPC),
            Command::Read | Command::Trim if !inside => Err(error::EINVAL),
            Command::Other(_) => Err(error::EINVAL),
            _ => Ok(()),
        }
    }

    /// A hint: where holes cannot be made, the bytes stay.
    fn trim(&self, request: &Request) -> io::Result<()> {
        let offset = i64::try_from(request.offset).map_err(io::Error::other)?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(self.file.as_fd(), hole, offset, request.length.into()) {
            Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
            Err(_) if request.length == 0 => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Serves a disk until its guest needs it no more: one request after the other, as the guest sent them.
pub async fn serve(disk: Arc<DiskFile>, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), ServeError> {
    let mut header = [0; REQUEST];
    // A reply and its data, so that they are one write.
    let mut message = Vec::new();
    loop {
        match stream.read_exact(&mut header).await {
            Err(ended) if ended.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        let request = Request::parse(&header)?;
        if request.command == Command::Disconnect {
            return Ok(());
        }
        message.resize(REPLY + request.payload().max(request.answer()), 0);
        stream.read_exact(&mut message[REPLY..REPLY + request.payload()]).await?;
        let worker = disk.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = worker.execute(&request, &mut message[REPLY..]);
            (done, message)
        });
        let done = done.await.map_err(io::Error::other)?;
        message = done.1;
        let reply = Reply { error: done.0.err().unwrap_or(0), cookie: request.cookie };
        message[..REPLY].copy_from_slice(&reply.to_bytes());
        let length = REPLY + if reply.error == 0 { request.answer() } else { 0 };
        stream.write_all(&message[..length]).await?;
        stream.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::nbd::MAX_LENGTH;
    use std::{fs, time::Duration};
    use tokio::io::DuplexStream;

    const SIZE: u64 = 64 << 10;

    struct Client {
        stream: DuplexStream,
        path: tempfile::TempPath,
        serving: tokio::task::JoinHandle<Result<(), ServeError>>,
    }

    fn client(readonly: bool) -> Client {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, &vec![b'd'; SIZE as usize]).unwrap();
        let path = file.into_temp_path();
        let disk = Arc::new(DiskFile::open(&path, readonly).unwrap());
        assert_eq!(disk.bytes(), SIZE);
        let (stream, guest) = tokio::io::duplex(1 << 10);
        Client { stream, path, serving: tokio::spawn(serve(disk, guest)) }
    }

    impl Client {
        /// Gives the error, and the data of a read.
        async fn ask(&mut self, command: Command, fua: bool, offset: u64, length: u32, data: &[u8]) -> (u32, Vec<u8>) {
            let request = Request { command, fua, cookie: offset ^ 0xabcd, offset, length };
            self.stream.write_all(&request.to_bytes()).await.unwrap();
            self.stream.write_all(data).await.unwrap();
            let mut header = [0; REPLY];
            self.stream.read_exact(&mut header).await.unwrap();
            let reply = Reply::parse(&header).unwrap();
            assert_eq!(reply.cookie, request.cookie);
            let mut answer = vec![0; if reply.error == 0 { request.answer() } else { 0 }];
            self.stream.read_exact(&mut answer).await.unwrap();
            (reply.error, answer)
        }
    }

    #[tokio::test]
    async fn what_is_written_is_there_and_is_read() {
        let mut client = client(false);
        assert_eq!(client.ask(Command::Read, false, 0, 3, &[]).await, (0, b"ddd".to_vec()));
        assert_eq!(client.ask(Command::Write, true, 512, 512, &[b'w'; 512]).await.0, 0);
        assert_eq!(client.ask(Command::Flush, false, 0, 0, &[]).await.0, 0);
        assert_eq!(client.ask(Command::Read, false, 1023, 2, &[]).await, (0, b"wd".to_vec()));
        assert_eq!(&fs::read(&client.path).unwrap()[511..514], b"dww");
        // The last byte, and all of it.
        assert_eq!(client.ask(Command::Read, false, SIZE - 1, 1, &[]).await, (0, b"d".to_vec()));
        assert_eq!(client.ask(Command::Read, false, 0, SIZE as u32, &[]).await.1.len() as u64, SIZE);
        // Trimmed bytes may be anything, and are nobody else's; the size stays.
        assert_eq!(client.ask(Command::Trim, false, 4096, 8192, &[]).await.0, 0);
        assert_eq!(fs::metadata(&client.path).unwrap().len(), SIZE);
        assert_eq!(client.ask(Command::Read, false, 12288, 1, &[]).await, (0, b"d".to_vec()));
        let disconnect = Request { command: Command::Disconnect, fua: false, cookie: 0, offset: 0, length: 0 };
        client.stream.write_all(&disconnect.to_bytes()).await.unwrap();
        client.serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nothing_beyond_the_end_is_reached() {
        let mut client = client(false);
        for (command, offset, length, wanted) in [
            (Command::Read, SIZE, 1, error::EINVAL),
            (Command::Read, SIZE - 1, 2, error::EINVAL),
            (Command::Read, u64::MAX, 1, error::EINVAL),
            (Command::Write, SIZE - 1, 2, error::ENOSPC),
            (Command::Write, u64::MAX - 1, 2, error::ENOSPC),
            (Command::Trim, SIZE - 1, 2, error::EINVAL),
            (Command::Trim, u64::MAX, u32::MAX, error::EINVAL),
            (Command::Other(6), 0, 512, error::EINVAL),
        ] {
            let data = if command == Command::Write { vec![b'x'; length as usize] } else { Vec::new() };
            assert_eq!(client.ask(command, false, offset, length, &data).await.0, wanted, "{command:?} {offset}");
        }
        let content = fs::read(&client.path).unwrap();
        assert!(content.len() as u64 == SIZE && content.iter().all(|byte| *byte == b'd'));
        // And the stream is where it was.
        assert_eq!(client.ask(Command::Read, false, 0, 1, &[]).await, (0, b"d".to_vec()));
        // A file that has become shorter.
        File::options().write(true).open(&client.path).unwrap().set_len(512).unwrap();
        assert_eq!(client.ask(Command::Read, false, 0, 1024, &[]).await.0, error::EIO);
    }

    #[tokio::test]
    async fn a_read_only_disk_is_only_read() {
        let mut client = client(true);
        assert_eq!(client.ask(Command::Write, false, 0, 2, b"xx").await.0, error::EPERM);
        assert_eq!(client.ask(Command::Trim, false, 0, 512, &[]).await.0, error::EPERM);
        assert_eq!(client.ask(Command::Flush, false, 0, 0, &[]).await.0, 0);
        assert_eq!(client.ask(Command::Read, false, 0, 2, &[]).await, (0, b"dd".to_vec()));
        drop(client.stream);
        client.serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_lies_is_hung_up_on() {
        let long = Request { command: Command::Write, fua: false, cookie: 1, offset: 0, length: MAX_LENGTH + 1 };
        for bytes in [long.to_bytes(), [0; REQUEST]] {
            let mut client = client(false);
            client.stream.write_all(&bytes).await.unwrap();
            assert!(matches!(client.serving.await.unwrap(), Err(ServeError::Request(_))));
            assert_eq!(client.stream.read(&mut [0]).await.unwrap(), 0);
        }
        // Half a request, or a write without its data.
        for length in [REQUEST - 1, REQUEST + 10] {
            let mut client = client(false);
            let mut bytes = Request { length: 512, ..long }.to_bytes().to_vec();
            bytes.resize(length, 0);
            client.stream.write_all(&bytes).await.unwrap();
            drop(client.stream);
            let ended = tokio::time::timeout(Duration::from_secs(60), client.serving).await.unwrap().unwrap();
            assert_eq!(ended.is_err(), length > REQUEST, "{ended:?}");
            assert!(fs::read(&client.path).unwrap().iter().all(|byte| *byte == b'd'));
        }
    }

    #[test]
    fn only_files_and_disks_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert!(DiskFile::open(dir.path(), true).is_err());
        assert!(DiskFile::open(Path::new("/dev/null"), true).is_err());
        assert!(DiskFile::open(&dir.path().join("missing"), false).is_err());
    }

    #[test]
    fn two_names_of_a_file_are_one_disk() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::write(dir.path().join(name), [0; 512]).unwrap();
        }
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("link")).unwrap();
        let name = |path: &str, readonly| DiskFile::open(&dir.path().join(path), readonly).unwrap().name().to_owned();
        assert_eq!(name("a", true), name("link", false));
        assert_ne!(name("a", true), name("b", true));
        protocol::bounds::check_id("volumes.name", &name("a", true)).unwrap();
    }
}
