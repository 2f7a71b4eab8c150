//! `make demo`: the main job, told so that a newcomer understands it.
//!
//! An image is encrypted, its key goes to a key broker under a rule, and a node that nobody trusts runs it: the key leaves the broker only
//! for a guest that proves what it is. Then two ways in which it refuses, and a search of everything that the node stored.

#![allow(clippy::print_stdout, reason = "it talks to the person in front of the terminal")]

mod image;
mod stages;
mod story;

use std::process::ExitCode;

use anyhow::{Context, Result};
use tests::bed::{Bed, POLICY, Setup};
use tests::oci::Layout;
use tests::place;

use crate::story::Story;

fn main() -> ExitCode {
    match tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe demo failed: {error:#}");
            println!("Logs are in build/t/demo.");
            ExitCode::FAILURE
        }
    }
}

fn tell() -> Result<()> {
    let mut story = Story::begin();
    story.chapter("What was built", "Static binaries for the host, and the guest: a kernel, and an initramfs with the agent as /init.");
    for (what, path) in [
        ("the shim, which containerd starts", place::ours("containerd-shim-cloister-v2")?),
        ("the cloister command", place::ours("cloister")?),
        ("the guest's kernel", place::guest()?.join("vmlinux")),
        ("the guest's initramfs: agent and modules", place::guest()?.join("initramfs.cpio")),
    ] {
        story.fact(&format!("{:5.1} MiB  {what}", std::fs::metadata(&path)?.len() as f64 / f64::from(1 << 20)));
    }

    story.chapter(
        "A node and an owner",
        "containerd, a registry, the snapshotter and the owner's key broker start, on sockets of their own.",
    );
    let bed = Bed::start(&Setup { name: "demo", containerd: place::CONTAINERD_NEWEST })?;
    story.fact(&format!("registry at {}, key broker at {}", bed.registry.authority, bed.broker.url()));
    story.fact("without a TEE, evidence is worth nothing: the broker accepts it because it was started with --development, and says so");
    story.lap("start containerd, registry, broker, snapshotter");

    let result = acts(&mut story, &bed);
    let ended = bed.end();
    result?;
    ended?;
    story.table();
    println!("\nEverything that was started has ended; what is left is in build/.");
    Ok(())
}

fn acts(story: &mut Story, bed: &Bed) -> Result<()> {
    story.chapter(
        "The owner's image",
        "A program and a secret file, made with Debian's umoci; then initdata, which says what the guest is to do.",
    );
    let secret = image::secret()?;
    let plain = image::build(story, bed, &secret)?;
    story.lap("build the image");
    let initdata = image::initdata(story, bed, "initdata.toml", POLICY)?;
    let encrypted = image::encrypt(story, bed, &plain, &initdata)?;
    story.fact("the image's key is in the broker; the rule: this guest's launch measurement, and the digest of this initdata");
    story.lap("encrypt");
    let reference = bed.registry.push(&encrypted, "recipe", "1")?;
    story.command(&format!("skopeo copy oci:encrypted:1 docker://{reference}"));
    story.command(&format!("ctr image pull --plain-http --snapshotter cloister {reference}"));
    bed.ctr().pull_lazily(&reference)?;
    story.lap("push and pull");

    story.chapter("The node runs it", "A virtual machine boots, its agent proves what it is, gets the key, and decrypts inside.");
    let annotation = image::annotation(&initdata)?;
    image::run(story, bed, &reference, &annotation)?;

    story.chapter(
        "It refuses, 1: changed initdata",
        "The node lets the guest's policy allow exec into the container. The digest changes, so the key stays.",
    );
    let changed = image::initdata(story, bed, "changed.toml", &format!("{POLICY}exec = true\n"))?;
    image::refused(story, bed, "changed", &reference, &image::annotation(&changed)?)?;

    story.chapter(
        "It refuses, 2: a flipped byte",
        "One byte of an encrypted layer is changed where the registry keeps it. The guest looks before it decrypts.",
    );
    flip_at_registry(story, bed, &encrypted)?;
    image::refused(story, bed, "flipped", &reference, &annotation)?;

    story.chapter(
        "It keeps its secret",
        "A search of everything that is stored: containerd, snapshotter, registry, broker, logs. Scratch disks went with their guests.",
    );
    look_for_secret(story, bed, &plain, &secret)
}

/// The node has manifest and config only: for the layers the guest asks the registry, through the courier and its cache.
fn flip_at_registry(story: &mut Story, bed: &Bed, image: &Layout) -> Result<()> {
    let digests = image.digests()?;
    let layer = &digests.layers[digests.layers.len() - 1];
    let path = bed.registry.blob(layer)?;
    let mut content = std::fs::read(&path)?;
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&path, content)?;
    story.fact(&format!("byte {middle} of {layer} is another one now"));
    let cached = bed.configuration.cache.join(layer.strip_prefix("sha256:").unwrap_or(layer));
    std::fs::remove_file(&cached).with_context(|| cached.display().to_string())?;
    story.fact("the node's cache, which has the right one from before, has forgotten it");
    Ok(())
}

fn look_for_secret(story: &mut Story, bed: &Bed, plain: &Layout, secret: &str) -> Result<()> {
    // A search that finds nothing proves nothing unless it can find something.
    let control = tests::search::search(&[&plain.directory], secret.as_bytes())?;
    anyhow::ensure!(control.files.len() == 1, "the search does not find the secret where it is: {:?}", control.files);
    story.fact("the search works: in the owner's own plain layout it finds the secret, packed in a gzip layer");
    std::fs::remove_dir_all(bed.base().join("owner"))?;
    let found = tests::search::search(&[bed.base()], secret.as_bytes())?;
    anyhow::ensure!(found.files.is_empty(), "the secret is in {:?}", found.files);
    story.fact(&format!("on the node: nothing, in {} files, {:.1} MiB", found.searched, found.bytes as f64 / f64::from(1 << 20)));
    story.lap("search");
    Ok(())
}
