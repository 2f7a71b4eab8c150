//! What `cloister install` does to a node, as a plan: which files are written, and how. Nothing is touched before the whole plan is made,
//! so that a node is not left half-way by what can be known before, and `--dry-run` shows exactly what would be done.
//!
//! - [`containerd`], [`crio`]: their configuration. - [`kubernetes`]: the RuntimeClass. - [`node`]: all of it together.
//! - [`apply`]: files, each replaced in one step, so that what runs keeps what it has open. - [`diff`]: for people.

mod apply;
pub(crate) mod containerd;
pub(crate) mod crio;
mod diff;
pub(crate) mod kubernetes;
pub(crate) mod node;
#[cfg(test)]
mod tests;

pub(crate) use diff::diff;
use std::path::PathBuf;
use thiserror::Error;

/// The handler's name, in both configurations and in the RuntimeClass.
pub(crate) const HANDLER: &str = "cloister";
/// The annotations that a pod may hand to the shim.
pub(crate) const ANNOTATIONS: [&str; 2] = ["dev.cloister.*", "io.katacontainers.config.hypervisor.cc_init_data"];
/// Largest configuration file that is read, in bytes.
const MAX_TEXT: u64 = 4 << 20;

/// Why a node cannot be changed. Nothing was done then.
#[derive(Debug, Error)]
pub(crate) enum InstallError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A configuration that cannot be edited; the text says what to do.
    #[error("{path}: {problem}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// Something that should be installed is not there.
    #[error("{path} not found: {remedy}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// Neither containerd nor CRI-O.
    #[error("neither containerd nor CRI-O found below {0}: pass --containerd or --crio")]
    NoRuntime(PathBuf),
    /// Pods that would lose their runtime.
    #[error("{count} pods or containers run with Cloister (see {path}): end them first, or pass --force and clean up after them yourself")]
    InUse {
        /// How many.
        count: usize,
        /// Where their records are.
        path: PathBuf,
    },
}

/// What becomes of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// It gets this text; `old` is what it has now, kept beside it.
    Write {
        /// Before.
        old: Option<String>,
        /// After.
        new: String,
    },
    /// It becomes a copy of another, with this mode.
    Copy {
        /// The other.
        from: PathBuf,
        /// Permissions.
        mode: u32,
    },
    /// It goes.
    Remove,
}

/// A file and what becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The file.
    pub(crate) path: PathBuf,
    /// What becomes of it.
    pub(crate) action: Action,
}

/// Everything that is to be done, in its order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The changes.
    pub(crate) changes: Vec<Change>,
    /// The daemons that read their configuration only when they start.
    pub(crate) restart: Vec<&'static str>,
    /// What the operator should know.
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// Adds a text file, unless it is so already.
    fn text(&mut self, path: PathBuf, old: Option<String>, new: String) -> bool {
        let change = old.as_deref() != Some(new.as_str());
        if change {
            self.changes.push(Change { path, action: Action::Write { old, new } });
        }
        change
    }

    /// Does all of it. What was done before a failure stays: each step is whole in itself, and doing it again does the rest.
    pub(crate) fn apply(&self) -> Result<(), InstallError> {
        self.changes.iter().try_for_each(apply::apply)
    }
}

/// The text of a file, if there is one.
fn read(path: &std::path::Path) -> Result<Option<String>, InstallError> {
    let io = |source| InstallError::Io { path: path.to_owned(), source };
    let problem = |problem: &str| InstallError::Configuration { path: path.to_owned(), problem: problem.to_owned() };
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if metadata.is_symlink() {
        return Err(problem("is a symbolic link: what keeps it there would be overwritten; name the file that it means"));
    }
    if metadata.len() > MAX_TEXT {
        return Err(problem("is too large for a configuration"));
    }
    String::from_utf8(std::fs::read(path).map_err(io)?).map(Some).map_err(|_| problem("is not UTF-8"))
}
