//! The demo's image: made, encrypted, run, refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::bed::Bed;
use tests::broker::Release;
use tests::command;
use tests::ctr::Run;
use tests::oci::Layout;
use tests::place;

use crate::stages;
use crate::story::Story;

const KEY: &str = "kbs:///demo/image-key/recipe";
const LIMIT: Duration = Duration::from_secs(120);

/// What the container runs: it shows that it can read the secret, and keeps it to itself.
const PROGRAM: &str = r#"#!/bin/sh
echo "Hello from $(cat /proc/sys/kernel/ostype) $(cat /proc/sys/kernel/osrelease), inside."
echo "The secret recipe has $(wc -l < /srv/recipe) steps; the last one begins with '$(tail -n 1 /srv/recipe | head -c 6)'."
"#;

/// A text that has never been on this machine before.
pub fn secret() -> Result<String> {
    let mut random = [0; 16];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
    Ok(format!("secretly add {}", hex::encode(random)))
}

/// Runs one of Debian's tools and shows it.
fn tool(story: &Story, program: &str, arguments: &[&str], hide: &Path) -> Result<()> {
    story.command(&format!("{program} {}", arguments.join(" ")).replace(&format!("{}/", hide.display()), ""));
    command::run(Command::new(program).args(arguments), LIMIT)?.succeeded()?;
    Ok(())
}

/// Builds the image in a layout of the owner's.
pub fn build(story: &Story, bed: &Bed, secret: &str) -> Result<Layout> {
    let owner = bed.base().join("owner");
    fs::create_dir_all(&owner)?;
    let layout = owner.join("recipe");
    let image = format!("{}:1", layout.display());
    let bundle = owner.join("bundle");
    let root = bundle.join("rootfs");
    tool(story, "umoci", &["init", "--layout", &layout.display().to_string()], &owner)?;
    tool(story, "umoci", &["new", "--image", &image], &owner)?;
    tool(story, "umoci", &["unpack", "--image", &image, &bundle.display().to_string()], &owner)?;
    for directory in ["bin", "srv", "proc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(place::busybox()?, root.join("bin/busybox"))?;
    for applet in ["sh", "cat", "wc", "tail", "head", "echo"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("bin/recipe"), PROGRAM)?;
    fs::set_permissions(root.join("bin/recipe"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(root.join("srv/recipe"), format!("mix flour and water\nwait a night\n{secret}\n"))?;
    tool(story, "umoci", &["repack", "--image", &image, &bundle.display().to_string()], &owner)?;
    tool(story, "umoci", &["config", "--image", &image, "--config.entrypoint", "/bin/recipe"], &owner)?;
    // The bundle is the plain image once more; the layout is enough for the search to prove itself on.
    fs::remove_dir_all(&bundle)?;
    Ok(Layout { directory: layout })
}

/// Initdata made with the `cloister` command, and the policy in it.
pub fn initdata(story: &Story, bed: &Bed, name: &str, policy: &str) -> Result<PathBuf> {
    let file = bed.base().join(name);
    let policy_file = bed.base().join(format!("{name}.policy"));
    fs::write(&policy_file, policy)?;
    let arguments = ["initdata", "make", "--broker", &bed.broker.url(), "--policy"];
    story.command(&format!("cloister {} {name}.policy --out {name}", arguments.join(" ")));
    let mut command = Command::new(place::ours("cloister")?);
    command.args(arguments).arg(&policy_file).arg("--out").arg(&file);
    command::run(&mut command, LIMIT)?.succeeded()?;
    Ok(file)
}

/// The value of the annotation that carries initdata.
pub fn annotation(initdata: &Path) -> Result<String> {
    let mut command = Command::new(place::ours("cloister")?);
    command.args(["initdata", "annotation"]).arg(initdata);
    Ok(command::run(&mut command, LIMIT)?.succeeded()?.text().trim_end().to_owned())
}

/// Encrypts the image with `cloister image encrypt`, whose progress goes to the terminal.
pub fn encrypt(story: &Story, bed: &Bed, plain: &Layout, initdata: &Path) -> Result<Layout> {
    let encrypted = Layout { directory: bed.base().join("encrypted") };
    let release = Release { key: KEY, initdata, tee: "sample", launch_measurement: None };
    story.command(&format!("cloister image encrypt oci:recipe:1 oci:encrypted:1 --key {KEY} --init-data initdata.toml …"));
    let mut command = bed.broker.encrypt_command(plain, &encrypted, "1", &release)?;
    let status = command.stdin(Stdio::null()).status().context("starting cloister image encrypt")?;
    ensure!(status.success(), "cloister image encrypt failed ({status})");
    Ok(encrypted)
}

/// Runs the image, shows what it prints, and where the time went.
pub fn run(story: &mut Story, bed: &Bed, reference: &str, annotation: &str) -> Result<()> {
    let id = bed.id("recipe");
    show(story, reference, &id);
    let run = Run { image: reference, id: &id, initdata: Some(annotation), ..Run::default() };
    let finished = bed.ctr().run(&run)?.succeeded()?;
    story.said(&finished.text());
    ensure!(finished.text().contains("3 steps; the last one begins with 'secret'"), "the program did not say what it should: {finished:?}");
    bed.nothing_of(&id)?;
    let first = finished.first_output.context("no output")?;
    stages::rows(story, &bed.log_lines(&id)?, first);
    story.row("end: from the first byte of output to the end of ctr", finished.total - first);
    Ok(())
}

/// Runs the image and expects one line of refusal.
pub fn refused(story: &mut Story, bed: &Bed, name: &str, reference: &str, annotation: &str) -> Result<()> {
    let id = bed.id(name);
    show(story, reference, &id);
    let finished = bed.ctr().run(&Run { image: reference, id: &id, initdata: Some(annotation), ..Run::default() })?;
    ensure!(!finished.status.success() && finished.stdout.is_empty(), "it ran: {finished:?}");
    story.said(&finished.stderr);
    bed.nothing_of(&id)?;
    story.lap(&format!("refuse the {name} one"));
    Ok(())
}

fn show(story: &Story, reference: &str, id: &str) {
    story.command(&format!(
        "ctr run --rm --snapshotter cloister --runtime io.containerd.cloister.v2 --annotation dev.cloister.initdata=… {reference} {id}"
    ));
}
