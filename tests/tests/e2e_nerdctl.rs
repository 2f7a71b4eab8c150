//! The real nerdctl: its network is set up by OCI hooks on the host, its logs are taken by a program of its own.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::bed::{Bed, Setup};
use tests::command;
use tests::ctr::BOOT;
use tests::nerdctl::{Nerdctl, own_network};
use tests::oci::Image;
use tests::{leaks, place, pty, runner, tests};

/// How long a service may take to answer once its container runs.
const ANSWER: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Err(error) = own_network() {
        return runner::cannot_start(&error, 1);
    }
    // The version that nerdctl of today expects.
    let setup = Setup { name: "nerd", containerd: place::CONTAINERD_NEWEST };
    runner::main(
        &setup,
        1,
        tests![
            a_published_service_is_reached_and_looked_after,
            a_terminal_with_variables,
            a_failing_hook_is_a_line,
            a_killed_shim_gives_the_address_back
        ],
    )
}

fn image(bed: &Bed) -> Result<String> {
    let script = "echo started $GREETING; cd /srv; exec /bin/busybox httpd -f -p 80";
    bed.plain(&Image::busybox(script)?.with_file("srv/index.html", "from the guest\n"), "web")
}

/// What `GET /` at `address` answers; tried until somebody does.
fn get(address: &str) -> Result<String> {
    let started = Instant::now();
    loop {
        let answer = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(ANSWER))?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        });
        match answer {
            Ok(text) if !text.is_empty() => return Ok(text),
            result if started.elapsed() > ANSWER => bail!("{address} does not answer: {result:?}"),
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Starts the service in the background; gives its container's id.
fn start(nerdctl: &Nerdctl, reference: &str, name: &str, more: &[&str]) -> Result<String> {
    let arguments = [&["-d", "--name", name, "-p", "8080:80", "-e", "GREETING=hello"], more, &[reference]].concat();
    let finished = command::run(&mut nerdctl.run_command(&arguments), BOOT)?.succeeded()?;
    Ok(finished.text().trim().to_owned())
}

fn inspect(nerdctl: &Nerdctl, name: &str) -> Result<Value> {
    let text = nerdctl.call(&["inspect", name])?.succeeded()?.text();
    let list: Value = serde_json::from_str(&text)?;
    list.get(0).cloned().with_context(|| format!("nothing about {name}: {text}"))
}

fn a_published_service_is_reached_and_looked_after(bed: &Bed) -> Result<()> {
    let nerdctl = Nerdctl::new(bed)?;
    let (reference, conf) = (image(bed)?, bed.base().join("conf"));
    fs::create_dir_all(conf.join("below"))?;
    fs::write(conf.join("below/key"), "of the node")?;
    // Nothing is shared: what is to be written to is refused before there is a VM, in a line that says what works.
    let volume = format!("{}:/etc/conf", conf.display());
    let refused = command::run(&mut nerdctl.run_command(&["--rm", "--name", "writes", "-v", &volume, &reference]), BOOT)?;
    ensure!(!refused.status.success() && refused.stderr.contains("mount it read-only"), "{refused:?}");
    nerdctl.call(&["rm", "-f", "writes"])?;

    let volume = format!("{volume}:ro");
    let id = start(&nerdctl, &reference, "web", &["-v", &volume, "--sysctl", "net.core.somaxconn=77"])?;
    let seen = nerdctl.call(&["exec", "web", "/bin/sh", "-c", "cat /etc/conf/below/key; echo; echo x > /etc/conf/below/key || echo no"])?;
    ensure!(seen.text() == "of the node\nno\n" && fs::read_to_string(conf.join("below/key"))? == "of the node", "{seen:?}");
    let seen = nerdctl.call(&["exec", "web", "/bin/cat", "/proc/sys/net/core/somaxconn"])?;
    ensure!(seen.text() == "77\n", "{seen:?}");

    // The address that nerdctl reads out of the network namespace of the container's process: the VM's.
    let known = inspect(&nerdctl, "web")?;
    let pid = known["State"]["Pid"].as_u64().context("no pid")?;
    ensure!(known["State"]["Status"] == "running", "{known}");
    ensure!(leaks::pids_with("qemu-system").iter().any(|(vm, _)| u64::from(*vm) == pid), "{pid} is no VM");
    let address = known["NetworkSettings"]["IPAddress"].as_str().unwrap_or_default().to_owned();
    ensure!(address.starts_with("10.4."), "{known}");
    for place in [format!("{address}:80"), "127.0.0.1:8080".to_owned()] {
        let text = get(&place)?;
        ensure!(text.contains("200 OK") && text.ends_with("from the guest\n"), "{place}: {text}");
    }

    let said = nerdctl.call(&["exec", "web", "/bin/sh", "-c", "echo $GREETING; exit 3"])?;
    // nerdctl's own exit code is 1 then, whatever the runtime.
    ensure!(said.text() == "hello\n" && said.stderr.contains("exit code 3"), "{said:?}");
    let echoed =
        command::start(&mut nerdctl.command(&["exec", "-i", "web", "/bin/cat"]), b"typed".to_vec())?.finish(Duration::from_secs(120))?;
    ensure!(echoed.text() == "typed", "{echoed:?}");
    let logs = nerdctl.call(&["logs", "web"])?.succeeded()?;
    ensure!(logs.text() == "started hello\n", "{logs:?}");
    let stats = nerdctl.call(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "web"])?.succeeded()?;
    ensure!(stats.text().starts_with("web ") && stats.text().contains("iB"), "{stats:?}");
    let listed = nerdctl.call(&["ps", "--format", "{{.Names}} {{.Status}} {{.Ports}}"])?.succeeded()?;
    ensure!(listed.text().contains("web Up") && listed.text().contains("8080->80/tcp"), "{listed:?}");

    nerdctl.call(&["stop", "-t", "2", "web"])?.succeeded()?;
    let known = inspect(&nerdctl, "web")?;
    ensure!(known["State"]["Status"] == "exited", "{known}");
    nerdctl.call(&["rm", "web"])?.succeeded()?;
    ensure!(!nerdctl.leases().contains(&address), "{address} was not given back");
    bed.nothing_of(&id)
}

