//! OCI hooks (runtime-spec, config.md, "POSIX-platform Hooks"): programs that the caller wants run at points of a container's life.
//! They are the host's and run on the host, as with any runtime; nothing of them reaches the guest. What they are told is the container's
//! state, with the process id of its VM, which is in the container's network namespace: nerdctl's CNI works through that.
//!
//! The lists that the specification runs in the container's namespaces run in the one that is on this host: the network's.

mod run;

use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;

/// Most hooks of one list.
const MAX_HOOKS: usize = 256;
/// Its presence in the bundle says that hooks have run for a container whose `poststop` hooks have not: `delete` runs them then, if the
/// shim did not come to it.
const OWED: &str = "poststop-owed";

/// A hook that did not do its work.
#[derive(Debug, Error)]
pub enum HookError {
    /// The spec asks for what no hook can be.
    #[error("config.json: hooks.{list}[{index}]: {rule}")]
    Invalid {
        /// The list.
        list: &'static str,
        /// Its place in the list.
        index: usize,
        /// What was expected.
        rule: String,
    },
    /// It ran, or should have.
    #[error("{list} hook {path}: {reason}")]
    Failed {
        /// The list.
        list: &'static str,
        /// The program.
        path: PathBuf,
        /// How it failed, with its last words.
        reason: String,
    },
    /// The note that `poststop` is owed.
    #[error("{path}: {source}")]
    Note {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// The points of a container's life, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    const ALL: [Self; 6] =
        [Self::Prestart, Self::CreateRuntime, Self::CreateContainer, Self::StartContainer, Self::Poststart, Self::Poststop];

    /// Its name in the spec.
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The container's status at this point.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }

    /// Whether the specification wants it in the container's namespaces.
    fn is_inside(self) -> bool {
        matches!(self, Self::CreateContainer | Self::StartContainer)
    }
}

/// One program.
#[derive(Debug, Clone, Deserialize)]
struct Hook {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    /// In seconds.
    timeout: Option<i64>,
}

/// The lists of a spec.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Lists {
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    create_container: Vec<Hook>,
    start_container: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
}

impl Lists {
    fn at(&self, point: Point) -> &[Hook] {
        match point {
            Point::Prestart => &self.prestart,
            Point::CreateRuntime => &self.create_runtime,
            Point::CreateContainer => &self.create_container,
            Point::StartContainer => &self.start_container,
            Point::Poststart => &self.poststart,
            Point::Poststop => &self.poststop,
        }
    }

    fn is_empty(&self) -> bool {
        Point::ALL.into_iter().all(|point| self.at(point).is_empty())
    }
}

/// What a container is to its hooks.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its id.
    pub id: String,
    /// Its bundle, where hooks run.
    pub bundle: PathBuf,
    /// The specification's version that its spec names.
    pub oci_version: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// The hooks of one container.
#[derive(Debug, Clone)]
pub struct Hooks(Arc<(Subject, Lists)>);

impl Hooks {
    /// The hooks of `lists` for a container.
    pub fn new(subject: Subject, lists: Lists) -> Self {
        Self(Arc::new((subject, lists)))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.1.is_empty()
    }

    /// Refuses what no hook can be, before anything is made for the container.
    pub fn check(&self) -> Result<(), HookError> {
        for point in Point::ALL {
            let list = point.name();
            let hooks = self.0.1.at(point);
            let invalid = |index, rule: &str| Err(HookError::Invalid { list, index, rule: rule.to_owned() });
            if hooks.len() > MAX_HOOKS {
                return invalid(MAX_HOOKS, &format!("a list has at most {MAX_HOOKS} hooks"));
            }
            for (index, hook) in hooks.iter().enumerate() {
                let text = |text: &str| !text.contains('\0');
                if !hook.path.is_absolute() {
                    return invalid(index, &format!("path {:?} is not absolute", hook.path));
                }
                if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                    return invalid(index, "timeout: more than zero seconds are expected");
                }
                if !hook.args.iter().chain(&hook.env).all(|word| text(word)) || !text(&hook.path.to_string_lossy()) {
                    return invalid(index, "a NUL in path, args or env");
                }
            }
        }
        Ok(())
    }

    /// `prestart`, `createRuntime`, `createContainer`: the namespace of `pid` is there, and nothing is in the guest yet.
    pub async fn before_create(&self, pid: u32) -> Result<(), HookError> {
        if !self.0.1.poststop.is_empty() {
            let path = self.owed();
            fs::write(&path, "").map_err(|source| HookError::Note { path, source })?;
        }
        for point in [Point::Prestart, Point::CreateRuntime, Point::CreateContainer] {
            self.run(point, Some(pid)).await?;
        }
        Ok(())
    }

    /// `startContainer`: before the container's own program.
    pub async fn before_start(&self, pid: u32) -> Result<(), HookError> {
        self.run(Point::StartContainer, Some(pid)).await
    }

    /// `poststart`: after the container's own program has begun.
    pub async fn after_start(&self, pid: u32) -> Result<(), HookError> {
        self.run(Point::Poststart, Some(pid)).await
    }

    /// `poststop`, if any of the others has run and these have not: when the container is gone. One that fails does not keep the others from
    /// their work.
    pub async fn after_delete(&self) {
        let (subject, lists) = &*self.0;
        if !self.is_owed() {
            return;
        }
        for hook in &lists.poststop {
            if let Err(reason) = run::run(subject, Point::Poststop, hook, None).await {
                log::warn!(container = subject.id; "{}", failed(Point::Poststop, hook, reason));
            }
        }
        // Afterwards: a shim that is killed meanwhile leaves them to `delete`, and twice is better than never.
        let _ = fs::remove_file(self.owed());
    }

    /// Whether `poststop` hooks have still to run.
    pub fn is_owed(&self) -> bool {
        self.owed().exists()
    }

    async fn run(&self, point: Point, pid: Option<u32>) -> Result<(), HookError> {
        let (subject, lists) = &*self.0;
        for hook in lists.at(point) {
            run::run(subject, point, hook, pid).await.map_err(|reason| failed(point, hook, reason))?;
        }
        Ok(())
    }

    fn owed(&self) -> PathBuf {
        Path::new(&self.0.0.bundle).join(OWED)
    }
}

fn failed(point: Point, hook: &Hook, reason: String) -> HookError {
    HookError::Failed { list: point.name(), path: hook.path.clone(), reason }
}

#[cfg(test)]
mod tests;
