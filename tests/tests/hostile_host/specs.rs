//! What a host changes of a container that the policy describes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::bed::HostileBed;
use crate::host::{done, refused, valid};

/// What an open door makes of it.
enum Open {
    /// It works: the check is what stops it.
    Works,
    /// Refused as well: no owner can want it.
    Refused,
}

/// Where in the spec, what there, and what the refusal says.
fn attacks() -> Vec<(&'static str, Value, &'static str, Open)> {
    let mount = |typ: &str, destination: &str, options: Value| json!([{"destination": destination, "type": typ, "source": "/", "options": options}]);
    let device = |path: &str, typ: &str| json!({"devices": [{"path": path, "type": typ, "major": 254, "minor": 0}]});
    vec![
        ("/process/args", json!(["/bin/cat", "/etc/passwd"]), "command line", Open::Works),
        ("/process/env", json!(["MODE=batch", "LD_PRELOAD=/x.so"]), "environment variable LD_PRELOAD", Open::Works),
        ("/process/env", json!(["MODE=other"]), "environment variable MODE", Open::Works),
        ("/process/env", json!(["MODE=batch;evil"]), "environment variable MODE", Open::Works),
        ("/process/env", json!([]), "environment without MODE", Open::Works),
        ("/process/cwd", json!("/tmp"), "working directory /tmp", Open::Works),
        ("/process/user", json!({"uid": 1000, "gid": 1000}), "user 1000:1000", Open::Works),
        ("/process/terminal", json!(true), "a terminal", Open::Works),
        ("/process/noNewPrivileges", json!(true), "no_new_privileges", Open::Works),
        ("/process/capabilities", json!({"bounding": ["CAP_SYS_ADMIN"]}), "capability CAP_SYS_ADMIN", Open::Works),
        ("/root/readonly", json!(true), "a read-only root", Open::Works),
        ("/mounts", mount("tmpfs", "/etc", json!([])), "mount at /etc", Open::Works),
        ("/mounts", mount("proc", "/mnt", json!([])), "mount at proc:/mnt", Open::Works),
        ("/mounts", mount("tmpfs", "/x", json!(["size=1m,suid"])), "mounts.options", Open::Refused),
        ("/mounts", mount("tmpfs", "/x", json!(["mode=0\u{0}"])), "mounts.options", Open::Refused),
        ("/mounts", mount("tmpfs", "/proc/../etc", json!([])), "without '..'", Open::Refused),
        ("/mounts", mount("bind", "/x", json!(["rbind"])), "no access to files of the host", Open::Refused),
        ("/mounts", mount("9p", "/x", json!(["trans=virtio"])), "mount of type", Open::Refused),
        ("/mounts", mount("virtiofs", "/x", json!([])), "mount of type", Open::Refused),
        ("/linux", device("/dev/vda", "b"), "/dev/vda", Open::Refused),
        ("/linux", device("/dev/kmsg", "c"), "device /dev/kmsg", Open::Works),
        ("/linux", json!({"resources": {"devices": [{"allow": true, "access": "rwm"}]}}), "all devices of the guest", Open::Works),
        ("/linux", json!({"sysctl": {"kernel.core_pattern": "|/x"}}), "kernel.core_pattern", Open::Refused),
        ("/linux", json!({"sysctl": {"kernel.shmmax": "4096"}}), "sysctl kernel.shmmax=4096", Open::Works),
        ("/linux", json!({"sysctl": {"net.ipv4.conf.all.route_localnet": "1"}}), "route_localnet", Open::Works),
        ("/linux", json!({"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}), "the pod's process namespace", Open::Works),
        ("/linux", json!({"seccomp": {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}}), "listenerPath", Open::Refused),
    ]
}

pub fn what_the_host_changes_is_refused(bed: &HostileBed) -> Result<()> {
    let (closed, open) = (bed.closed()?, bed.open()?);
    bed.runtime.block_on(async {
        for (path, value, words, without) in attacks() {
            let (parent, key) = path.rsplit_once('/').context("a path")?;
            let mut spec = valid();
            spec.pointer_mut(parent).context("a parent")?[key] = value;
            let what = || format!("{path}, {words}");
            let code = if matches!(without, Open::Works) { Code::PERMISSION_DENIED } else { Code::INVALID_ARGUMENT };
            refused(closed.create("attack", &bed.images.app, &spec).await?, code, words).with_context(what)?;
            // Nothing of it is left, and the id is free.
            refused(closed.start("attack").await?, Code::NOT_FOUND, "attack").with_context(what)?;
            let answer = open.create("attack", &bed.images.app, &spec).await?;
            match without {
                Open::Works => done(answer)
                    .and(done(open.delete("attack").await?))
                    .with_context(|| format!("the attack without the check: {path}, {words}"))?,
                Open::Refused => {
                    refused(answer, code, words).with_context(what)?;
                    continue;
                }
            };
        }
        // And nothing of all that has stuck to the container that is wanted.
        done(closed.create("attack", &bed.images.app, &valid()).await?)?;
        done(closed.delete("attack").await?)?;
        ensure!(attacks().iter().filter(|attack| matches!(attack.3, Open::Works)).count() > 15, "most attacks are to be shown to work");
        anyhow::Ok(())
    })
}
