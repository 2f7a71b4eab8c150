//! What each bind mount of a spec becomes: a copy, an empty directory of the guest's own, the image's own content, a shared directory where
//! the configuration has one, or a refusal.

use super::{VolumeError, probe, server::DiskFile, subpath};
use crate::bundle::Mount;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use protobuf::EnumOrUnknown;
use protocol::{
    api::{self, VolumeKind},
    volume::{MAX_BYTES, MAX_ENTRIES, MAX_VOLUMES},
};
use runtime::vmm::shared::tag;
use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Made by the agent, whatever the host has there.
pub(super) const OWN: &[&str] = &["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
/// Files that runtimes bind into every container, writable; each container of a guest has a copy of its own.
const FILES: &[&str] = &["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
/// Kubelet's volumes that it writes itself and mounts read-only.
const WRITTEN_BY_KUBELET: &[&str] =
    &["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];
pub(super) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// One volume of a container.
#[derive(Debug, Clone)]
pub struct Plan {
    /// As the guest is told.
    pub volume: api::Volume,
    /// On the host.
    pub source: PathBuf,
    /// Of a disk that is served: what is.
    pub disk: Option<Arc<DiskFile>>,
}

/// Plans the volumes of a container; those that the agent makes by itself are not in the list. `shared` are the directories of the host that
/// the guest sees.
pub fn plan(mounts: &[Mount], shared: &[PathBuf]) -> Result<Vec<Plan>, VolumeError> {
    let mut plans = Vec::new();
    for mount in mounts.iter().filter(|mount| mount.is_bind()) {
        let refused = |rule: String| refuse(mount, rule);
        let Some(destination) = shortest(&mount.destination) else {
            return Err(refused("the destination must be an absolute path without '..'".to_owned()));
        };
        if OWN.contains(&destination.as_str()) || (destination == "/dev/shm" && !mount.source.components().any(is_empty_dir)) {
            continue;
        }
        if probe::is_disk(mount, &destination) {
            continue;
        }
        let mut volume = kind(mount, &destination, shared)?;
        // What is mounted twice at one place is seen once: the last one.
        plans.retain(|plan: &Plan| plan.volume.destination != destination);
        volume.destination = destination;
        plans.push(Plan { volume, source: mount.source.clone(), disk: None });
        if plans.len() > MAX_VOLUMES {
            return Err(refused(format!("a container has at most {MAX_VOLUMES} volumes")));
        }
    }
    Ok(plans)
}

fn kind(mount: &Mount, destination: &str, shared: &[PathBuf]) -> Result<api::Volume, VolumeError> {
    let of = |kind: VolumeKind| api::Volume { kind: EnumOrUnknown::new(kind), readonly: mount.is_readonly(), ..Default::default() };
    if is_of_image(&mount.source) {
        return Ok(of(VolumeKind::IMAGE));
    }
    let failed = |source| VolumeError::Read { source_path: mount.source.clone(), destination: destination.to_owned(), source };
    let found = fs::metadata(&mount.source).map_err(failed)?;
    if let Some(name) = empty_dir(&mount.source) {
        return Ok(empty(of(VolumeKind::EMPTY), &mount.source, name, &found));
    }
    if let Some((whole, part)) = subpath::of_empty_dir(&mount.source) {
        // A file of an emptyDir is in the guest, and so not here: kubelet then makes a directory.
        let (Some(name), Some(part), true) = (empty_dir(&whole), part.to_str(), found.is_dir()) else {
            return Err(refuse(mount, "a part of an emptyDir (subPath) that is no directory: mount the whole of it".to_owned()));
        };
        let found = fs::metadata(&whole).map_err(failed)?;
        return Ok(api::Volume { path: part.to_owned(), ..empty(of(VolumeKind::EMPTY), &whole, name, &found) });
    }
    let kind = found.file_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(refuse(mount, "neither a file nor a directory: a socket or device of the host leads nowhere from a guest".to_owned()));
    }
    if kind.is_file() && is_termination_log(&mount.source) {
        return Ok(api::Volume { read_back: true, ..of(VolumeKind::COPY) });
    }
    if let Some((name, path)) = part_of(&mount.source, shared) {
        return Ok(api::Volume { name, path, ..of(VolumeKind::SHARED) });
    }
    if subpath::is_part(&mount.source) && !mount.is_readonly() {
        return Err(refuse(mount, "a part of a volume that is written to (subPath) and is no emptyDir: mount it read-only".to_owned()));
    }
    let by_kubelet = component_after(&mount.source, |name| WRITTEN_BY_KUBELET.contains(&name)).is_some();
    let each_its_own = kind.is_file() && FILES.contains(&destination);
    if !(mount.is_readonly() || by_kubelet || each_its_own) {
        let rule = format!(
            "what a container writes cannot be shared with the host; mount it read-only (up to {} MiB and {MAX_ENTRIES} entries are \
             then copied in), or use an emptyDir; without an enclave, guest.shared of the configuration can have it",
            MAX_BYTES >> 20
        );
        return Err(refuse(mount, rule));
    }
    let (mut bytes, mut entries) = (0, 0);
    measure(&mount.source, &found, &mut bytes, &mut entries);
    if bytes > MAX_BYTES || entries > MAX_ENTRIES {
        let (most, rest) = (MAX_BYTES >> 20, "put the files into the image, or mount a part of them");
        return Err(refuse(mount, format!("more than the {most} MiB or {MAX_ENTRIES} entries that are copied into a guest; {rest}")));
    }
    Ok(api::Volume { readonly: mount.is_readonly() || by_kubelet, ..of(VolumeKind::COPY) })
}

/// Which shared directory a path is in, by its tag, and where in it. Links are followed here: in the guest they would lead elsewhere.
fn part_of(source: &Path, shared: &[PathBuf]) -> Option<(String, String)> {
    let source = fs::canonicalize(source).ok()?;
    shared.iter().enumerate().find_map(|(number, dir)| {
        let part = source.strip_prefix(fs::canonicalize(dir).ok()?).ok()?;
        Some((tag(number), part.to_str()?.to_owned()))
    })
}

fn refuse(mount: &Mount, rule: String) -> VolumeError {
    VolumeError::Refused { source_path: mount.source.clone(), destination: mount.destination.clone(), rule }
}

/// An emptyDir: in memory where kubelet has mounted a tmpfs for it, of the same size.
fn empty(volume: api::Volume, source: &Path, name: &str, found: &Metadata) -> api::Volume {
    let memory = statfs(source).ok().filter(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    // A host may run from a tmpfs altogether: then nothing is mounted here.
    let mounted = source.parent().and_then(|parent| fs::metadata(parent).ok()).is_some_and(|parent| parent.dev() != found.dev());
    let (kind, size) = match memory.filter(|_| mounted) {
        Some(fs) => (VolumeKind::EMPTY_MEMORY, fs.blocks().saturating_mul(u64::try_from(fs.block_size()).unwrap_or(0))),
        None => (VolumeKind::EMPTY, 0),
    };
    let mode = found.mode() & protocol::bounds::MAX_MODE;
    api::Volume { kind: EnumOrUnknown::new(kind), name: name.to_owned(), mode, uid: found.uid(), gid: found.gid(), size, ..volume }
}

/// Counts until a bound is passed; what cannot be read is found when it is copied.
fn measure(path: &Path, found: &Metadata, bytes: &mut u64, entries: &mut usize) {
    *entries += 1;
    if *entries > MAX_ENTRIES || *bytes > MAX_BYTES {
        return;
    }
    if found.is_file() {
        *bytes = bytes.saturating_add(found.len());
    }
    if found.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if let Ok(found) = entry.metadata() {
                measure(&entry.path(), &found, bytes, entries);
            }
        }
    }
}

/// The path in its shortest spelling.
pub(super) fn shortest(path: &str) -> Option<String> {
    let mut text = String::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => text = format!("{text}/{}", name.to_str()?),
            _ => return None,
        }
    }
    (path.starts_with('/') && !text.is_empty()).then_some(text)
}

