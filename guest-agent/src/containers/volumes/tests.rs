//! What a host announces, and what a container finds.

use super::*;
use nix::unistd::{getegid, geteuid};
use std::os::unix::fs::PermissionsExt;

fn volume(destination: &str, kind: VolumeKind) -> api::Volume {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = destination.trim_start_matches('/').to_owned();
    api::Volume { destination: destination.into(), kind: kind.into(), name, mode: 0o1777, uid, gid, ..Default::default() }
}

fn open() -> Policy {
    Policy::from_initdata(None).unwrap()
}

fn request(id: &str, volumes: &[api::Volume]) -> api::PrepareVolumesRequest {
    api::PrepareVolumesRequest { container_id: id.into(), volumes: volumes.into(), ..Default::default() }
}

#[test]
fn containers_of_a_pod_share_an_empty_directory() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Volumes::default();
    let shared = [volume("/cache", VolumeKind::EMPTY), volume("/c", VolumeKind::COPY)];
    assert_eq!(volumes.make(&request("a", &shared), &[true, true], dir.path(), &open()).unwrap(), [1]);
    assert!(matches!(volumes.make(&request("a", &shared), &[true, true], dir.path(), &open()), Err(ContainerError::Exists(_))));
    volumes.make(&request("b", &shared[..1]), &[true], dir.path(), &open()).unwrap();
    let path = |id: &str| volumes.of(id).unwrap().bind("/cache").unwrap().unwrap().0;
    assert_eq!(path("a"), path("b"));
    let Bind::Path(place) = path("a") else { panic!("no path") };
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o1777);
    volumes.of("a").unwrap().make_directory("/cache/deep/er").unwrap();
    volumes.forget("a");
    assert!(volumes.of("a").is_none() && place.join("deep/er").is_dir(), "it is the pod's");
}

#[test]
fn what_is_announced_has_to_be_copied() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Volumes::default();
    let list = [volume("/etc/conf", VolumeKind::COPY), volume("/etc/hosts", VolumeKind::COPY), volume("/data", VolumeKind::IMAGE)];
    assert_eq!(volumes.make(&request("c", &list), &[true, false, true], dir.path(), &open()).unwrap(), [0]);
    let prepared = volumes.of("c").unwrap();
    let error = prepared.bind("/etc/conf").unwrap().unwrap_err().to_string();
    assert!(error.contains("/etc/conf") && error.contains("not copied"), "{error}");
    assert_eq!(prepared.bind("/etc/hosts").unwrap().unwrap().0, Bind::Nothing);
    assert_eq!(prepared.bind("/data").unwrap().unwrap().0, Bind::Image);
    assert!(prepared.bind("/other").is_none());
}

#[test]
fn the_policy_decides_and_what_is_dispensable_is_left_out() {
    let policy = Policy::parse("[allow]\ncopy_in = [\"/etc/conf\"]\nmounts = [\"/cache\"]\n").unwrap();
    let asked = |destination: &str, kind| admit(&policy, &volume(destination, kind));
    assert_eq!(asked("/etc/conf", VolumeKind::COPY), Ok(true));
    assert_eq!(asked("/cache", VolumeKind::EMPTY), Ok(true));
    let part = api::Volume { path: "sub".into(), ..volume("/cache", VolumeKind::EMPTY) };
    assert!(admit(&policy, &part).unwrap_err().to_string().contains("whole"));
    assert_eq!(admit(&open(), &part), Ok(true));
    let readonly = api::Volume { readonly: true, ..volume("/cache", VolumeKind::EMPTY) };
    assert!(admit(&policy, &readonly).unwrap_err().to_string().contains("/cache:ro"));
    assert_eq!(asked("/etc/hosts", VolumeKind::COPY), Ok(false));
    assert_eq!(asked("/data", VolumeKind::IMAGE), Ok(true));
    for (destination, kind, key) in [
        ("/bin", VolumeKind::COPY, "allow.copy_in"),
        ("/etc/hosts", VolumeKind::EMPTY, "allow.mounts"),
        ("/x", VolumeKind::EMPTY_MEMORY, "allow.mounts"),
        ("/etc/conf", VolumeKind::EMPTY, "allow.mounts"),
    ] {
        let text = asked(destination, kind).unwrap_err().to_string();
        assert!(text.contains(key) && text.contains(destination), "{text}");
    }
    let text = asked("/dev/xvda", VolumeKind::DISK).unwrap_err().to_string();
    assert!(text.contains("allow.devices") && text.contains("/dev/xvda"), "{text}");
    let text = asked("/data", VolumeKind::DISK).unwrap_err().to_string();
    assert!(text.contains("disk mounted at /data") && text.contains("[[container]]"), "{text}");
    assert_eq!(admit(&open(), &volume("/data", VolumeKind::DISK)), Ok(true));
    assert_eq!(admit(&open(), &volume("/bin", VolumeKind::COPY)), Ok(true));
}

