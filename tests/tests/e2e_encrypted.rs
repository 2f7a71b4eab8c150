//! An encrypted image runs where its owner's rule is met, and nowhere else; and what it holds is nowhere on the host.

#![allow(clippy::print_stdout, reason = "a test of many checks says where it is")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::bed::{Bed, POLICY, Setup};
use tests::broker::{Broker, Release};
use tests::configuration::Initdata;
use tests::ctr::{BOOT, Run};
use tests::oci::Image;
use tests::pod::Pod;
use tests::search::search;
use tests::{command, place, runner, scratch_file, tests};

fn main() -> ExitCode {
    runner::main(
        &Setup { name: "enc", containerd: place::CONTAINERD_DEFAULT },
        2,
        tests![
            an_encrypted_image_runs_and_the_host_stores_nothing_of_it,
            the_layers_open_under_no_other_config,
            another_initdata_is_refused_the_key,
            another_measurement_is_refused_the_key,
            no_initdata_no_key,
            the_policy_decides_on_exec_and_overrides,
            a_policy_from_a_manifest_lets_its_pod_run_and_nothing_else,
            an_image_goes_from_place_to_place_and_back,
            skopeos_image_runs_signed_and_for_a_private_key_in_the_broker,
            an_image_that_is_not_signed_as_the_owner_wants_is_refused,
        ],
    )
}

/// Layers beside those of busybox and of the secret, so that there are ten.
const LAYERS: [&str; 8] = ["srv/a", "srv/b", "srv/c", "srv/d", "srv/e", "srv/f", "srv/g", "srv/h"];

fn an_encrypted_image_runs_and_the_host_stores_nothing_of_it(bed: &Bed) -> Result<()> {
    let secret = format!("the model's weights {}", bed.id("w"));
    let image =
        Image::busybox("wc -c < /srv/secret; cp /srv/secret /tmp/copy 2>/dev/null || cat /srv/secret > /tmp/copy; echo ready; sleep 3600")?;
    let image = LAYERS.into_iter().fold(image.with_file("srv/secret", secret.clone()), |image, path| image.with_file(path, path));
    // A broker of its own: what it counts is this container's.
    let mut broker = Broker::start(bed.base(), "own")?;
    let initdata = Initdata::new(&broker.url(), POLICY);

    // The search has to be able to fail: it finds the secret in the plain layout that the image is made of.
    let plain = bed.layout(&image, "secret")?;
    ensure!(search(&[&plain.directory], secret.as_bytes())?.files.len() == 1, "the search does not find the secret in the plain image");
    let file = bed.base().join("own.initdata");
    fs::write(&file, &initdata.text)?;
    let release = Release { key: "kbs:///tests/image/secret", initdata: &file, tee: "sample", launch_measurement: None };
    let sealed = broker.encrypt(&plain, "1", &release)?;
    ensure!(sealed.digests()?.layers.len() == 10, "not ten layers");
    let reference = bed.provide(&sealed, "secret")?;
    fs::remove_dir_all(&plain.directory)?;

    let (id, annotation) = (bed.id("secret"), initdata.annotation()?);
    let run = Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() };
    let running = bed.ctr().start(&run)?;
    running.wait_output(BOOT)?;
    // Other VMs run beside this one.
    let scratch = scratch_file::all(&bed.configuration.scratch)?;
    ensure!(!scratch.is_empty(), "no VM has a scratch file in {}", bed.configuration.scratch.display());
    let places: Vec<&Path> = [bed.base()].into_iter().chain(scratch.iter().map(PathBuf::as_path)).collect();
    let found = search(&places, secret.as_bytes())?;
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    let finished = running.finish(BOOT)?;
    ensure!(found.files.is_empty(), "the secret is in {:?}", found.files);
    ensure!(found.searched > 20, "only {} files were searched", found.searched);
    ensure!(finished.text().starts_with(&format!("{}\n", secret.len())), "{finished:?}");

    // Ten encrypted layers: one quote, and three round trips to the key that opens them all.
    for (counter, expected) in [
        ("challenges_total", 1),
        ("handshakes_total", 1),
        ("handshake_failures_total", 0),
        ("resources_released_total", 1),
        ("requests_total", 3),
    ] {
        let counted = broker.counter(counter)?;
        ensure!(counted == expected, "{counter}: {counted}, expected {expected}");
    }
    broker.stop()?;

    let found = search(&[bed.base()], secret.as_bytes())?;
    ensure!(found.files.is_empty(), "afterwards, the secret is in {:?}", found.files);
    bed.nothing_of(&id)
}

