//! What a container can do: the host chose everything that it may choose.

use anyhow::{Result, ensure};
use protocol::api;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::bed::{HostileBed, UNASKED};
use crate::host::{done, refused, valid};

/// Each line that it prints is something that should not be possible, until it says that it is done.
pub const SCRIPT: &str = "\
try() { (eval \"$2\") >/dev/null 2>&1 && echo \"$1\"; }; \
try 'a hook ran' '[ -e /run/hooked ]'; \
try 'the environment is another' '[ \"$MODE\" != batch ]'; \
try 'the umask is the hosts' '[ $(umask) != 0022 ]'; \
try 'bin is hidden' '[ ! -e /bin/busybox ]'; \
try 'the disk opens' 'd=$(cat /sys/block/vda/dev); /bin/busybox mknod /dev/d b ${d%:*} ${d#*:}; head -c 1 /dev/d'; \
try 'it can mount' 'mkdir -p /tmp/m; mount -t tmpfs x /tmp/m'; \
try 'it can write to sysrq' 'echo h > /proc/sysrq-trigger'; \
try 'it can set the core pattern' 'echo core > /proc/sys/kernel/core_pattern'; \
try 'it can write to sysfs' 'cat /sys/kernel/profiling > /tmp/p; echo 0 > /sys/kernel/mm/ksm/run || echo 0 > /sys/kernel/profiling'; \
try 'it can make cgroups' 'mkdir /sys/fs/cgroup/x'; \
try 'the kernels log is there' 'head -c 1 /dev/kmsg'; \
try 'it sees the agent' 'grep -q cloister-agent /proc/[0-9]*/comm'; \
try 'there is persistent memory' 'ls /sys/block | grep -q pmem || grep -q -e dax -e virtiofs -e 9p /proc/mounts'; \
for d in /sys/bus/virtio/devices/*; do l=$(/bin/busybox readlink $d/driver); \
case ${l##*/} in virtio_blk|vmw_vsock_virtio_transport|virtio_net) ;; '') no=\"$no x\" ;; *) echo \"a driver for ${l##*/}\" ;; esac; done; \
[ \"$no\" = ' x x' ] || echo \"unasked devices without a driver:$no\"; \
echo done; sleep 3600";

/// What is refused to the container whose root is to be read-only.
pub const LOCKED: &str = "(echo x > /bin/x) 2>/dev/null && echo the root can be written; echo done; sleep 3600";

/// The valid spec with everything in it that has no effect behind a closed door.
fn with_attempts() -> Value {
    let mut spec = valid();
    let hook = json!([{"path": "/bin/busybox", "args": ["touch", "/run/hooked"]}]);
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        spec["hooks"][kind] = hook.clone();
    }
    spec["process"]["user"]["umask"] = json!(0);
    spec["linux"] = json!({
        // A filter that answers "done" to what is not done.
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["setuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}]},
        "maskedPaths": ["/bin"],
        "readonlyPaths": [],
        "namespaces": [{"type": "mount", "path": "/proc/1/ns/mnt"}, {"type": "network", "path": "/proc/1/ns/net"}, {"type": "user"}],
    });
    spec
}

/// What makes a container the guest, where the door is open.
fn privileged() -> Value {
    let all: Vec<&str> =
        policy_capabilities().into_iter().chain(["CAP_SYS_ADMIN", "CAP_SYS_RAWIO", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH"]).collect();
    let mut spec = valid();
    spec["process"]["env"] = json!(["MODE=other"]);
    spec["process"]["user"]["umask"] = json!(0);
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    spec["linux"] = json!({"resources": {"devices": [{"allow": true, "access": "rwm"}]}, "maskedPaths": [], "readonlyPaths": []});
    spec
}

fn policy_capabilities() -> [&'static str; 5] {
    ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETUID"]
}

pub fn a_container_cannot_reach_the_guest(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    ensure!(UNASKED.len() == 2, "the script counts the devices that nobody asked for");
    bed.runtime.block_on(async {
        let (seen, _streams) = closed.run("inside", &bed.images.app, &with_attempts()).await?;
        ensure!(seen.is_empty(), "from inside: {seen}");
        closed.kill("inside").await?;
        done(closed.delete("inside").await?)?;

        // The pair: the script sees what it looks for, where the host may ask for it.
        let (seen, _streams) = open.run("inside", &bed.images.app, &privileged()).await?;
        for line in [
            "the environment is another",
            "the umask is the hosts",
            "the disk opens",
            "it can mount",
            "it can write to sysrq",
            "it can set the core pattern",
            "it can make cgroups",
            "the kernels log is there",
        ] {
            ensure!(seen.contains(line), "without the check: no '{line}' in {seen}");
        }
        ensure!(!seen.contains("a hook ran") && !seen.contains("it sees the agent") && !seen.contains("a driver for"), "{seen}");
        open.kill("inside").await?;
        done(open.delete("inside").await?)?;
        anyhow::Ok(())
    })
}

/// A host that calls any directory a volume of the image would make it writable in a root that the policy wants read-only.
pub fn only_the_image_says_what_stays_writable_in_a_read_only_root(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    let mut locked = valid();
    locked["process"]["env"] = json!([]);
    locked["process"]["args"] = json!(["/bin/sh", "-c", LOCKED]);
    locked["root"]["readonly"] = json!(true);
    let mut attack = locked.clone();
    attack["mounts"] = json!([{"destination": "/bin", "type": "bind", "source": "/volumes/1", "options": ["rbind", "rw"]}]);
    let volume = api::Volume { destination: "/bin".into(), kind: api::VolumeKind::IMAGE.into(), ..Default::default() };
    let announce = api::PrepareVolumesRequest { container_id: "locked".into(), volumes: vec![volume], ..Default::default() };
    bed.runtime.block_on(async {
        done(closed.call("PrepareVolumes", &announce).await?)?;
        refused(closed.create("locked", &bed.images.app, &attack).await?, Code::PERMISSION_DENIED, "a writable /bin in a read-only root")?;
        let (seen, _streams) = closed.run("locked", &bed.images.app, &locked).await?;
        ensure!(seen.is_empty(), "{seen}");
        closed.kill("locked").await?;
        done(closed.delete("locked").await?)?;

        done(open.call("PrepareVolumes", &announce).await?)?;
        let (seen, _streams) = open.run("locked", &bed.images.app, &attack).await?;
        ensure!(seen == "the root can be written\n", "without the check: {seen}");
        open.kill("locked").await?;
        done(open.delete("locked").await?)?;
        anyhow::Ok(())
    })
}
