//! The Sandbox service (`sandboxer = "shim"`): not offered. containerd's other way, a pod's first container as its sandbox, works
//! with every version.

use async_trait::async_trait;
use containerd_shim_protos::{sandbox_api as api, sandbox_async::Sandbox};
use ttrpc::{Code, asynchronous::TtrpcContext, get_status};

/// Refuses each method by its name, with the code that says so.
pub struct SandboxService;

macro_rules! refuse {
    ($($method:ident, $name:literal, $request:ident -> $response:ident;)*) => {
        #[async_trait]
        impl Sandbox for SandboxService {
            $(async fn $method(&self, _: &TtrpcContext, _: api::$request) -> ttrpc::Result<api::$response> {
                Err(ttrpc::Error::RpcStatus(get_status(
                    Code::UNIMPLEMENTED,
                    concat!($name, " is not supported by the runtime cloister: use sandboxer = \"podsandbox\""),
                )))
            })*
        }
    };
}

refuse! {
    create_sandbox, "CreateSandbox", CreateSandboxRequest -> CreateSandboxResponse;
    start_sandbox, "StartSandbox", StartSandboxRequest -> StartSandboxResponse;
    platform, "Platform", PlatformRequest -> PlatformResponse;
    stop_sandbox, "StopSandbox", StopSandboxRequest -> StopSandboxResponse;
    wait_sandbox, "WaitSandbox", WaitSandboxRequest -> WaitSandboxResponse;
    sandbox_status, "SandboxStatus", SandboxStatusRequest -> SandboxStatusResponse;
    ping_sandbox, "PingSandbox", PingRequest -> PingResponse;
    shutdown_sandbox, "ShutdownSandbox", ShutdownSandboxRequest -> ShutdownSandboxResponse;
    sandbox_metrics, "SandboxMetrics", SandboxMetricsRequest -> SandboxMetricsResponse;
}
