//! A legacy container must not notice: what containerd's CRI asks of runc, asked of a container in a VM. All of it in one pod, so in one
//! VM; no initdata, so that the host's wishes are followed.

#![allow(clippy::print_stdout, reason = "a test of many checks says where it is")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tests::bed::{Bed, Setup};
use tests::oci::{Entry, Image};
use tests::pod::Pod;
use tests::{pty, runner, tests};

/// Execs that run side by side.
const HUNDRED: usize = 100;
/// How long a container may take to be seen to have ended.
const END: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let setup = Setup { name: "leg", containerd: tests::place::CONTAINERD_DEFAULT };
    runner::main(&setup, 1, tests![a_pod_of_legacy_containers])
}

/// One check and its name.
type Check = (&'static str, fn(&Bed, &Pod<'_>) -> Result<()>);

fn a_pod_of_legacy_containers(bed: &Bed) -> Result<()> {
    let mut image = Image::busybox("sleep 3600")?;
    // What the image has at /run stays, unless the spec mounts something there.
    image.layers.push(vec![
        Entry::Directory("run", 0o755),
        Entry::File("run/of-the-image", 0o644, b"here\n".to_vec()),
        Entry::Directory("var", 0o755),
        Entry::Link("var/run".into(), "/run"),
    ]);
    let reference = bed.plain(&image, "legacy")?;
    let pod = Pod::start(bed, "legacy", &reference, None)?;
    let checks: &[Check] = &[
        ("user, groups, limits, capabilities, filter", a_restricted_process_is_as_restricted_as_asked),
        ("root, mounts, hidden paths", a_file_system_is_as_asked),
        ("cgroup and kernel parameters", limits_and_parameters_arrive),
        ("volumes", volumes_are_copied_in_and_out),
        ("privileged", a_privileged_container_is_root_of_the_guest_only),
        ("out of memory", a_container_out_of_memory_is_said_to_be),
        ("execs", a_hundred_processes_side_by_side),
        ("signals and terminals", signals_and_sizes_arrive),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let since = Instant::now();
        let result = check(bed, &pod);
        println!("  {name}: {:.1} s", since.elapsed().as_secs_f32());
        failed.extend(result.err().map(|error| format!("{name}: {error:#}")));
    }
    pod.end()?;
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Runs a container to its end and compares what it printed.
fn prints(pod: &Pod<'_>, name: &str, spec: &Value, expected: &str) -> Result<()> {
    let finished = pod.run(name, spec)?;
    ensure!(finished.text() == expected, "expected {expected:?}, got {finished:?}");
    Ok(())
}

fn a_restricted_process_is_as_restricted_as_asked(bed: &Bed, pod: &Pod<'_>) -> Result<()> {
    let script = "id -u; id -g; id -G; umask; pwd; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; \
        grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; mkdir /tmp/x; echo $?; hostname; sleep 3600";
    let mut spec = pod.spec(script);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "umask": 23, "additionalGids": [1000, 4, 29]});
    // Nobody has made it.
    spec["process"]["cwd"] = json!("/srv/deep/inside");
    spec["process"]["oomScoreAdj"] = json!(900);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 2000}]);
    let some = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
    spec["process"]["capabilities"] = json!({"bounding": some, "permitted": some, "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"]});
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    let id = pod.detach("restricted", &spec)?;
    // Its output goes where ctr was: an exec sees what the first process is.
    let status = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/1/status; cat /proc/1/oom_score_adj; \
        grep 'open files' /proc/1/limits; cat /proc/1/status | grep Umask";
    let seen = bed.ctr().exec(&id, "see", &[], &["/bin/sh", "-c", status], b"")?;
    let text = seen.text();
    for line in [
        "Uid:\t1000\t1000\t1000\t1000",
        "Gid:\t1000\t1000\t1000\t1000",
        "Groups:\t4 29",
        "CapInh:\t0000000000000020",
        "CapPrm:\t0000000000000020",
        "CapEff:\t0000000000000020",
        "CapBnd:\t0000000000000420",
        "CapAmb:\t0000000000000020",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "Umask:\t0027",
        "\n900\n",
    ] {
        ensure!(text.contains(line), "{line:?} is not in {text}{}", seen.stderr);
    }
    ensure!(text.contains("1000                 2000"), "rlimit: {text}");
    // An exec gets the container's filter too.
    let made = bed.ctr().exec(&id, "filter", &[], &["/bin/sh", "-c", "mkdir /tmp/y; echo $?; pwd"], b"")?;
    ensure!(made.text() == "1\n/srv/deep/inside\n", "{made:?}");
    bed.ctr().remove(&id)?;
    let mut root = pod
        .spec("grep -E '^(CapInh|CapEff|CapAmb|Seccomp:)' /proc/self/status; id -G; grep -c . /proc/self/limits >/dev/null && echo $HOME");
    root["process"]["noNewPrivileges"] = json!(false);
    prints(pod, "root", &root, "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapAmb:\t0000000000000000\nSeccomp:\t0\n0\n/root\n")
}

