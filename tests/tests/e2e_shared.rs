//! Guests that get their image themselves: what pods of one node share, the ciphertext, is downloaded once; and what only the owner may get, by
//! the guest with the owner's word.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, POLICY, Setup};
use tests::ctr::{BOOT, Run};
use tests::oci::{Image, Layout};
use tests::private_registry::PrivateRegistry;
use tests::search::search;
use tests::{command, crowd, place, runner, tests};

/// More than processors, and few enough to boot in a test; `make soak` and `make bench` have as many as the memory holds.
const PODS: usize = 4;

fn main() -> ExitCode {
    let setup = Setup { name: "shr", containerd: place::CONTAINERD_NEWEST };
    runner::main_with(|| Bed::start_with_cri(&setup), 1, tests![several_pods_are_one_download, an_image_of_a_private_registry_runs])
}

/// Guests of several shims want the same encrypted layers at the same time; containerd has manifest and config only.
fn several_pods_are_one_download(bed: &Bed) -> Result<()> {
    let crowd = crowd::run(bed, "shared", PODS)?;
    for layer in &crowd.layers {
        let cached = bed.configuration.cache.join(layer.strip_prefix("sha256:").context(layer.clone())?);
        ensure!(fs::read(&cached)? == fs::read(bed.registry.blob(layer)?)?, "{} is not what the registry has", cached.display());
    }
    let unfinished: Vec<_> =
        fs::read_dir(&bed.configuration.cache)?.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some()).collect();
    ensure!(unfinished.is_empty(), "left unfinished: {unfinished:?}");
    let found = search(&[&bed.configuration.cache], crowd::SECRET.as_bytes())?;
    ensure!(found.files.is_empty() && found.searched >= 3, "{found:?}");
    Ok(())
}

/// Behind TLS of an authority that nobody knows, and a password that the node has and the courier does not use: the owner's broker gives the
/// guest both. The layers are zstd under their encryption, as skopeo makes them.
fn an_image_of_a_private_registry_runs(bed: &Bed) -> Result<()> {
    let mut registry = PrivateRegistry::start(bed.base(), "private")?;
    let plain = bed.layout(&Image::busybox("cat /srv/secret")?.with_file("srv/secret", "opened\n"), "private")?;
    let zstd = Layout { directory: plain.directory.with_file_name("private-zstd") };
    let [from, to] = [&plain, &zstd].map(|layout| format!("oci:{}:1", layout.directory.display()));
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd", &from, &to]);
    command::run(&mut skopeo, Duration::from_secs(120))?.succeeded()?;

    let settings = |credentials: &str| -> Result<String> {
        Ok(format!("[image]\n{credentials}extra_root_certificates = [\"\"\"\n{}\"\"\"]\n", registry.ca()?))
    };
    let auth = "kbs:///tests/registry/auth";
    let knowing = bed.initdata(POLICY).with_file("cdh.toml", &settings(&format!("authenticated_registry_credentials_uri = {auth:?}\n"))?);
    let reference = registry.push(&bed.encrypt_layout(&zstd, "private", &knowing)?, "private", "1")?;
    // And one that needs no key, for a guest that has been given nothing.
    let open = registry.push(&zstd, "open", "1")?;
    for reference in [&reference, &open] {
        registry.pull_lazily(bed.ctr(), reference)?;
    }
    let file = bed.base().join("auth.json");
    fs::write(&file, registry.auth_file())?;
    bed.broker.put(auth, &file, &knowing)?;

    // The node knows nothing of this registry; its guests may reach it.
    let allowed = bed.configuration.text().replace("\nallow = [", &format!("\nallow = [{:?}, ", registry.authority()));
    fs::write(bed.configuration_file(), allowed)?;
    let result = (|| {
        let (id, annotation) = (bed.id("private"), knowing.annotation()?);
        let run = Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() };
        let finished = command::run(&mut bed.ctr().run_command(&run), BOOT)?;
        ensure!(finished.text() == "opened\n", "{finished:?}");
        bed.nothing_of(&id)?;
        let (id, annotation) = (bed.id("unknowing"), bed.initdata(POLICY).with_file("cdh.toml", &settings("")?).annotation()?);
        bed.refused(
            &Run { image: &open, id: &id, initdata: Some(&annotation), ..Run::default() },
            &[registry.authority(), "refuses access", "credentials"],
        )
    })();
    bed.configuration.write(&bed.configuration_file())?;
    registry.stop()?;
    result
}
