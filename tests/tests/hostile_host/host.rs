//! The attacker: any request, in any order, over as many connections as he likes.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use protobuf::Message;
use protocol::stream::{Kind, StreamId};
use protocol::{api, guest_port};
use runtime::sandbox::Sandbox;
use runtime::vsock::VsockStream;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::{Code, Request, Status};

const SERVICE: &str = "cloister.agent.v1.Agent";
/// For each request; the guest may be emulated.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// What a request came to: its answer's bytes, or the refusal.
pub type Answer = Result<Vec<u8>, Status>;

/// The attacker and his guest.
pub struct Host {
    pub sandbox: Sandbox,
    client: OnceCell<Client>,
}

impl Host {
    pub fn new(sandbox: Sandbox) -> Self {
        Self { sandbox, client: OnceCell::new() }
    }

    /// Ends the guest.
    pub async fn end(&self) -> Result<()> {
        Ok(self.sandbox.stop().await?)
    }

    /// One more connection to the agent.
    pub async fn connection(&self) -> Result<Client> {
        Ok(Client::new(Socket::new(self.sandbox.connect(guest_port::RPC).await?)))
    }

    /// Asks over the usual connection.
    pub async fn call(&self, rpc: &str, request: &dyn protobuf::MessageDyn) -> Result<Answer> {
        self.raw(rpc, request.write_to_bytes_dyn()?).await
    }

    /// The same with any bytes.
    pub async fn raw(&self, rpc: &str, payload: Vec<u8>) -> Result<Answer> {
        let client = self.client.get_or_try_init(|| self.connection()).await?;
        call_over(client, rpc, payload).await
    }

    pub async fn create(&self, id: &str, digest: &str, spec: &Value) -> Result<Answer> {
        self.call("CreateContainer", &creation(id, digest, spec)).await
    }

    pub async fn start(&self, id: &str) -> Result<Answer> {
        self.call("StartProcess", &api::StartProcessRequest { container_id: id.into(), ..Default::default() }).await
    }

    pub async fn delete(&self, id: &str) -> Result<Answer> {
        self.call("DeleteProcess", &api::DeleteProcessRequest { container_id: id.into(), ..Default::default() }).await
    }

    /// Kills a container and waits for its end.
    pub async fn kill(&self, id: &str) -> Result<()> {
        let kill = api::SignalProcessRequest { container_id: id.into(), signal: 9, all: true, ..Default::default() };
        done(self.call("SignalProcess", &kill).await?)?;
        let wait = api::WaitProcessRequest { container_id: id.into(), ..Default::default() };
        let ended = api::WaitProcessResponse::parse_from_bytes(&done(self.call("WaitProcess", &wait).await?)?)?;
        ensure!(ended.exit_status == 137, "it ended with {}", ended.exit_status);
        Ok(())
    }

    /// Connects one of a process's streams.
    pub async fn stream(&self, kind: Kind, id: &str, exec_id: &str) -> Result<VsockStream> {
        Ok(self.sandbox.stream(&StreamId { kind, container_id: id.into(), exec_id: exec_id.into() }).await?)
    }

    /// Creates, connects and starts a container; gives its output until it says that it is done, and lets it run on.
    pub async fn run(&self, id: &str, digest: &str, spec: &Value) -> Result<(String, [VsockStream; 2])> {
        done(self.create(id, digest, spec).await?)?;
        let mut output = self.stream(Kind::Stdout, id, "").await?;
        let errors = self.stream(Kind::Stderr, id, "").await?;
        done(self.start(id).await?)?;
        let mut seen = String::new();
        while !seen.ends_with("done\n") {
            let mut piece = vec![0; 4096];
            let count = timeout(TIMEOUT, output.read(&mut piece)).await.with_context(|| format!("{id} said only {seen:?}"))??;
            ensure!(count > 0, "{id} ended after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        Ok((seen.trim_end_matches("done\n").to_owned(), [output, errors]))
    }

    /// Of the agent itself, in KiB.
    pub async fn resident(&self) -> Result<u64> {
        let info = done(self.call("GuestInfo", &api::Empty::new()).await?)?;
        Ok(api::GuestInfoResponse::parse_from_bytes(&info)?.agent_rss_kib)
    }
}

/// Asks over one connection.
pub async fn call_over(client: &Client, rpc: &str, payload: Vec<u8>) -> Result<Answer> {
    let timeout_nano = i64::try_from(TIMEOUT.as_nanos())?;
    let request = Request { service: SERVICE.into(), method: rpc.into(), payload, timeout_nano, ..Default::default() };
    match client.request(request).await {
        Ok(response) => Ok(Ok(response.payload)),
        Err(ttrpc::Error::RpcStatus(status)) => Ok(Err(status)),
        Err(error) => bail!("{rpc}: the agent does not answer: {error}"),
    }
}

pub fn creation(id: &str, digest: &str, spec: &Value) -> api::CreateContainerRequest {
    api::CreateContainerRequest {
        container_id: id.into(),
        image_reference: "localhost:1/demo:1".into(),
        image_digest_hint: digest.into(),
        spec: spec.to_string().into_bytes(),
        stdio: Some(api::Stdio { stdout: true, stderr: true, ..Default::default() }).into(),
        ..Default::default()
    }
}

/// What the policy's first container is.
pub fn valid() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["MODE=batch"]},
        "root": {"path": "rootfs"},
        "linux": {},
    })
}

/// It has to have been done.
pub fn done(answer: Answer) -> Result<Vec<u8>> {
    answer.map_err(|status| anyhow::anyhow!("refused with {:?}: {}", status.code(), status.message()))
}

/// It has to have been refused: for this reason, in one line that has these words in it.
pub fn refused(answer: Answer, code: Code, words: &str) -> Result<()> {
    let status = match answer {
        Ok(_) => bail!("it was done; expected {code:?} with '{words}'"),
        Err(status) => status,
    };
    let (found, message) = (status.code(), status.message());
    ensure!(found == code && message.contains(words) && !message.contains('\n'), "{found:?}: {message}; expected {code:?} with '{words}'");
    Ok(())
}
