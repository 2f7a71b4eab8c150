//! How long pods of one encrypted image take to start, side by side, where the node does not hold it: 1, 10, 50.

use anyhow::Result;
use tests::bed::{Bed, Setup};
use tests::{crowd, place};

use crate::report::{Report, Unit};

const PODS: [usize; 3] = [1, 10, 50];

/// In a bed of its own, with a CRI. Where memory holds fewer than fifty, it is as many as it holds.
pub fn measure(report: &mut Report) -> Result<()> {
    let bed = Bed::start_with_cri(&Setup { name: "crowd", containerd: place::CONTAINERD_NEWEST })?;
    let result = crowds(&bed, report);
    let ended = bed.end();
    result.and(ended)
}

fn crowds(bed: &Bed, report: &mut Report) -> Result<()> {
    // Once for the page cache, and to know how much memory one takes.
    let one = crowd::run(bed, "warm", 1)?;
    for wished in PODS {
        let count = crowd::room(one.memory_mib, wished)?;
        println!("{count} pods of one image");
        let crowd = crowd::run(bed, &format!("crowd-{wished}"), count)?;
        report.add(&format!("pods of one image until all speak: {count}"), Unit::Seconds, crowd.took.as_secs_f64());
    }
    report.add("memory of a pod (RSS of its VM and its shim)", Unit::MiB, one.memory_mib as f64);
    Ok(())
}
