//! What is wrong with an image, a registry or a broker is said in one line, with a non-zero exit, and nothing of it is left.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, POLICY, Setup};
use tests::broker::Release;
use tests::configuration::Initdata;
use tests::ctr::Run;
use tests::oci::{Digests, Entry, Image, LayerBytes, busybox_layer, tar};
use tests::registry::Registry;
use tests::{place, runner, tests};

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "bad", containerd: place::CONTAINERD_DEFAULT },
        2,
        tests![
            an_unknown_image,
            a_registry_that_is_down,
            a_broker_that_is_down,
            a_wrong_key,
            a_flipped_byte_in_the_manifest,
            a_truncated_manifest,
            a_flipped_byte_in_the_config,
            a_truncated_config,
            a_flipped_byte_in_a_layer,
            a_truncated_layer,
            a_spoilt_copy_on_the_node_is_survived,
            a_flipped_byte_in_a_layer_at_the_registry,
            a_flipped_byte_in_an_encrypted_layer,
            a_layer_that_lies_about_its_decompressed_size,
            a_layer_that_is_not_what_the_config_says,
            a_layer_that_climbs_out_of_its_root,
            initdata_that_is_no_initdata,
            a_program_that_does_not_exist,
        ],
    )
}

/// An image that would run, its reference, and its digests.
fn good(bed: &Bed, name: &str) -> Result<(String, Digests)> {
    // A layer of the image's own: blobs are shared by digest, and a spoilt one would spoil other tests.
    let image = Image::busybox("echo it ran")?.with_file("srv/name", name);
    let layout = bed.layout(&image, name)?;
    let digests = layout.digests()?;
    Ok((bed.provide(&layout, name)?, digests))
}

/// Spoils a file in place.
fn spoil(path: &Path, how: fn(&mut Vec<u8>)) -> Result<()> {
    let mut content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    how(&mut content);
    // containerd stores blobs read-only; root may write them all the same.
    fs::write(path, content).with_context(|| format!("spoiling {}", path.display()))
}

#[allow(clippy::ptr_arg, reason = "the same type as truncate")]
fn flip(content: &mut Vec<u8>) {
    let middle = content.len() / 2;
    content[middle] ^= 1;
}

fn truncate(content: &mut Vec<u8>) {
    content.truncate(content.len() / 2);
}

/// Spoils one blob wherever the guest can have it from: the node's copy first, then the registry's.
fn spoil_everywhere(bed: &Bed, digest: &str, how: fn(&mut Vec<u8>)) -> Result<()> {
    spoil(&bed.containerd().blob(digest)?, how)?;
    spoil(&bed.registry.blob(digest)?, how)
}

/// Spoils one blob of an image everywhere, and expects the guest to name it.
fn spoilt(bed: &Bed, name: &str, which: fn(&Digests) -> &String, how: fn(&mut Vec<u8>)) -> Result<()> {
    let (reference, digests) = good(bed, name)?;
    let digest = which(&digests);
    spoil_everywhere(bed, digest, how)?;
    let id = bed.id(name);
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &[digest])
}

fn manifest(digests: &Digests) -> &String {
    &digests.manifest
}

fn config(digests: &Digests) -> &String {
    &digests.config
}

fn top_layer(digests: &Digests) -> &String {
    &digests.layers[digests.layers.len() - 1]
}

fn a_flipped_byte_in_the_manifest(bed: &Bed) -> Result<()> {
    // containerd itself reads manifest and config before any shim is asked; where it stumbles first, its line is as good.
    spoilt_before_the_shim(bed, "flip-manifest", manifest, flip)
}

fn a_truncated_manifest(bed: &Bed) -> Result<()> {
    spoilt_before_the_shim(bed, "cut-manifest", manifest, truncate)
}

fn a_flipped_byte_in_the_config(bed: &Bed) -> Result<()> {
    spoilt_before_the_shim(bed, "flip-config", config, flip)
}

