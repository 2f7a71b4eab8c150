//! Pods, driven through the CRI socket as kubelet does it, on containerd 1.6, 1.7 and 2.x, and there in both of its ways: with a pause
//! container, and by the Sandbox API.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::bed::{Bed, Setup};
use tests::cri::websocket::{WebSocket, channel};
use tests::cri::{ContainerSpec, Placed, Pod, PodSpec, Security};
use tests::oci::Image;
use tests::runner::Test;
use tests::{command, raw, runner, tests};

fn main() -> ExitCode {
    let full: &[Test] =
        tests![a_pod_does_what_pods_do, processes_are_shared_where_the_pod_asks_and_it_needs_no_network, the_nodes_namespaces_are_refused,];
    // One bed after the other: the versions do not share one.
    let beds: [(&str, &str, &[Test]); 3] = [
        ("p7", "1.7", full),
        ("p6", "1.6", tests![a_pod_whose_guest_hangs_can_be_ended]),
        ("p2", "2", tests![a_pod_runs, a_pod_of_the_sandbox_api_runs]),
    ];
    let run = |(name, containerd, tests)| {
        let setup = Setup { name, containerd };
        runner::main_with(|| Bed::start_with_cri(&setup), 1, tests)
    };
    beds.map(run).into_iter().find(|code| *code != ExitCode::SUCCESS).unwrap_or(ExitCode::SUCCESS)
}

/// Serves a file by HTTP, of busybox.
const SERVER: &[&str] = &["/bin/sh", "-c", "echo serving; echo oops >&2; exec /bin/busybox httpd -f -p 8080 -h /srv"];
/// How long a tool of a file system may take.
const MKFS: Duration = Duration::from_secs(60);
const SLEEP: &[&str] = &["/bin/sleep", "3600"];

fn image(bed: &Bed) -> Result<String> {
    let layout = bed.layout(&Image::busybox("echo no command was given")?.with_file("srv/data", "of the pod\n"), "pod")?;
    bed.registry.push(&layout, "pod", "1")
}

/// One VM for all that a pod is: sizes, init containers, network, namespaces, streams, a restart.
fn a_pod_does_what_pods_do(bed: &Bed) -> Result<()> {
    let image = image(bed)?;
    let spec = PodSpec {
        name: "web-0",
        sysctls: &[("net.ipv4.ip_local_port_range", "20000 30000"), ("kernel.shm_rmid_forced", "1"), ("net.core.somaxconn", "77")],
        memory_mib: 96,
        cpu_percent: 150,
        privileged: true,
        ..PodSpec::default()
    };
    let pod = bed.cri()?.run_pod(&spec)?;
    let (ready, address) = pod.ready()?;
    ensure!(ready && address.starts_with("10.231."), "{ready} {address}");

    // Init containers, one after the other; what fails says so.
    for (name, script, code) in [("first", "echo one", 0), ("second", "exit 4", 4), ("third", "hostname; echo $0", 0)] {
        let init = ContainerSpec { name, image: &image, command: &["/bin/sh", "-c", script], ..ContainerSpec::default() };
        let ended = pod.run(&init)?;
        ensure!(ended == code, "{name} ended with {ended}");
    }
    let third = ContainerSpec { name: "third", image: &image, ..ContainerSpec::default() };
    ensure!(pod.log(&third)?.contains("stdout F web-0"), "{}", pod.log(&third)?);

    let server = ContainerSpec { name: "server", image: &image, command: SERVER, ..ContainerSpec::default() };
    let side = ContainerSpec { name: "side", image: &image, command: SLEEP, ..ContainerSpec::default() };
    let (server_id, side_id) = (pod.start(&server)?, pod.start(&side)?);
    the_vm_has_the_pods_size(&pod, &side_id)?;
    namespaces_are_the_pods(&pod, &server_id, &side_id)?;
    the_network_is_the_pods(bed, &pod, &side_id, &address)?;
    streams_reach_the_node(&pod, &image, &server, &side_id)?;
    a_port_is_forwarded(&pod)?;
    what_a_container_may_do_is_the_pods_to_say(&pod, &image, &side_id)?;
    let side_id = a_container_is_started_again(&pod, &side, &side_id)?;
    containers_have_disks(bed, &pod, &image)?;
    ensure!(pod.memory(&server_id)? > 0, "no statistics");
    ensure!(fetch(&pod, &side_id, "http://127.0.0.1:8080/data")? == "of the pod\n");

    let id = pod.id.clone();
    pod.end()?;
    bed.nothing_of(&id)
}

