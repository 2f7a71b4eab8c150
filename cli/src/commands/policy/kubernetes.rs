//! Kubernetes manifests: Pod, and what makes pods: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob.

use super::{
    Draft,
    wish::{Wish, blank, capability},
};
use anyhow::{Context, Result, bail};
use policy::ContainerRule;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Where kubelet puts the service account's token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// ConfigMaps and Secrets of the same file, by kind and name: key to content.
type Contents = BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>;

/// The pod that a file describes. With `bind_files`, ConfigMaps and Secrets in it are bound by their content.
pub(super) fn draft(documents: &[Value], bind_files: bool) -> Result<Draft> {
    let contents = contents(documents)?;
    let mut pods = documents.iter().filter_map(|document| Some((document, pod_spec(document)?)));
    let Some((document, pod)) = pods.next() else {
        bail!("no Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job or CronJob in it");
    };
    if pods.next().is_some() {
        bail!("more than one pod in it; a policy is for one");
    }
    let mut draft = Draft { title: format!("{} {}", text(document, "/kind"), text(document, "/metadata/name")), ..Draft::default() };
    let reader = Reader { pod, contents: &contents, bind_files };
    let restarts = text(pod, "/restartPolicy") != "Never";
    for (key, init) in [("initContainers", true), ("containers", false)] {
        for container in list(pod, &format!("/{key}")) {
            // An init container that is always restarted is a sidecar: it does not end.
            let sidecar = init && text(container, "/restartPolicy") == "Always";
            let wish = reader.container(container, init && !sidecar, restarts || sidecar, &mut draft);
            draft.wishes.push(wish.with_context(|| format!("container {:?}", text(container, "/name")))?);
        }
    }
    draft.order = list(pod, "/initContainers").next().is_some();
    if pod.pointer("/enableServiceLinks") != Some(&Value::Bool(false)) {
        draft
            .notes
            .push("variables of services: KUBERNETES_* is allowed; set enableServiceLinks: false if the pod sees other services".into());
    }
    // kubelet sets these in every container, whatever the manifest says.
    draft.env = vec!["KUBERNETES_*".into()];
    Ok(draft)
}

/// Where the pod's spec stands in each kind.
fn pod_spec(document: &Value) -> Option<&Value> {
    document.pointer(match text(document, "/kind") {
        "Pod" => "/spec",
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => "/spec/template/spec",
        "CronJob" => "/spec/jobTemplate/spec/template/spec",
        _ => return None,
    })
}

fn contents(documents: &[Value]) -> Result<Contents> {
    let mut all = Contents::new();
    for document in documents.iter().filter(|d| ["ConfigMap", "Secret"].contains(&text(d, "/kind"))) {
        let mut files = BTreeMap::new();
        for (key, base64) in [("data", text(document, "/kind") == "Secret"), ("binaryData", true), ("stringData", false)] {
            for (name, value) in document.get(key).and_then(Value::as_object).into_iter().flatten() {
                let value = value.as_str().with_context(|| format!("{key}.{name}: not a text"))?;
                let bytes = if base64 { decode(value).with_context(|| format!("{key}.{name}: not base64"))? } else { value.into() };
                files.insert(name.clone(), bytes);
            }
        }
        all.insert((text(document, "/kind").into(), text(document, "/metadata/name").into()), files);
    }
    Ok(all)
}

struct Reader<'a> {
    pod: &'a Value,
    contents: &'a Contents,
    bind_files: bool,
}

