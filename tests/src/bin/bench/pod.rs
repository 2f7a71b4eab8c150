//! A pod that runs: what one more container costs against its image's own cost, and what twenty of them cost the shim.

use anyhow::{Context, Result};
use tests::bed::Bed;
use tests::memory;
use tests::oci::Image;
use tests::pod::Pod;
use tests::stages;

use crate::report::{Report, Unit};

const CONTAINERS: usize = 20;
const SHIM: &str = "containerd-shim-cloister-v2";
const STAYS: &str = "echo ready; sleep 36000";

/// One pod, from its first container to its twentieth.
pub fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let reference = bed.plain(&Image::busybox("sleep 36000")?.with_file("srv/pod", "of the pod\n"), "podbench")?;
    let pod = Pod::start(bed, "pod", &reference, None)?;
    let result = containers(bed, &pod, report);
    pod.end()?;
    result
}

fn containers(bed: &Bed, pod: &Pod<'_>, report: &mut Report) -> Result<()> {
    for n in 1..=CONTAINERS {
        // One that ends tells when its first byte came; one that stays is there to be counted.
        let name = format!("once{n}");
        let finished = pod.run(&name, &pod.spec("echo ready"))?.succeeded()?;
        let seconds = finished.first_output.context("a container without output")?.as_secs_f64();
        let image = stages::of_image(&bed.log_lines(&pod.container(&name))?).as_secs_f64();
        report.add("one more container in a pod: ctr run to first output", Unit::Seconds, seconds);
        report.add("one more container in a pod: its image's part", Unit::Seconds, image);
        report.add("one more container in a pod: ratio to its image's part", Unit::Ratio, seconds / image);
        pod.detach(&format!("stays{n}"), &pod.spec(STAYS))?;
        if n == 1 || n == CONTAINERS {
            let shim = memory::private_mib(memory::process(SHIM, &pod.id)?)?;
            report.add(&format!("memory of the shim (PSS), containers in its pod: {n}"), Unit::MiB, shim);
        }
    }
    Ok(())
}