/// As kubelet's limits have it: their memory on top of the guest's own, their processors rounded up.
fn the_vm_has_the_pods_size(pod: &Pod<'_>, id: &str) -> Result<()> {
    let seen = pod.shell(id, "busybox nproc; grep MemTotal /proc/meminfo")?;
    let (processors, memory) = seen.split_once('\n').context("two lines")?;
    let kib: u64 = memory.split_whitespace().nth(1).context("MemTotal")?.parse()?;
    // 512 MiB of the configuration and 96 of the pod, less what the kernel itself takes.
    ensure!(processors == "2" && (540 << 10..=608 << 10).contains(&kib), "{seen}");
    Ok(())
}

fn namespaces_are_the_pods(pod: &Pod<'_>, server: &str, side: &str) -> Result<()> {
    let namespaces = "for n in net ipc uts pid mnt; do busybox readlink /proc/self/ns/$n; done";
    let (one, two) = (pod.shell(server, namespaces)?, pod.shell(side, namespaces)?);
    let pairs: Vec<(&str, &str)> = one.lines().zip(two.lines()).collect();
    ensure!(pairs.len() == 5 && pairs[..3].iter().all(|(a, b)| a == b) && pairs[3..].iter().all(|(a, b)| a != b), "{one} {two}");
    pod.shell(server, "echo shared > /dev/shm/note")?;
    ensure!(pod.shell(side, "cat /dev/shm/note; stat -f -c %T /dev/shm")? == "shared\ntmpfs\n");
    ensure!(pod.shell(side, "hostname")? == "web-0\n");
    let sysctls =
        pod.shell(side, "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn")?;
    ensure!(sysctls == "20000\t30000\n1\n77\n", "{sysctls}");
    let resolver = pod.shell(side, "cat /etc/resolv.conf")?;
    for line in ["nameserver 10.231.7.53", "search default.svc.cluster.local cluster.local", "options ndots:5"] {
        ensure!(resolver.lines().any(|seen| seen == line), "{resolver}");
    }
    Ok(())
}

fn the_network_is_the_pods(bed: &Bed, pod: &Pod<'_>, id: &str, address: &str) -> Result<()> {
    ensure!(fetch(pod, id, "http://127.0.0.1:8080/data")? == "of the pod\n", "between containers");
    ensure!(get(&format!("{address}:8080"))?.ends_with("of the pod\n"), "from the node");
    let links = pod.shell(id, "busybox ip addr")?;
    for wanted in ["eth0", "mtu 1400", "eth1", "mtu 1300", &format!("inet {address}/24"), "inet6 fd00:231:", "inet 10.232."] {
        ensure!(links.contains(wanted), "no {wanted} in {links}");
    }
    let v6 = links.split("inet6 ").skip(1).find_map(|rest| rest.split('/').next().filter(|a| a.starts_with("fd00:")));
    ensure!(get(&format!("[{}]:8080", v6.context("no IPv6 address")?))?.ends_with("of the pod\n"), "from the node by IPv6");
    let routes = pod.shell(id, "busybox ip route; busybox ip -6 route")?;
    let node = bed.network()?.node();
    for wanted in [format!("default via {node} dev eth0"), "10.99.0.0/16 via 10.232.".to_owned(), "default via fd00:231:".to_owned()] {
        ensure!(routes.contains(&wanted), "no {wanted} in {routes}");
    }
    let neighbours = pod.shell(id, "busybox ip neigh")?;
    ensure!(neighbours.contains("169.254.1.1 dev eth0 lladdr 02:00:00:00:00:99"), "{neighbours}");
    Ok(())
}

