//! A container's volumes while it lives: copied in before it is made, refreshed when kubelet swaps them, its termination log taken out.

use super::{
    Plan, VolumeError,
    send::send,
    served::{Served, ServedDisks},
};
use crate::{
    guest::{Duplex, Guest},
    task::TaskError,
};
use protocol::{
    api,
    line::{self, LineError},
    volume::VolumeId,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{task::AbortHandle, time::timeout};

/// How long the agent may take to prepare; its scratch disk may be on its way.
const PREPARE: Duration = Duration::from_secs(60);
/// How long one copy may take: what the guest gives it, and a little.
const COPY: Duration = Duration::from_secs(70);
/// How often a copy is begun again, where its source changes meanwhile.
const ATTEMPTS: usize = 3;
/// How long the agent may take to give a termination log back. Its container's end waits for it.
const READ_BACK: Duration = Duration::from_secs(5);
/// Between two looks at the links that kubelet swaps. Kubelet itself looks once a minute.
const LOOK: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(2) };
/// The link whose swap is a change (see `guest-agent`, `volumes::refresh`).
const DATA: &str = "..data";

/// A container's volumes. Dropping it ends their refreshing, and its part in its disks.
#[derive(Default)]
pub struct Attached {
    disks: Mutex<Vec<Arc<Served>>>,
    /// Number and place on the host of the termination log.
    log: Option<(u32, PathBuf)>,
    watching: Option<AbortHandle>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(task) = &self.watching {
            task.abort();
        }
    }
}

impl Attached {
    /// Announces and copies a container's volumes, and has its disks served, before it is made.
    pub async fn attach(guest: &Arc<dyn Guest>, served: &ServedDisks, container_id: &str, plans: Vec<Plan>) -> Result<Self, TaskError> {
        if plans.is_empty() {
            return Ok(Self::default());
        }
        let volumes = plans.iter().map(|plan| plan.volume.clone()).collect();
        let request = api::PrepareVolumesRequest { container_id: container_id.to_owned(), volumes, ..Default::default() };
        let prepared = guest.agent().prepare_volumes(ttrpc::context::with_duration(PREPARE), &request).await?;
        let mut attached = Self::default();
        let mut changing = Vec::new();
        for number in prepared.wanted {
            let plan = usize::try_from(number).ok().and_then(|number| plans.get(number));
            // What the guest says is not believed either.
            let plan = plan.ok_or_else(|| TaskError::Sandbox(format!("the guest wants volume {number}, which there is not")))?;
            let copy = Copy { id: VolumeId { container_id: container_id.to_owned(), number: number as usize }, plan: plan.clone() };
            if let Some(disk) = &plan.disk {
                let share = served.share(disk.name(), plan.volume.readonly);
                let stream = timeout(COPY, copy.connect_disk(&**guest)).await;
                share.serve(disk.clone(), stream.unwrap_or_else(|_| Err(copy.failed(LineError::Io(io::ErrorKind::TimedOut.into()))))?);
                log::info!(container = container_id, destination = plan.volume.destination, bytes = disk.bytes(); "disk served");
                attached.disks.get_mut().unwrap_or_else(PoisonError::into_inner).push(share);
                continue;
            }
            let seen = copy.link();
            copy.send(&**guest).await?;
            if plan.volume.read_back {
                attached.log = Some((number, plan.source.clone()));
            }
            if seen.is_some() {
                changing.push((copy, seen));
            }
        }
        if !changing.is_empty() {
            attached.watching = Some(tokio::spawn(watch(guest.clone(), changing)).abort_handle());
        }
        Ok(attached)
    }

