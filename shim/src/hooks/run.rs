//! One hook: a program with the container's state on its standard input, and an end within its time.

use super::{Hook, Point, Subject};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, killpg},
    unistd::{Pid, getppid},
};
use serde_json::json;
use std::{fmt::Display, fs::File, io, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe::Receiver,
    process::Command,
    time::{sleep, timeout},
};

/// How long a hook may take that names no time itself. The specification has no bound; a caller that waits forever has none either.
const DEFAULT_LIMIT: Duration = Duration::from_secs(120);
/// Longest time that is taken from a spec: a day.
const MAX_LIMIT: i64 = 86_400;
/// How long is read on once the program has ended: something that it started in the background may hold its output open.
const REST: Duration = Duration::from_millis(100);
/// Last words of a program that are kept, in bytes.
const KEPT: usize = 1024;

/// Runs a hook to its end; the error is one line.
pub(super) async fn run(subject: &Subject, point: Point, hook: &Hook, pid: Option<u32>) -> Result<(), String> {
    let limit = hook.timeout.map_or(DEFAULT_LIMIT, |seconds| Duration::from_secs(seconds.clamp(1, MAX_LIMIT).cast_unsigned()));
    let netns = match pid.filter(|_| point.is_inside()) {
        Some(pid) => Some(File::open(format!("/proc/{pid}/ns/net")).map_err(cannot("enter the container's network namespace"))?),
        None => None,
    };
    // Both outputs as one: which of them tells what is wrong differs from program to program.
    let (output, input) = io::pipe().map_err(cannot("start"))?;
    let mut output = Receiver::from_owned_fd(output.into()).map_err(cannot("start"))?;
    let mut command = command(subject, hook, netns);
    command.stdout(input.try_clone().map_err(cannot("start"))?).stderr(input);
    let mut child = command.spawn().map_err(cannot("start"))?;
    // Holds the other end of the pipe.
    drop(command);
    let group = Group(child.id().map(|pid| Pid::from_raw(pid.cast_signed())));
    let stdin = child.stdin.take();
    let state = state(subject, point, pid);
    let mut words = Vec::new();
    let ended = {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A program that does not care for the state closes it.
                let _ = stdin.write_all(state.as_bytes()).await;
            }
        };
        let talk = async {
            tokio::join!(write, read_last(&mut output, &mut words));
            // Its end is what counts, not that of its streams.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = child.wait() => Some(status),
            () = talk => None,
            () = sleep(limit) => None,
        }
    };
    let Some(status) = ended else {
        drop(group);
        let _ = child.wait().await;
        return Err(format!("did not end within {} s: killed{}", limit.as_secs(), quoted(&words)));
    };
    group.disarm();
    let _ = timeout(REST, read_last(&mut output, &mut words)).await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{}{}", describe(status), quoted(&words))),
        Err(error) => Err(error.to_string()),
    }
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

fn command(subject: &Subject, hook: &Hook, netns: Option<File>) -> Command {
    let mut command = Command::new(&hook.path);
    // The first argument is the program's own name (execv(3)).
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear().envs(hook.env.iter().filter_map(|pair| pair.split_once('=')));
    command.current_dir(&subject.bundle).stdin(Stdio::piped()).kill_on_drop(true).process_group(0);
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only prctl, getppid and setns are called, which are async-signal-safe; nothing allocates.
    unsafe {
        command.pre_exec(move || {
            // A shim that is killed leaves no hook behind that configures what `delete` removes.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(netns) = &netns {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        });
    }
    command
}

/// The state of the container (runtime-spec, runtime.md, "State").
fn state(subject: &Subject, point: Point, pid: Option<u32>) -> String {
    let mut state = json!({
        "ociVersion": subject.oci_version,
        "id": subject.id,
        "status": point.status(),
        "bundle": subject.bundle,
        "annotations": subject.annotations,
    });
    if let (Some(pid), Some(fields)) = (pid, state.as_object_mut()) {
        fields.insert("pid".to_owned(), pid.into());
    }
    state.to_string()
}

/// Reads to the end and keeps the last of it.
async fn read_last(output: &mut Receiver, words: &mut Vec<u8>) {
    let mut piece = [0; 1024];
    while let Ok(count @ 1..) = output.read(&mut piece).await {
        words.extend_from_slice(&piece[..count]);
        words.drain(..words.len().saturating_sub(KEPT));
    }
}

fn quoted(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!(": {}", lines.join("; ")) }
}

fn describe(status: std::process::ExitStatus) -> impl Display {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// The program with all that it has started; killed on drop, so that a caller that goes away ends it too.
struct Group(Option<Pid>);

impl Group {
    /// The program has ended and was waited for: its number may be another's.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}
