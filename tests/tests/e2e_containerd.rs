//! The same shim under every containerd that is out there: 1.6, 1.7, 2.x. Their dialects of `start` differ; what a user sees does not.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use tests::bed::{Bed, POLICY, Setup};
use tests::ctr::Run;
use tests::oci::Image;
use tests::{place, runner, tests};

fn main() -> ExitCode {
    // One bed after the other: the versions do not share one.
    let codes = place::CONTAINERD_VERSIONS.map(|version| {
        let setup = Setup { name: &format!("c{version}"), containerd: version };
        runner::main(&setup, 2, tests![a_plain_image_runs, an_encrypted_image_runs])
    });
    codes.into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

fn a_plain_image_runs(bed: &Bed) -> Result<()> {
    // A user by name: containerd looks it up on the host, where the image's files are not; the guest alone knows its number.
    let image = Image { user: "app:app", ..Image::busybox("id -u; id -g; cat; exit 3")? };
    let (reference, id) = (bed.plain(&image, "plain")?, bed.id("plain"));
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, input: b"typed", ..Run::default() })?;
    ensure!((finished.code(), finished.text().as_str()) == (Some(3), "1000\n1000\ntyped"), "{finished:?}");
    bed.nothing_of(&id)
}

fn an_encrypted_image_runs(bed: &Bed) -> Result<()> {
    let initdata = bed.initdata(POLICY);
    let reference =
        bed.encrypted(&Image::busybox("cat /srv/secret")?.with_file("srv/secret", "decrypted inside\n"), "secret", &initdata)?;
    let (id, annotation) = (bed.id("secret"), initdata.annotation()?);
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() })?;
    ensure!((finished.code(), finished.text().as_str()) == (Some(0), "decrypted inside\n"), "{finished:?}");
    bed.nothing_of(&id)
}
