//! A key is released to the guest whose measurement was computed from its files, and to none that differs in anything that is measured.
//! The TPM is this host's own: see `docs/threat-model.md` for what that does and does not show.
//!
//! One at a time: they share the shims' configuration.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha384};
use tests::bed::{Bed, POLICY, Setup};
use tests::broker::Release;
use tests::configuration::{Configuration, Initdata};
use tests::ctr::{BOOT, Run};
use tests::oci::{Image, Layout};
use tests::recorder::Recorder;
use tests::{command, leaks, place, runner, tests};

const MEASURE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "vtpm", containerd: place::CONTAINERD_DEFAULT },
        1,
        tests![
            the_predicted_guest_gets_the_key_and_leaves_nothing_when_its_shim_is_killed,
            another_command_line_is_refused_the_key,
            another_initramfs_is_refused_the_key,
            another_initdata_is_refused_the_key,
            the_check_launches_a_guest_and_says_what_does_not_agree,
            the_hosts_acpi_tables_run_in_the_guest_unless_its_kernel_reads_none,
        ],
    )
}

fn vtpm(bed: &Bed) -> Configuration {
    Configuration { tee: "vtpm", ..bed.configuration.clone() }
}

/// What `cloister measure` says of a configuration.
fn measured(bed: &Bed, configuration: &Configuration) -> Result<String> {
    let file = bed.base().join("measured.toml");
    configuration.write(&file)?;
    let mut measure = Command::new(place::ours("cloister")?);
    measure.arg("measure").env("CLOISTER_CONFIG", &file);
    Ok(command::run(&mut measure, MEASURE)?.succeeded()?.text().trim().to_owned())
}

/// An image whose key goes to the unchanged guest with `initdata`.
fn encrypted(bed: &Bed, name: &str, script: &'static str, initdata: &Initdata) -> Result<String> {
    let layout = bed.layout(&Image::busybox(script)?, name)?;
    let file = bed.base().join("images").join(format!("{name}.initdata"));
    fs::write(&file, &initdata.text)?;
    let measurement = measured(bed, &vtpm(bed))?;
    let key = format!("kbs:///tests/image/{name}");
    let release = Release { key: &key, initdata: &file, tee: "tpm", launch_measurement: Some(&measurement) };
    bed.provide(&bed.broker.encrypt(&layout, "1", &release)?, name)
}

fn the_predicted_guest_gets_the_key_and_leaves_nothing_when_its_shim_is_killed(bed: &Bed) -> Result<()> {
    const KEY: &str = "kbs:///tests/image/predicted";
    let reference = encrypted(bed, "predicted", "echo released; sleep 3600", &bed.initdata(POLICY))?;
    vtpm(bed).write(&bed.configuration_file())?;
    // The policy names the image, whose digest is that of what was encrypted; so the rule, which names the policy, comes last.
    let manifest = Layout { directory: bed.base().join("images/predicted.enc") }.digests()?.manifest;
    let policy = format!("[[image]]\ndigest = {manifest:?}\n{POLICY}exec = true\nsecrets = [\"evidence\", \"token\", {KEY:?}]\n");
    let between = Recorder::start(&bed.broker.authority)?;
    let configuration =
        Configuration { authorities: [bed.configuration.authorities.clone(), vec![between.authority.clone()]].concat(), ..vtpm(bed) };
    configuration.write(&bed.configuration_file())?;
    let (initdata, rule) = (Initdata::new(&format!("http://{}", between.authority), &policy), bed.base().join("predicted.rule"));
    let (measurement, digest) = (measured(bed, &vtpm(bed))?, initdata.digest());
    fs::write(&rule, format!("tee = 'tpm'\nlaunch_measurement = '{measurement}'\ninit_data = 'sha256:{digest}'\n"))?;
    bed.broker.release(KEY, &rule)?;
    let (id, annotation) = (bed.id("predicted"), initdata.annotation()?);
    let running = bed.ctr().start(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() })?;
    running.wait_output(BOOT)?;
    what_the_guest_said_to_the_broker_serves_nobody_again(bed, &between)?;
    the_evidence_says_which_image_runs(bed, &id, &manifest)?;
    the_workload_gets_what_the_policy_lists(bed, &id, KEY)?;
    let emulators = leaks::pids_with("swtpm").into_iter().filter(|(_, line)| line.contains(&id)).count();
    for (pid, _) in leaks::pids_with("containerd-shim-cloister-v2").into_iter().filter(|(_, line)| line.contains(&id)) {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    }
    let finished = running.finish(BOOT)?;
    bed.ctr().remove(&id)?;
    ensure!(finished.text() == "released\n", "{finished:?}");
    ensure!(emulators == 1, "{emulators} emulators of a TPM ran");
    bed.nothing_of(&id)
}