#[test]
fn an_empty_directory_is_a_mount_of_its_container() {
    let text = format!("[[container]]\nname = \"c\"\nimage.digest = \"sha256:{}\"\nmounts = [\"/cache\"]\n", "a".repeat(64));
    let policy = Policy::parse(&text).unwrap();
    let cache = volume("/cache", VolumeKind::EMPTY);
    assert_eq!(admit(&policy, &cache), Ok(true));
    let (dir, volumes) = (tempfile::tempdir().unwrap(), Volumes::default());
    volumes.make(&request("c", &[cache]), &[true], dir.path(), &policy).unwrap();
    let prepared = volumes.of("c").unwrap();
    let binds: Binds = [("/cache".to_owned(), prepared.bind("/cache").unwrap().unwrap())].into();
    let image = policy::Image { reference: "r/x".into(), digests: vec![format!("sha256:{}", "a".repeat(64))] };
    let ask = |binds: &Binds| {
        let wanted = Wanted { image: image.clone(), ..Wanted::default() };
        prepared.decide(binds, wanted, |wanted| policy::Ledger::new(policy.clone()).admit(wanted).map(|place| (wanted.empty.len(), place)))
    };
    assert_eq!(ask(&binds).unwrap(), 1);
    assert!(ask(&Binds::new()).unwrap_err().to_string().contains("without mount at /cache"));
}

/// What a container would find at each place, if the policy lets it be made with these volumes and a right copy.
fn found(policy: &Policy, list: &[api::Volume]) -> Result<String, String> {
    let taken = list.iter().map(|volume| admit(policy, volume)).collect::<Result<Vec<_>, _>>().map_err(|denial| denial.to_string())?;
    let (dir, volumes) = (tempfile::tempdir().unwrap(), Volumes::default());
    // Shared with a container that was there before.
    volumes.make(&request("before", &[volume("/up", VolumeKind::EMPTY)]), &[true], dir.path(), policy).unwrap();
    volumes.make(&request("c", list), &taken, dir.path(), policy).map_err(|e| e.to_string())?;
    let mut ledger = policy::Ledger::new(policy.clone());
    let mut decide = |id: &str, letter: &str, list: &[api::Volume]| {
        let prepared = volumes.of(id).unwrap();
        for volume in &prepared.volumes {
            if let Source::Copy(copied) = &volume.source {
                let file = policy::CopiedEntry::File { path: "key".into(), digest: format!("sha256:{}", "1".repeat(64)) };
                *copied.try_lock().unwrap() = Some(Copied { destination: volume.destination.clone(), entries: vec![file] });
            }
        }
        let binds: Binds =
            list.iter().map(|volume| (volume.destination.clone(), prepared.bind(&volume.destination).unwrap().unwrap())).collect();
        let image = policy::Image { reference: "r/x".into(), digests: vec![format!("sha256:{}", letter.repeat(64))] };
        let wanted = Wanted { image, ..Wanted::default() };
        prepared.decide(&binds, wanted, |wanted| ledger.admit(wanted).map(|place| ((), place))).map_err(|e| e.to_string())?;
        let text: Vec<String> = binds.iter().map(|(place, bind)| format!("{place} {bind:?}")).collect();
        let mut text = text.join("\n").replace(&dir.path().display().to_string(), "");
        text.retain(|c| c != ' ');
        Ok::<_, String>(text.lines().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("\n"))
    };
    decide("before", "b", &[volume("/up", VolumeKind::EMPTY)])?;
    decide("c", "a", list)
}

