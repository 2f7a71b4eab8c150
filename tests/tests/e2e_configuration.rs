//! A node that is not set up right says which file, line, key or program is at fault. One at a time: they share the shims' configuration.

#![allow(clippy::print_stdout, reason = "what a user reads of a refusal is told")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::bed::{Bed, POLICY, Setup};
use tests::configuration::Configuration;
use tests::ctr::{BOOT, Run};
use tests::oci::{Entry, Image, LayerBytes, busybox_layer, tar};
use tests::{place, runner, tests};

/// More files and directories than a sandbox has.
const MOST_FILES: usize = 24;

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "conf", containerd: place::CONTAINERD_DEFAULT },
        1,
        tests![
            a_missing_kernel,
            a_missing_initramfs,
            a_missing_qemu,
            a_kernel_that_is_none,
            an_unknown_key_is_named_with_its_line,
            a_value_of_the_wrong_kind_is_named_with_its_line,
            a_file_that_is_no_toml,
            an_image_larger_than_the_scratch_disk,
            an_agent_that_is_not_heard_of,
            a_full_disk_at_every_file,
            a_disk_that_fills_under_a_running_container,
            a_shared_directory_is_seen_as_it_is,
        ],
    )
}

/// Runs with the configuration `text` and expects one line with every one of `words` in it. The working configuration is back afterwards.
fn refused(bed: &Bed, name: &str, text: &str, words: &[&str]) -> Result<()> {
    let reference = bed.plain(&Image::busybox("echo it ran")?, "plain")?;
    refused_image(bed, &reference, name, text, words)
}

fn refused_image(bed: &Bed, reference: &str, name: &str, text: &str, words: &[&str]) -> Result<()> {
    let id = bed.id(name);
    fs::write(bed.configuration_file(), text)?;
    let result = bed.refused(&Run { image: reference, id: &id, ..Run::default() }, words);
    bed.configuration.write(&bed.configuration_file())?;
    result
}

fn a_missing_kernel(bed: &Bed) -> Result<()> {
    let configuration = Configuration { kernel: "/no/such/vmlinux".into(), ..bed.configuration.clone() };
    refused(bed, "kernel", &configuration.text(), &["/no/such/vmlinux", "guest.kernel"])
}

fn a_missing_initramfs(bed: &Bed) -> Result<()> {
    let configuration = Configuration { initramfs: "/no/such/initramfs".into(), ..bed.configuration.clone() };
    refused(bed, "initramfs", &configuration.text(), &["/no/such/initramfs", "guest.initramfs"])
}

fn a_missing_qemu(bed: &Bed) -> Result<()> {
    let configuration = Configuration { qemu: "no-such-qemu".to_owned(), ..bed.configuration.clone() };
    refused(bed, "qemu", &configuration.text(), &["no-such-qemu", "vmm.qemu"])
}

/// QEMU itself refuses it; its words reach the user.
fn a_kernel_that_is_none(bed: &Bed) -> Result<()> {
    let file = bed.base().join("not-a-kernel");
    fs::write(&file, "this is a text")?;
    let configuration = Configuration { kernel: file, ..bed.configuration.clone() };
    refused(bed, "text", &configuration.text(), &["kernel"])
}

fn an_unknown_key_is_named_with_its_line(bed: &Bed) -> Result<()> {
    let text = bed.configuration.text().replace("[guest]\n", "[guest]\nmemroy_mib = 256\n");
    refused(bed, "key", &text, &["cloister.toml", "line 5", "memroy_mib"])
}

fn a_value_of_the_wrong_kind_is_named_with_its_line(bed: &Bed) -> Result<()> {
    let text = bed.configuration.text().replace("scratch_mib = 2048", "scratch_mib = \"much\"");
    refused(bed, "value", &text, &["cloister.toml", "line 7", "scratch_mib"])
}

fn a_file_that_is_no_toml(bed: &Bed) -> Result<()> {
    refused(bed, "toml", "state_dir = \n", &["cloister.toml", "line 1"])
}