/// The whole answer that was good a moment ago, as the host has it, and the same with the new challenge's nonce in it.
fn what_the_guest_said_to_the_broker_serves_nobody_again(bed: &Bed, between: &Recorder) -> Result<()> {
    let answer = between.body("/kbs/v0/attest")?;
    for replayed in [bed.broker.replay("tpm", &answer)?, bed.broker.replay_with_nonce("tpm", &answer)?] {
        ensure!(replayed.starts_with("HTTP/1.1 401"), "{replayed}");
        ensure!(replayed.contains("made for another challenge or key") || replayed.contains("nonce"), "{replayed}");
    }
    Ok(())
}

fn the_workload_gets_what_the_policy_lists(bed: &Bed, id: &str, key: &str) -> Result<()> {
    let get = |name: &str, path: &str| {
        let script =
            format!("busybox wget -S -qO- http://127.0.0.1:8006{path} > /tmp/got 2> /tmp/said; busybox wc -c < /tmp/got; cat /tmp/said");
        bed.ctr().exec(id, name, &[], &["/bin/sh", "-c", &script], b"").map(|done| done.text())
    };
    let resource = |uri: &str| format!("/cdh/resource/{}", uri.trim_start_matches("kbs:///"));
    let given = get("resource", &resource(key))?;
    ensure!(given.starts_with("32\n") && given.contains(" 200 "), "the key of 32 bytes: {given}");
    let other = get("other", &resource("kbs:///tests/image/another"))?;
    ensure!(other.starts_with("0\n") && other.contains(" 403 "), "{other}");
    let token = bed.ctr().exec(id, "token", &[], &["busybox", "wget", "-qO-", "http://127.0.0.1:8006/aa/token"], b"")?.succeeded()?;
    let token: Value = serde_json::from_slice(&token.stdout)?;
    let parts = token["token"].as_str().map(|token| token.split('.').count());
    ensure!(parts == Some(3), "{token}");
    Ok(())
}

/// The TPM's register, read in the guest, holds what is computed from the image's digest alone; and evidence that the container asks for
/// carries the image, is bound to the container's own words, and is believed for no other image.
fn the_evidence_says_which_image_runs(bed: &Bed, id: &str, manifest: &str) -> Result<()> {
    let exec = |name: &str, args: &[&str]| -> Result<String> {
        Ok(bed.ctr().exec(id, name, &[], args, b"")?.succeeded()?.text().trim().to_owned())
    };
    let event = hex::decode(manifest.trim_start_matches("sha256:"))?;
    let wanted = hex::encode(Sha256::new().chain_update([0; 32]).chain_update(event).finalize());
    let found = exec("pcr", &["cat", "/sys/class/tpm/tpm0/pcr-sha256/13"])?.to_lowercase();
    ensure!(found == wanted, "PCR 13 is {found}, not {wanted}");

    let url = "http://127.0.0.1:8006/aa/evidence?runtime_data=hello";
    let (mut evidence, file): (Value, _) =
        (serde_json::from_str(&exec("evidence", &["busybox", "wget", "-qO-", url])?)?, bed.base().join("evidence.json"));
    let bound = hex::encode(Sha384::digest(b"cloister workload evidence\0hello"));
    let verdict = |evidence: &Value| -> Result<Value> {
        fs::write(&file, evidence.to_string())?;
        let mut verify = Command::new(place::ours("cloister")?);
        verify.arg("verify").arg(&file).args(["--json", "--report-data", &bound]);
        Ok(serde_json::from_slice(&command::run(&mut verify, MEASURE)?.stdout)?)
    };
    let genuine = verdict(&evidence)?;
    ensure!(genuine["fresh"] == true && genuine["claims"]["details"]["tpm"]["images"] == json!([manifest]), "{genuine}");
    evidence["images"] = json!([format!("sha256:{}", "11".repeat(32))]);
    let other = verdict(&evidence)?;
    ensure!(other["genuine"] == false && other["reason"].as_str().context("a reason")?.contains("PCR 13"), "{other}");
    Ok(())
}

/// Runs a guest of `changed`, which is refused the key of the unchanged one for the measurement that was predicted for it.
fn refused(bed: &Bed, name: &str, changed: &Configuration) -> Result<()> {
    let initdata = bed.initdata(POLICY);
    let reference = encrypted(bed, name, "echo it ran", &initdata)?;
    changed.write(&bed.configuration_file())?;
    let (id, annotation) = (bed.id(name), initdata.annotation()?);
    let is = format!("launch_measurement is {}", measured(bed, changed)?);
    let wants = format!("wants {}", measured(bed, &vtpm(bed))?);
    bed.refused(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() }, &[&is, &wants])
}

fn another_command_line_is_refused_the_key(bed: &Bed) -> Result<()> {
    refused(bed, "cmdline", &Configuration { cmdline_extra: "cloister.log=debug".to_owned(), ..vtpm(bed) })
}

fn another_initramfs_is_refused_the_key(bed: &Bed) -> Result<()> {
    // Zeros after the archive: the kernel reads over them, and the guest does the same as before.
    let mut bytes = fs::read(&bed.configuration.initramfs)?;
    bytes.extend([0; 4]);
    let initramfs = bed.base().join("changed.cpio");
    fs::write(&initramfs, bytes)?;
    refused(bed, "initramfs", &Configuration { initramfs, ..vtpm(bed) })
}

