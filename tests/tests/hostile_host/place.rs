//! The places that a policy has for its containers: each is taken once, whoever asks how often.

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use serde_json::json;
use ttrpc::Code;

use crate::bed::HostileBed;
use crate::host::{Answer, Host, call_over, creation, done, refused, valid};
use protobuf::Message;

/// Six requests over six connections; half of them also fight for one id. Gives those that were done.
async fn race(host: &Host, digest: &str) -> Result<Vec<String>> {
    let connections = join_all((0..6).map(|_| host.connection())).await.into_iter().collect::<Result<Vec<_>>>()?;
    let ids: Vec<String> = (0..6).map(|n| if n % 2 == 0 { "race".to_owned() } else { format!("race{n}") }).collect();
    let requests = ids.iter().map(|id| creation(id, digest, &valid()).write_to_bytes()).collect::<Result<Vec<_>, _>>()?;
    let all = connections.iter().zip(requests).map(|(client, request)| call_over(client, "CreateContainer", request));
    let answers: Vec<Answer> = join_all(all).await.into_iter().collect::<Result<_>>()?;
    let done: Vec<String> = ids.into_iter().zip(answers).filter(|(_, answer)| answer.is_ok()).map(|(id, _)| id).collect();
    for id in &done {
        crate::host::done(host.delete(id).await?)?;
    }
    Ok(done)
}

pub fn a_place_is_taken_once_side_by_side(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    bed.runtime.block_on(async {
        let made = race(closed, &bed.images.app).await?;
        ensure!(made.len() == 1, "{made:?} were made at the place of one");
        // Without a policy each id is taken once, and no more than that.
        let mut made = race(open, &bed.images.app).await.context("without the check")?;
        made.sort();
        ensure!(made == ["race", "race1", "race3", "race5"], "{made:?}");
        anyhow::Ok(())
    })
}

/// What the ledger says and what there is stay the same when a creation fails behind it: the spec is admitted, and has a disk that is not there.
pub fn a_failed_creation_gives_its_place_back(bed: &HostileBed) -> Result<()> {
    let host = bed.closed()?;
    bed.runtime.block_on(async {
        let mut spec = valid();
        spec["linux"]["devices"] = json!([{"path": "/dev/xvda", "type": "b", "major": 254, "minor": 0}]);
        for _ in 0..3 {
            refused(host.create("failed", &bed.images.app, &spec).await?, Code::INVALID_ARGUMENT, "disk for /dev/xvda")?;
        }
        done(host.create("failed", &bed.images.app, &valid()).await?)?;
        refused(host.create("second", &bed.images.app, &valid()).await?, Code::PERMISSION_DENIED, "there is one already")?;
        refused(host.create("failed", &bed.images.app, &valid()).await?, Code::ALREADY_EXISTS, "failed")?;
        done(host.delete("failed").await?)?;
        for _ in 0..2 {
            refused(host.delete("failed").await?, Code::NOT_FOUND, "failed")?;
            refused(host.start("failed").await?, Code::NOT_FOUND, "failed")?;
        }
        anyhow::Ok(())
    })
}
