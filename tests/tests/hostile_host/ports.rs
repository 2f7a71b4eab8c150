//! The ports beside the RPCs, and all of them at once.

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use protocol::stream::Kind;
use protocol::volume::VolumeId;
use protocol::{api, forward, guest_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use ttrpc::Code;

use crate::bed::HostileBed;
use crate::host::{Host, TIMEOUT, call_over, done, refused, valid};

async fn no_stream(host: &Host, kind: Kind, id: &str, exec_id: &str, words: &str) -> Result<()> {
    let refusal = host.stream(kind, id, exec_id).await.err().with_context(|| format!("{kind} of '{id}' '{exec_id}' was connected"))?;
    ensure!(refusal.to_string().contains(words), "{kind} of '{id}' '{exec_id}': {refusal}");
    Ok(())
}

pub fn streams_and_volumes_are_those_that_were_admitted(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    bed.runtime.block_on(async {
        done(closed.create("streams", &bed.images.app, &valid()).await?)?;
        no_stream(closed, Kind::Stdin, "streams", "", "no such stream").await?;
        no_stream(closed, Kind::Stdout, "streams", "none", "no such stream").await?;
        no_stream(closed, Kind::Stdout, "none", "", "no such stream").await?;
        let _first = closed.stream(Kind::Stdout, "streams", "").await?;
        no_stream(closed, Kind::Stdout, "streams", "", "connected already").await?;
        // One that is missing stops the start, and a deletion takes them away.
        refused(closed.start("streams").await?, Code::FAILED_PRECONDITION, "is not connected")?;
        done(closed.delete("streams").await?)?;
        no_stream(closed, Kind::Stderr, "streams", "", "no such stream").await?;

        // Places that the policy does not let the host fill, whatever with; and that an open door does.
        let volume = |kind: api::VolumeKind, destination: &str, name: &str| {
            let volume =
                api::Volume { destination: destination.into(), kind: kind.into(), name: name.into(), mode: 0o755, ..Default::default() };
            api::PrepareVolumesRequest { container_id: "volumes".into(), volumes: vec![volume], ..Default::default() }
        };
        for (request, words) in [
            (volume(api::VolumeKind::COPY, "/etc/passwd", ""), "files at /etc/passwd"),
            (volume(api::VolumeKind::EMPTY, "/bin", "e"), "allow.mounts"),
            (volume(api::VolumeKind::EMPTY_MEMORY, "/bin", "m"), "allow.mounts"),
            (volume(api::VolumeKind::DISK, "/dev/xvda", "disk0"), "allow.devices"),
        ] {
            refused(closed.call("PrepareVolumes", &request).await?, Code::PERMISSION_DENIED, words)?;
            done(open.call("PrepareVolumes", &request).await?).with_context(|| format!("without the check: {words}"))?;
            done(open.delete("volumes").await?)?;
        }
        refused(
            closed.call("PrepareVolumes", &volume(api::VolumeKind::DISK, "/dev/x", "scratch")).await?,
            Code::INVALID_ARGUMENT,
            "volumes.name",
        )?;
        for number in [0, 127] {
            let volume = VolumeId { container_id: "volumes".into(), number };
            ensure!(closed.sandbox.volume(&volume).await.is_err(), "a volume that nobody announced was taken");
        }
        anyhow::Ok(())
    })
}

pub fn ports_of_the_loopback_stay_closed(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    let knock = async |host: &Host, port| -> Result<String> {
        let mut connection = host.sandbox.connect(guest_port::FORWARD).await?;
        Ok(forward::connect(&mut connection, port).await.err().context("a port was reached")?.to_string())
    };
    bed.runtime.block_on(async {
        for host in [closed, open] {
            let refusal = knock(host, 8006).await?;
            ensure!(refusal.contains("a port of the agent itself"), "{refusal}");
        }
        let refusal = knock(closed, 80).await?;
        ensure!(refusal.contains("allow.port_forward"), "{refusal}");
        let refusal = knock(open, 80).await?;
        ensure!(refusal.starts_with("port 80: "), "without the check nobody listens, but it was tried: {refusal}");
        anyhow::Ok(())
    })
}

/// Many connections that say nothing, or nothing of sense, beside many requests: the agent answers, and has not grown.
pub fn a_flood_is_outlived(bed: &HostileBed) -> Result<()> {
    let host = bed.closed()?;
    bed.runtime.block_on(async {
        let ports = [guest_port::STREAM, guest_port::VOLUME, guest_port::FORWARD, guest_port::RPC];
        let mut silent = Vec::new();
        for n in 0..48 {
            let mut connection = host.sandbox.connect(ports[n % ports.len()]).await?;
            if n % 3 == 0 {
                // Longer than any greeting.
                connection.write_all(&[b'x'; 5000]).await?;
            }
            silent.push(connection);
        }
        let client = host.connection().await?;
        let junk = vec![0x0a; 1 << 20];
        let all = (0..64).map(|n| {
            let rpc = ["CreateContainer", "CreateSandbox", "ExecProcess", "PrepareVolumes"][n % 4];
            call_over(&client, rpc, junk.clone())
        });
        for answer in join_all(all).await {
            refused(answer?, Code::INVALID_ARGUMENT, "")?;
        }
        done(host.create("after", &bed.images.app, &valid()).await?)?;
        done(host.delete("after").await?)?;
        // What cannot be a greeting is not waited for.
        let read = timeout(TIMEOUT, silent[0].read(&mut [0])).await.context("a greeting without an end is still waited for")?;
        ensure!(!matches!(read, Ok(1..)), "it was answered");
        drop(silent);
        let resident = host.resident().await?;
        ensure!(resident < 64 << 10, "the agent has grown to {resident} KiB");
        anyhow::Ok(())
    })
}