/// Decompressing costs the guest's scratch disk, never its memory, and ends with the disk.
fn an_image_larger_than_the_scratch_disk(bed: &Bed) -> Result<()> {
    let bomb = LayerBytes::honest(&tar(&[Entry::File("srv/zeros", 0o644, vec![0; 192 << 20])])?)?;
    ensure!(bomb.compressed.len() < 2 << 20, "{} bytes are no bomb", bomb.compressed.len());
    let layers = [LayerBytes::honest(&tar(&busybox_layer()?)?)?, bomb];
    let layout = Image::busybox("echo it ran")?.write_layers(&bed.base().join("images/bomb"), "1", &layers)?;
    let reference = bed.provide(&layout, "bomb")?;
    let configuration = Configuration { scratch_mib: 128, ..bed.configuration.clone() };
    refused_image(bed, &reference, "bomb", &configuration.text(), &["space"])
}

/// A VM that is there and runs nothing (QEMU's `-S`) is ended, and the line says which setting waits longer.
fn an_agent_that_is_not_heard_of(bed: &Bed) -> Result<()> {
    let program = bed.base().join("qemu-system-that-stands-still");
    fs::write(&program, format!("#!/bin/sh\nexec {} -S \"$@\"\n", bed.configuration.qemu))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let configuration = Configuration { qemu: program.display().to_string(), ..bed.configuration.clone() };
    let text = configuration.text().replace("[vmm]\n", "[vmm]\nboot_timeout_s = 1\n");
    refused(bed, "silent", &text, &["no word of its agent within 1 s", "vmm.boot_timeout_s"])
}

/// The state directory on a disk that has room for no file, for one, for two and so on, until there is room for all: each time one line that
/// says so, and nothing is left of what had found its place.
fn a_full_disk_at_every_file(bed: &Bed) -> Result<()> {
    let reference = bed.plain(&Image::busybox("echo it ran")?, "plain")?;
    let disk = bed.base().join("full");
    fs::create_dir_all(&disk)?;
    let configuration = Configuration { state: disk.clone(), ..bed.configuration.clone() };
    fs::write(bed.configuration_file(), configuration.text())?;
    let mut refusals = 0;
    let result = (1..=MOST_FILES).find_map(|files| match on_disk_of(bed, &reference, &disk, files) {
        Ok(Some(line)) => {
            refusals += 1;
            println!("  room for {files}: {line}");
            None
        }
        Ok(None) => Some(Ok(())),
        Err(error) => Some(Err(error)),
    });
    bed.configuration.write(&bed.configuration_file())?;
    fs::remove_dir(&disk)?;
    match result {
        Some(result) => result?,
        None => bail!("it never ran, with room for {MOST_FILES} files"),
    }
    ensure!(refusals >= 3, "only {refusals} places where the disk was full");
    Ok(())
}

/// The guest has less disk than it was promised: the container has an error and goes on, and the machine does not stand still.
fn a_disk_that_fills_under_a_running_container(bed: &Bed) -> Result<()> {
    let reference =
        bed.plain(&Image::busybox("dd if=/dev/zero of=/data bs=1M count=128 conv=fsync && echo written; echo alive")?, "fills")?;
    let disk = bed.base().join("small");
    fs::create_dir_all(&disk)?;
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=48m"))?;
    Configuration { scratch: disk.clone(), ..bed.configuration.clone() }.write(&bed.configuration_file())?;
    let id = bed.id("fills");
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, ..Run::default() });
    let clean = bed.nothing_of(&id);
    bed.configuration.write(&bed.configuration_file())?;
    umount2(&disk, MntFlags::MNT_DETACH)?;
    fs::remove_dir(&disk)?;
    let finished = finished?;
    clean?;
    ensure!(finished.code() == Some(0) && finished.text() == "alive\n", "{finished:?}");
    ensure!(finished.stderr.contains("error"), "{finished:?}");
    println!("  {}", finished.stderr.trim_end());
    Ok(())
}