fn a_truncated_config(bed: &Bed) -> Result<()> {
    spoilt_before_the_shim(bed, "cut-config", config, truncate)
}

/// A flipped byte may leave JSON that `ctr` can read: then the guest has to refuse it. Either way it does not run.
fn spoilt_before_the_shim(bed: &Bed, name: &str, which: fn(&Digests) -> &String, how: fn(&mut Vec<u8>)) -> Result<()> {
    let (reference, digests) = good(bed, name)?;
    spoil_everywhere(bed, which(&digests), how)?;
    let id = bed.id(name);
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &[])
}

fn a_flipped_byte_in_a_layer(bed: &Bed) -> Result<()> {
    spoilt(bed, "flip-layer", top_layer, flip)
}

fn a_truncated_layer(bed: &Bed) -> Result<()> {
    spoilt(bed, "cut-layer", top_layer, truncate)
}

/// The node's copy is not what it should be: the guest sees it, and has the layer from the registry instead.
fn a_spoilt_copy_on_the_node_is_survived(bed: &Bed) -> Result<()> {
    let (reference, digests) = good(bed, "survived")?;
    spoil(&bed.containerd().blob(top_layer(&digests))?, flip)?;
    let id = bed.id("survived");
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, ..Run::default() })?;
    ensure!(finished.text() == "it ran\n", "{finished:?}");
    bed.nothing_of(&id)
}

fn a_flipped_byte_in_a_layer_at_the_registry(bed: &Bed) -> Result<()> {
    let (reference, digests) = good(bed, "flip-registry")?;
    let digest = top_layer(&digests);
    bed.ctr().call(&["content", "rm", digest])?.succeeded()?;
    spoil(&bed.registry.blob(digest)?, flip)?;
    let id = bed.id("flip-registry");
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &[digest])
}

fn a_flipped_byte_in_an_encrypted_layer(bed: &Bed) -> Result<()> {
    let initdata = bed.initdata(POLICY);
    let layout = bed.encrypt(&Image::busybox("echo it ran")?.with_file("srv/x", "flip"), "flip-encrypted", &initdata)?;
    let reference = bed.provide(&layout, "flip-encrypted")?;
    let digests = layout.digests()?;
    let digest = top_layer(&digests);
    spoil_everywhere(bed, digest, flip)?;
    let (id, annotation) = (bed.id("flip-encrypted"), initdata.annotation()?);
    bed.refused(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() }, &[digest])
}

fn an_unknown_image(bed: &Bed) -> Result<()> {
    let reference = format!("{}/nobody/made-this:1", bed.registry.authority);
    let pull = bed.ctr().call(&["image", "pull", "--plain-http", "--local", "--snapshotter", "cloister", &reference])?;
    ensure!(!pull.status.success() && pull.stderr.contains("not found"), "{pull:?}");
    let id = bed.id("unknown");
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &["not found", "made-this"])
}

/// The node has manifest and config, the layer is at a registry that has gone.
fn a_registry_that_is_down(bed: &Bed) -> Result<()> {
    let mut registry = Registry::start(bed.base(), "registry-down")?;
    let layout = bed.layout(&Image::busybox("echo it ran")?.with_file("srv/x", "down"), "down")?;
    let reference = registry.push(&layout, "down", "1")?;
    bed.ctr().pull(&reference)?;
    bed.ctr().call(&["content", "rm", top_layer(&layout.digests()?)])?.succeeded()?;
    registry.stop()?;
    let id = bed.id("registry-down");
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &[&registry.authority])
}

fn a_broker_that_is_down(bed: &Bed) -> Result<()> {
    let broker = format!("127.0.0.1:{}", tests::registry::free_port()?);
    let initdata = Initdata::new(&format!("http://{broker}"), POLICY);
    let reference = bed.encrypted(&Image::busybox("echo it ran")?, "no-broker", &initdata)?;
    let (id, annotation) = (bed.id("no-broker"), initdata.annotation()?);
    bed.refused(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() }, &[&broker])
}

