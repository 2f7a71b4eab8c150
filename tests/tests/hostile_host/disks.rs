//! Disks that the host serves: it lies to the kernel of the guest, breaks off, or says nothing any more.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use protocol::nbd::{ANSWER, Command, REQUEST, Reply, Request};
use protocol::volume::VolumeId;
use protocol::{api, line};
use runtime::vsock::VsockStream;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use ttrpc::Code;

use crate::bed::HostileBed;
use crate::host::{Host, TIMEOUT, done, refused, valid};

const SIZE: u64 = 1 << 20;

/// What a host does when it is asked for data.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    None,
    /// Something else than an answer.
    Magic,
    /// The answer to another question.
    Cookie,
    /// Half of what was asked for, and the end.
    Half,
    /// An answer that begins, and goes on for ever.
    Trickle,
    Silence,
    End,
}

fn announcement(id: &str) -> api::PrepareVolumesRequest {
    let volume = api::Volume {
        destination: "/dev/xvda".into(),
        kind: api::VolumeKind::SERVED_DISK.into(),
        name: format!("f.{id}"),
        size: SIZE,
        ..Default::default()
    };
    api::PrepareVolumesRequest { container_id: id.into(), volumes: vec![volume], ..Default::default() }
}

async fn connect(host: &Host, id: &str) -> Result<VsockStream> {
    let mut stream = host.sandbox.volume(&VolumeId { container_id: id.into(), number: 0 }).await?;
    line::read_answer(&mut stream).await?;
    Ok(stream)
}

/// Reads its disk, which it has by a device of its spec.
fn reader() -> Value {
    let mut spec = valid();
    let script = "head -c 4 /dev/xvda 2>&1; echo; head -c 4 /dev/xvda 2>&1; echo; echo done; sleep 3600";
    spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
    spec["linux"]["devices"] = json!([{"path": "/dev/xvda", "type": "b", "major": 254, "minor": 0}]);
    spec
}

/// Answers until the guest has enough of it.
async fn serve(mut stream: VsockStream, lie: Lie) -> Result<()> {
    let mut header = [0; REQUEST];
    while stream.read_exact(&mut header).await.is_ok() {
        let request = Request::parse(&header)?;
        let mut answer = Reply { error: 0, cookie: request.cookie }.to_bytes().to_vec();
        if request.command == Command::Read {
            answer.extend(b"disk".repeat(request.length as usize / 4));
        }
        let half = answer.len() / 2;
        match lie {
            Lie::None => {}
            Lie::Magic => answer[0] ^= 1,
            Lie::Cookie => answer[15] ^= 1,
            Lie::Half => answer.truncate(half),
            Lie::Silence => continue,
            Lie::End => return Ok(()),
            Lie::Trickle => {
                stream.write_all(&answer[..half]).await?;
                // Until the guest hangs up.
                while stream.write_all(&answer[half..half + 1]).await.is_ok() {
                    if timeout(ANSWER / 20, stream.read(&mut [0; 4096])).await.is_ok_and(|read| matches!(read, Ok(0) | Err(_))) {
                        break;
                    }
                }
                return Ok(());
            }
        }
        stream.write_all(&answer).await?;
        if lie == Lie::Half {
            return Ok(());
        }
    }
    Ok(())
}

/// A container reads a disk of which the host lies; it goes on, and so does its guest.
async fn lied_to(bed: &HostileBed, host: &Host, lie: Lie) -> Result<()> {
    let id = format!("disk{lie:?}");
    done(host.call("PrepareVolumes", &announcement(&id)).await?)?;
    let stream = connect(host, &id).await?;
    let serving = tokio::spawn(serve(stream, lie));
    let (seen, _streams) = host.run(&id, &bed.images.app, &reader()).await?;
    let lines: Vec<&str> = seen.lines().filter(|line| !line.is_empty()).collect();
    match lie {
        Lie::None => ensure!(lines == ["disk", "disk"], "{seen}"),
        // An error of the medium; then there is no such device.
        _ => ensure!(lines.len() == 2 && lines[0].contains("rror") && lines[1].starts_with("head: "), "{lie:?}: {seen}"),
    }
    let ending = Instant::now();
    host.kill(&id).await?;
    done(host.delete(&id).await?)?;
    ensure!(ending.elapsed() < ANSWER, "{lie:?}: its end waited for the host");
    timeout(TIMEOUT, serving).await.with_context(|| format!("{lie:?}: the guest does not hang up"))???;
    Ok(())
}

pub fn a_disk_of_a_lying_host_fails_and_nothing_else(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    bed.runtime.block_on(async {
        refused(closed.call("PrepareVolumes", &announcement("disk")).await?, Code::PERMISSION_DENIED, "allow.devices")?;
        // One that is announced has to be connected, once, before the container is made.
        done(open.call("PrepareVolumes", &announcement("disk")).await?)?;
        refused(open.create("disk", &bed.images.app, &reader()).await?, Code::FAILED_PRECONDITION, "is not connected")?;
        done(open.call("PrepareVolumes", &announcement("disk")).await?).context("a failed creation leaves no volume")?;
        let _first = connect(open, "disk").await?;
        let again = connect(open, "disk").await.err().context("it was connected twice")?.to_string();
        ensure!(again.contains("connected already"), "{again}");
        done(open.delete("disk").await?)?;

        // Side by side: those that say nothing take their time.
        let lies = [Lie::None, Lie::Magic, Lie::Cookie, Lie::Half, Lie::Trickle, Lie::Silence, Lie::End];
        try_join_all(lies.map(|lie| lied_to(bed, open, lie))).await?;
        lied_to(bed, open, Lie::None).await.context("afterwards")
    })
}
