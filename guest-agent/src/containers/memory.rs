//! Want of memory, told while it happens: where the kernel kills one of a container's processes, its first one may live on for days.

use super::{ContainerError, cgroup::Cgroup};
use crate::reaper::{Exit, Watched};
use std::{fs::File, io, os::unix::fs::FileExt, path::Path};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

/// Most that is read of `memory.events`, in bytes: seven lines of a word and a number.
const MAX_EVENTS: usize = 1024;

/// How many processes of a container the kernel has killed for want of memory. One watcher counts, however many ask.
#[derive(Debug)]
pub struct Kills(watch::Receiver<u64>);

impl Kills {
    /// Counts in `cgroup` until the container's first process has ended.
    pub fn watch(cgroup: &Cgroup, exit: watch::Receiver<Option<Exit>>) -> Self {
        let (count, kills) = watch::channel(0);
        let events = cgroup.path().join("memory.events");
        tokio::spawn(async move {
            tokio::select! {
                followed = follow(&events, &count) => {
                    if let Err(e) = followed {
                        log::warn!("{}: {e}; want of memory is told with the container's end only", events.display());
                    }
                }
                // The file of a cgroup that is removed wakes nobody.
                _ = Watched::wait(&exit) => {}
            }
        });
        Self(kills)
    }

    /// Waits until they are more than `seen`: how many there are then. An error once nobody counts any more.
    pub async fn beyond(&self, seen: u64) -> Result<u64, ContainerError> {
        let mut kills = self.0.clone();
        let more = kills.wait_for(|kills| *kills > seen).await.map(|kills| *kills);
        more.map_err(|_| ContainerError::State("the container has ended".into()))
    }
}

/// Counts for ever. The kernel marks the file as having urgent data when a line has changed since it was last read by this descriptor
/// (Documentation/admin-guide/cgroup-v2.rst, `memory.events`).
async fn follow(events: &Path, count: &watch::Sender<u64>) -> io::Result<()> {
    let file = File::open(events)?;
    // SAFETY: the descriptor is owned by the AsyncFd, and neither replaced nor closed while it is registered.
    let events = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY)? };
    loop {
        let mut text = [0; MAX_EVENTS];
        let length = events.get_ref().read_at(&mut text, 0)?;
        let kills = super::cgroup::oom_kills(&String::from_utf8_lossy(&text[..length]));
        count.send_if_modified(|count| std::mem::replace(count, kills) != kills);
        events.ready(Interest::PRIORITY).await?.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[tokio::test]
    async fn who_waits_is_told_of_more_and_of_the_end() {
        let (count, kills) = watch::channel(0);
        let kills = Kills(kills);
        let (told, ()) = tokio::join!(kills.beyond(0), async {
            tokio::task::yield_now().await;
            count.send_replace(2);
        });
        assert_eq!(told.unwrap(), 2);
        assert_eq!(kills.beyond(1).await.unwrap(), 2);
        let (ended, ()) = tokio::join!(kills.beyond(2), async {
            tokio::task::yield_now().await;
            drop(count);
        });
        assert!(matches!(ended, Err(ContainerError::State(_))), "{ended:?}");
    }

    #[tokio::test]
    async fn a_kernel_without_the_file_is_nobody_who_counts() {
        let (_running, exit) = watch::channel(None);
        let kills = Kills::watch(&Cgroup::of("no-such-container"), exit);
        assert!(kills.beyond(0).await.is_err());
        let (_, ended) = watch::channel(Some(Exit { status: 0, at: SystemTime::now() }));
        assert!(Kills::watch(&Cgroup::of("no-such-container"), ended).beyond(0).await.is_err());
    }
}