impl Reader<'_> {
    fn container(&self, container: &Value, init: bool, restart: bool, draft: &mut Draft) -> Result<Wish> {
        let name = text(container, "/name");
        let mut rule = ContainerRule { init, restart, ..blank(name) };
        let values = self.environment(container, &mut rule, draft)?;
        let expanded = |key: &str| -> Result<Option<Vec<String>>> {
            let Some(items) = container.get(key).and_then(Value::as_array) else { return Ok(None) };
            let item =
                |item: &Value| item.as_str().map(|item| expand(item, &values)).with_context(|| format!("{key}: not a list of texts"));
            items.iter().map(item).collect::<Result<_>>().map(Some)
        };
        let (entrypoint, arguments) = (expanded("command")?, expanded("args")?);
        rule.cwd = container.get("workingDir").and_then(Value::as_str).map(Into::into);
        rule.terminal = flag(container, "/tty");
        rule.stdin = flag(container, "/stdin");
        self.mounts(container, &mut rule, draft)?;
        let security = |key: &str| {
            let own = container.pointer(&format!("/securityContext/{key}"));
            own.or_else(|| self.pod.pointer(&format!("/securityContext/{key}")))
        };
        if flag(container, "/securityContext/privileged") {
            bail!("privileged: a guest has no devices of the host to give; remove it");
        }
        rule.read_only = security("readOnlyRootFilesystem").and_then(Value::as_bool).unwrap_or(false);
        rule.no_new_privileges = security("allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false);
        let capabilities =
            |key: &str| list(container, &format!("/securityContext/capabilities/{key}")).filter_map(Value::as_str).map(capability);
        rule.add_capabilities = capabilities("add").collect();
        rule.drop_capabilities = capabilities("drop").collect();
        if rule.add_capabilities.iter().any(|name| name == "ALL") {
            bail!("securityContext.capabilities.add: ALL; name them one by one");
        }
        let number = |key: &str| security(key).and_then(Value::as_u64).map(u32::try_from).transpose().context(key.to_owned());
        let mut groups: Vec<u32> =
            list(self.pod, "/securityContext/supplementalGroups").filter_map(|g| u32::try_from(g.as_u64()?).ok()).collect();
        groups.extend(number("fsGroup")?);
        for kind in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle/postStart", "lifecycle/preStop"] {
            let command: Vec<String> =
                list(container, &format!("/{kind}/exec/command")).filter_map(|a| a.as_str().map(Into::into)).collect();
            if !command.is_empty() {
                draft.exec.push(command);
            }
        }
        Ok(Wish {
            name: name.into(),
            image: text(container, "/image").into(),
            entrypoint,
            arguments,
            uid: number("runAsUser")?,
            gid: number("runAsGroup")?,
            groups: groups.into_iter().collect(),
            rule: Some(rule),
        })
    }

    /// Fills in `env`; gives what is known, for `$(NAME)`.
    fn environment(&self, container: &Value, rule: &mut ContainerRule, draft: &mut Draft) -> Result<BTreeMap<String, String>> {
        let mut known = BTreeMap::new();
        let mut open = Vec::new();
        for from in list(container, "/envFrom") {
            let (map, prefix) = (text(from, "/configMapRef/name"), text(from, "/prefix"));
            match self.contents.get(&("ConfigMap".into(), map.into())) {
                Some(files) => known.extend(files.iter().map(|(k, v)| (format!("{prefix}{k}"), String::from_utf8_lossy(v).into_owned()))),
                None if map.is_empty() => {
                    draft.notes.push(format!(
                        "{}: variables from Secret {:?} are the host's word; seal them",
                        rule.name,
                        text(from, "/secretRef/name")
                    ));
                }
                None => {
                    draft.notes.push(format!("{}: envFrom: ConfigMap {map:?} is not in the file; its variables will be refused", rule.name))
                }
            }
        }
        for variable in list(container, "/env") {
            let name = text(variable, "/name").to_owned();
            if name.is_empty() {
                bail!("env: an entry without a name");
            }
            let reference = (text(variable, "/valueFrom/configMapKeyRef/name"), text(variable, "/valueFrom/configMapKeyRef/key"));
            let mapped = self.contents.get(&("ConfigMap".into(), reference.0.into())).and_then(|files| files.get(reference.1));
            if let Some(value) = mapped {
                known.insert(name, String::from_utf8_lossy(value).into_owned());
            } else if variable.get("valueFrom").is_some() {
                if variable.pointer("/valueFrom/secretKeyRef").is_some() {
                    draft
                        .notes
                        .push(format!("{}: {name} comes from a Secret, which is the host's word and visible to it; seal it", rule.name));
                }
                known.remove(&name);
                open.push(name);
            } else {
                let value = expand(text(variable, "/value"), &known);
                known.insert(name, value);
            }
        }
        rule.env = known.iter().map(|(name, value)| format!("{name}={value}")).chain(open).collect();
        Ok(known)
    }

    fn mounts(&self, container: &Value, rule: &mut ContainerRule, draft: &mut Draft) -> Result<()> {
        for mount in list(container, "/volumeMounts") {
            let (name, path) = (text(mount, "/name"), text(mount, "/mountPath"));
            let volume = list(self.pod, "/volumes").find(|volume| text(volume, "/name") == name);
            let volume = volume.with_context(|| format!("volumeMounts: there is no volume {name:?}"))?;
            let source =
                volume.as_object().and_then(|v| v.iter().find(|(key, _)| *key != "name")).map_or(("", &Value::Null), |(k, v)| (k, v));
            match source {
                ("emptyDir", _) => rule.mounts.push(path.into()),
                ("configMap" | "secret", reference) => {
                    let kind = if source.0 == "secret" { "Secret" } else { "ConfigMap" };
                    let of = reference.get("secretName").or_else(|| reference.get("name")).and_then(Value::as_str).unwrap_or_default();
                    let files = self.contents.get(&(kind.into(), of.into())).filter(|_| self.bind_files);
                    match files {
                        Some(files) => rule.files.extend(files.iter().filter(|(key, _)| selected(reference, key)).map(|(key, content)| {
                            format!(
                                "{}/{}=sha256:{}",
                                path.trim_end_matches('/'),
                                renamed(reference, key),
                                hex::encode(Sha256::digest(content))
                            )
                        })),
                        None if self.bind_files => bail!("{kind} {of:?} is not in the file, so that its content cannot be bound; add it"),
                        None => {
                            draft.notes.push(format!("{}: any content at {path} will be taken; bind it with --bind-files", rule.name));
                            rule.files.push(path.into());
                        }
                    }
                }
                ("projected" | "downwardAPI", _) => rule.files.push(path.into()),
                (kind, _) => bail!(
                    "volume {name:?}: {kind} is storage of the host, which a confidential guest does not mount; use emptyDir, configMap or secret"
                ),
            }
        }
        let automount = self.pod.get("automountServiceAccountToken").and_then(Value::as_bool);
        if automount != Some(false) && !rule.files.iter().any(|file| file == SERVICE_ACCOUNT) {
            rule.files.push(SERVICE_ACCOUNT.into());
        }
        Ok(())
    }
}

/// Whether `items` of a volume names the key, or there are none.
fn selected(reference: &Value, key: &str) -> bool {
    reference.get("items").is_none() || list(reference, "/items").any(|item| text(item, "/key") == key)
}

fn renamed<'a>(reference: &'a Value, key: &'a str) -> &'a str {
    list(reference, "/items").find(|item| text(item, "/key") == key).map_or(key, |item| text(item, "/path"))
}

/// `$(NAME)` where the name is known, `$$` for a dollar; everything else stays, as kubelet leaves it.
fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn decode(text: &str) -> Result<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    Ok(STANDARD.decode(text.split_whitespace().collect::<String>())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_kubelet_does() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, wanted) in
            [("$(A)", "1"), ("x$(A)y", "x1y"), ("$$(A)", "$(A)"), ("$(B)", "$(B)"), ("$A", "$A"), ("$", "$"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &known), wanted, "{text}");
        }
    }
}
