//! Disks of the host's that are mounted in a container: sealed with a key that the broker releases, and as the host has made them.

#![allow(clippy::print_stdout, reason = "a test of many checks says where it is")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bed::{Bed, Setup};
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::search::search;
use tests::{command, place, runner, tests};

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "dsk", containerd: place::CONTAINERD_DEFAULT },
        2,
        tests![
            a_sealed_disk_is_read_by_its_key_after_a_crash_and_by_nobody_else,
            a_disk_is_mounted_with_its_key_or_not_at_all,
            a_file_system_of_the_hosts_is_mounted_where_there_is_no_policy,
        ],
    )
}

const BLOCK: usize = 4096;
/// What lies before the first block that is in use, at most: header, journal and tags of a disk of this size.
const SIZE: u64 = 96 << 20;
const TAGS: usize = 8 << 20;

/// A container that has the disk, and in which the test may do as it likes.
fn policy(digest: &str, key: &str, format: bool) -> String {
    format!(
        "[[container]]\nname = \"db\"\nimage.digest = {digest:?}\nstdin = true\nno_new_privileges = true\n\
         disks = [{{ destination = \"/data\", key = {key:?}, format = {format} }}]\n[allow]\nargs = true\nexec = true\nstdin = true\n"
    )
}

/// An image and its digest.
fn image(bed: &Bed, name: &str, script: &'static str) -> Result<(String, String)> {
    let layout = bed.layout(&Image::busybox(script)?, name)?;
    Ok((bed.provide(&layout, name)?, layout.digests()?.manifest))
}

/// Initdata with this policy, as its annotation; the broker releases the key to it.
fn initdata(bed: &Bed, policy: &str, key: (&str, &[u8])) -> Result<String> {
    let initdata = bed.initdata(policy);
    let secret = bed.base().join(bed.id("key"));
    fs::write(&secret, key.1)?;
    bed.broker.put(key.0, &secret, &initdata)?;
    initdata.annotation()
}

fn mount(raw: &Path) -> String {
    format!("type=bind,src={},dst=/data,options=rbind:rw", raw.display())
}

fn a_sealed_disk_is_read_by_its_key_after_a_crash_and_by_nobody_else(bed: &Bed) -> Result<()> {
    const KEY: &str = "kbs:///tests/disk/kept";
    let secret = format!("what the disk holds {}", bed.id("w"));
    let (reference, digest) = image(bed, "sealed", "sleep 3600")?;
    let raw = bed.base().join("sealed.img");
    File::create(&raw)?.set_len(SIZE)?;
    let annotation = initdata(bed, &policy(&digest, KEY, true), (KEY, &[7; 32]))?;
    let mount = mount(&raw);
    let start = |id: &str, annotation: &str| -> Result<()> {
        let flags = ["--detach", "--mount", &mount];
        bed.ctr().run(&Run { image: &reference, id, flags: &flags, initdata: Some(annotation), ..Run::default() })?.succeeded()?;
        Ok(())
    };
    let shell = |id: &str, name: &str, script: &str| bed.ctr().exec(id, name, &[], &["/bin/sh", "-c", script], b"");

    let first = bed.id("first");
    start(&first, &annotation)?;
    let script = "cat > /data/file && dd if=/dev/urandom of=/data/big bs=1M count=8 2>/dev/null && sync && sha256sum < /data/big && \
         { (while :; do echo more >> /data/log; done) </dev/null >/dev/null 2>&1 & }";
    // A command line would be in the host's files.
    let written = bed.ctr().exec(&first, "write", &[], &["/bin/sh", "-c", script], secret.as_bytes())?;
    let sum = written.succeeded()?.text();
    ensure!(sum.len() > 64, "{sum:?}");
    crash(bed, &first)?;
    ensure!(search(&[bed.base()], secret.as_bytes())?.files.is_empty(), "the secret is on the host");

    // Another machine, with the same key, where an empty disk would be refused.
    let second = bed.id("second");
    let annotation = initdata(bed, &policy(&digest, KEY, false), (KEY, &[7; 32]))?;
    start(&second, &annotation)?;
    let file = shell(&second, "file", "cat /data/file")?.succeeded()?;
    ensure!(file.text() == secret, "what was synchronised is not there: {file:?}");

    let disk = File::options().read(true).write(true).open(&raw)?;
    let at = (in_the_large_file(&raw)? * BLOCK + 1000) as u64;
    let flip = || -> Result<()> {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at)?;
        disk.write_all_at(&[byte[0] ^ 1], at)?;
        Ok(())
    };
    flip()?;
    let read = shell(&second, "flipped", "sha256sum /data/big")?;
    ensure!(!read.status.success() && read.stdout.is_empty(), "a flipped bit was read: {read:?}");
    ensure!(read.stderr.contains("Input/output error") || read.stderr.contains("I/O error"), "{read:?}");
    flip()?;
    let read = shell(&second, "restored", "sha256sum < /data/big")?.succeeded()?;
    ensure!(read.text() == sum, "{read:?}");
    crash(bed, &second)?;

    // A key that the broker has for it, and that is another disk's.
    let annotation = initdata(bed, &policy(&digest, "kbs:///tests/disk/other", true), ("kbs:///tests/disk/other", &[8; 32]))?;
    let id = bed.id("wrong");
    bed.refused(
        &Run { image: &reference, id: &id, flags: &["--mount", &mount], initdata: Some(&annotation), ..Run::default() },
        &["disk at /data with the key kbs:///tests/disk/other", "the key does not open this disk"],
    )
}