/// Whoever holds the registry has the encrypted layers, and can write a config that prints them. In the VM that has the key and has decrypted
/// them, under a policy that names no image: as they are, and called plain.
fn the_layers_open_under_no_other_config(bed: &Bed) -> Result<()> {
    let secret = format!("what the layers hold {}", bed.id("w"));
    let image = Image::busybox("wc -c < /srv/secret")?.with_file("srv/secret", secret.clone());
    let initdata = bed.initdata(POLICY);
    let sealed = bed.encrypt(&image, "bound", &initdata)?;
    let reference = bed.provide(&sealed, "bound")?;
    let pod = Pod::start(bed, "bound", &reference, Some(&initdata.annotation()?))?;
    let honest = pod.run("honest", &pod.spec("wc -c < /srv/secret"))?.succeeded()?;
    ensure!(honest.text() == format!("{}\n", secret.len()), "{honest:?}");
    for (name, plain, words) in [("config", false, "encrypted as a layer of the image with config"), ("plain", true, "layer sha256:")] {
        let forged = sealed.forged(&bed.base().join("images").join(name), "cat /srv/secret", plain)?;
        let mut spec = pod.spec("cat /srv/secret");
        spec["annotations"]["io.kubernetes.cri.image-name"] = json!(bed.registry.push(&forged, name, "1")?);
        let refused = pod.run(name, &spec)?;
        ensure!(!refused.status.success() && !refused.text().contains(&secret), "it was printed: {refused:?}");
        ensure!(refused.stderr.contains(words), "'{words}' is not in: {}", refused.stderr);
        println!("  {name}: {}", refused.stderr.trim_end());
    }
    pod.end()
}

fn another_initdata_is_refused_the_key(bed: &Bed) -> Result<()> {
    let reference = bed.encrypted(&Image::busybox("echo it ran")?, "changed", &bed.initdata(POLICY))?;
    let changed = bed.initdata("[allow]\nstdin = true\nexec = true\n");
    let (id, annotation) = (bed.id("changed"), changed.annotation()?);
    bed.refused(
        &Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() },
        &["kbs:///tests/image/changed", "initdata"],
    )
}

fn another_measurement_is_refused_the_key(bed: &Bed) -> Result<()> {
    let initdata = bed.initdata(POLICY);
    let layout = bed.layout(&Image::busybox("echo it ran")?, "measured")?;
    let file = bed.base().join("measured.initdata");
    fs::write(&file, &initdata.text)?;
    let release =
        Release { key: "kbs:///tests/image/measured", initdata: &file, tee: "sample", launch_measurement: Some(&"00".repeat(48)) };
    let reference = bed.provide(&bed.broker.encrypt(&layout, "1", &release)?, "measured")?;
    let (id, annotation) = (bed.id("measured"), initdata.annotation()?);
    bed.refused(
        &Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() },
        &["kbs:///tests/image/measured", "measurement"],
    )
}

fn no_initdata_no_key(bed: &Bed) -> Result<()> {
    let reference = bed.encrypted(&Image::busybox("echo it ran")?, "bare", &bed.initdata(POLICY))?;
    let id = bed.id("bare");
    bed.refused(&Run { image: &reference, id: &id, ..Run::default() }, &["initdata"])
}