    /// Ends the container's part in its disks: what was opened for it is closed, if no other has it.
    pub fn let_go(&self) {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Takes out what the container left in its termination log. What fails here is not worth the container's exit.
    pub async fn bring_back(&self, guest: &dyn Guest, container_id: &str) {
        let Some((number, place)) = &self.log else { return };
        let request = api::ReadVolumeRequest { container_id: container_id.to_owned(), number: *number, ..Default::default() };
        let content = match guest.agent().read_volume(ttrpc::context::with_duration(READ_BACK), &request).await {
            Ok(answer) => answer.content,
            Err(error) => return log::warn!(container = container_id; "termination log: {error}"),
        };
        if let Err(error) = write_log(place, &content) {
            log::warn!(container = container_id; "termination log {}: {error}", place.display());
        }
    }
}

/// Kubelet has made the file; nothing else is written to, and no more than it is ever read.
fn write_log(place: &Path, content: &[u8]) -> io::Result<()> {
    let content = &content[..content.len().min(protocol::volume::MAX_READ_BACK)];
    let mut file = File::options().write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(place)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    file.set_len(0)?;
    file.write_all(content)
}

struct Copy {
    id: VolumeId,
    plan: Plan,
}

impl Copy {
    /// Where kubelet's link leads now; `None` where there is none.
    fn link(&self) -> Option<PathBuf> {
        fs::read_link(self.plan.source.join(DATA)).ok()
    }

    /// Sends a copy, again where it changed under our hands.
    async fn send(&self, guest: &dyn Guest) -> Result<(), VolumeError> {
        let mut attempt = 1;
        loop {
            let error = match timeout(COPY, self.send_once(guest)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => self.failed(LineError::Io(io::ErrorKind::TimedOut.into())),
            };
            if attempt == ATTEMPTS || !matches!(error, VolumeError::Read { .. }) {
                return Err(error);
            }
            attempt += 1;
        }
    }

    async fn send_once(&self, guest: &dyn Guest) -> Result<(), VolumeError> {
        let mut stream = guest.volume(&self.id).await.map_err(|error| self.failed(error))?;
        let sent = send(&self.plan.source, &mut stream).await;
        if let Err(protocol::volume::VolumeError::Io(source)) = &sent
            && source.kind() != io::ErrorKind::BrokenPipe
        {
            let source = io::Error::new(source.kind(), source.to_string());
            let (source_path, destination) = (self.plan.source.clone(), self.plan.volume.destination.clone());
            return Err(VolumeError::Read { source_path, destination, source });
        }
        // A guest that refuses says why, and stops reading: its answer is worth more than our broken pipe.
        let answer = line::read_answer(&mut stream).await;
        match (sent, answer) {
            (_, Err(error)) => Err(self.failed(error)),
            (Ok(()), Ok(_)) => Ok(()),
            (Err(error), Ok(_)) => Err(self.failed(LineError::Refused(error.to_string()))),
        }
    }

    /// Connects a disk; it is in the guest when this returns.
    async fn connect_disk(&self, guest: &dyn Guest) -> Result<Box<dyn Duplex>, VolumeError> {
        let mut stream = guest.volume(&self.id).await.map_err(|error| self.failed(error))?;
        line::read_answer(&mut stream).await.map_err(|error| self.failed(error))?;
        Ok(stream)
    }

    fn failed(&self, source: LineError) -> VolumeError {
        VolumeError::Guest { destination: self.plan.volume.destination.clone(), source }
    }
}

/// Sends a volume again whenever its link has been swapped, for as long as there is somebody to send it to.
async fn watch(guest: Arc<dyn Guest>, mut copies: Vec<(Copy, Option<PathBuf>)>) {
    loop {
        tokio::time::sleep(LOOK).await;
        for (copy, seen) in &mut copies {
            let link = copy.link();
            // Gone with its pod, or not there for a moment.
            if link.is_none() || link == *seen {
                continue;
            }
            match copy.send(&*guest).await {
                Ok(()) => log::info!(container = copy.id.container_id, destination = copy.plan.volume.destination; "volume refreshed"),
                Err(error) => log::warn!(container = copy.id.container_id; "volume not refreshed: {error}"),
            }
            // Also after a failure: the next swap is the next attempt.
            *seen = link;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_written_to_the_file_that_is_there_and_to_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert!(write_log(&log, b"x").is_err(), "nobody made it");
        fs::write(&log, "something longer").unwrap();
        write_log(&log, b"bye").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "bye");
        write_log(&log, &vec![b'x'; protocol::volume::MAX_READ_BACK * 2]).unwrap();
        assert_eq!(fs::metadata(&log).unwrap().len() as usize, protocol::volume::MAX_READ_BACK);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&log, &link).unwrap();
        assert!(write_log(&link, b"evil").is_err());
    }
}