/// The number of a block of the disk's largest file, which is most of what has ever been written side by side.
fn in_the_large_file(raw: &Path) -> Result<usize> {
    let content = fs::read(raw)?;
    let written: Vec<bool> = content.chunks(BLOCK).map(|block| block.iter().any(|byte| *byte != 0)).collect();
    let (mut best, mut begin) = (0..0, TAGS / BLOCK);
    for at in TAGS / BLOCK..=written.len() {
        if written.get(at) != Some(&true) {
            if at - begin > best.len() {
                best = begin..at;
            }
            begin = at + 1;
        }
    }
    ensure!(best.len() * BLOCK >= 8 << 20, "8 MiB were written, and side by side there are {best:?}");
    Ok(best.start + best.len() * 3 / 4)
}

/// The machine ends as by a power cut.
fn crash(bed: &Bed, id: &str) -> Result<()> {
    let list = bed.ctr().call(&["task", "ls"])?.succeeded()?.text();
    let line = list.lines().find(|line| line.starts_with(id)).context("no such task")?;
    let pid: i32 = line.split_whitespace().nth(1).context("a task without a pid")?.parse()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    bed.ctr().remove(id)?;
    bed.nothing_of(id)
}

fn a_disk_is_mounted_with_its_key_or_not_at_all(bed: &Bed) -> Result<()> {
    const KEY: &str = "kbs:///tests/disk/none";
    let (reference, digest) = image(bed, "refused", "echo it ran")?;
    let raw = bed.base().join("refused.img");
    File::create(&raw)?.set_len(SIZE)?;
    let mount = mount(&raw);
    let refused = |name: &str, policy: &str, words: &[&str]| {
        let annotation = initdata(bed, policy, (KEY, &[7; 32]))?;
        let (id, flags) = (bed.id(name), ["--mount", &mount]);
        bed.refused(&Run { image: &reference, id: &id, flags: &flags, initdata: Some(&annotation), ..Run::default() }, words)
    };
    refused(
        "unnamed",
        "[allow]\nstdin = true\nmounts = true\ndevices = true\n",
        &["denied by policy", "disk mounted at /data", "[[container]]"],
    )?;
    refused(
        "empty",
        &policy(&digest, KEY, false),
        &["disk at /data with the key kbs:///tests/disk/none", "the disk is empty", "format = true"],
    )?;
    ensure!(fs::read(&raw)?.iter().all(|byte| *byte == 0), "something was written to a disk that was refused");
    Ok(())
}

fn a_file_system_of_the_hosts_is_mounted_where_there_is_no_policy(bed: &Bed) -> Result<()> {
    let (reference, _) = image(bed, "plain", "cat /data/hello; echo from the guest > /data/back")?;
    let (raw, content) = (bed.base().join("plain.img"), bed.base().join("plain.content"));
    fs::create_dir(&content)?;
    fs::write(content.join("hello"), "from the host\n")?;
    File::create(&raw)?.set_len(32 << 20)?;
    let tool = |command: &mut Command| command::run(command, Duration::from_secs(60))?.succeeded();
    tool(Command::new("/usr/sbin/mkfs.ext4").arg("-q").arg("-d").arg(&content).arg(&raw))?;
    let (id, mount) = (bed.id("plain"), mount(&raw));
    let finished = bed.ctr().start(&Run { image: &reference, id: &id, flags: &["--mount", &mount], ..Run::default() })?.finish(BOOT)?;
    ensure!(finished.succeeded()?.text() == "from the host\n");
    bed.nothing_of(&id)?;
    // Nothing synchronised it but the end of the machine.
    tool(Command::new("/usr/sbin/e2fsck").args(["-p"]).arg(&raw))?;
    let back = tool(Command::new("/usr/sbin/debugfs").args(["-R", "cat back"]).arg(&raw))?;
    ensure!(back.text() == "from the guest\n", "{back:?}");
    Ok(())
}