fn streams_reach_the_node(pod: &Pod<'_>, image: &str, server: &ContainerSpec<'_>, side: &str) -> Result<()> {
    let log = pod.log(server)?;
    ensure!(log.contains(" stdout F serving\n") && log.contains(" stderr F oops\n"), "{log}");

    let executed = pod.exec_sync(side, &["/bin/sh", "-c", "echo out; echo err >&2; exit 5"], 30)?;
    ensure!((executed.code, executed.stdout.as_str(), executed.stderr.as_str()) == (5, "out\n", "err\n"), "{executed:?}");
    let late = pod.exec_sync(side, SLEEP, 1).err().context("an exec outlived its time")?.to_string();
    ensure!(late.contains("timed out") || late.contains("timeout") || late.contains("deadline"), "{late}");
    // Its own program is the one that is left.
    let left = pod.shell(side, "busybox ps | busybox grep -c '[s]leep 3600'")?;
    ensure!(left == "1\n", "{left} of 1 are left after an exec's end in time");

    let mut exec = WebSocket::connect(&pod.exec(side, &["/bin/sh", "-c", "read line; echo got $line; echo bad >&2; exit 6"])?)?;
    exec.send(channel::STDIN, b"typed\n")?;
    let [_, stdout, stderr, end] = exec.read_all()?;
    ensure!(stdout == "got typed\n" && stderr == "bad\n" && end.contains("\"6\""), "{stdout} {stderr} {end}");

    let script = "while read line; do echo heard $line; done";
    let spec = ContainerSpec { name: "reader", image, command: &["/bin/sh", "-c", script], stdin: true, ..ContainerSpec::default() };
    let reader = pod.start(&spec)?;
    for word in ["one", "two"] {
        // Each attachment finds the input still open.
        let mut attached = WebSocket::connect(&pod.attach(&reader)?)?;
        attached.send(channel::STDIN, format!("{word}\n").as_bytes())?;
        attached.read_until(channel::STDOUT, &format!("heard {word}\n"))?;
    }
    pod.stop_container(&reader, 0)?;
    pod.remove_container(&reader)
}

/// `securityContext`, with the runtime's own default for system calls; and `privileged`, which is so in the guest and not on the node.
fn what_a_container_may_do_is_the_pods_to_say(pod: &Pod<'_>, image: &str, unsaid: &str) -> Result<()> {
    let look = "id -u; id -G; busybox grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status | busybox tr -d '\\n\\t '; echo; \
                (touch /x && echo writable || echo read-only) 2>/dev/null; (busybox unshare -U true && echo unshared || echo refused) 2>/dev/null";
    ensure!(pod.shell(unsaid, look)? == "0\n0\nNoNewPrivs:0Seccomp:0\nwritable\nunshared\n", "{}", pod.shell(unsaid, look)?);
    let security = Security::Restricted { user: 1234, group: 77 };
    let spec = ContainerSpec { name: "restricted", image, command: SLEEP, security, ..ContainerSpec::default() };
    let restricted = pod.start(&spec)?;
    let seen = pod.shell(&restricted, look)?;
    ensure!(seen == "1234\n0 77\nNoNewPrivs:1Seccomp:2\nread-only\nrefused\n", "{seen}");
    let spec = ContainerSpec { name: "privileged", image, command: SLEEP, security: Security::Privileged, ..ContainerSpec::default() };
    let privileged = pod.start(&spec)?;
    let mounted = "mkdir /m && busybox mount -t tmpfs none /m && echo mounted; cat /proc/version";
    let (inside, node) = (pod.shell(&privileged, mounted)?, std::fs::read_to_string("/proc/version")?);
    ensure!(inside.starts_with("mounted\n") && !inside.contains(node.trim()), "{inside}");
    for id in [restricted, privileged] {
        pod.stop_container(&id, 0)?;
        pod.remove_container(&id)?;
    }
    Ok(())
}

