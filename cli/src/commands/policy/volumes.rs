//! What a container's volume mounts are in a guest: something empty, or files that are copied in.

use super::{
    contents::Contents,
    manifest::{Item, Keys, PodSpec, Projected, Volume, VolumeMount},
};
use anyhow::{Context, Result, bail};
use policy::ContainerRule;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Where kubelet puts the service account's token.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A path below the place of a mount (empty for a file of its own) and `sha256:…` of its content, where that is known.
pub(super) type File = (String, Option<String>);

/// Files that are copied to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    /// In the container.
    pub(super) destination: String,
    /// `None` where not even the names are known.
    pub(super) list: Option<Vec<File>>,
}

impl Files {
    /// Lets them in: each with its content, or any at this place.
    pub(super) fn allow(&self, bind: bool, rule: &mut ContainerRule) {
        let Some(list) = self.list.as_ref().filter(|_| bind) else { return rule.files.push(self.destination.clone()) };
        if list.iter().all(|(path, _)| !path.is_empty()) {
            rule.mounts.push(self.destination.clone());
        }
        rule.files.extend(list.iter().map(|(path, digest)| {
            let path = if path.is_empty() { self.destination.clone() } else { format!("{}/{path}", self.destination) };
            digest.as_ref().map_or_else(|| path.clone(), |digest| format!("{path}={digest}"))
        }));
    }
}

pub(super) fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

/// The volumes of a pod, of which a container mounts some.
pub(super) struct Volumes<'a> {
    pub(super) pod: &'a PodSpec,
    pub(super) claims: &'a [String],
    pub(super) contents: &'a Contents,
    /// Whether contents have to be known.
    pub(super) bind: bool,
    /// Names of volumes that are mounted more than once.
    pub(super) shared: BTreeSet<String>,
}

/// What is mounted in a container: empty directories, as place and volume, and files.
pub(super) type Mounted = (Vec<(String, String)>, Vec<Files>);

impl Volumes<'_> {
    /// Sorts the mounts of a container, and puts the empty ones into its rule.
    pub(super) fn mounted(&self, mounts: &[VolumeMount], rule: &mut ContainerRule) -> Result<Mounted> {
        let (mut empty, mut files) = (Vec::new(), Vec::<Files>::new());
        for mount in mounts {
            let of = || format!("volume {:?} at {:?}", mount.name, mount.mount_path);
            let destination = shortest(&mount.mount_path).with_context(of)?;
            if !mount.sub_path_expr.is_empty() {
                bail!("{}: subPathExpr: only the node knows it; use subPath", of());
            }
            let volume = self.pod.volumes.iter().find(|volume| volume.name == mount.name);
            if volume.is_none() && self.claims.contains(&mount.name) {
                bail!("{}: {}", of(), storage("a claim"));
            }
            let volume = volume.with_context(|| format!("{}: there is no such volume", of()))?;
            match self.list(volume).with_context(of)? {
                Some(list) => {
                    files.push(Files { destination, list: list.map(|list| below(list, &mount.sub_path)).transpose().with_context(of)? })
                }
                None if !mount.sub_path.is_empty() => bail!("{}: a part of an emptyDir is not offered; mount all of it", of()),
                None => {
                    if self.shared.contains(&mount.name) {
                        rule.shared.push(format!("{destination}={}", mount.name));
                    }
                    rule.mounts.push(if mount.read_only { format!("{destination}:ro") } else { destination.clone() });
                    empty.push((destination, mount.name.clone()));
                }
            }
        }
        let automount = self.pod.automount_service_account_token != Some(false);
        if automount && files.iter().all(|files| files.destination != SERVICE_ACCOUNT) {
            files.push(Files { destination: SERVICE_ACCOUNT.into(), list: None });
        }
        Ok((empty, files))
    }

    /// The files of a volume, as far as they are known; `None` for an empty directory.
    fn list(&self, volume: &Volume) -> Result<Option<Option<Vec<File>>>> {
        Ok(Some(match volume {
            Volume { config_map: Some(keys), .. } => self.keys("ConfigMap", keys, &keys.name)?,
            Volume { secret: Some(keys), .. } => self.keys("Secret", keys, &keys.secret_name)?,
            Volume { downward_api: Some(keys), .. } => Some(unknown(keys)),
            Volume { projected: Some(projected), .. } => self.projected(projected)?,
            Volume { empty_dir: Some(_), .. } => return Ok(None),
            Volume { rest, .. } => match rest.keys().next() {
                // As the API server fills it in.
                None => return Ok(None),
                Some(kind) => bail!(storage(kind)),
            },
        }))
    }

    fn keys(&self, kind: &'static str, keys: &Keys, name: &str) -> Result<Option<Vec<File>>> {
        let Some(files) = self.contents.of(kind, name) else {
            if self.bind {
                bail!("{kind} {name:?} is not in the file, so that its content cannot be bound; add it");
            }
            return Ok(None);
        };
        if keys.items.is_empty() {
            return Ok(Some(files.iter().map(|(key, content)| (key.clone(), Some(digest(content)))).collect()));
        }
        let file = |item: &Item| match files.get(&item.key) {
            Some(content) => Ok(Some((relative(&item.path)?, Some(digest(content))))),
            None if keys.optional => Ok(None),
            None => bail!("{kind} {name:?} has no key {:?}", item.key),
        };
        Ok(Some(keys.items.iter().map(file).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()))
    }

    fn projected(&self, projected: &Projected) -> Result<Option<Vec<File>>> {
        let mut all = Some(Vec::new());
        for source in &projected.sources {
            let mut list = Some(Vec::new());
            let mut add = |more: Option<Vec<File>>| list = list.take().zip(more).map(|(list, more)| [list, more].concat());
            source.config_map.iter().try_for_each(|keys| self.keys("ConfigMap", keys, &keys.name).map(&mut add))?;
            source.secret.iter().try_for_each(|keys| self.keys("Secret", keys, &keys.name).map(&mut add))?;
            source.downward_api.iter().for_each(|keys| add(Some(unknown(keys))));
            source.service_account_token.iter().for_each(|item| add(Some(vec![(item.path.clone(), None)])));
            if let Some(kind) = source.rest.keys().next() {
                bail!("projected: a source {kind:?} is not known here");
            }
            all = all.zip(list).map(|(all, list)| [all, list].concat());
        }
        Ok(all)
    }
}