fn a_file_system_is_as_asked(_: &Bed, pod: &Pod<'_>) -> Result<()> {
    let script = "touch /x 2>/dev/null || echo read-only; cat /run/of-the-image; cat /proc/timer_list | wc -c; \
        echo 1 2>/dev/null > /proc/sys/kernel/shmmni || echo read-only; ls /sys/firmware | wc -l; touch /space/x && echo writable; \
        grep -E ' (/space|/dev/shm|/dev/mqueue|/sys/fs/cgroup|/sys) ' /proc/mounts | cut -d' ' -f2-4; stat -c %a /space";
    let mut spec = pod.spec(script);
    spec["root"]["readonly"] = json!(true);
    let mounts = spec["mounts"].as_array_mut().context("mounts")?;
    mounts.push(json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=131072k"]}));
    mounts.push(json!({"destination": "/space", "type": "tmpfs", "source": "tmpfs", "options": ["rprivate", "noexec", "size=1m", "mode=1770", "uid=7"]}));
    let finished = pod.run("files", &spec)?;
    let text = finished.text();
    ensure!(text.starts_with("read-only\nhere\n0\nread-only\n0\nwritable\n"), "{finished:?}");
    for line in [
        "/dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=131072k",
        "/space tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=1770,uid=7",
        "/dev/mqueue mqueue rw,",
        "/sys/fs/cgroup cgroup2 ro,",
        "/sys sysfs ro,",
        "\n1770\n",
    ] {
        ensure!(text.contains(line), "{line:?} is not in {text}");
    }
    let mut spec = pod.spec("ls /run | wc -l; id -u; mount -t tmpfs x /tmp 2>/dev/null || echo no mounts");
    spec["mounts"]
        .as_array_mut()
        .context("mounts")?
        .push(json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=65536k"]}));
    prints(pod, "run", &spec, "0\n0\nno mounts\n")
}

fn limits_and_parameters_arrive(bed: &Bed, pod: &Pod<'_>) -> Result<()> {
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight pids.max memory.oom.group memory.high; \
        cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni; cat /proc/self/cgroup; sleep 3600";
    let mut spec = pod.spec(script);
    spec["linux"]["resources"]["memory"] = json!({"limit": 67108864, "reservation": 33554432});
    // Processors that the guest does not have: a host may pin its containers.
    spec["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100000, "cpus": "900-903", "mems": "7"});
    spec["linux"]["resources"]["pids"] = json!({"limit": 77});
    spec["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1", "memory.high": "60000000"});
    spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "2048", "kernel.shmmni": "99"});
    let id = pod.detach("limits", &spec)?;
    let read = "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight pids.max memory.oom.group memory.high; \
        cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni; cat /proc/self/cgroup";
    let seen = bed.ctr().exec(&id, "read", &[], &["/bin/sh", "-c", read], b"")?;
    ensure!(seen.text() == "67108864\n50000 100000\n20\n77\n1\n59998208\n2048\n99\n0::/\n", "{seen:?}");
    let metrics = bed.ctr().call(&["task", "metrics", "--format", "json", &id])?.succeeded()?;
    ensure!(metrics.text().contains("67108864"), "{metrics:?}");
    for verb in ["pause", "resume"] {
        bed.ctr().call(&["task", verb, &id])?.succeeded()?;
        if verb == "pause" {
            let refused = bed.ctr().exec(&id, "paused", &[], &["/bin/true"], b"")?;
            ensure!(!refused.status.success() && refused.stderr.contains("paused"), "{refused:?}");
        }
    }
    let again = bed.ctr().exec(&id, "resumed", &[], &["/bin/echo", "on"], b"")?;
    ensure!(again.text() == "on\n", "{again:?}");
    bed.ctr().remove(&id)
}

