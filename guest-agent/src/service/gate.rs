//! The one door through which every RPC comes: bounds first, then the order of calls, then the owner's policy. It stands in the
//! dispatcher, in front of the service: a method whose RPC has no line in [`RULES`] is refused, whatever the service would do.
//!
//! What depends on the image (its digest, overrides, the containers of the pod) is asked where it is known: in `containers::create`,
//! `containers::exec` and `sandbox::pull`.

use super::failure::Failure;
use crate::{containers::asked, sandbox::Sandbox};
use async_trait::async_trait;
use policy::Denial;
use protobuf::Message;
use protocol::{api, bounds::Bounded};
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};
use thiserror::Error;
use tokio::sync::Mutex;
use ttrpc::{
    Code, Request, Response,
    asynchronous::{MethodHandler, Service, TtrpcContext},
};

/// When a request may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// One attempt in the machine's life, whatever comes of it. With other initdata it is not tried again, or a host could try until
    /// one fits.
    Once,
    /// After CreateSandbox.
    InSandbox,
    /// In any state.
    Anytime,
}

/// The rule of one RPC.
pub struct Rule {
    rpc: &'static str,
    when: When,
    /// Decodes the request and checks its bounds; then, in a sandbox, asks the policy.
    check: fn(&[u8], Option<&Sandbox>) -> Result<(), Failure>,
}

/// One line for each RPC of `agent.proto`, in its order. A test holds the two together.
///
/// `free` where nothing is gained by refusing: starting, awaiting and deleting what was admitted when it was prepared; the size of a
/// terminal; and what a host does to the whole machine anyway: it can stop it, starve it, and measure how long it lives.
pub const RULES: [Rule; 18] = [
    Rule { rpc: "CreateSandbox", when: When::Once, check: |p, s| check::<api::CreateSandboxRequest>(p, s, free) },
    // Each volume is asked about where it is known what the container can do without: in `containers::volumes`. What is read back was
    // announced so, and admitted, before.
    Rule { rpc: "PrepareVolumes", when: When::InSandbox, check: |p, s| check::<api::PrepareVolumesRequest>(p, s, free) },
    Rule { rpc: "ReadVolume", when: When::InSandbox, check: |p, s| check::<api::ReadVolumeRequest>(p, s, free) },
    Rule {
        rpc: "CreateContainer",
        when: When::InSandbox,
        check: |p, s| {
            check(p, s, |request: &api::CreateContainerRequest, sandbox| {
                // With a list of containers each has streams of its own, asked about with the rest of it.
                if sandbox.policy().containers().is_empty() { streams(request.stdio.as_ref(), sandbox) } else { Ok(()) }
            })
        },
    },
    Rule { rpc: "StartProcess", when: When::InSandbox, check: |p, s| check::<api::StartProcessRequest>(p, s, free) },
    Rule {
        rpc: "ExecProcess",
        when: When::InSandbox,
        check: |p, s| check(p, s, |request: &api::ExecProcessRequest, sandbox| streams(request.stdio.as_ref(), sandbox)),
    },
    Rule {
        rpc: "SignalProcess",
        when: When::InSandbox,
        check: |p, s| check(p, s, |request: &api::SignalProcessRequest, sandbox| Ok(sandbox.policy().signal(request.signal)?)),
    },
    Rule { rpc: "WaitProcess", when: When::InSandbox, check: |p, s| check::<api::WaitProcessRequest>(p, s, free) },
    // A limit that the host has set is hit: it knows from the end of what was killed.
    Rule { rpc: "WaitOutOfMemory", when: When::InSandbox, check: |p, s| check::<api::WaitOutOfMemoryRequest>(p, s, free) },
    Rule { rpc: "DeleteProcess", when: When::InSandbox, check: |p, s| check::<api::DeleteProcessRequest>(p, s, free) },
    Rule { rpc: "ResizePty", when: When::InSandbox, check: |p, s| check::<api::ResizePtyRequest>(p, s, free) },
    Rule { rpc: "ListProcesses", when: When::InSandbox, check: |p, s| check::<api::ListProcessesRequest>(p, s, statistics) },
    Rule { rpc: "PauseContainer", when: When::InSandbox, check: |p, s| check::<api::ContainerRequest>(p, s, free) },
    Rule { rpc: "ResumeContainer", when: When::InSandbox, check: |p, s| check::<api::ContainerRequest>(p, s, free) },
    Rule { rpc: "UpdateContainer", when: When::InSandbox, check: |p, s| check::<api::UpdateContainerRequest>(p, s, free) },
    Rule { rpc: "StatsContainer", when: When::InSandbox, check: |p, s| check::<api::ContainerRequest>(p, s, statistics) },
    Rule { rpc: "GuestInfo", when: When::Anytime, check: |p, s| check::<api::Empty>(p, s, free) },
    Rule { rpc: "ShutdownSandbox", when: When::Anytime, check: |p, s| check::<api::Empty>(p, s, free) },
];