fn the_policy_decides_on_exec_and_overrides(bed: &Bed) -> Result<()> {
    let policy = "[allow]\nstdin = true\nexec = [[\"/bin/echo\", \"allowed\"]]\nenv = [\"MODE=batch\"]\n";
    let initdata = bed.initdata(policy);
    let reference = bed.encrypted(&Image::busybox("echo $MODE; sleep 3600")?, "policy", &initdata)?;
    let annotation = initdata.annotation()?;

    let id = bed.id("policy");
    let run = Run { image: &reference, id: &id, flags: &["--env", "MODE=batch"], initdata: Some(&annotation), ..Run::default() };
    let running = bed.ctr().start(&run)?;
    running.wait_output(BOOT)?;
    let allowed = bed.ctr().exec(&id, "one", &[], &["/bin/echo", "allowed"], b"")?;
    let denied = bed.ctr().exec(&id, "two", &[], &["/bin/cat", "/etc/passwd"], b"")?;
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", &id])?.succeeded()?;
    ensure!(running.finish(BOOT)?.text() == "batch\n");
    ensure!(allowed.text() == "allowed\n", "{allowed:?}");
    ensure!(!denied.status.success() && denied.stdout.is_empty(), "{denied:?}");
    ensure!(denied.stderr.contains("denied by policy") && denied.stderr.contains("allow.exec"), "{denied:?}");
    bed.nothing_of(&id)
}

/// What the container of the manifest does. Its standard input is there because ctr always connects one.
const SCRIPT: &str = "cat /etc/conf/key; touch /cache/x && echo writable; touch /etc/conf/y 2>/dev/null || echo read-only; \
    echo $PASSWORD; cat /etc/db/token";

/// What a script of the manifest says if all is well.
const SAID: &str = "bound\nwritable\nread-only\nhunter2\nan API token\n";

