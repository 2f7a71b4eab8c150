//! Many pods of one encrypted image that the node does not hold, side by side: each of its blobs crosses the network once.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bed::Bed;
use crate::configuration::Initdata;
use crate::cri::{ContainerSpec, Pod, PodSpec};
use crate::memory;
use crate::oci::Image;

/// What every pod reads, and the node does not.
pub const SECRET: &str = "what every one of them reads and the node does not";
/// Bytes of the image that nothing compresses, so that the download is long enough for others to come while it lasts.
const NOISE: u32 = 8 << 20;
/// Pods that are on their way up at the same time. More would wait for a processor, and run into limits of time, on a small machine.
const STARTERS: usize = 4;
/// How long a container may take to say its first word.
const SPEAKS: Duration = Duration::from_secs(300);

/// What came of it.
#[derive(Debug)]
pub struct Crowd {
    /// From the first pod's beginning to the last one's word.
    pub took: Duration,
    /// Digests of the image's layers, as they lie at the registry.
    pub layers: Vec<String>,
    /// Most memory that a pod's processes had on the node, in MiB: its VM's, all of what it has touched, and its shim's.
    pub memory_mib: u64,
}

/// Runs `count` pods of an image called `name`, waits until all of them speak, counts the downloads, and ends them.
pub fn run(bed: &Bed, name: &str, count: usize) -> Result<Crowd> {
    let noise: Vec<u8> = (0..NOISE).map(|at| (at.wrapping_mul(2_654_435_761).rotate_left(at % 31) >> 24) as u8).collect();
    let image = Image::busybox("cat /srv/secret; wc -c < /srv/noise; exec sleep 36000")?;
    let image = image.with_file("srv/secret", format!("{SECRET}\n")).with_file("srv/noise", noise);
    let initdata = bed.initdata("");
    let layout = bed.encrypt(&image, name, &initdata)?;
    fs::remove_dir_all(layout.directory.with_file_name(name))?;
    let reference = bed.registry.push(&layout, name, "1")?;
    bed.cri()?.pull(&reference)?;
    let layers = layout.digests()?.layers;
    for layer in &layers {
        ensure!(!bed.containerd().blob(layer)?.exists(), "containerd has fetched {layer}: there is nothing to share");
    }

    let started = Instant::now();
    let pods = side_by_side(count, |_| start(bed, &reference, &initdata))?;
    let took = started.elapsed();
    for layer in &layers {
        let requests = bed.registry.downloads(layer)?;
        ensure!(requests.len() == 1, "{layer} was asked for {} times by {count} pods: {requests:#?}", requests.len());
    }
    let memory_mib = pods.iter().map(|pod| memory_mib(&pod.id)).collect::<Result<Vec<_>>>()?.into_iter().max().context("no pods")?;
    let pods: Vec<_> = pods.into_iter().map(|pod| Mutex::new(Some(pod))).collect();
    side_by_side(count, |at| {
        let pod = pods[at].lock().map_err(|_| anyhow!("a thread panicked with a pod"))?.take().context("ended twice")?;
        let id = pod.id.clone();
        pod.end()?;
        bed.nothing_of(&id)
    })?;
    bed.cri()?.remove_image(&reference)?;
    Ok(Crowd { took, layers, memory_mib })
}

/// How many pods of `memory_mib` each the node holds, `wished` at most.
pub fn room(memory_mib: u64, wished: usize) -> Result<usize> {
    // A tenth is left to everybody else.
    let room = usize::try_from(memory::available_mib()? / 10 * 9 / memory_mib.max(1))?;
    Ok(room.clamp(1, wished))
}

/// A pod whose container has said all that it has to say.
fn start<'a>(bed: &'a Bed, reference: &str, initdata: &Initdata) -> Result<Pod<'a>> {
    let annotations = [("dev.cloister.initdata".to_owned(), initdata.annotation()?)].into();
    let pod = bed.cri()?.run_pod(&PodSpec { name: "crowd", annotations, ..PodSpec::default() })?;
    let spec = ContainerSpec { name: "one", image: reference, ..ContainerSpec::default() };
    let id = pod.create_of_present(&spec)?;
    pod.start_created(&id)?;
    let deadline = Instant::now() + SPEAKS;
    loop {
        let log = pod.log(&spec)?;
        if log.contains(&format!(" stdout F {SECRET}\n")) && log.contains(&format!(" stdout F {NOISE}\n")) {
            return Ok(pod);
        }
        ensure!(Instant::now() < deadline, "{reference} has said nothing but {log:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn memory_mib(id: &str) -> Result<u64> {
    let of = |program| memory::resident_mib(memory::process(program, id)?);
    Ok(of("qemu-system")? + of("containerd-shim-cloister-v2")?)
}

/// Does `work` for each number below `count`, some at a time.
fn side_by_side<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let one = || {
        let mut done = Vec::new();
        while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < count) {
            done.push(work(at)?);
        }
        Ok(done)
    };
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..count.min(STARTERS)).map(|_| scope.spawn(one)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked, see above"))));
        joined.collect::<Vec<Result<Vec<T>>>>()
    });
    Ok(done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}