/// What listens on the pod's loopback is reached from the node, as `kubectl port-forward` does it.
fn a_port_is_forwarded(pod: &Pod<'_>) -> Result<()> {
    let mut forwarded = WebSocket::connect(&pod.port_forward(8080)?)?;
    forwarded.send(channel::STDIN, b"GET /data HTTP/1.0\r\n\r\n")?;
    forwarded.read_until(channel::STDIN, "of the pod\n").map(drop)
}

/// Kubelet's restart: the container that has ended stays for its log, and another takes its place.
fn a_container_is_started_again(pod: &Pod<'_>, spec: &ContainerSpec<'_>, id: &str) -> Result<String> {
    pod.stop_container(id, 0)?;
    ensure!(pod.wait(id)? == 137);
    let again = pod.start(&ContainerSpec { attempt: 1, ..spec.clone() })?;
    pod.remove_container(id)?;
    ensure!(pod.shell(&again, "echo there")? == "there\n");
    Ok(again)
}

/// `volumeDevices`, and a raw file: the pod's VM has been running for long.
fn containers_have_disks(bed: &Bed, pod: &Pod<'_>, image: &str) -> Result<()> {
    let (data, locked, volume) = (bed.base().join("data.img"), bed.base().join("locked.img"), bed.base().join("volume.img"));
    let kept = bed.base().join("kept.img");
    for (path, text) in [(&data, "of the node"), (&locked, "only read"), (&volume, "a device"), (&kept, "a device")] {
        raw::file(path, 8, text)?;
    }
    // One with a file system, to be mounted.
    let (tree, hello) = (bed.base().join("tree.img"), bed.base().join("tree"));
    fs::create_dir(&hello)?;
    fs::write(hello.join("hello"), "from the node\n")?;
    raw::file(&tree, 32, "")?;
    command::run(Command::new("/usr/sbin/mkfs.ext4").arg("-q").arg("-d").arg(&hello).arg(&tree), MKFS)?.succeeded()?;
    let path = |path: &Path| path.display().to_string();
    let (data, locked, tree) = (path(&data), path(&locked), path(&tree));
    let mounts = [
        Placed { host: &data, container: "/dev/data", readonly: false },
        Placed { host: &locked, container: "/dev/locked", readonly: true },
        Placed { host: &tree, container: "/tree", readonly: false },
    ];
    let (device, other) = (raw::Loop::of(&volume)?, raw::Loop::of(&kept)?);
    let writable = device.as_ref().map(|device| Placed { host: &device.path, container: "/dev/xvda", readonly: false });
    let readable = other.as_ref().map(|device| Placed { host: &device.path, container: "/dev/xvdb", readonly: true });
    let devices: Vec<Placed<'_>> = [writable, readable].into_iter().flatten().collect();
    let first = ContainerSpec { name: "disks", image, command: SLEEP, mounts: &mounts, devices: &devices, ..ContainerSpec::default() };
    let second = ContainerSpec { name: "also", image, command: SLEEP, mounts: &mounts[..1], ..ContainerSpec::default() };
    let (first, second) = (pod.start(&first)?, pod.start(&second)?);

    let seen = pod.shell(&first, "head -c 11 /dev/data; head -c 9 /dev/locked; busybox blockdev --getsize64 /dev/data")?;
    ensure!(seen == "of the nodeonly read8388608\n", "{seen}");
    // What is synced is in the node's file, at its last block too.
    let at_the_end = "printf end | busybox dd of=/dev/data bs=512 seek=16383 conv=fsync,notrunc";
    pod.shell(&first, &format!("printf changed | busybox dd of=/dev/data conv=fsync,notrunc && {at_the_end}"))?;
    let content = fs::read(&data)?;
    ensure!(content.len() == 8 << 20 && content.starts_with(b"changednode") && content[16383 * 512..].starts_with(b"end"));
    // The other container has the same device, and so the same cache.
    let numbers = "busybox stat -c '%t %T' /dev/data";
    ensure!(pod.shell(&first, numbers)? == pod.shell(&second, numbers)? && pod.shell(&second, "head -c 7 /dev/data")? == "changed");
    ensure!(pod.shell(&first, "printf x > /dev/locked && sync /dev/locked").is_err() && fs::read(&locked)?.starts_with(b"only"));
    if device.is_some() {
        pod.shell(&first, "head -c 8 /dev/xvda && printf by | busybox dd of=/dev/xvda conv=fsync,notrunc")?;
        ensure!(fs::read(&volume)?.starts_with(b"bydevice"), "what was synced is not in the volume");
        ensure!(pod.shell(&first, "head -c 8 /dev/xvdb")? == "a device");
        ensure!(
            pod.shell(&first, "printf x | busybox dd of=/dev/xvdb conv=fsync,notrunc").is_err(),
            "a device that is only read was written to"
        );
    }

    ensure!(pod.shell(&first, "cat /tree/hello; echo kept > /tree/back; sync")? == "from the node\n");

    // Who goes leaves the disk to the other; the last to go leaves it to the node.
    pod.shell(&first, "printf last > /dev/data")?;
    pod.stop_container(&first, 0)?;
    pod.remove_container(&first)?;
    raw::nobody_has(&locked)?;
    raw::nobody_has(&tree)?;
    let back = command::run(Command::new("/usr/sbin/debugfs").args(["-R", "cat back", &tree]), MKFS)?.succeeded()?;
    ensure!(back.text() == "kept\n", "{back:?}");
    ensure!(!raw::holders(Path::new(&data)).is_empty() && pod.shell(&second, "head -c 7 /dev/data")? == "lastged");
    pod.shell(&second, "printf more | busybox dd of=/dev/data conv=fsync,notrunc")?;
    pod.stop_container(&second, 0)?;
    pod.remove_container(&second)?;
    raw::nobody_has(&data)?;
    if let Some(device) = &device {
        raw::nobody_has(&device.path)?;
    }
    ensure!(fs::read(&data)?.starts_with(b"moreged"));
    Ok(())
}

