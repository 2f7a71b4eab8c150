//! The life of a process: created, running, paused, stopped. A transition that is none is an error with both ends in it.

use containerd_shim_protos::types::task::Status;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Exit status of what was killed: 128 + SIGKILL.
pub const KILLED: u32 = 137;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

impl Exit {
    /// Ended now, with this status.
    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }

    /// As the guest reports it. Its clock is its own: a time before 1970 or after now is ours instead.
    pub fn reported(status: u32, nanoseconds: i64) -> Self {
        let now = SystemTime::now();
        let reported = u64::try_from(nanoseconds).ok().filter(|n| *n > 0).map(|n| UNIX_EPOCH + Duration::from_nanos(n));
        Self { status, at: reported.filter(|at| *at <= now).unwrap_or(now) }
    }
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Prepared, not running.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended; it does not begin again.
    Stopped(Exit),
}

/// A transition that there is not.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("cannot {action} a {state} process")]
pub struct Illegal {
    action: &'static str,
    state: &'static str,
}

impl State {
    /// Created to running.
    pub fn start(self) -> Result<Self, Illegal> {
        match self {
            Self::Created => Ok(Self::Running),
            _ => Err(self.refuse("start")),
        }
    }

    /// Running to paused.
    pub fn pause(self) -> Result<Self, Illegal> {
        match self {
            Self::Running => Ok(Self::Paused),
            _ => Err(self.refuse("pause")),
        }
    }

    /// Paused to running.
    pub fn resume(self) -> Result<Self, Illegal> {
        match self {
            Self::Paused => Ok(Self::Running),
            _ => Err(self.refuse("resume")),
        }
    }

    /// Any to stopped; what has stopped keeps its first exit.
    pub fn stop(self, exit: Exit) -> Result<Self, Illegal> {
        match self {
            Self::Stopped(_) => Err(self.refuse("stop")),
            _ => Ok(Self::Stopped(exit)),
        }
    }

    /// Whether it may be forgotten; gives how it ended. What never ran ended now, as if killed.
    pub fn delete(self) -> Result<Exit, Illegal> {
        match self {
            Self::Created => Ok(Exit::now(KILLED)),
            Self::Stopped(exit) => Ok(exit),
            _ => Err(self.refuse("delete")),
        }
    }

    /// Whether a terminal's size or a limit can be set.
    pub fn change(self, action: &'static str) -> Result<(), Illegal> {
        match self {
            Self::Stopped(_) => Err(self.refuse(action)),
            _ => Ok(()),
        }
    }

    /// Whether it has begun and not ended.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// How it ended, if it did.
    pub fn exit(self) -> Option<Exit> {
        match self {
            Self::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// As containerd has it.
    pub fn status(self) -> Status {
        match self {
            Self::Created => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Paused => Status::PAUSED,
            Self::Stopped(_) => Status::STOPPED,
        }
    }

    fn refuse(self, action: &'static str) -> Illegal {
        let state = match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped(_) => "stopped",
        };
        Illegal { action, state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { status: 3, at: UNIX_EPOCH };

    /// Every state and every action: what is not in the table is refused.
    #[test]
    fn the_whole_table_of_transitions() {
        let states = [State::Created, State::Running, State::Paused, State::Stopped(EXIT)];
        let start = [Some(State::Running), None, None, None];
        let pause = [None, Some(State::Paused), None, None];
        let resume = [None, None, Some(State::Running), None];
        let stop = [Some(State::Stopped(EXIT)), Some(State::Stopped(EXIT)), Some(State::Stopped(EXIT)), None];
        let delete = [true, false, false, true];
        for (n, state) in states.into_iter().enumerate() {
            assert_eq!(state.start().ok(), start[n], "{state:?}");
            assert_eq!(state.pause().ok(), pause[n], "{state:?}");
            assert_eq!(state.resume().ok(), resume[n], "{state:?}");
            assert_eq!(state.stop(EXIT).ok(), stop[n], "{state:?}");
            assert_eq!(state.delete().is_ok(), delete[n], "{state:?}");
        }
        assert_eq!(State::Running.start().unwrap_err().to_string(), "cannot start a running process");
    }

    #[test]
    fn what_ended_keeps_its_exit() {
        assert_eq!(State::Stopped(EXIT).delete(), Ok(EXIT));
        assert_eq!(State::Created.delete().unwrap().status, KILLED);
    }

    #[test]
    fn a_guests_clock_is_not_believed() {
        let before = SystemTime::now();
        for hostile in [i64::MIN, -1, 0, i64::MAX] {
            assert!(Exit::reported(0, hostile).at >= before, "{hostile}");
        }
        assert_eq!(Exit::reported(7, 1_000_000_000).at, UNIX_EPOCH + Duration::from_secs(1));
    }
}