#[test]
fn every_change_of_a_valid_volume_is_refused_or_without_effect() {
    let text = |name: &str, letter: &str, more: &str| {
        format!("[[container]]\nname = {name:?}\nimage.digest = \"sha256:{}\"\n{more}\n", letter.repeat(64))
    };
    let files =
        format!("files = [\"/conf/key=sha256:{}\"]\nmounts = [\"/conf\", \"/own\", \"/in\"]\nshared = [\"/in=up\"]", "1".repeat(64));
    let policy = text("before", "b", "mounts = [\"/up\"]\nshared = [\"/up=up\"]") + &text("c", "a", &files);
    let policy = Policy::parse(&policy).unwrap();
    let named = |destination: &str, name: &str| api::Volume { name: name.into(), ..volume(destination, VolumeKind::EMPTY) };
    let valid = [volume("/conf", VolumeKind::COPY), named("/own", "own"), named("/in", "up")];
    let wanted = found(&policy, &valid).expect("it is valid");
    let kinds = [VolumeKind::COPY, VolumeKind::EMPTY, VolumeKind::IMAGE, VolumeKind::DISK];
    let (mut refused, mut same) = (0, 0);
    for at in 0..valid.len() {
        let mut changed: Vec<api::Volume> = kinds.iter().map(|kind| api::Volume { kind: (*kind).into(), ..valid[at].clone() }).collect();
        let places = ["/", "/bin", "/conf/key", "/con", "/own/x", "/in2", "/etc/hosts"];
        changed.extend(places.map(|place| api::Volume { destination: place.into(), ..valid[at].clone() }));
        changed.extend(["up", "own", "other"].map(|name| api::Volume { name: name.into(), ..valid[at].clone() }));
        changed.push(api::Volume { readonly: !valid[at].readonly, ..valid[at].clone() });
        changed.push(api::Volume { read_back: true, ..valid[at].clone() });
        for other in changed {
            let mut list = valid.clone();
            list[at] = other.clone();
            match found(&policy, &list) {
                Err(_) => refused += 1,
                Ok(text) if text == wanted => same += 1,
                Ok(text) => panic!("{other:?} gives\n{text}\nand not\n{wanted}"),
            }
        }
        let without: Vec<api::Volume> = valid.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, volume)| volume.clone()).collect();
        assert!(found(&policy, &without).is_err(), "without {:?}", valid[at]);
    }
    assert!(refused > 25 && same > 5, "{refused} refused, {same} without effect");
}

/// Where the owner decides, a host reads back a termination log, if it may be there, and nothing of what else it was let copy in.
#[test]
fn behind_a_closed_door_only_last_words_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["/dev/termination-log", "/etc/hosts", "/srv/state", "/cache"];
    let list = places.map(|place| api::Volume { read_back: true, ..volume(place, VolumeKind::COPY) });
    let given = "[allow]\nmounts = [\"/cache\", \"/srv/state\"]\ncopy_in = [\"/dev/termination-log\", \"/etc/hosts\", \"/srv/state\", \"/cache/x\"]\n";
    let none = Policy::parse("[allow]\nmounts = [\"/cache\", \"/srv/state\", \"/dev/termination-log\"]\n").unwrap();
    // What `allow.mounts` alone names is empty, and takes no copy.
    assert_eq!(list.iter().map(|volume| admit(&none, volume).ok()).collect::<Vec<_>>(), [Some(false), Some(false), None, None]);
    for (id, policy, wanted) in [("closed", Policy::parse(given).unwrap(), [true, false, false, false]), ("open", open(), [true; 4])] {
        let volumes = Volumes::default();
        let taken: Vec<bool> = list.iter().map(|volume| admit(&policy, volume).unwrap()).collect();
        volumes.make(&request(id, &list), &taken, dir.path(), &policy).unwrap();
        let prepared = volumes.of(id).unwrap();
        for (number, is_read) in (0u32..).zip(wanted) {
            fs::write(prepared.place(number as usize), "x".repeat(MAX_READ_BACK + 1)).unwrap();
            let read = volumes.read_back(&api::ReadVolumeRequest { container_id: id.into(), number, ..Default::default() });
            assert_eq!(read.ok().map(|content| content.len()), is_read.then_some(MAX_READ_BACK), "{id} {}", places[number as usize]);
        }
    }
}

#[test]
fn only_what_was_announced_so_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Volumes::default();
    let log = api::Volume { read_back: true, ..volume("/dev/termination-log", VolumeKind::COPY) };
    volumes.make(&request("c", &[log, volume("/secret", VolumeKind::COPY)]), &[true, true], dir.path(), &open()).unwrap();
    let prepared = volumes.of("c").unwrap();
    fs::write(prepared.place(0), "x".repeat(MAX_READ_BACK + 1)).unwrap();
    fs::write(prepared.place(1), "secret").unwrap();
    let read = |number| volumes.read_back(&api::ReadVolumeRequest { container_id: "c".into(), number, ..Default::default() });
    assert_eq!(read(0).unwrap().len(), MAX_READ_BACK);
    assert!(matches!(read(1), Err(ContainerError::NoContainer(_))));
    assert!(matches!(read(2), Err(ContainerError::NoContainer(_))));
    fs::remove_file(prepared.place(0)).unwrap();
    std::os::unix::fs::symlink(prepared.place(1), prepared.place(0)).unwrap();
    assert!(read(0).is_err());
}