/// Runs with a state directory that has room for `files` files and directories: the line of the refusal, or none if it ran.
fn on_disk_of(bed: &Bed, reference: &str, disk: &Path, files: usize) -> Result<Option<String>> {
    // The root of the file system is one of them.
    mount(Some("tmpfs"), disk, Some("tmpfs"), MsFlags::empty(), Some(format!("nr_inodes={}", files + 1).as_str()))?;
    let id = bed.id("full");
    let finished = bed.ctr().run(&Run { image: reference, id: &id, ..Run::default() });
    let clean = bed.nothing_of(&id).and_then(|()| only_shared_directories(disk, &id));
    umount2(disk, MntFlags::MNT_DETACH)?;
    let finished = finished?;
    clean?;
    if finished.status.success() {
        ensure!(finished.text() == "it ran\n", "{finished:?}");
        return Ok(None);
    }
    let line = finished.stderr.trim_end();
    let named = line.contains(&*disk.to_string_lossy()) || line.contains(&id);
    ensure!(line.lines().count() == 1 && line.matches("No space left on device").count() == 1 && named, "{finished:?}");
    Ok(Some(line.to_owned()))
}

/// Directories that the shims share stay; what else there is, is of a sandbox.
fn only_shared_directories(directory: &Path, id: &str) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let own = entry.file_name().to_string_lossy().contains(id);
        ensure!(entry.file_type()?.is_dir() && !own, "{} is left", entry.path().display());
        only_shared_directories(&entry.path(), id)?;
    }
    Ok(())
}

/// What the host writes the container reads and the other way round, at once; what is not shared is refused; nothing serves it afterwards.
fn a_shared_directory_is_seen_as_it_is(bed: &Bed) -> Result<()> {
    let (shared, id) = (bed.base().join("shared"), bed.id("shared"));
    let part = shared.join("part");
    fs::create_dir_all(&part)?;
    fs::write(part.join("in"), "from the host\n")?;
    let reference = bed.plain(&Image::busybox("echo no command was given")?, "sharing")?;
    Configuration { shared: vec![shared], ..bed.configuration.clone() }.write(&bed.configuration_file())?;
    let result = share(bed, &reference, &id, &part);
    bed.configuration.write(&bed.configuration_file())?;
    result
}

fn share(bed: &Bed, reference: &str, id: &str, part: &Path) -> Result<()> {
    let mount = |source: &Path| format!("type=bind,src={},dst=/data,options=rbind:rw", source.display());
    let data = mount(part);
    let script = "cat /data/in; echo from the guest > /data/out; while ! test -e /data/go; do sleep 0.1; done; cat /data/go";
    let run = Run { image: reference, id, flags: &["--mount", &data], args: &["/bin/sh", "-c", script], ..Run::default() };
    let running = bed.ctr().start(&run)?;
    // Its first line is there, so that what follows is written while the container runs.
    running.wait_output(BOOT)?;
    fs::write(part.join("new"), "go on\n")?;
    fs::rename(part.join("new"), part.join("go"))?;
    let finished = running.finish(BOOT)?;
    ensure!(finished.code() == Some(0) && finished.text() == "from the host\ngo on\n", "{finished:?}");
    ensure!(fs::read_to_string(part.join("out"))? == "from the guest\n", "the host does not see what the container wrote");
    bed.no_sandbox()?;

    let (beside, id) = (bed.base().join("beside"), bed.id("beside"));
    fs::create_dir_all(&beside)?;
    bed.refused(&Run { image: reference, id: &id, flags: &["--mount", &mount(&beside)], ..Run::default() }, &["/data", "guest.shared"])?;
    let (initdata, id) = (bed.initdata(POLICY).annotation()?, bed.id("owned"));
    let run = Run { image: reference, id: &id, flags: &["--mount", &data], initdata: Some(&initdata), ..Run::default() };
    bed.refused(&run, &["/data", "initdata", "shares no directory"])
}
