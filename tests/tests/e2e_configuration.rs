//! A node that is not set up right says which file, line, key or program is at fault. One at a time: they share the shims' configuration.

use std::fs;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use tests::bed::{Bed, Setup};
use tests::configuration::Configuration;
use tests::ctr::Run;
use tests::oci::{Entry, Image, LayerBytes, busybox_layer, tar};
use tests::{place, runner, tests};

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