/// Files of which the node alone knows the content.
fn unknown(keys: &Keys) -> Vec<File> {
    keys.items.iter().map(|item| (item.path.clone(), None)).collect()
}

/// What is left of a volume where a part of it is mounted.
fn below(list: Vec<File>, sub_path: &str) -> Result<Vec<File>> {
    let sub_path = sub_path.trim_end_matches('/');
    if sub_path.is_empty() {
        return Ok(list);
    }
    let rest = |path: &str| {
        let rest = path.strip_prefix(sub_path)?;
        if rest.is_empty() { Some(String::new()) } else { rest.strip_prefix('/').map(str::to_owned) }
    };
    let list: Vec<_> = list.into_iter().filter_map(|(path, digest)| Some((rest(&path)?, digest))).collect();
    if list.is_empty() {
        bail!("subPath {sub_path:?} is not in it");
    }
    Ok(list)
}

/// Why a volume cannot be had, and what instead.
fn storage(kind: &str) -> String {
    format!("{kind} is storage of the node, which a guest does not mount; use emptyDir, configMap, secret or projected")
}

/// An absolute path in its shortest spelling, as the shim announces it.
pub(super) fn shortest(path: &str) -> Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if !path.starts_with('/') || parts.is_empty() || parts.contains(&"..") || path.contains([':', '\0']) {
        bail!("not an absolute path that can be mounted at");
    }
    Ok(format!("/{}", parts.join("/")))
}

