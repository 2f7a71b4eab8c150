//! `Delete`: what has ended, or never ran, is forgotten; with the container that owns it, the VM goes.

use super::{Container, Exit, Process, State, TaskError, Tasks, detached};
use containerd_shim_protos::events::task::TaskDelete;
use protobuf::{MessageField, well_known_types::timestamp::Timestamp};
use protocol::api;
use std::{sync::Arc, time::Duration};

/// How long the agent may take to remove a container's file systems.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Tasks {
    /// `Delete` of a container or an exec: gives the pid and how it ended.
    pub async fn delete(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<(u32, Exit), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        let tasks = self.clone();
        detached(async move {
            let turn = process.clone();
            let _turn = turn.turn.lock().await;
            // Of two that delete the same, the second finds nothing.
            tasks.process(&container.id, &process.exec_id)?;
            let exit = process.state().delete()?;
            if process.exec_id.is_empty() {
                tasks.delete_container(&container, exit).await;
            } else {
                forget_in_guest(&container, &process).await;
                container.forget_exec(&process.exec_id);
            }
            drop(process.io().unread.take());
            Ok((process.pid, exit))
        })
        .await
    }

    async fn delete_container(&self, container: &Container, exit: Exit) {
        if container.owns_guest() {
            // The whole machine goes; there is nothing in it to tidy up.
            self.end().await;
        } else {
            forget_in_guest(container, &container.init).await;
        }
        // Not before: what the container has written last is on its way until then.
        container.volumes.let_go();
        container.hooks.after_delete().await;
        if container.init.state() == State::Created {
            self.report_exit(&container.init, exit);
        }
        let event = TaskDelete {
            container_id: container.id.clone(),
            pid: container.init.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(Timestamp::from(exit.at)),
            ..Default::default()
        };
        self.events.publish(&event);
        self.forget(&container.id);
    }
}

/// Has the agent forget a process. A guest that is gone has forgotten it; one that cannot is logged: the end of the VM removes it.
async fn forget_in_guest(container: &Container, process: &Process) {
    let request =
        api::DeleteProcessRequest { container_id: process.container_id.clone(), exec_id: process.exec_id.clone(), ..Default::default() };
    let agent = container.guest.agent();
    let forgotten = tokio::select! {
        forgotten = agent.delete_process(ttrpc::context::with_duration(TIMEOUT), &request) => forgotten,
        _ = container.guest.exited() => return,
    };
    if let Err(error) = forgotten {
        log::warn!(container = container.id, exec = process.exec_id; "delete in the guest: {error}");
    }
}
