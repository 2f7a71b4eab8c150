//! The way of an encrypted image into its guest, against the arithmetic alone of the same bytes in one thread of the same guest.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::bed::{Bed, POLICY};
use tests::configuration::Configuration;
use tests::ctr::{BOOT, Run};
use tests::layer;
use tests::oci::{Entry, Image, LayerBytes, busybox_layer, tar};
use tests::{place, stages};

use crate::guest;
use crate::report::{Report, Unit};

/// An image of a base system of Debian, with this program on top.
pub fn measure(bed: &Bed, rounds: u32, report: &mut Report) -> Result<()> {
    let base = layer::of_tree(&place::build()?.join("deps/corpus-base"))?;
    let mut top = busybox_layer()?;
    top.push(Entry::File("bin/bench", 0o755, std::fs::read(std::env::current_exe()?)?));
    let layers = [base, LayerBytes::honest(&tar(&top)?)?];
    let image = Image::busybox("echo ready; sleep 36000")?;
    let layout = image.write_layers(&bed.base().join("images/unpack"), "1", &layers)?;
    let initdata = bed.initdata(&format!("{POLICY}exec = true\n"));
    let reference = bed.provide(&bed.encrypt_layout(&layout, "unpack", &initdata)?, "unpack")?;
    let packed: usize = layers.iter().map(|layer| layer.compressed.len()).sum();
    report.add("encrypted image of a base system, as stored", Unit::MiB, packed as f64 / f64::from(1 << 20));
    let annotation = initdata.annotation()?;
    for round in 1..=rounds {
        println!("unpacking, round {round} of {rounds}");
        let id = bed.id("unpack");
        let running = bed.ctr().start(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() })?;
        running.wait_output(BOOT)?;
        let log = bed.log_lines(&id)?;
        let (whole, fetched) = (stages::unpacking(&log).as_secs_f64(), stages::fetching(&log).as_secs_f64());
        let mut floor = 0.0;
        for (number, layer) in layers.iter().enumerate() {
            let exec_id = format!("compute{number}");
            let said = bed.ctr().exec(&id, &exec_id, &[], &["/bin/bench", guest::COMPUTE], &layer.compressed)?.succeeded()?;
            floor += Duration::from_micros(said.text().trim().parse().with_context(|| format!("{said:?}"))?).as_secs_f64();
        }
        bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
        running.finish(BOOT)?;
        bed.nothing_of(&id)?;
        report.add("the same: fetched, verified, decrypted, unpacked", Unit::Seconds, whole);
        report.add("the same: of that until the last blob was verified", Unit::Seconds, fetched);
        report.add("the same, onto memory instead of sealed scratch", Unit::Seconds, onto_memory(bed, &reference, &annotation)?);
        report.add("the same: its arithmetic in one thread of the guest", Unit::Seconds, floor);
        report.add("the same: ratio to its arithmetic", Unit::Ratio, whole / floor);
    }
    Ok(())
}

/// What the sealed disk costs is the difference: another guest, whose scratch is its memory.
fn onto_memory(bed: &Bed, reference: &str, annotation: &str) -> Result<f64> {
    Configuration { scratch_mib: 0, ..bed.configuration.clone() }.write(&bed.configuration_file())?;
    let id = bed.id("memory");
    let running = bed.ctr().start(&Run { image: reference, id: &id, initdata: Some(annotation), ..Run::default() })?;
    running.wait_output(BOOT)?;
    let whole = stages::unpacking(&bed.log_lines(&id)?).as_secs_f64();
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    running.finish(BOOT)?;
    bed.configuration.write(&bed.configuration_file())?;
    bed.nothing_of(&id)?;
    Ok(whole)
}
