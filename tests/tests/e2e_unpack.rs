//! The unpacker against containerd's: the same images, unpacked by both, are the same in every entry's kind, content, mode, owner, time to
//! the nanosecond, extended attributes and hard links. No VM: `cloister image unpack` is the guest's own code.
#![allow(clippy::print_stdout, reason = "a test of many checks says where it is")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::command;
use tests::layer;
use tests::oci::{Entry, Image, LayerBytes, tar};
use tests::tree::{self, Kind, Tree};
use tests::{place, runner, tests};

const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "unp", containerd: place::CONTAINERD_NEWEST },
        1,
        tests![packages_of_debian, twenty_layers_of_changes, whiteouts_of_a_lowest_layer, hostile_archives],
    )
}

/// Unpacks with both and compares; gives what there was to compare.
fn same(bed: &Bed, name: &str, layers: &[LayerBytes]) -> Result<Tree> {
    let layout = Image { cmd: vec!["true"], ..Image::default() }.write_layers(&bed.base().join("images").join(name), "1", layers)?;
    let since = SystemTime::now();
    let ours = ours(bed, name, &layout.directory)??;
    let theirs = theirs(bed, name, &layout)?.map_err(anyhow::Error::msg)?;
    let differences = tree::differences(&ours, &theirs, since);
    ensure!(differences.is_empty(), "{name}: ours / containerd's:\n{}", differences.join("\n"));
    println!("  {name}: {} entries in {} layers are the same", ours.len(), layers.len());
    Ok(ours)
}

/// The outer error is one of this test, the inner one is the unpacker's.
fn ours(bed: &Bed, name: &str, layout: &Path) -> Result<Result<Tree>> {
    let target = bed.base().join("unpacked").join(name);
    let mut unpack = Command::new(place::ours("cloister")?);
    unpack.args(["image", "unpack", "--devices", "--json"]).arg(format!("oci:{}:1", layout.display())).arg(&target);
    let unpacked = match command::run(&mut unpack, LIMIT)?.succeeded() {
        Ok(unpacked) => unpacked,
        Err(refused) => return Ok(Err(refused)),
    };
    let outcome: serde_json::Value = serde_json::from_str(&unpacked.text())?;
    let lower = outcome["lowerdir"].as_str().context("no lowerdir in the output")?;
    let tree = mounted(&bed.base().join("mount-ours"), |point| {
        // A single directory is no overlay; an empty one below changes nothing.
        let empty = bed.base().join("empty");
        fs::create_dir_all(&empty)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o"]).arg(format!("ro,lowerdir={lower}:{}", empty.display())).arg(point);
        command::run(&mut mount, LIMIT)?.succeeded().map(drop)
    })?;
    fs::remove_dir_all(&target)?;
    Ok(Ok(tree))
}

fn theirs(bed: &Bed, name: &str, layout: &tests::oci::Layout) -> Result<std::result::Result<Tree, String>> {
    let reference = bed.registry.push(layout, name, "1")?;
    if let Err(refused) = bed.ctr().pull_unpacking(&reference, "overlayfs") {
        return Ok(Err(refused.to_string()));
    }
    let tree = mounted(&bed.base().join("mount-theirs"), |point| {
        bed.ctr().call(&["image", "mount", "--snapshotter", "overlayfs", &reference, &point.display().to_string()])?.succeeded().map(drop)
    });
    bed.ctr().call(&["snapshot", "--snapshotter", "overlayfs", "rm", &bed.base().join("mount-theirs").display().to_string()])?;
    bed.ctr().call(&["image", "rm", "--sync", &reference])?.succeeded()?;
    Ok(Ok(tree?))
}

fn mounted(point: &Path, mount: impl Fn(&Path) -> Result<()>) -> Result<Tree> {
    fs::create_dir_all(point)?;
    mount(point)?;
    let tree = tree::look(point);
    nix::mount::umount2(point, nix::mount::MntFlags::empty()).with_context(|| format!("unmounting {}", point.display()))?;
    tree
}

