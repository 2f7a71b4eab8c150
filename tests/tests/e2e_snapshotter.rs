//! The snapshotter under containerd, without a VM: what comes with an image and goes with it, restarts, users by name, images that another
//! snapshotter had first, and plain images for other runtimes.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::bed::{Bed, POLICY, Setup};
use tests::oci::{Entry, Image, Layout};
use tests::{place, runner, tests};

fn main() -> ExitCode {
    let codes = place::CONTAINERD_VERSIONS.map(|version| {
        let setup = Setup { name: &format!("s{version}"), containerd: version };
        runner::main(
            &setup,
            1,
            tests![
                an_encrypted_image_comes_survives_restarts_and_goes,
                a_user_by_name_is_whom_the_image_says,
                an_image_that_another_snapshotter_had_first,
                plain_images_are_unpacked_for_other_runtimes_if_wished,
            ],
        )
    });
    codes.into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// Pushes and pulls as clients of this version do.
fn pull(bed: &Bed, layout: &Layout, name: &str) -> Result<String> {
    let reference = bed.registry.push(layout, name, "1")?;
    match bed.version.as_str() {
        "2" => bed.ctr().pull_lazily(&reference)?,
        _ => bed.ctr().pull(&reference)?,
    }
    Ok(reference)
}

fn snapshots(bed: &Bed) -> Result<Vec<String>> {
    let listed = bed.ctr().call(&["snapshot", "--snapshotter", "cloister", "ls"])?.succeeded()?;
    Ok(listed.text().lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

fn create(bed: &Bed, reference: &str, id: &str) -> Result<Value> {
    bed.ctr().call(&["container", "create", "--snapshotter", "cloister", reference, id])?.succeeded()?;
    Ok(serde_json::from_str(&bed.ctr().call(&["container", "info", id])?.succeeded()?.text())?)
}

fn delete(bed: &Bed, id: &str) -> Result<()> {
    bed.ctr().call(&["container", "rm", id])?.succeeded().map(drop)
}

/// Removes an image and waits for containerd's garbage collector; then nothing of it may be left in the snapshotter.
fn remove(bed: &Bed, reference: &str) -> Result<()> {
    bed.ctr().call(&["image", "rm", "--sync", reference])?.succeeded()?;
    let left = snapshots(bed)?;
    ensure!(left.is_empty(), "snapshots are left: {left:?}");
    for directory in ["records", "snapshots"] {
        let path = bed.base().join("snap").join(directory);
        let files: Vec<_> = fs::read_dir(&path)?.flatten().map(|entry| entry.path()).collect();
        ensure!(files.is_empty(), "files are left: {files:?}");
    }
    Ok(())
}

fn an_encrypted_image_comes_survives_restarts_and_goes(bed: &Bed) -> Result<()> {
    let image = Image::busybox("true")?.with_file("srv/x", "comes and goes");
    let layout = bed.encrypt(&image, "goes", &bed.initdata(POLICY))?;
    let reference = pull(bed, &layout, "goes")?;
    if bed.version == "2" {
        for layer in layout.digests()?.layers {
            ensure!(!bed.containerd().blob(&layer)?.exists(), "layer {layer} was fetched");
        }
    }
    let id = bed.id("goes");
    create(bed, &reference, &id)?;
    let before = snapshots(bed)?;
    ensure!(before.len() == 3, "two layers and a container, but there are {before:?}");
    // Killed, and back: what there was is there, and what it tells containerd is the same.
    bed.restart_snapshotter(&[])?;
    ensure!(snapshots(bed)? == before, "{:?} after the restart, {before:?} before", snapshots(bed)?);
    let mounts = bed.ctr().call(&["snapshot", "--snapshotter", "cloister", "mounts", "/mnt", &id])?.succeeded()?;
    ensure!(mounts.text().contains("snap/snapshots"), "{mounts:?}");
    let again = bed.id("again");
    create(bed, &reference, &again)?;
    delete(bed, &again)?;
    // An image in use stays in use without its name.
    bed.ctr().call(&["image", "rm", "--sync", &reference])?.succeeded()?;
    ensure!(snapshots(bed)?.len() == 3, "the container's snapshots went with the image's name");
    delete(bed, &id)?;
    pull(bed, &layout, "goes")?;
    remove(bed, &reference)
}

fn a_user_by_name_is_whom_the_image_says(bed: &Bed) -> Result<()> {
    // Neither name is in any file of the host's.
    for (user, uid, gid) in
        [("svc", "by name", "by name"), ("svc:crew", "by name", "by name"), ("1000:crew", "1000", "by name"), ("7:8", "7", "8")]
    {
        let name = format!("user-{}", user.replace(':', "-"));
        let layout = bed.layout(&Image { user, ..Image::busybox("true")?.with_file("srv/user", user) }, &name)?;
        let (reference, id) = (pull(bed, &layout, &name)?, bed.id("user"));
        let info = create(bed, &reference, &id)?;
        let spec = &info["Spec"]["process"]["user"];
        let said = |value: &Value| match value.as_u64() {
            Some(2_147_483_646) => "by name".to_owned(),
            other => other.unwrap_or_default().to_string(),
        };
        ensure!((said(&spec["uid"]).as_str(), said(&spec["gid"]).as_str()) == (uid, gid), "{user}: {spec}");
        delete(bed, &id)?;
        remove(bed, &reference)?;
    }
    Ok(())
}

/// Nobody pulls it again, so containerd unpacks it for us too. It may, and nothing of it stays; of an encrypted one it is told what to do.
fn an_image_that_another_snapshotter_had_first(bed: &Bed) -> Result<()> {
    let image = Image::busybox("true")?.with_file("srv/x", "had first");
    let reference = bed.registry.push(&bed.layout(&image, "first")?, "first", "1")?;
    bed.ctr().pull_unpacking(&reference, "native")?;
    bed.ctr().pull_unpacking(&reference, "cloister")?;
    let id = bed.id("first");
    create(bed, &reference, &id)?;
    ensure!(snapshots(bed)?.len() == 3, "{:?}", snapshots(bed)?);
    let kept: Vec<_> = fs::read_dir(bed.base().join("snap/snapshots"))?.flatten().map(|entry| entry.path()).collect();
    ensure!(kept.len() == 1 && fs::read_dir(kept[0].join("fs"))?.count() == 0, "of layers that the guest unpacks, the node keeps {kept:?}");
    delete(bed, &id)?;
    remove(bed, &reference)?;

    // Of no layer of it was there a plain one.
    let image = Image { layers: vec![vec![Entry::File("sealed", 0o644, b"first".to_vec())]], ..Image::default() };
    let layout = bed.encrypt(&image, "first-sealed", &bed.initdata(POLICY))?;
    let reference = bed.registry.push(&layout, "first-sealed", "1")?;
    let refused = bed.ctr().pull_unpacking(&reference, "cloister").err().context("an encrypted image was unpacked")?.to_string();
    ensure!(refused.contains("run `cloister image prepare IMAGE` once"), "{refused}");
    remove(bed, &reference)
}

/// CRI of containerd 1.6 has one snapshotter for all runtimes.
fn plain_images_are_unpacked_for_other_runtimes_if_wished(bed: &Bed) -> Result<()> {
    bed.restart_snapshotter(&["--unpack-plain"])?;
    let image = Image::busybox("true")?.with_file("srv/x", "for runc");
    let layout = bed.layout(&image, "runc")?;
    let reference = bed.registry.push(&layout, "runc", "1")?;
    bed.ctr().pull_unpacking(&reference, "cloister")?;
    let point = bed.base().join("mount");
    fs::create_dir_all(&point)?;
    bed.ctr().call(&["image", "mount", "--rw", "--snapshotter", "cloister", &reference, &point.display().to_string()])?.succeeded()?;
    let seen = look(&point);
    nix::mount::umount2(&point, nix::mount::MntFlags::empty())?;
    // In 1.6 it went with the lease of the mount; that it is gone is looked at below.
    bed.ctr().call(&["snapshot", "--snapshotter", "cloister", "rm", &point.display().to_string()])?;
    seen?;
    remove(bed, &reference)?;

    // Encrypted ones are as they were.
    let layout = bed.encrypt(&image.with_file("srv/y", "sealed"), "sealed", &bed.initdata(POLICY))?;
    let reference = pull(bed, &layout, "sealed")?;
    let id = bed.id("sealed");
    create(bed, &reference, &id)?;
    let mounts = bed.ctr().call(&["snapshot", "--snapshotter", "cloister", "mounts", "/mnt", &id])?.succeeded()?;
    ensure!(mounts.text().contains("bind") && !mounts.text().contains("overlay"), "{mounts:?}");
    delete(bed, &id)?;
    remove(bed, &reference)?;
    bed.restart_snapshotter(&[])
}

fn look(point: &Path) -> Result<()> {
    ensure!(fs::read_to_string(point.join("srv/x"))? == "for runc");
    ensure!(fs::read_link(point.join("bin/sh"))? == Path::new("busybox"));
    fs::write(point.join("srv/x"), "changed").context("writing over a layer")?;
    ensure!(fs::read_to_string(point.join("srv/x"))? == "changed");
    Ok(())
}