/// The key of another image stands under this one's name: it unwraps nothing.
fn a_wrong_key(bed: &Bed) -> Result<()> {
    let initdata = bed.initdata(POLICY);
    let reference = bed.encrypted(&Image::busybox("echo it ran")?, "wrong-key", &initdata)?;
    // Encrypting another image under the same name replaces the key in the broker.
    let other = bed.layout(&Image::busybox("echo another")?, "other")?;
    let file = bed.base().join("images/wrong-key.initdata");
    let release = Release { key: "kbs:///tests/image/wrong-key", initdata: &file, tee: "sample", launch_measurement: None };
    bed.broker.encrypt(&other, "1", &release)?;
    let (id, annotation) = (bed.id("wrong-key"), initdata.annotation()?);
    bed.refused(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() }, &["kbs:///tests/image/wrong-key"])
}

/// Layers of the test's own making on top of the usual one; all digests are right.
fn with_layer(bed: &Bed, name: &str, layer: LayerBytes) -> Result<String> {
    let image = Image::busybox("echo it ran")?;
    let layers = [LayerBytes::honest(&tar(&busybox_layer()?)?)?, layer];
    let layout = image.write_layers(&bed.base().join("images").join(name), "1", &layers)?;
    bed.provide(&layout, name)
}

fn a_layer_that_lies_about_its_decompressed_size(bed: &Bed) -> Result<()> {
    let mut layer = LayerBytes::honest(&tar(&[Entry::File("srv/x", 0o644, vec![0; 4 << 20])])?)?;
    // The last four bytes of gzip are the length before compression (RFC 1952, ISIZE).
    let end = layer.compressed.len();
    layer.compressed[end - 4..].copy_from_slice(&512_u32.to_le_bytes());
    let (reference, id) = (with_layer(bed, "lying-size", layer)?, bed.id("lying-size"));
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &["layer"])
}

fn a_layer_that_is_not_what_the_config_says(bed: &Bed) -> Result<()> {
    let mut layer = LayerBytes::honest(&tar(&[Entry::File("srv/x", 0o644, b"one".to_vec())])?)?;
    layer.diff_id = tests::oci::digest(b"another tar");
    let (reference, id) = (with_layer(bed, "other-diff", layer)?, bed.id("other-diff"));
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &["diff"])
}

fn a_layer_that_climbs_out_of_its_root(bed: &Bed) -> Result<()> {
    let link = Entry::Link("srv/out".to_owned(), "/");
    let layer = LayerBytes::honest(&tar(&[link, Entry::File("srv/out/init", 0o755, b"#!/bin/sh\necho taken over\n".to_vec())])?)?;
    let reference = with_layer(bed, "climber", layer)?;
    let id = bed.id("climber");
    // Two right answers: the file lands in the container's own root, or the layer is refused. Never in the guest's root.
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, args: &["/bin/cat", "/init"], ..Run::default() })?;
    ensure!(finished.text().contains("taken over") || finished.stderr.contains("layer"), "{finished:?}");
    bed.nothing_of(&id)
}

fn initdata_that_is_no_initdata(bed: &Bed) -> Result<()> {
    let (reference, _) = good(bed, "no-initdata")?;
    for (text, word) in [("!", "base64"), ("aGVsbG8=", "gzip")] {
        let id = bed.id("no-initdata");
        bed.refused(&Run { image: &reference, id: &id, initdata: Some(text), ..Run::default() }, &["initdata", word])?;
    }
    let mut broken = bed.initdata(POLICY);
    broken.text = broken.text.replace("0.1.0", "9.9.9");
    let (id, annotation) = (bed.id("no-initdata"), broken.annotation()?);
    bed.refused(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() }, &["9.9.9"])
}

fn a_program_that_does_not_exist(bed: &Bed) -> Result<()> {
    let (reference, _) = good(bed, "no-program")?;
    let id = bed.id("no-program");
    bed.refused(&Run { image: &reference, id: &id, args: &["/bin/no-such-program"], ..Run::default() }, &["no-such-program"])
}
