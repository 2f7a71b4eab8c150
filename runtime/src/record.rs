//! What was made for a sandbox, on disk before it is made, so that a fresh process can remove it: `delete` after a crash has
//! nothing else. One folder per sandbox below the configuration's `state_dir`; whatever lives on disk lives in it.

use crate::vmm::pidfd::PidFd;
use protocol::bounds::check_id;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

/// Name of the record in its folder.
const FILE: &str = "record.json";
/// Below `state_dir`, one folder each.
const SANDBOXES: &str = "sandboxes";
/// Longest record, in bytes.
const MAX_SIZE: u64 = 1 << 20;
/// How long a killed VM may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(4);

/// The record cannot be kept, or what it names cannot be removed.
#[derive(Debug, Error)]
pub enum RecordError {
    /// Not an id.
    #[error(transparent)]
    Id(#[from] protocol::bounds::BoundError),
    /// There is a sandbox of this id.
    #[error("sandbox {id}: {path} exists already; another shim has it, or `delete` was not run")]
    Exists {
        /// The id.
        id: String,
        /// Its folder.
        path: PathBuf,
    },
    /// Reading, writing or removing.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The process does not end.
    #[error("process {pid} of sandbox {id} does not end after SIGKILL")]
    Immortal {
        /// The sandbox.
        id: String,
        /// The process.
        pid: u32,
    },
}

/// A process, safe against the reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot.
    pub start_time: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    /// Which boot of the host: processes are counted from zero in the next, and a stranger's could have the numbers of one here.
    #[serde(default)]
    boot: Option<String>,
    /// The process that made the sandbox: without it nobody tends to the VM.
    #[serde(default)]
    owner: Option<ProcessId>,
    vmm: Option<ProcessId>,
    /// Processes beside it that an enclave needs.
    #[serde(default)]
    helpers: Vec<ProcessId>,
    /// Interfaces of the pod that carry our traffic redirection, each with its network namespace.
    #[serde(default)]
    redirected: Vec<Redirected>,
}

/// An interface of a pod whose traffic goes to the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirected {
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// The pod's interface.
    pub interface: String,
    /// Our tap beside it.
    pub tap: String,
}

/// The record of one sandbox.
#[derive(Debug)]
pub struct Record {
    dir: PathBuf,
    contents: Contents,
}

impl Record {
    /// Makes the sandbox's folder (0700) and an empty record in it.
    pub fn create(state_dir: &Path, id: &str) -> Result<Self, RecordError> {
        check_id("sandbox_id", id)?;
        let dir = folder(state_dir, id);
        let io = |source| RecordError::Io { path: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir.join(SANDBOXES)).map_err(io)?;
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(RecordError::Exists { id: id.to_owned(), path: dir }),
            Err(e) => return Err(io(e)),
        }
        let own = std::process::id();
        let owner = start_time(own).map(|start_time| ProcessId { pid: own, start_time });
        let record = Self { dir, contents: Contents { boot: boot(), owner, ..Contents::default() } };
        // On a full disk there is room for the folder, and none for what is in it.
        record.write().inspect_err(|_| drop(fs::remove_dir_all(&record.dir)))?;
        Ok(record)
    }

    /// The sandbox's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes the VM's process. It is noted after it was started, because its number is not known before; until then it is
    /// its parent-death signal that ends it.
    pub fn note_vmm(&mut self, pid: u32) -> Result<(), RecordError> {
        self.contents.vmm = start_time(pid).map(|start_time| ProcessId { pid, start_time });
        self.write()
    }

    /// Notes a process beside the VM; it too ends with us, as long as it is not noted.
    pub fn note_helper(&mut self, pid: u32) -> Result<(), RecordError> {
        self.contents.helpers.extend(start_time(pid).map(|start_time| ProcessId { pid, start_time }));
        self.write()
    }

    /// Notes an interface that is about to be redirected.
    pub fn note_redirected(&mut self, redirected: Redirected) -> Result<(), RecordError> {
        self.contents.redirected.push(redirected);
        self.write()
    }

    fn write(&self) -> Result<(), RecordError> {
        let (path, new) = (self.dir.join(FILE), self.dir.join("record.new"));
        let io = |source| RecordError::Io { path: path.clone(), source };
        let text = serde_json::to_vec(&self.contents).map_err(|e| io(e.into()))?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(io)
    }
}

/// Whether a sandbox of this id has anything on disk.
pub fn exists(state_dir: &Path, id: &str) -> bool {
    check_id("sandbox_id", id).is_ok() && folder(state_dir, id).exists()
}

/// Removes everything that was made for a sandbox, from its record alone. Doing it twice is no error.
pub fn remove(state_dir: &Path, id: &str) -> Result<(), RecordError> {
    check_id("sandbox_id", id)?;
    let dir = folder(state_dir, id);
    if !dir.exists() {
        return Ok(());
    }
    let contents = read(&dir.join(FILE));
    for process in contents.vmm.into_iter().chain(contents.helpers) {
        kill(id, process)?;
    }
    for redirected in &contents.redirected {
        crate::network::undo(redirected);
    }
    match fs::remove_dir_all(&dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordError::Io { path: dir, source }),
        _ => Ok(()),
    }
}

