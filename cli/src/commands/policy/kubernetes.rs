//! A pod of Kubernetes as a draft of its policy.

use super::{
    contents::Contents,
    draft::{Draft, User, Wish, capability},
    environment::{Environment, SERVICES},
    manifest::{Container, PodSpec, Workload},
    volumes::Volumes,
};
use anyhow::{Context, Result, anyhow, bail};
use policy::ContainerRule;
use serde_json::Value;
use std::collections::BTreeSet;

/// The pod that a file describes, or the one in it whose workload is called `name`. With `bind_files`, contents of ConfigMaps and Secrets
/// have to be in the file, and are bound.
pub(super) fn draft(documents: &[Value], name: Option<&str>, bind_files: bool) -> Result<Draft> {
    let contents = Contents::read(documents)?;
    let Workload { title, pod, claims } = Workload::find(documents, name)?;
    for (wanted, key) in [(pod.host_network, "hostNetwork"), (pod.host_pid, "hostPID"), (pod.host_ipc, "hostIPC")] {
        if wanted {
            bail!("{title}: {key}: a namespace of the node does not reach into a guest; remove it");
        }
    }
    let restarts = pod.restart_policy != "Never";
    let mut draft = Draft { title: title.clone(), share_processes: pod.share_process_namespace, ..Draft::default() };
    let all = pod.init_containers.iter().map(|value| (value, true)).chain(pod.containers.iter().map(|value| (value, false)));
    let of = |name: &str| format!("{title}: container {name:?}");
    let read = |(value, init): (&Value, bool)| {
        let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
        Container::read(value).map(|container| (container, init)).with_context(|| of(name))
    };
    let all = all.map(read).collect::<Result<Vec<_>>>()?;
    let volumes = Volumes { pod: &pod, claims: &claims, contents: &contents, bind: bind_files, shared: mounted_twice(&all) };
    let reader = Reader { pod: &pod, volumes };
    for (container, init) in &all {
        // An init container that is always restarted is a sidecar: it does not end.
        let sidecar = *init && container.restart_policy == "Always";
        let rule = ContainerRule { init: *init && !sidecar, restart: restarts || sidecar, ..ContainerRule::default() };
        let wish = reader.container(container, rule, &mut draft).with_context(|| of(&container.name))?;
        draft.wishes.push(wish);
    }
    draft.order = !pod.init_containers.is_empty();
    if pod.enable_service_links != Some(false) {
        let text =
            "variables of services other than KUBERNETES_* will be refused; set enableServiceLinks: false if the pod sees other services";
        draft.notes.push(text.into());
    }
    draft.notes.extend(pod.unknown().iter().map(|key| format!("{key} is not known here, and was not looked at")));
    // kubelet sets these in every container, whatever the manifest says.
    draft.env = vec![format!("{SERVICES}*")];
    Ok(draft)
}

/// Names of the volumes that are mounted more than once.
fn mounted_twice(containers: &[(Container, bool)]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mounts = containers.iter().flat_map(|(container, _)| &container.volume_mounts);
    mounts.filter(|mount| !seen.insert(&mount.name)).map(|mount| mount.name.clone()).collect()
}

struct Reader<'a> {
    pod: &'a PodSpec,
    volumes: Volumes<'a>,
}

impl Reader<'_> {
    fn container(&self, container: &Container, mut rule: ContainerRule, draft: &mut Draft) -> Result<Wish> {
        let security = &container.security_context;
        if security.privileged {
            bail!("privileged: it would be the whole guest; if that is meant, write allow.privileged and its capabilities by hand");
        }
        if !container.volume_devices.is_empty() {
            bail!("volumeDevices: a pod's guest gets no disk after its start; remove them");
        }
        let env = Environment::of(container, self.volumes.contents, &mut draft.notes)?;
        let expanded = |list: &[String], key: &str| -> Result<Option<Vec<String>>> {
            let unknown = |name| anyhow!("{key}: $({name}) is known to the node only; have the program read the variable itself");
            let items = list.iter().map(|item| env.expand(item).map_err(unknown)).collect::<Result<Vec<_>>>()?;
            Ok(Some(items).filter(|items| !items.is_empty()))
        };
        let (entrypoint, arguments) = (expanded(&container.command, "command")?, expanded(&container.args, "args")?);
        rule.name.clone_from(&container.name);
        rule.env = env.entries();
        rule.cwd.clone_from(&container.working_dir);
        (rule.terminal, rule.stdin) = (container.tty, container.stdin);
        rule.read_only = security.read_only_root_filesystem;
        rule.no_new_privileges = security.allow_privilege_escalation == Some(false);
        rule.add_capabilities = security.capabilities.add.iter().map(|name| capability(name)).collect();
        rule.drop_capabilities = security.capabilities.drop.iter().map(|name| capability(name)).collect();
        if rule.add_capabilities.iter().any(|name| name == "ALL") {
            bail!("securityContext.capabilities.add: ALL; name them one by one");
        }
        let (empty, files) = self.volumes.mounted(&container.volume_mounts, &mut rule)?;
        for files in &files {
            files.allow(self.volumes.bind, &mut rule);
            if !self.volumes.bind {
                draft.notes.push(format!("{}: any content at {} will be taken; --bind-files binds it", container.name, files.destination));
            }
        }
        draft.exec.extend(container.commands().filter(|command| !command.is_empty()).cloned());
        draft.stop_signals.extend(container.lifecycle.stop_signal.clone());
        draft
            .notes
            .extend(container.unknown().iter().map(|key| format!("{}: {key} is not known here, and was not looked at", container.name)));
        let pod = &self.pod.security_context;
        let groups = pod.supplemental_groups.iter().copied().chain(pod.fs_group).collect();
        let user = User { uid: security.run_as_user.or(pod.run_as_user), gid: security.run_as_group.or(pod.run_as_group), groups };
        Ok(Wish { image: container.image.clone(), entrypoint, arguments, user, empty, files, rule })
    }
}
