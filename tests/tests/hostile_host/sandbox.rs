//! CreateSandbox: before it, many of it at once, and a second one.

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use protobuf::Message;
use protocol::stream::{Kind, StreamId};
use protocol::volume::VolumeId;
use protocol::{api, forward, guest_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use ttrpc::Code;

use crate::bed::HostileBed;
use crate::host::{TIMEOUT, call_over, creation, refused, valid};

/// A length of 5 MiB, one that is all ones, a frame that ends early, and no frame at all.
const LYING_FRAMES: [&[u8]; 4] = [&[0, 0x50, 0, 0, 0, 0, 0, 1, 1, 0], &[0xff; 64], &[0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 1], &[0; 10]];

pub fn before_the_sandbox_every_port_is_closed(bed: &HostileBed) -> Result<()> {
    let host = bed.fresh()?;
    bed.runtime.block_on(async {
        let container = api::ContainerRequest { container_id: "c".into(), ..Default::default() }.write_to_bytes()?;
        let create = creation("c", &bed.images.app, &valid()).write_to_bytes()?;
        let exec = api::ExecProcessRequest { container_id: "c".into(), exec_id: "e".into(), ..Default::default() }.write_to_bytes()?;
        // A container's id is the first field of each of the others.
        for rpc in [
            ("CreateContainer", &create),
            ("ExecProcess", &exec),
            ("PrepareVolumes", &container),
            ("ReadVolume", &container),
            ("StartProcess", &container),
            ("SignalProcess", &container),
            ("WaitProcess", &container),
            ("WaitOutOfMemory", &container),
            ("DeleteProcess", &container),
            ("ResizePty", &container),
            ("ListProcesses", &container),
            ("PauseContainer", &container),
            ("ResumeContainer", &container),
            ("UpdateContainer", &container),
            ("StatsContainer", &container),
        ] {
            refused(host.raw(rpc.0, rpc.1.clone()).await?, Code::FAILED_PRECONDITION, "call CreateSandbox first").context(rpc.0)?;
        }
        let stream = StreamId { kind: Kind::Stdin, container_id: "c".into(), exec_id: String::new() };
        let refusal = host.sandbox.stream(&stream).await.err().context("a stream of nothing was connected")?;
        ensure!(refusal.to_string().contains("no such stream"), "{refusal}");
        let volume = VolumeId { container_id: "c".into(), number: 0 };
        ensure!(host.sandbox.volume(&volume).await.is_err(), "a volume of nothing was taken");
        let mut port = host.sandbox.connect(guest_port::FORWARD).await?;
        let refusal = forward::connect(&mut port, 8006).await.err().context("a port was reached")?;
        ensure!(refusal.to_string().contains("a port of the agent itself"), "{refusal}");
        let mut port = host.sandbox.connect(guest_port::FORWARD).await?;
        let refusal = forward::connect(&mut port, 80).await.err().context("a port was reached")?;
        ensure!(refusal.to_string().contains("call CreateSandbox first"), "{refusal}");

        for frame in LYING_FRAMES {
            for port in [guest_port::RPC, guest_port::STREAM, guest_port::VOLUME, guest_port::FORWARD] {
                let mut connection = host.sandbox.connect(port).await?;
                connection.write_all(frame).await?;
                connection.shutdown().await?;
                let mut answer = Vec::new();
                // Closed or reset: the connection ends, and only it.
                let _ = timeout(TIMEOUT, connection.read_to_end(&mut answer)).await.with_context(|| format!("port {port}: {frame:?}"))?;
                ensure!(answer.len() < 4096, "port {port} answered {} bytes to {frame:?}", answer.len());
            }
        }
        ensure!(host.resident().await? < 64 << 10, "the agent has grown to {} KiB", host.resident().await?);
        anyhow::Ok(())
    })
}

/// Of several at once one counts, whichever it is, and it is the one that the door obeys.
pub fn of_many_initdatas_one_counts(bed: &HostileBed) -> Result<()> {
    let host = bed.fresh()?;
    bed.runtime.block_on(async {
        // What breaks a bound changes nothing: the attempt is still to be had.
        let valid = |initdata: Vec<u8>| api::CreateSandboxRequest { sandbox_id: "s".into(), initdata, ..Default::default() };
        let loopback = api::Interface { name: "eth0".into(), mac: vec![0; 6], mtu: 1500, ..Default::default() };
        let attacks = [
            ("hostname", api::CreateSandboxRequest { hostname: "web\n10.0.0.1 registry".into(), ..valid(Vec::new()) }),
            ("interfaces.mac", api::CreateSandboxRequest { interfaces: vec![loopback], ..valid(Vec::new()) }),
            ("sandbox_id", api::CreateSandboxRequest { sandbox_id: "../s".into(), ..valid(Vec::new()) }),
        ];
        for (field, attack) in attacks {
            refused(host.call("CreateSandbox", &attack).await?, Code::INVALID_ARGUMENT, field)?;
        }
        let closed = valid(HostileBed::initdata(&bed.policy())?).write_to_bytes()?;
        let open = valid(Vec::new()).write_to_bytes()?;
        let connections = join_all((0..8).map(|_| host.connection())).await.into_iter().collect::<Result<Vec<_>>>()?;
        let requests = [&closed, &open].into_iter().cycle();
        let all = connections.iter().zip(requests).map(|(client, request)| call_over(client, "CreateSandbox", request.clone()));
        let answers = join_all(all).await.into_iter().collect::<Result<Vec<_>>>()?;
        let taken: Vec<&Vec<u8>> = answers.iter().flatten().collect();
        ensure!(taken.len() == 1, "{} sandboxes were made", taken.len());
        let digest = api::CreateSandboxResponse::parse_from_bytes(taken[0])?.initdata_digest;
        for answer in answers.into_iter().filter(Result::is_err) {
            refused(answer, Code::FAILED_PRECONDITION, "start another machine")?;
        }
        // An open door would look for the container.
        let signal = api::SignalProcessRequest { container_id: "c".into(), signal: 10, ..Default::default() };
        let (code, words) = if digest.is_empty() { (Code::NOT_FOUND, "c") } else { (Code::PERMISSION_DENIED, "allow.signals") };
        refused(host.call("SignalProcess", &signal).await?, code, words).with_context(|| format!("the initdata that counts is {digest:?}"))
    })
}

pub fn a_second_sandbox_does_not_open_the_door(bed: &HostileBed) -> Result<()> {
    let host = bed.closed()?;
    bed.runtime.block_on(async {
        for initdata in [Vec::new(), HostileBed::initdata("[allow]\nexec = true\nsignals = true\n")?, b"no initdata".to_vec()] {
            let request = api::CreateSandboxRequest { sandbox_id: "again".into(), initdata, ..Default::default() };
            refused(host.call("CreateSandbox", &request).await?, Code::FAILED_PRECONDITION, "start another machine")?;
        }
        let signal = api::SignalProcessRequest { container_id: "c".into(), signal: 10, ..Default::default() };
        refused(host.call("SignalProcess", &signal).await?, Code::PERMISSION_DENIED, "allow.signals")
    })
}