fn volumes_are_copied_in_and_out(bed: &Bed, pod: &Pod<'_>) -> Result<()> {
    let kubelet = bed.base().join("kubelet/pods/0a1b");
    let (conf, cache, memory) = (
        kubelet.join("volumes/kubernetes.io~configmap/conf"),
        kubelet.join("volumes/kubernetes.io~empty-dir/cache"),
        kubelet.join("volumes/kubernetes.io~empty-dir/memory"),
    );
    let (log, hosts) = (kubelet.join("containers/app/1a2b3c4d"), kubelet.join("etc-hosts"));
    for directory in [conf.join("..1"), conf.join("..2"), cache.clone(), memory.clone(), kubelet.join("containers/app")] {
        fs::create_dir_all(directory)?;
    }
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o1777))?;
    fs::write(conf.join("..1/key"), "old")?;
    fs::write(conf.join("..2/key"), "new")?;
    symlink("..1", conf.join("..data"))?;
    symlink("..data/key", conf.join("key"))?;
    fs::write(&log, "")?;
    fs::write(&hosts, "10.1.2.3 of-the-pod\n")?;
    mount(Some("tmpfs"), &memory, Some("tmpfs"), MsFlags::empty(), Some("size=1m"))?;
    let _unmounted = Unmount(&memory);
    // What kubelet does for a `subPath`.
    let (part, bound) = (cache.join("below/part"), kubelet.join("volume-subpaths/cache/app/0"));
    fs::create_dir_all(&part)?;
    fs::create_dir_all(&bound)?;
    mount(Some(&part), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let _unbound = Unmount(&bound);

    let bind = |source: &Path, destination: &str, options: &[&str]| {
        let options = [&["rbind", "rprivate"], options].concat();
        json!({"destination": destination, "type": "bind", "source": source, "options": options})
    };
    let mounts = [
        bind(&hosts, "/etc/hosts", &["rw"]),
        bind(&log, "/dev/termination-log", &["rw"]),
        bind(&conf, "/etc/conf", &["ro"]),
        // As Debian has it, /var/run is a link, and every pod has a token below it.
        bind(&conf.join("..1/key"), "/var/run/secrets/one-file", &["ro"]),
        bind(&cache, "/var/cache", &["rw"]),
        bind(&memory, "/dev/shm", &["rw"]),
    ];
    let with = |script: &str| -> Result<Value> {
        let mut spec = pod.spec(script);
        spec["process"]["cwd"] = json!("/var/cache/below");
        spec["mounts"].as_array_mut().context("mounts")?.extend(mounts.iter().cloned());
        Ok(spec)
    };
    let waiting = "while [ $(cat /etc/conf/key) = old ]; do sleep 0.2; done; cat /etc/conf/key > /dev/termination-log; exit 6";
    let id = pod.detach("volumes", &with(waiting)?)?;
    let look = "cat /etc/conf/key /run/secrets/one-file; echo; cat /etc/hosts; pwd; stat -c %a /var/cache; \
        (echo x > /etc/conf/y) 2>/dev/null || echo read-only; (echo more >> /etc/hosts) && echo own copy; \
        dd if=/dev/zero of=/dev/shm/x bs=65536 count=32 2>&1 | grep -o 'No space'; echo shared > /var/cache/f";
    let seen = bed.ctr().exec(&id, "look", &[], &["/bin/sh", "-c", look], b"")?;
    let expected = "oldold\n10.1.2.3 of-the-pod\n/var/cache/below\n1777\nread-only\nown copy\nNo space\n";
    ensure!(seen.text() == expected, "{seen:?}");
    // Another container of the pod shares the empty directories, and nothing else.
    prints(pod, "sharer", &with("cat /var/cache/f; cat /etc/hosts; ls /dev/shm")?, "shared\n10.1.2.3 of-the-pod\nx\n")?;
    // A part of one is that part, whoever made it, and of the whole's permissions.
    let mut spec = pod.spec("stat -c %a /part; echo of a part > /part/g");
    spec["mounts"].as_array_mut().context("mounts")?.push(bind(&bound, "/part", &["rw"]));
    prints(pod, "part", &spec, "1777\n")?;
    let seen = bed.ctr().exec(&id, "part", &[], &["/bin/cat", "/var/cache/below/part/g", "/var/cache/f"], b"")?;
    ensure!(seen.text() == "of a part\nshared\n", "{seen:?}");
    ensure!(fs::read_dir(&part)?.count() == 0 && fs::read_to_string(&hosts)? == "10.1.2.3 of-the-pod\n", "something came out");

    symlink("..2", conf.join("..data.new"))?;
    fs::rename(conf.join("..data.new"), conf.join("..data"))?;
    ended(bed, &id)?;
    ensure!(fs::read_to_string(&log)? == "new", "the termination log: {:?}", fs::read_to_string(&log)?);
    bed.ctr().remove(&id)?;

    let mut spec = pod.spec("true");
    spec["mounts"].as_array_mut().context("mounts")?.push(bind(bed.base(), "/data", &["rw"]));
    let refused = pod.run("refused", &spec)?;
    ensure!(!refused.status.success() && refused.stderr.contains("mount it read-only"), "{refused:?}");
    ensure!(refused.stderr.trim_end().lines().count() == 1, "not one line: {}", refused.stderr);
    Ok(())
}

