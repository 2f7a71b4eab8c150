//! What runs in a re-execution of the agent: the single-threaded preparation of container processes.
//!
//! libcontainer clones, and only async-signal-safe code is sound in a clone of a process with threads; so none of this runs in PID 1.
//! The parent gives one job as a file and reads one answer as a file. Standard streams are the container process's own.

mod create;
mod exec;
mod program;

use crate::boot::power;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    panic,
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

/// First argument of a re-execution.
pub const VERB: &str = "container-job";

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    /// Make a container from a bundle; its first process then waits for its start.
    Create(CreateJob),
    /// Run one more process in a container.
    Exec(Box<ExecJob>),
}

/// See [`Job::Create`].
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateJob {
    /// Internal name.
    pub name: String,
    /// Directory of config.json.
    pub bundle: PathBuf,
    /// Directory of libcontainer's state directories.
    pub state: PathBuf,
    /// Where the terminal is to be sent.
    pub console: Option<PathBuf>,
    /// Not to run a program: to hold the container's namespaces for others.
    pub hold: bool,
}

/// See [`Job::Exec`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecJob {
    /// The container's first process, whose namespaces are joined.
    pub init_pid: u32,
    /// The container's cgroup: its path as /proc/<pid>/cgroup shows it, by which the process is known to be the container's.
    pub cgroup: PathBuf,
    /// The cgroup's directory.
    pub cgroup_dir: PathBuf,
    /// The process.
    pub process: oci_spec::runtime::Process,
    /// The container's system call filter.
    pub seccomp: Option<oci_spec::runtime::LinuxSeccomp>,
    /// Where the terminal is to be sent.
    pub console: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The process's id.
    Pid(u32),
    /// One line that says why not.
    Failed(String),
}

/// Whether these arguments are a re-execution; if so, where job and answer are.
pub fn arguments(mut args: impl Iterator<Item = OsString>) -> Option<(PathBuf, PathBuf)> {
    args.next()?;
    (args.next()? == VERB).then_some(())?;
    Some((args.next()?.into(), args.next()?.into()))
}

/// Does the job and ends the process.
pub fn run(job: &Path, answer: &Path) -> ! {
    default_signals();
    // Opened first: an exec ends in the container's mount namespace, where the path is another one.
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(answer);
    // Without it the parent reads nothing, and says so.
    let Ok(file) = file.map(Arc::new) else { process::exit(102) };
    let after_panic = file.clone();
    panic::set_hook(Box::new(move |info| {
        write_answer(&after_panic, &Answer::Failed(power::describe(info)));
        process::exit(101);
    }));
    let result = match read_job(job) {
        Ok(Job::Create(job)) => create::run(&job),
        Ok(Job::Exec(job)) => exec::run(&job),
        Err(e) => Err(e),
    };
    let done = result.is_ok();
    write_answer(&file, &result.map_or_else(Answer::Failed, Answer::Pid));
    process::exit(i32::from(!done))
}

/// Gives every signal its default action. Rust ignores SIGPIPE and posix_spawn the two that libc keeps for itself, and what is ignored
/// stays so across exec: `yes | head` in a container would never end. By the system call, since libc hides its own two.
fn default_signals() {
    // struct sigaction of the kernel: handler, flags, restorer, mask; all zero is SIG_DFL.
    let default = [0u64; 4];
    for signal in 1..=64i32 {
        // SAFETY: rt_sigaction(2) reads one kernel sigaction, which lives until the call returns. SIGKILL and SIGSTOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<u64>(), 8usize) };
    }
}

fn read_job(path: &Path) -> Result<Job, String> {
    let json = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_slice(&json).map_err(|e| format!("{}: {e}", path.display()))
}

fn write_answer(mut file: &File, answer: &Answer) {
    if let Ok(json) = serde_json::to_vec(answer) {
        let _ = file.write_all(&json);
    }
}

/// An error and its causes on one line, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_verb_is_a_re_execution() {
        let parse = |args: &[&str]| arguments(args.iter().map(OsString::from));
        assert_eq!(parse(&["/init", VERB, "/a", "/b"]), Some(("/a".into(), "/b".into())));
        for args in [&["/init"][..], &["/init", "x", "/a", "/b"], &["/init", VERB, "/a"], &[]] {
            assert_eq!(parse(args), None, "{args:?}");
        }
    }

    #[test]
    fn causes_are_on_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner\nline"));
        assert_eq!(chain(&error), "outer: inner line");
    }
}