fn relative(path: &str) -> Result<String> {
    match shortest(&format!("/{path}")) {
        Ok(absolute) if !path.starts_with('/') => Ok(absolute[1..].to_owned()),
        _ => bail!("items.path {path:?}: must be relative, without '..'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What a mount becomes.
    fn mounted(volume: Value, mount: Value, bind: bool) -> Result<ContainerRule> {
        let documents = [
            json!({"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}}),
            json!({"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "3"}}),
        ];
        let mut whole = volume;
        whole["name"] = json!("v");
        let pod: PodSpec = serde_json::from_value(json!({"automountServiceAccountToken": false, "volumes": [whole]})).unwrap();
        let mut mounts = vec![mount];
        mounts[0]["name"] = json!("v");
        let mounts: Vec<VolumeMount> = serde_json::from_value(json!(mounts)).unwrap();
        let contents = Contents::read(&documents).unwrap();
        let mut rule = ContainerRule::default();
        let volumes = Volumes { pod: &pod, claims: &["claimed".into()], contents: &contents, bind, shared: BTreeSet::new() };
        let (_, files) = volumes.mounted(&mounts, &mut rule)?;
        files.iter().for_each(|files| files.allow(bind, &mut rule));
        Ok(rule)
    }

    fn bound(path: &str, content: &str) -> String {
        format!("{path}={}", digest(content.as_bytes()))
    }

    #[test]
    fn volumes_become_mounts_and_files() {
        let map = || json!({"configMap": {"name": "c"}});
        let at = |path: &str| json!({"mountPath": path});
        let check = |volume: Value, mount: Value, bind, mounts: &[&str], files: &[String]| {
            let rule = mounted(volume.clone(), mount, bind).unwrap();
            assert_eq!((rule.mounts, rule.files.as_slice()), (mounts.iter().map(|m| (*m).to_owned()).collect(), files), "{volume}");
        };
        check(json!({"emptyDir": {"medium": "Memory"}}), at("/cache/"), true, &["/cache"], &[]);
        check(json!({}), at("/cache"), true, &["/cache"], &[]);
        check(json!({"emptyDir": {}}), json!({"mountPath": "/c", "readOnly": true}), true, &["/c:ro"], &[]);
        check(map(), at("/etc/app"), false, &[], &["/etc/app".into()]);
        check(map(), at("/etc/app"), true, &["/etc/app"], &[bound("/etc/app/a", "1"), bound("/etc/app/b", "2")]);
        check(map(), json!({"mountPath": "/etc/b.toml", "subPath": "b"}), true, &[], &[bound("/etc/b.toml", "2")]);
        let items = json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "deep/er"}]}});
        check(items.clone(), at("/e"), true, &["/e"], &[bound("/e/deep/er", "1")]);
        check(items, json!({"mountPath": "/e", "subPath": "deep"}), true, &["/e"], &[bound("/e/er", "1")]);
        check(json!({"secret": {"secretName": "s"}}), at("/s"), true, &["/s"], &[bound("/s/key", "3")]);
        let optional =
            json!({"secret": {"secretName": "s", "optional": true, "items": [{"key": "key", "path": "k"}, {"key": "z", "path": "z"}]}});
        check(optional, at("/s"), true, &["/s"], &[bound("/s/k", "3")]);
        let projected = json!({"projected": {"sources": [
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "a"}]}}, {"secret": {"name": "s"}},
            {"serviceAccountToken": {"path": "token"}}, {"downwardAPI": {"items": [{"path": "labels"}]}}]}});
        check(
            projected.clone(),
            at("/p"),
            true,
            &["/p"],
            &[bound("/p/a", "1"), bound("/p/key", "3"), "/p/token".into(), "/p/labels".into()],
        );
        check(projected, at("/p"), false, &[], &["/p".into()]);
    }

    #[test]
    fn what_a_guest_cannot_mount_is_said() {
        let map = || json!({"configMap": {"name": "c"}});
        for (volume, mount, wanted) in [
            (json!({"hostPath": {"path": "/x"}}), json!({"mountPath": "/x"}), "hostPath is storage of the node"),
            (json!({"persistentVolumeClaim": {"claimName": "x"}}), json!({"mountPath": "/x"}), "persistentVolumeClaim"),
            (json!({"configMap": {"name": "none"}}), json!({"mountPath": "/x"}), "cannot be bound"),
            (json!({"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}}), json!({"mountPath": "/x"}), "no key \"z\""),
            (json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "../z"}]}}), json!({"mountPath": "/x"}), "items.path"),
            (map(), json!({"mountPath": "/x", "subPath": "z"}), "subPath \"z\""),
            (map(), json!({"mountPath": "/x", "subPathExpr": "$(A)"}), "subPathExpr"),
            (map(), json!({"mountPath": "/x/../y"}), "absolute path"),
            (map(), json!({"mountPath": "x"}), "absolute path"),
            (map(), json!({"mountPath": "/"}), "absolute path"),
            (json!({"emptyDir": {}}), json!({"mountPath": "/x", "subPath": "y"}), "part of an emptyDir"),
            (json!({"projected": {"sources": [{"clusterTrustBundle": {}}]}}), json!({"mountPath": "/x"}), "clusterTrustBundle"),
        ] {
            let error = format!("{:#}", mounted(volume.clone(), mount, true).unwrap_err());
            assert!(error.contains(wanted) && error.contains("volume \"v\""), "{volume}: {error}");
        }
    }
}
