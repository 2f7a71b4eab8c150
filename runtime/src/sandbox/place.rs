//! Where a VM's process is, and who configures the network there.

use super::{SandboxError, SandboxSpec};
use crate::{
    network::NetworkError,
    record::Record,
    vmm::{Command, Launcher, Process, SpawnError},
};
use std::{fs::File, path::PathBuf, pin::Pin, sync::Arc};

/// Configures the network namespace of a process, told by its id; the error is one line.
#[derive(Clone)]
pub struct Configure(Arc<dyn Fn(u32) -> Configuring + Send + Sync>);

/// The work of a [`Configure`].
pub type Configuring = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl Configure {
    /// What `work` does.
    pub fn new(work: impl Fn(u32) -> Configuring + Send + Sync + 'static) -> Self {
        Self(Arc::new(work))
    }

    /// Does it for the process `pid`.
    pub fn run(&self, pid: u32) -> Configuring {
        (self.0)(pid)
    }
}

impl std::fmt::Debug for Configure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Configure")
    }
}

/// Where the VM's process is to be: always in the container's network namespace, where hooks, CNI and whoever inspects a container look
/// for it by its process id.
pub(super) enum Place {
    /// The pod's namespace, or none.
    In(Option<File>),
    /// A fresh one, configured, with a process in it that becomes the VM.
    Kept(Launcher),
}

impl Place {
    /// Takes the place that `spec` wants; a process that keeps it is in the record.
    pub(super) async fn take(id: &str, spec: &SandboxSpec, record: &mut Record) -> Result<Self, SandboxError> {
        let Some(configure) = spec.configure.as_ref().filter(|_| spec.netns.is_none()) else {
            let open = |netns: &PathBuf| File::open(netns).map_err(|source| NetworkError::Namespace { netns: netns.clone(), source });
            return Ok(Self::In(spec.netns.as_ref().map(open).transpose()?));
        };
        let program = std::env::current_exe().map_err(|source| SpawnError::Spawn { program: "/proc/self/exe".into(), source })?;
        let launcher = Launcher::start(id, &program).await?;
        record.note_vmm(launcher.pid())?;
        configure.run(launcher.pid()).await.map_err(SandboxError::Configure)?;
        Ok(Self::Kept(launcher))
    }

    /// Starts the VM there.
    pub(super) fn launch(self, id: &str, command: Command) -> Result<Process, SpawnError> {
        match self {
            Self::In(netns) => Process::spawn_in(id, command, netns),
            Self::Kept(launcher) => launcher.launch(&command),
        }
    }
}
