//! The disks of one container: each with the key that the policy names for it.

use super::{How, Mounted, Reason};
use crate::{
    boot::modules::Stage,
    containers::{
        ContainerError, Containers,
        derive::Derived,
        mounts::Binds,
        volumes::{Bind, Prepared},
    },
    sandbox::{Place, Sandbox},
    sealed_disk::{DiskKey, SealedDiskError},
};
use attestation::{ResourceUri, resource::ResourceError};
use log::info;
use policy::Policy;
use std::{io, path::Path};
use tokio::task::spawn_blocking;

impl Containers {
    /// Mounts a container's disks, each with the key that the policy names for it, and has them be bound in its place.
    pub(in crate::containers) async fn mount_disks(
        &self,
        volumes: &Prepared,
        place: &Place,
        derived: &Derived,
        sandbox: &Sandbox,
        binds: &mut Binds,
    ) -> Result<Vec<Mounted>, ContainerError> {
        let mut mounted = Vec::new();
        for (destination, disk) in volumes.disks()? {
            let Some((bind, readonly)) = binds.get_mut(&destination).filter(|(bind, _)| *bind == Bind::Disk) else { continue };
            let rule = place.disk(&destination);
            let key = rule.as_ref().map(|rule| rule.key.clone());
            let failed = |reason: Reason| reason.of(&destination, key.as_deref());
            let how = match &rule {
                // There is no policy: one names a key, or has refused.
                None if !sandbox.policy().is_open() => return Err(Policy::unnamed_disk(&destination).into()),
                None => How::Plain { readonly: *readonly },
                Some(_) if *readonly => return Err(failed(SealedDiskError::ReadOnly.into()).into()),
                Some(rule) => {
                    let key = disk_key(sandbox, &rule.key).await.map_err(failed)?;
                    How::Sealed { key, format: rule.format, owner: derived.ids.clone() }
                }
            };
            let (disks, modules, cwd) = (self.disks.clone(), sandbox.modules(), derived.cwd.clone());
            let inside = Path::new(&cwd).strip_prefix(&destination).map(Path::to_owned).ok();
            let done = spawn_blocking(move || -> Result<Mounted, Reason> {
                modules.load(Stage::Scratch).map_err(|e| Reason::Step { step: "kernel modules", source: io::Error::other(e) })?;
                let mounted = disks.mount(disk, how)?;
                if let Some(inside) = inside.filter(|path| !path.as_os_str().is_empty()) {
                    mounted.make_directory(&inside).map_err(|source| Reason::Step { step: "working directory", source })?;
                }
                Ok(mounted)
            });
            let done: Mounted = done.await.map_err(|e| ContainerError::State(format!("disk: {e}")))?.map_err(failed)?;
            *bind = Bind::Path(done.place());
            info!(destination = destination, sealed = key.is_some(); "disk mounted");
            mounted.push(done);
        }
        Ok(mounted)
    }
}

/// The owner's key of a disk, from the broker.
async fn disk_key(sandbox: &Sandbox, uri: &str) -> Result<DiskKey, Reason> {
    let broker = sandbox.broker().ok_or(Reason::NoBroker)?;
    let resource: ResourceUri = uri.parse().map_err(|e: ResourceError| Reason::Key(e.to_string()))?;
    let bytes = broker.resource(&resource).await.map_err(|e| Reason::Key(e.to_string()))?;
    DiskKey::new(&bytes).ok_or(Reason::Length(bytes.len()))
}
