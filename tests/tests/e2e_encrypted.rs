//! An encrypted image runs where its owner's rule is met, and nowhere else; and what it holds is nowhere on the host.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use tests::bed::{Bed, POLICY, Setup};
use tests::broker::{Broker, Release};
use tests::configuration::Initdata;
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::search::search;
use tests::{place, runner, tests};

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "enc", containerd: place::CONTAINERD_DEFAULT },
        2,
        tests![
            an_encrypted_image_runs_and_the_host_stores_nothing_of_it,
            another_initdata_is_refused_the_key,
            another_measurement_is_refused_the_key,
            no_initdata_no_key,
            the_policy_decides_on_exec_and_overrides,
        ],
    )
}

/// Beside those of busybox and of the secret, so that there are ten.
const LAYERS: [&str; 8] = ["srv/a", "srv/b", "srv/c", "srv/d", "srv/e", "srv/f", "srv/g", "srv/h"];

fn an_encrypted_image_runs_and_the_host_stores_nothing_of_it(bed: &Bed) -> Result<()> {
    let secret = format!("the model's weights {}", bed.id("w"));
    let image =
        Image::busybox("wc -c < /srv/secret; cp /srv/secret /tmp/copy 2>/dev/null || cat /srv/secret > /tmp/copy; echo ready; sleep 3600")?;
    let mut image = image.with_file("srv/secret", secret.clone());
    for path in LAYERS {
        image = image.with_file(path, path);
    }
    // A broker of its own: what it counts is this container's.
    let mut broker = Broker::start(bed.base(), "own")?;
    let initdata = Initdata::new(&broker.url(), POLICY);

    // The search has to be able to fail: it finds the secret in the plain layout that the image is made of.
    let plain = bed.layout(&image, "secret")?;
    ensure!(search(&[&plain.directory], secret.as_bytes())?.files.len() == 1, "the search does not find the secret in the plain image");
    let file = bed.base().join("own.initdata");
    std::fs::write(&file, &initdata.text)?;
    let release = Release { key: "kbs:///tests/image/secret", initdata: &file, launch_measurement: None };
    let reference = bed.provide(&broker.encrypt(&plain, "1", &release)?, "secret")?;
    std::fs::remove_dir_all(&plain.directory)?;

    let (id, annotation) = (bed.id("secret"), initdata.annotation()?);
    let run = Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() };
    let running = bed.ctr().start(&run)?;
    running.wait_output(BOOT)?;
    let found = search(&[bed.base()], secret.as_bytes())?;
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    let finished = running.finish(BOOT)?;
    ensure!(found.files.is_empty(), "the secret is in {:?}", found.files);
    ensure!(found.searched > 20, "only {} files were searched", found.searched);
    ensure!(finished.text().starts_with(&format!("{}\n", secret.len())), "{finished:?}");

    // Ten encrypted layers: one quote, and three round trips to the key that opens them all.
    let counts = ["challenges_total", "handshakes_total", "resources_released_total", "requests_total"];
    let counts = counts.iter().map(|name| broker.metric(name)).collect::<Result<Vec<_>>>()?;
    ensure!(counts == [1, 1, 1, 3], "challenges, handshakes, releases, requests: {counts:?}");
    broker.stop()?;

    let found = search(&[bed.base()], secret.as_bytes())?;
    ensure!(found.files.is_empty(), "afterwards, the secret is in {:?}", found.files);
    bed.nothing_of(&id)
}

fn another_initdata_is_refused_the_key(bed: &Bed) -> Result<()> {
    let reference = bed.encrypted(&Image::busybox("echo it ran")?, "changed", &bed.initdata(POLICY))?;
    let changed = bed.initdata("[allow]\nstdin = true\nexec = true\n");
    let (id, annotation) = (bed.id("changed"), changed.annotation()?);
    bed.refused(
        &Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() },
        &["kbs:///tests/image/changed", "initdata"],
    )
}

fn another_measurement_is_refused_the_key(bed: &Bed) -> Result<()> {
    let initdata = bed.initdata(POLICY);
    let layout = bed.layout(&Image::busybox("echo it ran")?, "measured")?;
    let file = bed.base().join("measured.initdata");
    std::fs::write(&file, &initdata.text)?;
    let release = Release { key: "kbs:///tests/image/measured", initdata: &file, launch_measurement: Some(&"00".repeat(48)) };
    let reference = bed.provide(&bed.broker.encrypt(&layout, "1", &release)?, "measured")?;
    let (id, annotation) = (bed.id("measured"), initdata.annotation()?);
    bed.refused(
        &Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() },
        &["kbs:///tests/image/measured", "measurement"],
    )
}

fn no_initdata_no_key(bed: &Bed) -> Result<()> {
    let reference = bed.encrypted(&Image::busybox("echo it ran")?, "bare", &bed.initdata(POLICY))?;
    let id = bed.id("bare");
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &["initdata"])
}

fn the_policy_decides_on_exec_and_overrides(bed: &Bed) -> Result<()> {
    let policy = "[allow]\nstdin = true\nexec = [[\"/bin/echo\", \"allowed\"]]\nenv = [\"MODE=batch\"]\n";
    let initdata = bed.initdata(policy);
    let reference = bed.encrypted(&Image::busybox("echo $MODE; sleep 3600")?, "policy", &initdata)?;
    let annotation = initdata.annotation()?;

    let id = bed.id("policy");
    let run = Run { image: &reference, id: &id, flags: &["--env", "MODE=batch"], initdata: Some(&annotation), ..Run::default() };
    let running = bed.ctr().start(&run)?;
    running.wait_output(BOOT)?;
    let allowed = bed.ctr().exec(&id, "one", &[], &["/bin/echo", "allowed"], b"")?;
    let denied = bed.ctr().exec(&id, "two", &[], &["/bin/cat", "/etc/passwd"], b"")?;
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    ensure!(running.finish(BOOT)?.text() == "batch\n");
    ensure!(allowed.text() == "allowed\n", "{allowed:?}");
    ensure!(!denied.status.success() && denied.stdout.is_empty(), "{denied:?}");
    ensure!(denied.stderr.contains("denied by policy") && denied.stderr.contains("allow.exec"), "{denied:?}");
    bed.nothing_of(&id)?;

    let id = bed.id("args");
    let run = Run { image: &reference, id: &id, args: &["/bin/cat", "/etc/passwd"], initdata: Some(&annotation), ..Run::default() };
    bed.refused(&run, &["denied by policy", "allow.args"])
}
