//! The one door through which every RPC comes: bounds first, then the order of calls, then the owner's policy. Only what this module
//! has let through reaches the rest of the agent.

use super::failure::Failure;
use crate::sandbox::Sandbox;
use policy::{Denial, Stdio};
use protocol::{
    api,
    bounds::{BoundError, Bounded},
};
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::{Mutex, OnceCell};
use ttrpc::Code;

/// What the owner's policy is asked about a request, beyond its bounds. What depends on the image (overrides, the image itself) is asked
/// where it is known: in `containers::create` and `sandbox::pull`.
pub trait Admitted: Bounded {
    /// Asks.
    fn ask(&self, _sandbox: &Sandbox) -> Result<(), Failure> {
        Ok(())
    }
}

impl Admitted for api::CreateContainerRequest {
    fn ask(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        Ok(sandbox.policy().stdio(stdio(self.stdio.as_ref()))?)
    }
}

impl Admitted for api::ExecProcessRequest {
    fn ask(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        Ok(sandbox.policy().stdio(stdio(self.stdio.as_ref()))?)
    }
}

impl Admitted for api::SignalProcessRequest {
    fn ask(&self, sandbox: &Sandbox) -> Result<(), Failure> {
        Ok(sandbox.policy().signal(self.signal)?)
    }
}

// Start, wait, delete: what was admitted when it was prepared. Resize, pause, resume, limits, lists and numbers: a host can stop the
// whole machine and count its pages, so nothing is gained by refusing them.
impl Admitted for api::StartProcessRequest {}
// Each volume is asked about where it is known what the container can do without: in `containers::volumes`. What is read back was announced
// so, and admitted, before.
impl Admitted for api::PrepareVolumesRequest {}
impl Admitted for api::ReadVolumeRequest {}
impl Admitted for api::WaitProcessRequest {}
impl Admitted for api::DeleteProcessRequest {}
impl Admitted for api::ResizePtyRequest {}
impl Admitted for api::ContainerRequest {}
impl Admitted for api::ListProcessesRequest {}
impl Admitted for api::UpdateContainerRequest {}

fn stdio(stdio: Option<&api::Stdio>) -> Stdio {
    let Some(stdio) = stdio else { return Stdio::default() };
    Stdio { stdin: stdio.stdin, output: stdio.stdout || stdio.stderr, terminal: stdio.terminal }
}

/// Why the host does not get a connection.
#[derive(Debug, Error)]
pub enum Denied {
    /// The order of requests.
    #[error("there is no sandbox yet; call CreateSandbox first")]
    NoSandbox,
    /// The owner's policy.
    #[error(transparent)]
    Policy(#[from] Denial),
}

/// The machine's door.
#[derive(Default)]
pub struct Gate {
    sandbox: OnceCell<Arc<Sandbox>>,
    /// Whether CreateSandbox has been called; it is only once, whatever came of it.
    claimed: Mutex<bool>,
}

impl Gate {
    /// For every request but CreateSandbox and the two that need no sandbox.
    pub fn admit<R: Admitted>(&self, request: &R) -> Result<Arc<Sandbox>, Failure> {
        bounds(request)?;
        let sandbox = self.sandbox.get().ok_or_else(|| Failure::state("there is no sandbox yet; call CreateSandbox first"))?;
        request.ask(sandbox)?;
        Ok(sandbox.clone())
    }

    /// For a connection to a port of the pod's loopback.
    pub fn admit_forward(&self, port: u16) -> Result<(), Denied> {
        let sandbox = self.sandbox.get().ok_or(Denied::NoSandbox)?;
        Ok(sandbox.policy().port_forward(port)?)
    }

    /// For requests that any state allows.
    pub fn admit_anytime<R: Bounded>(&self, request: &R) -> Result<(), Failure> {
        bounds(request)
    }

    /// For CreateSandbox: exactly once. A failed attempt is not repeated with other initdata, or a host could try until one fits.
    pub async fn admit_sandbox(&self, request: &api::CreateSandboxRequest) -> Result<(), Failure> {
        bounds(request)?;
        let mut claimed = self.claimed.lock().await;
        if *claimed {
            return Err(Failure::state("CreateSandbox has been called already; start another machine"));
        }
        *claimed = true;
        Ok(())
    }

    /// The sandbox is there.
    pub fn open(&self, sandbox: Sandbox) {
        // Cannot fail: admit_sandbox lets one caller through.
        let _ = self.sandbox.set(Arc::new(sandbox));
    }
}

fn bounds(request: &impl Bounded) -> Result<(), Failure> {
    request.check().map_err(|e: BoundError| Failure::new(Code::INVALID_ARGUMENT, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bounds_come_before_order() {
        let gate = Gate::default();
        let bad = api::ContainerRequest { container_id: "../x".into(), ..Default::default() };
        assert_eq!(gate.admit(&bad).err().unwrap().code(), Code::INVALID_ARGUMENT);
        let good = api::ContainerRequest { container_id: "x".into(), ..Default::default() };
        assert_eq!(gate.admit(&good).err().unwrap().code(), Code::FAILED_PRECONDITION);
    }

    #[test]
    fn nothing_is_forwarded_before_there_is_a_policy() {
        assert!(matches!(Gate::default().admit_forward(80), Err(Denied::NoSandbox)));
    }

    #[tokio::test]
    async fn there_is_one_attempt_at_a_sandbox() {
        let gate = Gate::default();
        let bad = api::CreateSandboxRequest::default();
        assert_eq!(gate.admit_sandbox(&bad).await.err().unwrap().code(), Code::INVALID_ARGUMENT);
        let good = api::CreateSandboxRequest { sandbox_id: "s".into(), ..Default::default() };
        gate.admit_sandbox(&good).await.unwrap();
        assert_eq!(gate.admit_sandbox(&good).await.err().unwrap().code(), Code::FAILED_PRECONDITION);
    }
}
