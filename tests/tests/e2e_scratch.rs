//! Scratch, where layers and what containers write go: larger than memory, and on a disk of a host that reads and changes it.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::configuration::Configuration;
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::scratch_file::{Blocks, ScratchFile, longest_change};
use tests::{large, place, runner, tests};

fn main() -> ExitCode {
    runner::main(
        // One at a time: they share the shims' configuration, and a VM alone has the only scratch file.
        &Setup { name: "scr", containerd: place::CONTAINERD_DEFAULT },
        1,
        tests![what_the_host_does_to_scratch_is_an_error_and_never_other_data, an_image_larger_than_memory_starts],
    )
}

/// A running container whose large file the host changes, rolls back and fills the disk of: one VM for all of it.
fn what_the_host_does_to_scratch_is_an_error_and_never_other_data(bed: &Bed) -> Result<()> {
    let reference = bed.plain(&Image::busybox("sleep 3600")?, "scratch")?;
    Configuration { scratch_mib: 160, ..bed.configuration.clone() }.write(&bed.configuration_file())?;
    let id = bed.id("scratch");
    bed.ctr().run(&Run { image: &reference, id: &id, flags: &["--detach"], ..Run::default() })?.succeeded()?;
    bed.configuration.write(&bed.configuration_file())?;
    let result = attack(bed, &id);
    bed.ctr().remove(&id)?;
    result?;
    bed.nothing_of(&id)
}

fn attack(bed: &Bed, id: &str) -> Result<()> {
    let disk = ScratchFile::find(&bed.configuration.scratch)?;
    let shell = |name: &str, script: &str| bed.ctr().exec(id, name, &[], &["/bin/sh", "-c", script], b"");

    // The disk's end is an error that a container knows, and no end of anything else.
    let full = shell("full", "dd if=/dev/zero of=/full bs=1M; stat -c %s /full; rm /full; echo more > /tmp/more && cat /tmp/more")?;
    ensure!(full.stderr.contains("No space left on device") && full.text().ends_with("more\n"), "{full:?}");

    // O_DIRECT, so that the guest's memory has no copy and what is read comes from the disk.
    let write = "dd if=/dev/urandom of=/data bs=1M count=4 conv=notrunc oflag=direct && sha256sum /data | head -c 64";
    let before = disk.read()?;
    let first = shell("write", write)?.succeeded()?.text();
    // The sum above has read the file into memory: it is written once more, past it.
    let second = shell("rewrite", &write.replace(" && sha256sum /data | head -c 64", " && echo written"))?.succeeded()?;
    ensure!(second.text().contains("written") && first.len() == 64, "{second:?}");
    let written = disk.read()?;
    let data = longest_change(&before, &written);
    ensure!(data.end - data.start >= 512, "4 MiB were written, but the disk changed in {data:?}");
    ensure!(!written.values().any(|block| block.windows(7).any(|bytes| bytes == b"integrt")), "dm-integrity's header is on the disk");

    let block = data.start + (data.end - data.start) / 2;
    let original = written.get(&block).context("a block that changed is gone")?;
    let mut flipped = original.clone();
    flipped[1000] ^= 1;
    disk.write(block, &flipped)?;
    let read = shell("flipped", "sha256sum /data")?;
    ensure!(!read.status.success() && read.stdout.is_empty(), "a flipped bit was read: {read:?}");
    ensure!(read.stderr.contains("Input/output error") || read.stderr.contains("I/O error"), "{read:?}");
    // As it was, it is read again: the flipped bit and nothing else was at fault.
    disk.write(block, original)?;
    let read = shell("restored", "sha256sum /data && echo restored")?;
    ensure!(read.text().contains("restored"), "{read:?}");

    // All of it as it once was, data and whatever else lies on the disk: right at its time, and wrong now.
    shell("newer", &write.replace(" && sha256sum /data | head -c 64", ""))?.succeeded()?;
    roll_back(&disk, &written, &disk.read()?)?;
    let read = shell("rolled-back", "sha256sum /data")?;
    ensure!(!read.status.success() && read.stdout.is_empty(), "what the host rolled back was read: {read:?}");
    Ok(())
}

fn roll_back(disk: &ScratchFile, to: &Blocks, from: &Blocks) -> Result<()> {
    let mut changed = 0;
    for (block, content) in to.iter().filter(|(block, content)| from.get(block) != Some(content)) {
        disk.write(*block, content)?;
        changed += 1;
    }
    ensure!(changed >= 512, "only {changed} blocks had changed");
    Ok(())
}

/// Half as much again as the guest has memory, which is 512 MiB; the soak test has one of four times its memory.
fn an_image_larger_than_memory_starts(bed: &Bed) -> Result<()> {
    large::starts(bed, 768 << 20, BOOT)
}