/// Takes a mount of the test's off again, whatever comes of the test.
struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).ok();
    }
}

/// Waits until a container has ended.
fn ended(bed: &Bed, id: &str) -> Result<()> {
    let deadline = Instant::now() + END;
    while !bed.ctr().call(&["task", "ls"])?.text().lines().any(|line| line.starts_with(id) && line.contains("STOPPED")) {
        ensure!(Instant::now() < deadline, "{id} did not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn a_privileged_container_is_root_of_the_guest_only(_: &Bed, pod: &Pod<'_>) -> Result<()> {
    let script = "ls /dev/vsock /dev/kmsg; (: < /dev/kmsg) && echo opened; mkdir /tmp/m; mount -t tmpfs x /tmp/m && echo mounted; \
        mkdir /sys/fs/cgroup/below && echo made; ls /dev/sda /dev/kvm 2>/dev/null; echo 5 > /proc/sys/vm/swappiness && echo written";
    let mut spec = pod.spec(script);
    spec["process"]["noNewPrivileges"] = json!(false);
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYSLOG", "CAP_MKNOD"]);
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    spec["linux"]["devices"] =
        json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}, {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    prints(pod, "privileged", &spec, "/dev/kmsg\n/dev/vsock\nopened\nmounted\nmade\nwritten\n")?;
    // Not privileged: a device of the guest by name, and none of the host.
    let mut spec = pod.spec("(: < /dev/vsock) && echo opened; ls /dev/kmsg 2>/dev/null");
    spec["linux"]["devices"] = json!([{"path": "/dev/vsock", "type": "c", "major": 99, "minor": 99, "fileMode": 438}]);
    prints(pod, "device", &spec, "opened\n")?;
    spec["linux"]["devices"] = json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}]);
    let refused = pod.run("no-device", &spec)?;
    ensure!(!refused.status.success() && refused.stderr.contains("device /dev/kvm"), "{refused:?}");
    Ok(())
}

