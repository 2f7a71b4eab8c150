//! The parent's side of a re-execution (`crate::child`): writes the job, starts the child, waits for its end, reads its answer.

use crate::{
    child::{Answer, Job, VERB},
    reaper::{Reaper, Watched},
};
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{net::unix::pipe, task::spawn_blocking, time::timeout};

/// How long the preparation of a process may take. It waits for nothing outside the guest.
const LONGEST: Duration = Duration::from_secs(120);

/// Why a process could not be prepared.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// Something of ours.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The child's own words.
    #[error("{0}")]
    Failed(String),
    /// No answer.
    #[error("the preparation of the process ended without an answer (status {0})")]
    Silent(u32),
    /// Too slow.
    #[error("the preparation of the process took longer than {} s", LONGEST.as_secs())]
    Timeout,
}

fn io_error(what: &str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::Io { what: what.to_owned(), source }
}

/// The agent's ends of a process's pipes; none where the stream is /dev/null or a terminal.
#[derive(Debug, Default)]
pub struct Pipes {
    /// To the process.
    pub stdin: Option<pipe::Sender>,
    /// From the process.
    pub stdout: Option<pipe::Receiver>,
    /// From the process.
    pub stderr: Option<pipe::Receiver>,
}

/// Which standard streams are pipes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

/// A process that was prepared.
#[derive(Debug)]
pub struct Launched {
    /// The process.
    pub process: Watched,
    /// Our ends of its streams.
    pub pipes: Pipes,
}

/// Prepares a process. `directory` is the job's own, for its files.
pub async fn launch(reaper: &Arc<Reaper>, directory: &Path, job: &Job, wanted: Wanted) -> Result<Launched, LaunchError> {
    let since = Instant::now();
    let (job_file, answer_file) = (directory.join("job.json"), directory.join("answer.json"));
    let json = serde_json::to_vec(job).map_err(|e| io_error("job")(e.into()))?;
    fs::write(&job_file, json).map_err(io_error("job"))?;
    let (command, pipes) = command(&job_file, &answer_file, wanted)?;
    let starter = reaper.clone();
    let child = spawn_blocking(move || {
        let mut command = command;
        starter.spawn(&mut command)
    });
    let child = child.await.map_err(|e| io_error("start")(io::Error::other(e)))?.map_err(io_error("start"))?;
    let ended = match timeout(LONGEST, Watched::wait(&child.exit)).await {
        Ok(exit) => exit,
        Err(_) => {
            let _ = child.signal(libc::SIGKILL);
            return Err(LaunchError::Timeout);
        }
    };
    let answer = read_answer(&answer_file);
    let _ = fs::remove_file(&job_file);
    match answer {
        Some(Answer::Pid(pid)) => Ok(Launched { process: reaper.adopt(pid, since), pipes }),
        Some(Answer::Failed(reason)) => Err(LaunchError::Failed(reason)),
        None => Err(LaunchError::Silent(ended.status)),
    }
}

fn read_answer(path: &PathBuf) -> Option<Answer> {
    let answer = serde_json::from_slice(&fs::read(path).ok()?).ok();
    let _ = fs::remove_file(path);
    answer
}

/// The child, with the container process's streams as its own. The environment is empty: nothing of the kernel's or ours leaks in.
fn command(job: &Path, answer: &Path, wanted: Wanted) -> Result<(Command, Pipes), LaunchError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(VERB).arg(job).arg(answer).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut pipes = Pipes::default();
    if wanted.stdin {
        let (theirs, ours) = io::pipe().map_err(io_error("pipe"))?;
        command.stdin(theirs);
        pipes.stdin = Some(pipe::Sender::from_owned_fd(OwnedFd::from(ours)).map_err(io_error("pipe"))?);
    }
    if wanted.stdout {
        let (ours, theirs) = io::pipe().map_err(io_error("pipe"))?;
        command.stdout(theirs);
        pipes.stdout = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(ours)).map_err(io_error("pipe"))?);
    }
    if wanted.stderr {
        let (ours, theirs) = io::pipe().map_err(io_error("pipe"))?;
        command.stderr(theirs);
        pipes.stderr = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(ours)).map_err(io_error("pipe"))?);
    }
    Ok((command, pipes))
}