/// `shareProcessNamespace: true`, in a pod whose network namespace has nothing but loopback.
fn processes_are_shared_where_the_pod_asks_and_it_needs_no_network(bed: &Bed) -> Result<()> {
    let image = image(bed)?;
    let pod = bed.cri()?.run_pod(&PodSpec { name: "shared", handler: "offline", share_processes: true, ..PodSpec::default() })?;
    let stray = &["/bin/sh", "-c", "sleep 1234 & sleep 4321"];
    let one = pod.start(&ContainerSpec { name: "one", image: &image, command: stray, ..ContainerSpec::default() })?;
    let two = pod.start(&ContainerSpec { name: "two", image: &image, command: SLEEP, ..ContainerSpec::default() })?;
    let seen = pod.shell(&two, "ps")?;
    for wanted in ["sleep 1234", "sleep 4321", "sleep 3600"] {
        ensure!(seen.contains(wanted), "no {wanted} in {seen}");
    }
    // The first process holds the namespace, and through it nothing of the agent's is to be seen.
    let first = pod.shell(&two, "kill -9 1; ls /proc/1/root/ /proc/1/fd 2>&1; cat /proc/1/environ 2>&1 | wc -c; ps | wc -l")?;
    ensure!(!first.contains("sys") && !first.contains("newroot"), "{first}");
    // The end of a container's first process is the end of its others, and of nobody else's.
    pod.stop_container(&one, 0)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let left = pod.shell(&two, "ps")?;
        if !left.contains("sleep 1234") {
            ensure!(left.contains("sleep 3600"), "{left}");
            break;
        }
        ensure!(Instant::now() < deadline, "{left}");
    }
    let links = pod.shell(&two, "busybox ip -o link")?;
    ensure!(links.lines().count() == 1 && links.contains("lo"), "{links}");
    let id = pod.id.clone();
    pod.end()?;
    bed.nothing_of(&id)
}

fn the_nodes_namespaces_are_refused(bed: &Bed) -> Result<()> {
    let error = match bed.cri()?.run_pod(&PodSpec { name: "host", host_network: true, ..PodSpec::default() }) {
        Ok(pod) => {
            pod.end()?;
            "it ran".to_owned()
        }
        Err(error) => error.to_string(),
    };
    ensure!(error.contains("cannot share the node's network") && error.contains("remove hostNetwork") && !error.contains('\n'), "{error}");
    Ok(())
}

