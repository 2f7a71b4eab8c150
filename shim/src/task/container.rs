//! A container: its first process and its execs.

use super::{Process, TaskError};
use crate::{bundle::Role, guest::Guest, hooks::Hooks, volumes::Attached};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Most execs of one container at a time.
const MAX_EXECS: usize = 4096;

/// A container, as this shim knows it.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle on this host.
    pub bundle: PathBuf,
    /// What it is to its shim.
    pub role: Role,
    /// The VM that it is in.
    pub guest: Arc<dyn Guest>,
    /// Its hooks.
    pub hooks: Hooks,
    /// Its volumes.
    pub volumes: Attached,
    /// Its first process.
    pub init: Arc<Process>,
    /// `None` while an exec is being prepared.
    execs: Mutex<BTreeMap<String, Option<Arc<Process>>>>,
}

impl Container {
    /// A container without execs.
    pub fn new(id: &str, bundle: PathBuf, role: Role, guest: Arc<dyn Guest>, hooks: Hooks, volumes: Attached, init: Process) -> Self {
        Self { id: id.to_owned(), bundle, role, guest, hooks, volumes, init: Arc::new(init), execs: Mutex::default() }
    }

    /// Whether the VM ends with it.
    pub fn owns_guest(&self) -> bool {
        !matches!(self.role, Role::Member(_))
    }

    /// Whether it is a pod's first container, of which nothing runs in the guest.
    pub fn is_sandbox(&self) -> bool {
        self.role == Role::Sandbox
    }

    /// One of its processes; the first for an empty id.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs().get(exec_id).cloned().flatten().ok_or_else(|| TaskError::NoExec(exec_id.to_owned()))
    }

    /// Its execs, in the order of their ids.
    pub fn list_execs(&self) -> Vec<Arc<Process>> {
        self.execs().values().flatten().cloned().collect()
    }

    /// Takes an exec's id.
    pub fn reserve_exec(self: &Arc<Self>, exec_id: &str) -> Result<ExecReservation, TaskError> {
        let mut execs = self.execs();
        if execs.contains_key(exec_id) {
            return Err(TaskError::Exists(format!("exec {exec_id}")));
        }
        if execs.len() >= MAX_EXECS {
            return Err(TaskError::Invalid(format!("a container has at most {MAX_EXECS} execs")));
        }
        execs.insert(exec_id.to_owned(), None);
        Ok(ExecReservation { container: self.clone(), exec_id: exec_id.to_owned(), kept: false })
    }

    /// Forgets an exec.
    pub fn forget_exec(&self, exec_id: &str) {
        self.execs().remove(exec_id);
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Option<Arc<Process>>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exec's id that is taken; given back unless a process comes of it.
pub struct ExecReservation {
    container: Arc<Container>,
    exec_id: String,
    kept: bool,
}

impl ExecReservation {
    /// Puts the process in its place; `publish` is called before anyone can see it there.
    pub fn keep(mut self, process: Process, publish: impl FnOnce()) {
        self.kept = true;
        let mut execs = self.container.execs();
        publish();
        execs.insert(self.exec_id.clone(), Some(Arc::new(process)));
    }
}

impl Drop for ExecReservation {
    fn drop(&mut self) {
        if !self.kept {
            self.container.forget_exec(&self.exec_id);
        }
    }
}
