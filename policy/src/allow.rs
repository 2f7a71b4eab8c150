//! The one shape of a permission: no, yes, or a list of what exactly.

use serde::{Deserialize, Serialize};

/// In TOML `false`, `true` or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a list")]
pub enum Allow<T> {
    /// Anything, or nothing.
    All(bool),
    /// These and no others.
    Only(Vec<T>),
}

impl<T> Default for Allow<T> {
    fn default() -> Self {
        Self::All(false)
    }
}

impl<T> Allow<T> {
    /// Entries of the list, if it is one.
    pub fn length(&self) -> Option<usize> {
        match self {
            Self::All(_) => None,
            Self::Only(list) => Some(list.len()),
        }
    }

    /// Whether something is allowed for which `matches` says that an entry of the list covers it.
    pub fn allows(&self, matches: impl Fn(&T) -> bool) -> bool {
        match self {
            Self::All(all) => *all,
            Self::Only(list) => list.iter().any(matches),
        }
    }
}
