//! Runs one more process in a container.
//!
//! Not by libcontainer's tenant builder: that one leaves out the container's system call filter. The order is runc's: cgroup, namespaces,
//! fork into the pid namespace, terminal, ids, capabilities, filter, exec.

use super::{ExecJob, program::Program};
use libcontainer::{capabilities, seccomp, syscall::syscall::create_syscall, tty};
use nix::{
    sys::{
        resource::{Resource, rlim_t, setrlimit},
        stat::{Mode, umask},
    },
    unistd::{ForkResult, Gid, Uid, chdir, fork, setgroups, setresgid, setresuid, setsid},
};
use oci_spec::runtime::{PosixRlimitType, Process};
use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
    os::unix::net::UnixStream,
    path::Path,
};

/// Longest error text of the new process.
const MAX_ERROR: u64 = 4096;

/// Namespaces of a container; the network is the guest's.
const NAMESPACES: i32 = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Gives the new process's id after it has become its program.
pub fn run(job: &ExecJob) -> Result<u32, String> {
    // Processes of the container can see this one once it is in their pid namespace: not its memory.
    // SAFETY: prctl with integers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let adjustment = job.process.oom_score_adj().unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", adjustment.to_string()).map_err(|e| format!("oom_score_adj: {e}"))?;
    let init = open_init(job)?;
    let console = job.console.as_ref().map(UnixStream::connect).transpose().map_err(|e| format!("terminal socket: {e}"))?;
    // Made before the filter and the loss of root, as far as it can fail for another reason than the process itself.
    set_limits(&job.process)?;
    fs::write(job.cgroup_dir.join("cgroup.procs"), "0").map_err(|e| format!("join the container's cgroup: {e}"))?;
    // SAFETY: setns(2) takes two integers; the descriptor is open.
    check(unsafe { libc::setns(init.as_raw_fd(), NAMESPACES) }).map_err(|e| format!("join the container's namespaces: {e}"))?;
    drop(init);
    let (report, reporter) = io::pipe().map_err(|e| format!("pipe: {e}"))?;
    // SAFETY: this process has one thread, so its child may run any code.
    match unsafe { fork() }.map_err(|e| format!("fork: {e}"))? {
        ForkResult::Child => {
            drop(report);
            let error = become_process(job, console);
            use io::Write;
            let _ = (&reporter).write_all(error.as_bytes());
            // SAFETY: _exit ends the process at once; the parent's buffers and hooks are not this one's.
            unsafe { libc::_exit(127) }
        }
        ForkResult::Parent { child } => {
            drop(reporter);
            let mut error = String::new();
            use io::Read;
            // The pipe closes itself on exec: no text is success.
            report.take(MAX_ERROR).read_to_string(&mut error).map_err(|e| format!("report of the new process: {e}"))?;
            if error.is_empty() { Ok(child.as_raw().cast_unsigned()) } else { Err(error) }
        }
    }
}

/// A descriptor of the container's first process. Its id may have been given away again between the agent's look and ours; after the
/// descriptor is open the cgroup tells whose process it is.
fn open_init(job: &ExecJob) -> Result<OwnedFd, String> {
    // SAFETY: pidfd_open(2) takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, job.init_pid.cast_signed(), 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| "the container has ended".to_owned())?;
    // SAFETY: a new descriptor that nobody else knows.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", job.init_pid)).unwrap_or_default();
    let own = cgroup.trim().strip_prefix("0::").map(Path::new) == Some(&job.cgroup);
    if own { Ok(fd) } else { Err("the container has ended".to_owned()) }
}

/// Comes back only with the reason of its failure.
fn become_process(job: &ExecJob, console: Option<UnixStream>) -> String {
    prepare(job, console).map_or_else(|e| e, |program| program.exec())
}

fn prepare(job: &ExecJob, console: Option<UnixStream>) -> Result<Program, String> {
    let process = &job.process;
    let syscall = create_syscall();
    setsid().map_err(|e| format!("setsid: {e}"))?;
    if let Some(console) = console {
        // Closes the socket itself.
        tty::setup_console(syscall.as_ref(), console.into_raw_fd(), false).map_err(|e| super::chain(&e))?;
    }
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_bits_truncate(mask));
    }
    if process.no_new_privileges() == Some(true) {
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map_err(|e| format!("no_new_privs: {e}"))?;
    }
    // As root first: the directory may be closed to the user, which other runtimes allow too.
    chdir(process.cwd()).map_err(|e| format!("working directory {}: {e}", process.cwd().display()))?;
    set_ids(process)?;
    close_on_exec_from_3()?;
    // Without no_new_privs the filter needs CAP_SYS_ADMIN; with it, the later the better.
    let filter = || match &job.seccomp {
        Some(filter) => seccomp::initialize_seccomp(filter).map(drop).map_err(|e| super::chain(&e)),
        None => Ok(()),
    };
    let late = process.no_new_privileges() == Some(true);
    if !late {
        filter()?;
    }
    capabilities::reset_effective(syscall.as_ref()).map_err(|e| super::chain(&e))?;
    if let Some(sets) = process.capabilities() {
        capabilities::drop_privileges(sets, syscall.as_ref()).map_err(|e| super::chain(&e))?;
    }
    let program = Program::find(process)?;
    if late {
        filter()?;
    }
    Ok(program)
}

fn set_ids(process: &Process) -> Result<(), String> {
    let user = process.user();
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).map_err(|e| format!("setgroups: {e}"))?;
    let keep = |keep: libc::c_ulong| {
        // SAFETY: prctl with integers only.
        check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, keep, 0, 0, 0) }).map_err(|e| format!("keepcaps: {e}"))
    };
    keep(1)?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid).map_err(|e| format!("setresgid: {e}"))?;
    setresuid(uid, uid, uid).map_err(|e| format!("setresuid: {e}"))?;
    keep(0)
}

/// Nothing of ours reaches the program: not a log, not a directory (CVE-2024-21626).
fn close_on_exec_from_3() -> Result<(), String> {
    // SAFETY: close_range(2) takes three integers; descriptors are only marked.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done < 0 { Err(format!("close_range: {}", io::Error::last_os_error())) } else { Ok(()) }
}

fn set_limits(process: &Process) -> Result<(), String> {
    for limit in process.rlimits().iter().flatten() {
        let resource = resource(limit.typ());
        setrlimit(resource, limit.soft() as rlim_t, limit.hard() as rlim_t).map_err(|e| format!("rlimit {:?}: {e}", limit.typ()))?;
    }
    Ok(())
}

fn resource(limit: PosixRlimitType) -> Resource {
    match limit {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_process_of_another_cgroup_is_not_the_container() {
        let job = ExecJob {
            init_pid: std::process::id(),
            cgroup: "/cloister/c1".into(),
            cgroup_dir: "/none".into(),
            process: serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"]})).unwrap(),
            seccomp: None,
            console: None,
        };
        assert!(open_init(&job).unwrap_err().contains("has ended"));
        assert!(open_init(&ExecJob { init_pid: u32::MAX >> 1, ..job }).is_err());
    }
}
