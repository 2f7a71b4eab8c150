//! What the tasks need of a VM. One is [`runtime::sandbox::Sandbox`]; tests bring a guest without one.

use crate::{group, socket};
use async_trait::async_trait;
use protocol::{line::LineError, service::AgentClient, stream::StreamId, volume::VolumeId};
use runtime::{
    config::Config,
    courier::BlobSource,
    sandbox::{self, Sandbox, SandboxSpec},
};
use std::{path::PathBuf, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection that carries one stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A running VM with its agent.
#[async_trait]
pub trait Guest: Send + Sync {
    /// The agent.
    fn agent(&self) -> AgentClient;
    /// Process id of the VM on this host: the only pid that a container of it has here.
    fn pid(&self) -> u32;
    /// Directories of the host that it sees, in the order of their tags.
    fn shared(&self) -> &[PathBuf];
    /// Connects one of a process's standard streams.
    async fn stream(&self, id: &StreamId) -> Result<Box<dyn Duplex>, LineError>;
    /// Connects a copy of a volume.
    async fn volume(&self, id: &VolumeId) -> Result<Box<dyn Duplex>, LineError>;
    /// Lets the guest reach `host:port` through this host.
    fn allow(&self, authority: &str);
    /// Has the guest's blobs come from the repository of this image too.
    fn add_image(&self, image: &str);
    /// Sets where the guest's blobs come from.
    fn set_blobs(&self, blobs: Arc<dyn BlobSource>);
    /// Returns once the VM has ended, and says how.
    async fn exited(&self) -> String;
    /// Ends the VM and removes everything of it.
    async fn stop(&self);
}

/// Makes guests.
#[async_trait]
pub trait Host: Send + Sync {
    /// Boots a VM. On an error everything is removed again; the error is one line.
    async fn boot(&self, config: &Config, spec: SandboxSpec) -> Result<Arc<dyn Guest>, String>;
    /// Removes what an earlier process has left of a sandbox, and makes a boot that is under way fail.
    async fn remove(&self, config: &Config, id: &str) -> Result<(), String>;
    /// Removes what shims that are gone have left of their sandboxes.
    async fn remove_orphans(&self, config: &Config);
}

/// Real VMs.
#[derive(Debug)]
pub struct Machines;

#[async_trait]
impl Host for Machines {
    async fn boot(&self, config: &Config, spec: SandboxSpec) -> Result<Arc<dyn Guest>, String> {
        let sandbox = Box::pin(Sandbox::boot(config, spec)).await.map_err(|error| error.to_string())?;
        Ok(Arc::new(sandbox))
    }

    async fn remove(&self, config: &Config, id: &str) -> Result<(), String> {
        let (config, id) = (config.clone(), id.to_owned());
        // It waits for the end of a process.
        let removed = tokio::task::spawn_blocking(move || sandbox::remove(&config, &id)).await;
        removed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    async fn remove_orphans(&self, config: &Config) {
        let config = config.clone();
        let removed = tokio::task::spawn_blocking(move || {
            socket::remove_all_dead(&group::socket_dir(&config.state_dir));
            sandbox::remove_orphans(&config)
        });
        for id in removed.await.unwrap_or_default() {
            log::warn!(sandbox = id; "its shim was gone: removed");
        }
    }
}

#[async_trait]
impl Guest for Sandbox {
    fn agent(&self) -> AgentClient {
        Sandbox::agent(self)
    }

    fn pid(&self) -> u32 {
        self.vm_pid()
    }

    fn shared(&self) -> &[PathBuf] {
        Sandbox::shared(self)
    }

    async fn stream(&self, id: &StreamId) -> Result<Box<dyn Duplex>, LineError> {
        Ok(Box::new(Sandbox::stream(self, id).await?))
    }

    async fn volume(&self, id: &VolumeId) -> Result<Box<dyn Duplex>, LineError> {
        Ok(Box::new(Sandbox::volume(self, id).await?))
    }

    fn allow(&self, authority: &str) {
        self.courier().allow(authority);
    }

    fn add_image(&self, image: &str) {
        self.courier().add_image(image);
    }

    fn set_blobs(&self, blobs: Arc<dyn BlobSource>) {
        self.courier().set_blobs(blobs);
    }

    async fn exited(&self) -> String {
        Sandbox::exited(self).await.to_string()
    }

    async fn stop(&self) {
        if let Err(error) = Sandbox::stop(self).await {
            log::error!(sandbox = self.id(); "after its end: {error}");
        }
    }
}