fn another_initdata_is_refused_the_key(bed: &Bed) -> Result<()> {
    let reference = encrypted(bed, "initdata", "echo it ran", &bed.initdata(POLICY))?;
    vtpm(bed).write(&bed.configuration_file())?;
    let changed = bed.initdata("[allow]\nstdin = true\nexec = true\n");
    let (id, annotation) = (bed.id("initdata"), changed.annotation()?);
    bed.refused(
        &Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() },
        &["kbs:///tests/image/initdata", "init_data is"],
    )
}

/// What an operator has instead of our word for it: the configured guest is launched and judged. A QEMU that adds a word to what the kernel is
/// told is found out.
fn the_check_launches_a_guest_and_says_what_does_not_agree(bed: &Bed) -> Result<()> {
    let qemu = bed.base().join("qemu-that-adds");
    let script = "#!/bin/bash\nfor word; do [ \"$last\" = -append ] && word=\"$word evil=1\"; last=$word; words+=(\"$word\"); done\n\
                  exec /usr/bin/qemu-system-x86_64 \"${words[@]}\"\n";
    fs::write(&qemu, script)?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
    let checked = |name: &str, configuration: &Configuration| -> Result<(bool, BTreeMap<String, Value>)> {
        let file = bed.base().join(format!("{name}.toml"));
        configuration.write(&file)?;
        let mut check = Command::new(place::ours("cloister")?);
        check.args(["check", "--launch", "--json"]).env("CLOISTER_CONFIG", &file);
        let done = command::run(&mut check, BOOT)?;
        let findings: Vec<Value> = serde_json::from_slice(&done.stdout).with_context(|| format!("{done:?}"))?;
        let named = |finding: Value| Some((finding["what"].as_str()?.to_owned(), finding));
        Ok((done.status.success(), findings.into_iter().filter_map(named).collect()))
    };
    let measurement = measured(bed, &vtpm(bed))?;
    let (_, findings) = checked("launched", &vtpm(bed))?;
    for what in ["launch", "evidence", "initdata", "measurement", "TPM"] {
        ensure!(findings.get(what).is_some_and(|finding| finding["status"] == "ok"), "{what}: {findings:?}");
    }
    ensure!(findings["measurement"]["detail"].as_str().is_some_and(|detail| detail.starts_with(&measurement)), "{findings:?}");
    let (passed, findings) = checked("changed", &Configuration { qemu: qemu.display().to_string(), ..vtpm(bed) })?;
    let found = &findings["measurement"];
    ensure!(!passed && found["status"] == "failed", "{findings:?}");
    ensure!(found["detail"].as_str().is_some_and(|detail| detail.contains(&measurement) && detail.contains("PCR 9 differ")), "{found}");
    bed.no_sandbox()
}

/// AML that writes `text` to the first serial port when the kernel loads the table: a field of one byte at port 0x3f8 is stored to.
fn writing_aml(text: &str) -> Vec<u8> {
    let region = b"\x5b\x80COM1\x01\x0b\xf8\x03\x01";
    let field = b"\x5b\x81\x0bCOM1\x01DATA\x08";
    let stores = text.bytes().flat_map(|byte| [b"\x70\x0a".as_slice(), &[byte], b"DATA"].concat());
    region.iter().chain(field).copied().chain(stores).collect()
}

/// BadAML: what a host puts into a table runs with the kernel's rights, before there is an agent. The defence of SNP guests, `acpi=off`, is
/// tried on the same PC without SNP; and containers run without ACPI.
fn the_hosts_acpi_tables_run_in_the_guest_unless_its_kernel_reads_none(bed: &Bed) -> Result<()> {
    const MARK: &str = "written-by-the-hosts-aml";
    let reference = bed.plain(&Image::busybox("echo it ran")?, "acpi")?;
    let (table, qemu) = (bed.base().join("table.aml"), bed.base().join("qemu-with-a-table"));
    fs::write(&table, writing_aml(&format!("\n{MARK}\n")))?;
    let script = "#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 \"$@\" -acpitable sig=SSDT,rev=2,oem_id=HOST,oem_table_id=BADAML,data=";
    fs::write(&qemu, format!("{script}{}\n", table.display()))?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
    for (extra, runs) in [("", true), ("acpi=off", false)] {
        let hostile = Configuration { qemu: qemu.display().to_string(), cmdline_extra: extra.to_owned(), ..vtpm(bed) };
        hostile.write(&bed.configuration_file())?;
        let id = bed.id("acpi");
        let finished = bed.ctr().run(&Run { image: &reference, id: &id, ..Run::default() })?;
        ensure!(finished.text() == "it ran\n", "{finished:?}");
        let written = bed.log_lines(MARK)?.iter().any(|line| line.contains(&id));
        ensure!(written == runs, "with {extra:?} on the command line, the table's code ran: {written}");
        bed.nothing_of(&id)?;
    }
    Ok(())
}