/// The same on every version: a pod, two containers that talk, an end.
fn a_pod_runs(bed: &Bed) -> Result<()> {
    run_a_pod(bed, "cloister")
}

/// The VM is stopped as a whole: its agent answers nothing. What can be asked is answered, and the pod can be ended.
fn a_pod_whose_guest_hangs_can_be_ended(bed: &Bed) -> Result<()> {
    let (pod, server) = started_pod(bed, "cloister")?;
    let vm = tests::leaks::pids_with(&pod.id).into_iter().find(|(_, line)| line.contains("qemu-system"));
    let (vm, _) = vm.context("no VM of this pod")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(vm)?), nix::sys::signal::Signal::SIGSTOP)?;
    ensure!(pod.ready()?.0);
    ensure!(pod.status(&server)?.state.enum_value() == Ok(tests::cri::pb::ContainerState::CONTAINER_RUNNING));
    let late = pod.exec_sync(&server, &["/bin/true"], 5);
    ensure!(late.is_err(), "{late:?}");
    ended(bed, pod)
}

/// Without a pause container, its image, or a `config.json`.
fn a_pod_of_the_sandbox_api_runs(bed: &Bed) -> Result<()> {
    run_a_pod(bed, "api")
}

fn run_a_pod(bed: &Bed, handler: &'static str) -> Result<()> {
    let (pod, _) = started_pod(bed, handler)?;
    ended(bed, pod)
}

/// A pod with one container, in which everything has worked.
fn started_pod<'a>(bed: &'a Bed, handler: &'static str) -> Result<(Pod<'a>, String)> {
    let image = image(bed)?;
    let spec = PodSpec { name: "plain", handler, sysctls: &[("kernel.shm_rmid_forced", "1")], memory_mib: 64, ..PodSpec::default() };
    let pod = bed.cri()?.run_pod(&spec)?;
    let server = pod.start(&ContainerSpec { name: "server", image: &image, command: SERVER, ..ContainerSpec::default() })?;
    let side = pod.start(&ContainerSpec { name: "side", image: &image, command: SLEEP, ..ContainerSpec::default() })?;
    ensure!(fetch(&pod, &side, "http://127.0.0.1:8080/data")? == "of the pod\n");
    let (ready, address) = pod.ready()?;
    ensure!(ready && get(&format!("{address}:8080"))?.ends_with("of the pod\n"), "{address}");
    let seen = pod.shell(&side, "hostname; cat /proc/sys/kernel/shm_rmid_forced; grep nameserver /etc/resolv.conf")?;
    ensure!(seen == "plain\n1\nnameserver 10.231.7.53\n", "{seen}");
    let mut exec = WebSocket::connect(&pod.exec(&side, &["/bin/cat", "/srv/data"])?)?;
    ensure!(exec.read_all()?[1] == "of the pod\n");
    a_port_is_forwarded(&pod)?;
    ensure!(pod.memory(&server)? > 0, "no statistics");
    pod.stop_container(&side, 0)?;
    ensure!(pod.wait(&side)? == 137 && pod.ready()?.0);
    pod.remove_container(&side)?;
    Ok((pod, server))
}

fn ended(bed: &Bed, pod: Pod<'_>) -> Result<()> {
    let id = pod.id.clone();
    pod.end()?;
    bed.nothing_of(&id)
}

/// What a container gets from a URL, once something listens there.
fn fetch(pod: &Pod<'_>, id: &str, url: &str) -> Result<String> {
    pod.shell(id, &format!("n=0; until busybox wget -qO- {url}; do n=$((n+1)); [ $n -lt 50 ] || exit 1; busybox usleep 100000; done"))
}

/// What the node gets from a server of the pod.
fn get(authority: &str) -> Result<String> {
    let mut stream = TcpStream::connect(authority).with_context(|| authority.to_owned())?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET /data HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