fn is_empty_dir(component: Component<'_>) -> bool {
    component.as_os_str() == EMPTY_DIR
}

/// The component after one that is looked for.
fn component_after(path: &Path, is: impl Fn(&str) -> bool) -> Option<&str> {
    let mut names = path.components().filter_map(|component| component.as_os_str().to_str());
    names.find(|name| is(name))?;
    names.next()
}

/// The name of an emptyDir: `…/volumes/kubernetes.io~empty-dir/NAME`, and nothing below it.
fn empty_dir(path: &Path) -> Option<&str> {
    let name = component_after(path, |name| name == EMPTY_DIR)?;
    path.ends_with(Path::new(EMPTY_DIR).join(name)).then_some(name)
}

/// `…/pods/UID/containers/NAME/ID` (kubernetes pkg/kubelet/kuberuntime/kuberuntime_container.go).
pub(super) fn is_termination_log(path: &Path) -> bool {
    let names: Vec<&str> = path.components().filter_map(|component| component.as_os_str().to_str()).collect();
    matches!(names[..], [.., "pods", _, "containers", _, _])
}

/// A volume that the image's config declares, for which the caller made an empty directory: containerd's CRI plugin below the container's own
/// directory, nerdctl under a name of 64 digits.
fn is_of_image(path: &Path) -> bool {
    let names: Vec<&str> = path.components().filter_map(|component| component.as_os_str().to_str()).collect();
    match names[..] {
        [.., "containers", _, "volumes", _] => names.iter().any(|name| name.starts_with("io.containerd.grpc.v1.cri")),
        [.., "volumes", _, id, "_data"] => id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { destination: destination.into(), kind: "bind".into(), source: source.into(), options }
    }

    fn one(source: &Path, destination: &str, options: &[&str]) -> Result<api::Volume, VolumeError> {
        Ok(plan(&[bind(source, destination, options)], &[])?.pop().unwrap().volume)
    }

    fn kind(volume: &api::Volume) -> VolumeKind {
        volume.kind.enum_value().unwrap()
    }

    #[test]
    fn kubelets_volumes_are_known_by_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pods/0a-1b");
        for name in ["kubernetes.io~configmap/conf", "kubernetes.io~empty-dir/cache", "kubernetes.io~projected/token"] {
            fs::create_dir_all(pod.join("volumes").join(name)).unwrap();
        }
        let conf = one(&pod.join("volumes/kubernetes.io~configmap/conf"), "/etc/conf/", &["rbind", "rw"]).unwrap();
        assert_eq!((kind(&conf), conf.readonly, conf.destination.as_str()), (VolumeKind::COPY, true, "/etc/conf"));
        let cache = one(&pod.join("volumes/kubernetes.io~empty-dir/cache"), "/cache", &["rbind"]).unwrap();
        assert_eq!((kind(&cache), cache.name.as_str(), cache.readonly), (VolumeKind::EMPTY, "cache", false));
        assert_eq!(cache.mode, fs::metadata(&pod).unwrap().mode() & 0o3777);
        let log = pod.join("containers/app/1f2e3d4c");
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, "").unwrap();
        let log = one(&log, "/dev/termination-log", &["rbind", "rw"]).unwrap();
        assert!(log.read_back && kind(&log) == VolumeKind::COPY);
    }

    #[test]
    fn a_part_of_a_config_map_is_copied_and_one_that_is_written_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let part = dir.path().join("pods/0a-1b/volume-subpaths/conf/app/0");
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(&part, "x").unwrap();
        // Kubelet's own volumes are read-only, and so are their parts.
        let volume = one(&part, "/etc/app.conf", &["rbind", "rprivate", "ro"]).unwrap();
        assert!(kind(&volume) == VolumeKind::COPY && volume.readonly);
        let error = one(&part, "/etc/app.conf", &["rbind", "rw"]).unwrap_err().to_string();
        assert!(error.contains("subPath") && error.contains("read-only") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn small_read_only_files_are_copied_and_usual_ones_always() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "x").unwrap();
        assert_eq!(kind(&one(&file, "/conf", &["bind", "ro"]).unwrap()), VolumeKind::COPY);
        assert_eq!(kind(&one(dir.path(), "/dir", &["rbind", "ro"]).unwrap()), VolumeKind::COPY);
        assert!(!one(&file, "/etc/hosts", &["rbind", "rw"]).unwrap().readonly);
        assert!(plan(&[bind(&file, "/proc", &[]), bind(&file, "/dev/shm", &[])], &[]).unwrap().is_empty());
        let twice = plan(&[bind(&file, "/x", &["ro"]), bind(dir.path(), "/x/", &["ro"])], &[]).unwrap();
        assert_eq!((twice.len(), twice[0].source.as_path()), (1, dir.path()));
    }

    #[test]
    fn a_shared_directory_is_found_by_what_its_path_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        fs::create_dir_all(data.join("models/a")).unwrap();
        std::os::unix::fs::symlink(&data, &link).unwrap();
        let one = |source: &Path, options: &[&str]| plan(&[bind(source, "/m", options)], &["/nowhere".into(), link.clone()]);
        for (source, path) in [(data.join("models"), "models"), (link.join("models/a"), "models/a"), (data, "")] {
            let volume = one(&source, &["rbind", "rw"]).unwrap().pop().unwrap().volume;
            assert_eq!((kind(&volume), volume.name.as_str(), volume.path.as_str()), (VolumeKind::SHARED, "share1", path));
        }
        // Beside it the usual rules hold.
        assert!(one(dir.path(), &["rbind", "rw"]).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let dir = tempfile::tempdir().unwrap();
        let (file, large) = (dir.path().join("f"), dir.path().join("large"));
        fs::write(&file, "x").unwrap();
        fs::File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (source, options, word) in [
            (dir.path(), &["rbind"][..], "read-only"),
            (file.as_path(), &["rbind", "rw"], "emptyDir"),
            (large.as_path(), &["ro"], "32 MiB"),
            (socket.as_path(), &["ro"], "socket"),
            (Path::new("/nowhere/x"), &["ro"], "No such file"),
        ] {
            let error = one(source, "/data", options).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("/data") && !error.contains('\n'), "{error}");
        }
        assert!(one(&file, "/a/../etc", &["ro"]).is_err());
        let many = dir.path().join("many");
        fs::create_dir(&many).unwrap();
        (0..MAX_ENTRIES).for_each(|n| fs::write(many.join(n.to_string()), "").unwrap());
        assert!(one(&many, "/data", &["ro"]).unwrap_err().to_string().contains("entries"));
    }

    #[test]
    fn volumes_of_the_image_stay_the_images() {
        let id = "0a".repeat(32);
        for path in [
            "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/c1/volumes/5d".to_owned(),
            format!("/var/lib/nerdctl/1935db59/volumes/default/{id}/_data"),
        ] {
            assert_eq!(kind(&one(Path::new(&path), "/var/lib/db", &["rbind", "rw"]).unwrap()), VolumeKind::IMAGE, "{path}");
        }
        assert!(one(Path::new("/var/lib/nerdctl/x/volumes/default/named/_data"), "/d", &["rbind", "rw"]).is_err());
    }
}
