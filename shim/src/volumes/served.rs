//! The disks that this shim serves to its guest. Containers of a pod that have the same one share it, as they share its device in the guest:
//! the last of them to go ends it, and closes what was opened.

use super::server::{DiskFile, serve};
use crate::guest::Duplex;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::task::AbortHandle;

/// By name, and whether it is only read.
type Key = (String, bool);

/// All disks that are served.
#[derive(Default)]
pub struct ServedDisks {
    table: Mutex<HashMap<Key, Weak<Served>>>,
}

/// A disk that is served, for as long as somebody has this.
#[derive(Default)]
pub struct Served {
    streams: Mutex<Vec<AbortHandle>>,
}

impl ServedDisks {
    /// Takes part in a disk, which begins with the first who does.
    pub fn share(&self, name: &str, readonly: bool) -> Arc<Served> {
        let mut table = lock(&self.table);
        table.retain(|_, served| served.strong_count() > 0);
        let key = (name.to_owned(), readonly);
        if let Some(served) = table.get(&key).and_then(Weak::upgrade) {
            return served;
        }
        let served = Arc::new(Served::default());
        table.insert(key, Arc::downgrade(&served));
        served
    }
}

impl Served {
    /// Serves a stream of the guest's until either end has enough. The guest hangs up at once where it has the disk already.
    pub fn serve(&self, disk: Arc<DiskFile>, stream: Box<dyn Duplex>) {
        let serving = tokio::spawn(async move {
            let name = disk.name().to_owned();
            if let Err(error) = serve(disk, stream).await {
                log::warn!(disk = name; "served no more: {error}");
            }
        });
        let mut streams = lock(&self.streams);
        streams.retain(|stream| !stream.is_finished());
        streams.push(serving.abort_handle());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        lock(&self.streams).drain(..).for_each(|stream| stream.abort());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::nbd::{Command, REPLY, Request};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_disk_is_served_until_the_last_container_lets_go() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let disk = Arc::new(DiskFile::open(file.path(), true).unwrap());
        let disks = ServedDisks::default();
        let (first, other) = (disks.share("f1.1", true), disks.share("f1.1", false));
        let second = disks.share("f1.1", true);
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        let (mut guest, host) = tokio::io::duplex(64);
        first.serve(disk.clone(), Box::new(host));
        drop(first);
        let flush = Request { command: Command::Flush, fua: false, cookie: 1, offset: 0, length: 0 }.to_bytes();
        guest.write_all(&flush).await.unwrap();
        guest.read_exact(&mut [0; REPLY]).await.unwrap();
        drop(second);
        assert_eq!(guest.read(&mut [0]).await.unwrap(), 0);
        // Nothing of it is open any more, and the next begins anew.
        assert_eq!(Arc::strong_count(&disk), 1);
        drop(other);
        disks.share("f2.2", true);
        assert_eq!(lock(&disks.table).len(), 1);
    }
}