fn check<R: Message + Bounded>(
    payload: &[u8],
    sandbox: Option<&Sandbox>,
    ask: fn(&R, &Sandbox) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let invalid = |reason: String| Failure::new(Code::INVALID_ARGUMENT, reason);
    let request = R::parse_from_bytes(payload).map_err(|e| invalid(format!("{}: {e}", R::NAME)))?;
    request.check().map_err(|e| invalid(e.to_string()))?;
    sandbox.map_or(Ok(()), |sandbox| ask(&request, sandbox))
}

fn free<R>(_: &R, _: &Sandbox) -> Result<(), Failure> {
    Ok(())
}

fn statistics<R>(_: &R, sandbox: &Sandbox) -> Result<(), Failure> {
    Ok(sandbox.policy().stats()?)
}

fn streams(stdio: Option<&api::Stdio>, sandbox: &Sandbox) -> Result<(), Failure> {
    Ok(stdio.map_or(Ok(()), |stdio| sandbox.policy().stdio(asked(stdio)))?)
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
    sandbox: OnceLock<Arc<Sandbox>>,
    /// Whether CreateSandbox has been called.
    claimed: Mutex<bool>,
}

impl Gate {
    /// The sandbox, which is there when a request for it has been admitted.
    pub fn sandbox(&self) -> Result<Arc<Sandbox>, Failure> {
        self.sandbox.get().cloned().ok_or_else(|| Failure::state("there is no sandbox yet; call CreateSandbox first"))
    }

    /// For a connection to a port of the pod's loopback.
    pub fn admit_forward(&self, port: u16) -> Result<(), Denied> {
        let sandbox = self.sandbox.get().ok_or(Denied::NoSandbox)?;
        Ok(sandbox.policy().port_forward(port)?)
    }

    /// The sandbox is there.
    pub fn open(&self, sandbox: Arc<Sandbox>) {
        // Cannot fail: one CreateSandbox is admitted.
        let _ = self.sandbox.set(sandbox);
    }

    #[cfg(test)]
    pub fn with(sandbox: Arc<Sandbox>) -> Self {
        Self { sandbox: sandbox.into(), claimed: Mutex::new(true) }
    }

    /// May this request be done now?
    pub async fn admit(&self, rule: &Rule, payload: &[u8]) -> Result<(), Failure> {
        // What breaks a bound is refused as such in every state, and changes none.
        (rule.check)(payload, None)?;
        match rule.when {
            When::Anytime => Ok(()),
            When::InSandbox => (rule.check)(payload, Some(&*self.sandbox()?)),
            When::Once => {
                let mut claimed = self.claimed.lock().await;
                if std::mem::replace(&mut *claimed, true) {
                    return Err(Failure::state("CreateSandbox has been called already; start another machine"));
                }
                Ok(())
            }
        }
    }
}

/// Puts the gate in front of every method of the service.
pub fn guard(services: HashMap<String, Service>, gate: &Arc<Gate>) -> HashMap<String, Service> {
    let guarded = |(name, inner): (String, Box<dyn MethodHandler + Send + Sync>)| {
        let rule = RULES.iter().find(|rule| rule.rpc == name.rsplit('/').next().unwrap_or_default());
        let handler: Box<dyn MethodHandler + Send + Sync> = Box::new(Guarded { rule, gate: gate.clone(), inner });
        (name, handler)
    };
    let service = |(name, service): (String, Service)| {
        // A stream would have no request to check. There are none in `agent.proto`.
        let methods = service.methods.into_iter().map(guarded).collect();
        (name, Service { methods, streams: HashMap::new() })
    };
    services.into_iter().map(service).collect()
}

struct Guarded {
    rule: Option<&'static Rule>,
    gate: Arc<Gate>,
    inner: Box<dyn MethodHandler + Send + Sync>,
}

#[async_trait]
impl MethodHandler for Guarded {
    async fn handler(&self, context: TtrpcContext, request: Request) -> ttrpc::Result<Response> {
        let admitted = match self.rule {
            Some(rule) => self.gate.admit(rule, &request.payload).await,
            None => Err(Failure::new(Code::PERMISSION_DENIED, "this request has no rule in the agent")),
        };
        match admitted {
            Ok(()) => self.inner.handler(context, request).await,
            Err(failure) => {
                let mut response = Response::new();
                response.set_status(failure.into_status());
                Ok(response)
            }
        }
    }
}

#[cfg(test)]
impl Rule {
    pub fn rpc(&self) -> &'static str {
        self.rpc
    }

    pub fn needs_sandbox(&self) -> bool {
        self.when == When::InSandbox
    }
}