/// Removes every sandbox whose maker is gone, for callers that never run `delete`; gives their ids. One that cannot be removed is logged.
pub fn remove_orphans(state_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(state_dir.join(SANDBOXES)) else { return Vec::new() };
    let mut removed = Vec::new();
    for id in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        // One that names no owner is being made, or is an older version's.
        let owner = read(&folder(state_dir, &id).join(FILE)).owner;
        if owner.is_none_or(|owner| start_time(owner.pid) == Some(owner.start_time)) {
            continue;
        }
        match remove(state_dir, &id) {
            Ok(()) => removed.push(id),
            Err(error) => log::warn!(sandbox = id; "orphan: {error}"),
        }
    }
    removed
}

fn folder(state_dir: &Path, id: &str) -> PathBuf {
    // Beside `s/`, where the sockets are; an id cannot contain a slash, but it can be "s".
    state_dir.join(SANDBOXES).join(id)
}

/// A record that cannot be read names nothing; its folder goes all the same.
fn read(path: &Path) -> Contents {
    let small = fs::metadata(path).is_ok_and(|m| m.len() <= MAX_SIZE);
    let contents = small.then(|| fs::read(path).ok()).flatten().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let contents: Contents = contents.unwrap_or_else(|| {
        log::warn!(path = path.display().to_string(); "no readable record");
        Contents::default()
    });
    match contents.boot.is_some() && contents.boot != boot() {
        // Its processes and namespaces ended with the host.
        true => Contents { boot: contents.boot, owner: Some(ProcessId { pid: 0, start_time: 0 }), ..Contents::default() },
        false => contents,
    }
}

/// Of this boot of the host (Documentation/admin-guide/sysctl/kernel.rst, `random/boot_id`).
fn boot() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold spaces and parentheses (proc(5)).
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Ends the process if it is still the one that was noted.
fn kill(id: &str, process: ProcessId) -> Result<(), RecordError> {
    let io = |source| RecordError::Io { path: format!("/proc/{}", process.pid).into(), source };
    let Some(fd) = PidFd::open(process.pid).map_err(io)? else { return Ok(()) };
    // Asked with the pidfd in hand: from here on the number cannot be reused under us.
    if start_time(process.pid) != Some(process.start_time) {
        return Ok(());
    }
    fd.kill().map_err(io)?;
    if fd.ended_within(KILL_LIMIT).map_err(io)? { Ok(()) } else { Err(RecordError::Immortal { id: id.to_owned(), pid: process.pid }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::Command};

    fn place(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("cloister-record-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn what_is_noted_is_removed_twice() {
        let state = place("remove");
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut helper = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut record = Record::create(&state, "a").unwrap();
        record.note_helper(helper.id()).unwrap();
        record.note_vmm(child.id()).unwrap();
        fs::write(record.dir().join("scratch"), "x").unwrap();
        drop(record);
        assert!(exists(&state, "a"));
        remove(&state, "a").unwrap();
        for process in [&mut child, &mut helper] {
            assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
        assert!(!exists(&state, "a"));
        remove(&state, "a").unwrap();
        fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn a_number_that_was_reused_is_left_alone() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        kill("a", ProcessId { pid: child.id(), start_time: 1 }).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn one_id_is_one_sandbox_and_no_path() {
        let state = place("id");
        let _first = Record::create(&state, "a").unwrap();
        assert!(matches!(Record::create(&state, "a"), Err(RecordError::Exists { .. })));
        assert!(matches!(Record::create(&state, "../a"), Err(RecordError::Id(_))));
        assert!(matches!(remove(&state, ".."), Err(RecordError::Id(_))));
        fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn what_a_dead_process_has_made_is_found_and_nothing_else() {
        let state = place("orphans");
        assert!(remove_orphans(&state).is_empty());
        let _ours = Record::create(&state, "ours").unwrap();
        let mut theirs = Record::create(&state, "theirs").unwrap();
        theirs.contents.owner = Some(ProcessId { pid: std::process::id(), start_time: 1 });
        theirs.write().unwrap();
        let mut unknown = Record::create(&state, "unknown").unwrap();
        unknown.contents.owner = None;
        unknown.write().unwrap();
        fs::create_dir(folder(&state, "just-begun")).unwrap();
        assert_eq!(remove_orphans(&state), ["theirs"]);
        assert!(["ours", "unknown", "just-begun"].iter().all(|id| exists(&state, id)) && !exists(&state, "theirs"));
        fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn what_an_earlier_boot_noted_is_swept_and_no_stranger_is_killed() {
        let state = place("boot");
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut record = Record::create(&state, "a").unwrap();
        record.contents.boot = Some("11111111-2222-3333-4444-555555555555".into());
        record.note_vmm(stranger.id()).unwrap();
        record.note_helper(stranger.id()).unwrap();
        assert_eq!(remove_orphans(&state), ["a"]);
        assert!(!exists(&state, "a") && stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        fs::remove_dir_all(&state).unwrap();
    }

    #[test]
    fn a_torn_record_does_not_keep_its_folder() {
        let state = place("torn");
        let record = Record::create(&state, "a").unwrap();
        fs::write(record.dir().join(FILE), "{\"vmm\":").unwrap();
        remove(&state, "a").unwrap();
        assert!(!exists(&state, "a"));
        fs::remove_dir_all(&state).unwrap();
    }
}