/// A tree that `make setup` unpacked from Debian's packages.
fn packages(name: &str) -> Result<LayerBytes> {
    layer::of_tree(&place::build()?.join("deps").join(name))
}

/// A base system; and Python, nginx and a database on it.
fn packages_of_debian(bed: &Bed) -> Result<()> {
    let base = packages("corpus-base")?;
    let tree = same(bed, "base", std::slice::from_ref(&base))?;
    ensure!(tree.len() > 500 && tree.values().any(|look| look.mode & 0o4000 != 0), "{} entries are no base system", tree.len());
    for name in ["python", "nginx", "database"] {
        let whole = same(bed, name, &[base.clone(), packages(&format!("corpus-{name}"))?])?;
        ensure!(whole.len() > tree.len(), "{name} adds nothing");
    }
    Ok(())
}

fn twenty_layers_of_changes(bed: &Bed) -> Result<()> {
    for seed in [1, 2, 3] {
        let tree = same(bed, &format!("changes-{seed}"), &layer::changes(20, seed)?)?;
        ensure!(tree.len() > 50, "only {} entries are left", tree.len());
        let any = |wanted: fn(&tree::Look) -> bool| tree.values().any(wanted);
        ensure!(any(|look| !look.xattrs.is_empty()) && any(|look| look.hard_link.is_some()) && any(|look| look.mtime.1 != 0));
        ensure!(any(|look| look.kind == Kind::Fifo) && any(|look| matches!(look.kind, Kind::Link(_))));
    }
    Ok(())
}

/// They hide nothing, and so are not to be seen; on it, they are.
fn whiteouts_of_a_lowest_layer(bed: &Bed) -> Result<()> {
    let file = |path| Entry::File(path, 0o644, b"there".to_vec());
    let nothing = |path| Entry::File(path, 0o644, Vec::new());
    let lowest = [Entry::Directory("d", 0o755), nothing("d/.wh.gone"), file("d/stays"), nothing(".wh.away"), nothing("d/.wh..wh..opq")];
    let above = [Entry::Directory("d", 0o755), nothing("d/.wh.stays"), file("d/new")];
    let layers = [LayerBytes::honest(&tar(&lowest)?)?, LayerBytes::honest(&tar(&above)?)?];
    let names = |tree: Tree| tree.into_keys().map(|path| path.display().to_string()).filter(|path| !path.is_empty()).collect::<Vec<_>>();
    ensure!(names(same(bed, "lowest", &layers[..1])?) == ["d", "d/stays"]);
    ensure!(names(same(bed, "above", &layers)?) == ["d", "d/new"]);
    Ok(())
}

/// What the fuzzer's corpus has: each is the same with both, or refused by us.
fn hostile_archives(bed: &Bed) -> Result<()> {
    let corpus = place::root().join("fuzz/corpus/tar");
    let mut paths: Vec<PathBuf> = fs::read_dir(&corpus)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    // In a lowest layer containerd makes files of AUFS's bookkeeping and of overlayfs's own form of a whiteout: a difference that is known.
    paths.retain(|path| !path.ends_with("whiteouts"));
    paths.sort();
    let (mut equal, mut refused) = (Vec::new(), Vec::new());
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let layers = [LayerBytes::honest(&fs::read(&path)?)?];
        let layout = Image { cmd: vec!["true"], ..Image::default() }.write_layers(&bed.base().join("images").join(&name), "1", &layers)?;
        let since = SystemTime::now();
        match (ours(bed, &name, &layout.directory)?, theirs(bed, &name, &layout)?) {
            (Ok(ours), Ok(theirs)) => {
                let differences = tree::differences(&ours, &theirs, since);
                ensure!(differences.is_empty(), "{name}: ours / containerd's:\n{}", differences.join("\n"));
                equal.push(name);
            }
            (Ok(_), Err(why)) => anyhow::bail!("{name}: containerd refuses what we take: {why}"),
            (Err(why), _) => {
                println!("  {name}: {why}");
                refused.push(name);
            }
        }
    }
    ensure!(refused == ["dots", "replaced", "sizes-that-disagree"], "refused: {refused:?}; the same: {equal:?}");
    Ok(())
}