fn a_container_out_of_memory_is_said_to_be(bed: &Bed, pod: &Pod<'_>) -> Result<()> {
    // The kernel kills one process, and the first one lives on: it is told at once. The first one waits without a further program, for which
    // there may be no memory yet.
    let mut spec = pod.spec("mkfifo /dev/shm/wait; head -c 200000000 /dev/zero | tail -n 1; read -r line </dev/shm/wait");
    spec["linux"]["resources"]["memory"] = json!({"limit": 20000000});
    let id = pod.detach("hungry", &spec)?;
    let deadline = Instant::now() + END;
    while !pod.bundle_file("hungry", "oom").exists() {
        ensure!(Instant::now() < deadline, "nobody told of the want of memory");
        std::thread::sleep(Duration::from_millis(50));
    }
    let alive = bed.ctr().exec(&id, "alive", &[], &["/bin/echo", "alive"], b"")?;
    ensure!(alive.text() == "alive\n", "{alive:?}");
    bed.ctr().remove(&id)?;

    let mut spec = pod.spec("head -c 200000000 /dev/zero | tail -n 1; sleep 3600");
    spec["linux"]["resources"]["memory"] = json!({"limit": 20000000});
    spec["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1"});
    let id = pod.detach("oom", &spec)?;
    ended(bed, &id)?;
    ensure!(pod.bundle_file("oom", "oom").exists(), "there is no file `oom` in its bundle");
    let deleted = bed.ctr().call(&["task", "rm", &id])?;
    ensure!(deleted.stderr.contains("137"), "{deleted:?}");
    bed.ctr().remove(&id)
}

fn a_hundred_processes_side_by_side(bed: &Bed, pod: &Pod<'_>) -> Result<()> {
    let id = pod.detach("execs", &pod.spec("sleep 3600"))?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..HUNDRED)
            .map(|n| {
                let id = &id;
                scope.spawn(move || bed.ctr().exec(id, &format!("e{n}"), &[], &["/bin/sh", "-c", &format!("echo {n}; exit {n}")], b""))
            })
            .collect();
        for (n, worker) in workers.into_iter().enumerate() {
            let finished = worker.join().ok().context("the thread panicked")??;
            ensure!((finished.code(), finished.text()) == (Some(i32::try_from(n)?), format!("{n}\n")), "{n}: {finished:?}");
        }
        Ok(())
    })?;
    // One that takes too long is killed, as ExecSync does it.
    let mut slow = bed.ctr().exec_command(&id, "slow", &[], &["/bin/sh", "-c", "echo here; sleep 3600"]);
    let slow = tests::command::start(&mut slow, Vec::new())?;
    slow.wait_output(END)?;
    bed.ctr().call(&["task", "kill", "--signal", "SIGKILL", "--exec-id", "slow", &id])?.succeeded()?;
    let slow = slow.finish(2 * END)?;
    ensure!(slow.code() == Some(137), "{slow:?}");
    bed.ctr().remove(&id)
}

fn signals_and_sizes_arrive(bed: &Bed, pod: &Pod<'_>) -> Result<()> {
    let script = "(trap 'echo child > /tmp/child; exit' TERM; while :; do sleep 0.1; done) & \
        trap 'while ! grep child /tmp/child; do sleep 0.1; done; exit 3' TERM; while :; do sleep 0.1; done";
    let id = pod.detach("signals", &pod.spec(script))?;
    // The first size comes after the start, as with runc; the second when the terminal changes.
    let watching = "until stty size 2>/dev/null | grep '40 100'; do sleep 0.1; done; trap 'echo told' WINCH; \
        until stty size | grep '50 132'; do sleep 0.1; done; exit 4";
    let mut exec = bed.ctr().exec_command(&id, "tty", &["--tty"], &["/bin/sh", "-c", watching]);
    let seen = pty::run_resized(&mut exec, b"", Some((50, 132)), 2 * END)?;
    ensure!(seen.text().contains("40 100") && seen.text().contains("50 132") && seen.code() == Some(4), "{seen:?}");
    bed.ctr().call(&["task", "kill", "--all", "--signal", "SIGTERM", &id])?.succeeded()?;
    ended(bed, &id)?;
    let deleted = bed.ctr().call(&["task", "rm", &id])?;
    ensure!(deleted.stderr.contains("exit code 3"), "{deleted:?}");
    bed.ctr().remove(&id)
}