/// Sealed secrets, a vault's and an envelope, and what a broker has to have for whoever opens them.
struct Sealed {
    vault: String,
    envelope: String,
    resources: Vec<(&'static str, PathBuf)>,
}

fn sealed(bed: &Bed) -> Result<Sealed> {
    let (directory, cloister) = (bed.base().join("sealed"), place::ours("cloister")?);
    fs::create_dir_all(&directory)?;
    let path = |name: &str| directory.join(name);
    tool(&cloister, &["image", "keygen", &path("owner").display().to_string()])?;
    fs::write(path("password"), "hunter2")?;
    fs::write(path("token"), "an API token\n")?;
    fs::write(path("wrap"), [7; 32])?;
    let seal = |what: &[&str]| -> Result<String> {
        let mut seal = Command::new(&cloister);
        seal.args(["seal", "--signer", "kbs:///tests/keys/owner", "--sign-key"]).arg(path("owner.key")).args(what);
        Ok(command::run(&mut seal, TOOL)?.succeeded()?.text().trim().to_owned())
    };
    let (token, wrap) = (path("token").display().to_string(), path("wrap").display().to_string());
    Ok(Sealed {
        vault: seal(&["vault", "kbs:///tests/db/password"])?,
        envelope: seal(&["envelope", &token, "--key", &wrap, "--key-id", "kbs:///tests/keys/wrap"])?,
        resources: vec![
            ("kbs:///tests/keys/owner", path("owner.pub")),
            ("kbs:///tests/keys/wrap", path("wrap")),
            ("kbs:///tests/db/password", path("password")),
        ],
    })
}

/// Written from a manifest, with the content of its ConfigMap and of its Secret, which is sealed as one of its variables is; in one VM: what
/// the manifest says runs, and nothing else, nor anything else in its place.
fn a_policy_from_a_manifest_lets_its_pod_run_and_nothing_else(bed: &Bed) -> Result<()> {
    let reference = bed.plain(&Image::busybox("sleep 3600")?, "manifest")?;
    let (manifest, policy) = (bed.base().join("pod.yaml"), bed.base().join("pod.policy.toml"));
    let sealed = sealed(bed)?;
    let (vault, envelope) = (&sealed.vault, &sealed.envelope);
    let text = format!(
        "kind: ConfigMap\nmetadata: {{name: conf}}\ndata: {{key: \"bound\\n\"}}\n---\n\
         kind: Secret\nmetadata: {{name: db}}\nstringData: {{token: {envelope}}}\n---\n\
         kind: Pod\nmetadata: {{name: app}}\nspec:\n  automountServiceAccountToken: false\n  containers:\n  - name: app\n    image: {reference}\n\
         \x20   command: [/bin/sh, -c, {SCRIPT:?}]\n    securityContext: {{allowPrivilegeEscalation: false}}\n\
         \x20   stdin: true\n\
         \x20   env: [{{name: PASSWORD, value: {vault}}}]\n\
         \x20   volumeMounts:\n\
         \x20   - {{name: conf, mountPath: /etc/conf}}\n\
         \x20   - {{name: db, mountPath: /etc/db}}\n\
         \x20   - {{name: cache, mountPath: /cache}}\n\
         \x20 volumes:\n\
         \x20 - {{name: conf, configMap: {{name: conf}}}}\n\
         \x20 - {{name: db, secret: {{secretName: db}}}}\n\
         \x20 - {{name: cache, emptyDir: {{}}}}\n"
    );
    fs::write(&manifest, text)?;
    let (cloister, registry) = (place::ours("cloister")?, reference.split('/').next().unwrap_or_default());
    let (manifest, policy) = (manifest.display().to_string(), policy.display().to_string());
    tool(&cloister, &["policy", "generate", &manifest, "--bind-files", "--plain-http", registry, "--out", &policy])?;
    tool(&cloister, &["policy", "check", &policy, "--pod", &manifest, "--plain-http", registry])?;

    // Its volumes as kubelet makes them, and one whose content was changed.
    let volumes = bed.base().join("kubelet/pods/0a1b/volumes");
    let cache = volumes.join("kubernetes.io~empty-dir/cache");
    fs::create_dir_all(&cache)?;
    let volume = |kind: &str, name: &str, file: &str, content: &str| -> Result<PathBuf> {
        let directory = volumes.join(kind).join(name);
        fs::create_dir_all(directory.join("..1"))?;
        fs::write(directory.join("..1").join(file), content)?;
        symlink("..1", directory.join("..data"))?;
        symlink(Path::new("..data").join(file), directory.join(file))?;
        Ok(directory)
    };
    let config_map = |name: &str, content: &str| volume("kubernetes.io~configmap", name, "key", content);
    let (good, evil) = (config_map("conf", "bound\n")?, config_map("evil", "other\n")?);
    let db = volume("kubernetes.io~secret", "db", "token", envelope)?;

    let initdata = bed.initdata(&fs::read_to_string(&policy)?);
    let pod = Pod::start(bed, "manifest", &reference, Some(&initdata.annotation()?))?;
    let bind = |source: &Path, destination: &str, options: &[&str]| {
        let options = [&["rbind", "rprivate"], options].concat();
        json!({"destination": destination, "type": "bind", "source": source, "options": options})
    };
    let with_password = |password: &str, script: &str, binds: &[Value]| -> Result<Value> {
        let mut spec = pod.spec(script);
        spec["mounts"].as_array_mut().context("mounts")?.extend(binds.iter().cloned());
        spec["mounts"].as_array_mut().context("mounts")?.push(bind(&db, "/etc/db", &["ro"]));
        spec["process"]["env"].as_array_mut().context("env")?.push(json!(format!("PASSWORD={password}")));
        Ok(spec)
    };
    let with = |script: &str, binds: &[Value]| with_password(vault, script, binds);
    let cached = bind(&cache, "/cache", &["rw"]);
    let valid = [bind(&good, "/etc/conf", &["ro"]), cached.clone()];
    let early = pod.run("early", &with(SCRIPT, &valid)?)?;
    ensure!(
        !early.status.success() && early.stdout.is_empty() && early.stderr.contains("sealed secret: kbs:///tests/keys/owner"),
        "{early:?}"
    );
    for (resource, file) in &sealed.resources {
        bed.broker.put(resource, file, &initdata)?;
    }
    let seen = pod.run("valid", &with(SCRIPT, &valid)?)?;
    ensure!(seen.text() == SAID, "{seen:?}");
    let content = format!("file /etc/conf/key with content {}", tests::oci::digest(b"other\n"));
    for (name, spec, rule) in [
        ("args", with("cat /etc/passwd", &valid)?, "command line"),
        ("secret", with_password(envelope, SCRIPT, &valid)?, "PASSWORD"),
        ("content", with(SCRIPT, &[bind(&evil, "/etc/conf", &["ro"]), cached.clone()])?, content.as_str()),
        ("place", with(SCRIPT, &[bind(&good, "/etc", &["ro"]), cached.clone()])?, "files at /etc"),
        ("absent", with(SCRIPT, std::slice::from_ref(&cached))?, "/etc/conf"),
        ("empty", with(SCRIPT, &[bind(&cache, "/etc/conf", &["rw"]), cached])?, "without file /etc/conf/key"),
    ] {
        let refused = pod.run(name, &spec)?;
        ensure!(!refused.status.success() && refused.stdout.is_empty(), "{name}: it ran: {refused:?}");
        ensure!(refused.stderr.contains("denied by policy") && refused.stderr.contains(rule), "{name}: {refused:?}");
        ensure!(refused.stderr.trim_end().lines().count() == 1, "not one line: {}", refused.stderr);
        println!("  {name}: {}", refused.stderr.trim_end());
    }
    let again = pod.run("again", &with(SCRIPT, &valid)?)?;
    ensure!(again.text() == SAID, "a refusal took the place of what may run: {again:?}");
    pod.end()
}

const TOOL: Duration = Duration::from_secs(120);

fn tool(program: &Path, arguments: &[&str]) -> Result<()> {
    command::run(Command::new(program).args(arguments), TOOL)?.succeeded()?;
    Ok(())
}

/// containers' policy.json, inside the initdata: everything is to be signed with the key that is this resource of the broker.
fn signed(key: &str) -> String {
    let requirement = json!({"default": [{"type": "sigstoreSigned", "keyPath": key}]});
    format!("image_security_policy = {:?}", requirement.to_string())
}

/// Each kind of place that the owner's tool knows as source and as destination of both of its ways; what went in comes out. No VM.
fn an_image_goes_from_place_to_place_and_back(bed: &Bed) -> Result<()> {
    let directory = bed.base().join("places");
    fs::create_dir_all(&directory)?;
    let path = |name: &str| directory.join(name).display().to_string();
    tool(Path::new("openssl"), &["genrsa", "-out", &path("private.pem"), "2048"])?;
    tool(Path::new("openssl"), &["rsa", "-in", &path("private.pem"), "-pubout", "-out", &path("public.pem")])?;
    let layout = bed.layout(&Image::busybox("true")?.with_file("srv/a", "a").with_file("srv/b", "b"), "places")?;
    let image = |arguments: &[&str]| -> Result<Value> {
        let mut tool = Command::new(place::ours("cloister")?);
        tool.arg("image").args(arguments).args(["--json", "--plain-http", &bed.registry.authority]);
        Ok(serde_json::from_slice(&command::run(&mut tool, TOOL)?.succeeded()?.stdout)?)
    };
    let layers = |place: &str, encrypted: bool| -> Result<Vec<String>> {
        let seen = image(&["inspect", place])?;
        let layers = seen["layers"].as_array().context("layers")?;
        ensure!(
            layers.iter().all(|layer| layer["encrypted"] == encrypted) && (seen["keys"] == json!(["jwe"])) == encrypted,
            "{place}: {seen}"
        );
        Ok(layers.iter().map(|layer| layer["diff_id"].to_string()).collect())
    };
    let registry = |tag: &str| format!("docker://{}/places:{tag}", bed.registry.authority);
    let (first, archive) = (format!("oci:{}:1", layout.directory.display()), format!("oci-archive:{}:1", path("plain.tar")));
    let ways = [
        (first.clone(), registry("sealed"), archive.clone()),
        (archive, format!("oci-archive:{}:1", path("sealed.tar")), format!("docker-archive:{}:places:1", path("docker.tar"))),
        (format!("docker-archive:{}", path("docker.tar")), format!("oci:{}:1", path("sealed")), registry("plain")),
        (registry("plain"), registry("again"), format!("oci:{}:2", path("sealed"))),
    ];
    let wanted = layers(&first, false)?;
    ensure!(wanted.len() == 3, "{wanted:?}");
    for (plain, sealed, opened) in &ways {
        let encrypted = image(&["encrypt", plain, sealed, "--recipient", &format!("jwe:{}", path("public.pem"))])?;
        ensure!(encrypted["digest"] == image(&["inspect", sealed])?["digest"], "{encrypted}");
        ensure!(layers(sealed, true)? == wanted, "{sealed}");
        let decrypted = image(&["decrypt", sealed, opened, "--private-key", &path("private.pem")])?;
        ensure!(decrypted["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{decrypted}");
        let opened = opened.replace(":places:1", "");
        ensure!(layers(&opened, false)? == wanted, "{opened}");
    }
    Ok(())
}

/// What others made: skopeo encrypts for an RSA key, which the owner keeps in the broker; the ciphertext is signed in cosign's formats.
fn skopeos_image_runs_signed_and_for_a_private_key_in_the_broker(bed: &Bed) -> Result<()> {
    let directory = bed.base().join("jwe");
    fs::create_dir_all(&directory)?;
    let path = |name: &str| directory.join(name).display().to_string();
    let (openssl, skopeo, cloister) = (Path::new("openssl"), Path::new("skopeo"), place::ours("cloister")?);
    tool(openssl, &["genrsa", "-out", &path("private.pem"), "2048"])?;
    tool(openssl, &["rsa", "-in", &path("private.pem"), "-pubout", "-out", &path("public.pem")])?;
    tool(&cloister, &["image", "keygen", &path("cosign")])?;

    let plain = bed.layout(&Image::busybox("cat /srv/secret")?.with_file("srv/secret", "opened\n"), "jwe")?;
    let sealed = tests::oci::Layout { directory: directory.join("sealed") };
    let (from, to) = (format!("oci:{}:1", plain.directory.display()), format!("oci:{}:1", sealed.directory.display()));
    let recipient = format!("jwe:{}", path("public.pem"));
    tool(skopeo, &["--insecure-policy", "copy", "--quiet", "--encryption-key", &recipient, &from, &to])?;
    let reference = bed.provide(&sealed, "jwe")?;
    let registry = reference.split('/').next().unwrap_or_default();
    let place = format!("docker://{reference}");
    tool(&cloister, &["image", "sign", &place, "--key", &path("cosign.key"), "--plain-http", registry])?;
    tool(&cloister, &["image", "verify", &place, "--key", &path("cosign.pub"), "--plain-http", registry])?;

    let settings = format!("[image]\nimage_decryption_keys = [\"kbs:///tests/jwe/private\"]\n{}\n", signed("kbs:///tests/cosign/jwe"));
    let initdata = bed.initdata(POLICY).with_file("cdh.toml", &settings);
    bed.broker.put("kbs:///tests/jwe/private", &directory.join("private.pem"), &initdata)?;
    bed.broker.put("kbs:///tests/cosign/jwe", &directory.join("cosign.pub"), &initdata)?;
    let (id, annotation) = (bed.id("jwe"), initdata.annotation()?);
    let finished = bed.ctr().run(&Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() })?;
    ensure!(finished.text() == "opened\n", "{finished:?}");
    bed.nothing_of(&id)
}

fn an_image_that_is_not_signed_as_the_owner_wants_is_refused(bed: &Bed) -> Result<()> {
    let reference = bed.plain(&Image::busybox("echo it ran")?, "unsigned")?;
    let initdata = bed.initdata(POLICY).with_file("cdh.toml", &format!("[image]\n{}\n", signed("kbs:///tests/cosign/other")));
    let key = bed.base().join("unsigned");
    tool(&place::ours("cloister")?, &["image", "keygen", &key.display().to_string()])?;
    bed.broker.put("kbs:///tests/cosign/other", &key.with_extension("pub"), &initdata)?;
    let (id, annotation) = (bed.id("unsigned"), initdata.annotation()?);
    bed.refused(
        &Run { image: &reference, id: &id, initdata: Some(&annotation), ..Run::default() },
        &["signature policy", "no signature", &reference],
    )
}
