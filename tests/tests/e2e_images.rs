//! Images as kubelet has them pulled, by the CRI of containerd 1.6, 1.7 and 2.x, on nodes that run pods of Cloister and of runc side by side: an
//! encrypted one with manifest and config alone, a plain one for both, one whose layers an encrypted one had first, one that another
//! snapshotter had first, users by name, a snapshotter that is killed, and removal. One VM for each node.

use std::collections::HashMap;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::cri::configuration::Runtimes;
use tests::cri::{ContainerSpec, Pod, PodSpec};
use tests::oci::{Image, Layout};
use tests::{runner, tests};

/// Where CRI keeps its images.
const NAMESPACE: &str = "k8s.io";
/// Waits for its end.
const SLEEP: &[&str] = &["/bin/sleep", "36000"];
/// What the encrypted image says, and the plain one of the same layers.
const SEALED: &str = "app\nbelow both\ndecrypted inside\n";

fn main() -> ExitCode {
    // One bed after the other: they do not share a containerd. 1.6 has no snapshotter for a single runtime.
    let nodes = [
        ("1.6", Runtimes::OneForAll),
        ("1.7", Runtimes::OneForAll),
        ("1.7", Runtimes::OneForEach),
        ("2", Runtimes::OneForAll),
        ("2", Runtimes::OneForEach),
    ];
    let codes = nodes.map(|(version, runtimes)| {
        let (name, tests) = match runtimes {
            Runtimes::OneForEach => (format!("j{version}"), tests![an_annotation_chooses_the_snapshotter]),
            _ => (format!("i{version}"), tests![one_snapshotter_for_every_runtime]),
        };
        let setup = Setup { name: &name, containerd: version };
        runner::main_with(|| Bed::start_with_runc(&setup, runtimes), 1, tests)
    });
    codes.into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// The only way that 1.6 has, and one that needs no annotation in later versions.
fn one_snapshotter_for_every_runtime(bed: &Bed) -> Result<()> {
    pods_of_both(bed, Runtimes::OneForAll, &HashMap::new())
}

/// Runtimes with a snapshotter each. Kubelet does not say which runtime it pulls for; the pod's annotation does.
fn an_annotation_chooses_the_snapshotter(bed: &Bed) -> Result<()> {
    let annotation = [("io.containerd.cri.runtime-handler".to_owned(), "cloister".to_owned())];
    pods_of_both(bed, Runtimes::OneForEach, &annotation.into())?;

    // Without it the node would unpack as for any runtime: it has no key, and says so instead of running something else.
    let layout = bed.encrypt(&Image::busybox("true")?.with_file("srv/x", "no annotation"), "unsaid", &bed.initdata(""))?;
    let unsaid = bed.registry.push(&layout, "unsaid", "1")?;
    let refused = bed.cri()?.pull(&unsaid).err().context("the node has unpacked an encrypted image")?.to_string();
    ensure!(refused.contains("failed to pull and unpack image"), "{refused}");
    Ok(())
}

/// A pod of runc, and beside it one of Cloister with an encrypted image, which is pulled for `annotations`.
fn pods_of_both(bed: &Bed, runtimes: Runtimes, annotations: &HashMap<String, String>) -> Result<()> {
    let image = Image::busybox("cat /srv/plain")?.with_file("srv/plain", "for any runtime\n");
    let plain = bed.registry.push(&bed.layout(&image, "plain")?, "plain", "1")?;
    let runc = bed.cri()?.run_pod(&PodSpec { name: "runc", handler: "runc", cgroup_parent: "/", ..PodSpec::default() })?;
    says(&runc, &ContainerSpec { name: "plain", image: &plain, ..ContainerSpec::default() }, "for any runtime\n")?;
    let beside = runc.start(&ContainerSpec { name: "beside", image: &plain, command: SLEEP, ..ContainerSpec::default() })?;

    // Whom the user's name means stands in a layer, and so nowhere on the node.
    let shared = Image::busybox("id -un; cat /srv/shared")?.with_file("srv/shared", "below both\n");
    let image = Image { user: "app:app", ..shared.clone().with_file("srv/sealed", "decrypted inside\n") };
    let image = Image { cmd: vec!["id -un; cat /srv/shared /srv/sealed"], ..image };
    let initdata = bed.initdata("");
    let layout = bed.encrypt(&image, "sealed", &initdata)?;
    let sealed = bed.registry.push(&layout, "sealed", "1")?;
    bed.cri()?.pull_for(&sealed, annotations.clone())?;
    only_what_the_node_needs_was_fetched(bed, &layout)?;
    bed.restart_snapshotter(runtimes.flags())?;

    let annotations = [("dev.cloister.initdata".to_owned(), initdata.annotation()?)].into();
    let pod = bed.cri()?.run_pod(&PodSpec { name: "sealed", annotations, ..PodSpec::default() })?;
    let spec = ContainerSpec { name: "sealed", image: &sealed, ..ContainerSpec::default() };
    says_of_present(&pod, &spec, SEALED)?;
    // In the same VM, what runc runs on this node.
    says(&pod, &ContainerSpec { name: "plain", image: &plain, ..ContainerSpec::default() }, "for any runtime\n")?;
    let first = one_that_another_snapshotter_had_first(bed, &pod)?;
    let later = if runtimes == Runtimes::OneForAll { plain_ones_that_come_later(bed, &runc, &shared, &image)? } else { Vec::new() };
    // Its layers are the same, whatever became of them on the node.
    says_of_present(&pod, &ContainerSpec { name: "again", ..spec }, SEALED)?;
    ensure!(runc.shell(&beside, "cat /srv/plain")? == "for any runtime\n");
    for pod in [runc, pod] {
        let id = pod.id.clone();
        pod.end()?;
        bed.nothing_of(&id)?;
    }

    for image in later.iter().chain([&sealed, &plain, &first]) {
        bed.cri()?.remove_image(image)?;
    }
    // The pause image stays, and is ours where nobody else unpacks.
    let left = snapshots(bed)?;
    ensure!(left.len() == usize::from(runtimes == Runtimes::OneForAll) && !left.concat().contains("extract-"), "{left:?}");
    Ok(())
}

/// Their layers, or some of them, are those of the encrypted image that is here already, so that containerd does not fetch them.
fn plain_ones_that_come_later(bed: &Bed, runc: &Pod<'_>, shared: &Image, sealed: &Image) -> Result<Vec<String>> {
    let image = shared.clone().with_file("srv/above", "pulled later\n");
    let layout = bed.layout(&Image { cmd: vec!["id -un; cat /srv/shared /srv/above"], ..image }, "later")?;
    let later = bed.registry.push(&layout, "later", "1")?;
    // The registry does not have it: what the pod is told says so.
    let blob = bed.registry.blob(&layout.digests()?.layers[1])?;
    let away = blob.with_extension("away");
    fs::rename(&blob, &away)?;
    bed.cri()?.pull(&later)?;
    let spec = ContainerSpec { name: "later", image: &later, ..ContainerSpec::default() };
    let refused = runc.create_of_present(&spec).err().context("a pod of runc has half of its image")?.to_string();
    for word in ["/later:1@sha256:", &layout.digests()?.layers[1], "an encrypted image had this layer first", "pull this one again"] {
        ensure!(refused.contains(word), "{word}: {refused}");
    }
    fs::rename(&away, &blob)?;
    says(runc, &ContainerSpec { name: "later-again", ..spec }, "root\nbelow both\npulled later\n")?;

    // All its layers, with nothing above them that containerd could ask for.
    let twin = bed.registry.push(&bed.layout(sealed, "twin")?, "twin", "1")?;
    says(runc, &ContainerSpec { name: "twin", image: &twin, ..ContainerSpec::default() }, SEALED)?;
    says(runc, &ContainerSpec { name: "twin-again", image: &twin, ..ContainerSpec::default() }, SEALED)?;
    Ok(vec![later, twin])
}

/// And which nobody pulls again, as with `imagePullPolicy: IfNotPresent`.
fn one_that_another_snapshotter_had_first(bed: &Bed, pod: &Pod<'_>) -> Result<String> {
    let image = Image::busybox("cat /srv/first")?.with_file("srv/first", "another had it first\n");
    let first = bed.registry.push(&bed.layout(&image, "first")?, "first", "1")?;
    bed.ctr().in_namespace(NAMESPACE).pull_unpacking(&first, "native")?;
    bed.cri()?.wait_image(&first)?;
    let spec = ContainerSpec { name: "first", image: &first, ..ContainerSpec::default() };
    says_of_present(pod, &spec, "another had it first\n")?;
    Ok(first)
}

fn only_what_the_node_needs_was_fetched(bed: &Bed, layout: &Layout) -> Result<()> {
    let digests = layout.digests()?;
    for fetched in [&digests.manifest, &digests.config] {
        ensure!(bed.containerd().blob(fetched)?.exists(), "{fetched} was not fetched");
    }
    for layer in &digests.layers {
        ensure!(!bed.containerd().blob(layer)?.exists(), "layer {layer} was fetched");
    }
    Ok(())
}

/// Runs a container to its end, and compares what it has said.
fn says(pod: &Pod<'_>, spec: &ContainerSpec<'_>, text: &str) -> Result<()> {
    let id = pod.start(spec)?;
    ended(pod, spec, &id, text)
}

/// The same without pulling its image again.
fn says_of_present(pod: &Pod<'_>, spec: &ContainerSpec<'_>, text: &str) -> Result<()> {
    let id = pod.create_of_present(spec)?;
    pod.start_created(&id)?;
    ended(pod, spec, &id, text)
}

fn ended(pod: &Pod<'_>, spec: &ContainerSpec<'_>, id: &str, text: &str) -> Result<()> {
    let code = pod.wait(id)?;
    let log = pod.log(spec)?;
    let said: String = log.lines().filter_map(|line| line.split_once(" stdout F ")).map(|(_, said)| format!("{said}\n")).collect();
    ensure!(code == 0 && said == text, "{}: {code}: {log}", spec.name);
    Ok(())
}

/// All of the snapshotter's records, whatever namespace they are of.
fn snapshots(bed: &Bed) -> Result<Vec<String>> {
    let records = bed.base().join("snap/records");
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).with_context(|| entry.path().display().to_string());
    fs::read_dir(&records)?.flatten().map(read).collect()
}