fn a_terminal_with_variables(bed: &Bed) -> Result<()> {
    let nerdctl = Nerdctl::new(bed)?;
    let reference =
        bed.plain(&Image::busybox("tty; stty size; echo $WHO; cat /conf/file; read line; echo \"got $line\"; exit 5")?, "terminal")?;
    let conf = bed.base().join("conf");
    fs::create_dir_all(&conf)?;
    fs::write(conf.join("file"), "of the host\n")?;
    let volume = format!("{}:/conf:ro", conf.display());
    let arguments = ["-it", "--rm", "--name", "terminal", "-p", "8081:80", "-v", &volume, "-e", "WHO=me", &reference];
    let finished = pty::run(&mut nerdctl.run_command(&arguments), b"a line\n", BOOT)?;
    let text = finished.text();
    ensure!(text.contains("/dev/pts/") && text.contains("me\r\nof the host\r\n") && text.contains("got a line"), "{text}");
    ensure!(finished.code() == Some(5), "{finished:?}");
    let left = nerdctl.call(&["ps", "-a", "--format", "{{.Names}}"])?.succeeded()?;
    ensure!(!left.text().contains("terminal"), "{left:?}");
    Ok(())
}

/// An address that the network does not have: CNI fails in the hook, before there is a VM.
fn a_failing_hook_is_a_line(bed: &Bed) -> Result<()> {
    let nerdctl = Nerdctl::new(bed)?;
    let arguments = ["--rm", "--name", "fails", "--ip", "192.0.2.1", &image(bed)?];
    let finished = command::run(&mut nerdctl.run_command(&arguments), BOOT)?;
    ensure!(!finished.status.success() && finished.stderr.contains("createRuntime hook"), "{finished:?}");
    nerdctl.call(&["rm", "-f", "fails"])?;
    ensure!(leaks::pids_with("launch-vm").is_empty(), "its place is still kept");
    Ok(())
}

fn a_killed_shim_gives_the_address_back(bed: &Bed) -> Result<()> {
    let nerdctl = Nerdctl::new(bed)?;
    let id = start(&nerdctl, &image(bed)?, "killed", &[])?;
    let address = inspect(&nerdctl, "killed")?["NetworkSettings"]["IPAddress"].as_str().unwrap_or_default().to_owned();
    ensure!(nerdctl.leases().contains(&address), "{address} is not among {:?}", nerdctl.leases());
    let shims = leaks::pids_with("containerd-shim-cloister-v2");
    let (shim, _) = shims.iter().find(|(_, line)| line.contains(&id)).context("no shim")?;
    kill(Pid::from_raw(i32::try_from(*shim)?), Signal::SIGKILL)?;
    bed.nothing_of(&id).or_else(|_| {
        nerdctl.call(&["rm", "-f", "killed"])?;
        bed.nothing_of(&id)
    })?;
    ensure!(!nerdctl.leases().contains(&address), "{address} was not given back");
    nerdctl.call(&["rm", "-f", "killed"])?;
    Ok(())
}
