//! What a hostile host copies, and what becomes of it.

use super::*;
use crate::{Image, Ledger, Overrides, Wanted};

fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

fn file(path: &str, letter: char) -> CopiedEntry {
    CopiedEntry::File { path: path.into(), digest: digest(letter) }
}

fn link(path: &str, target: &str) -> CopiedEntry {
    CopiedEntry::Link { path: path.into(), target: target.into() }
}

fn directory(path: &str) -> CopiedEntry {
    CopiedEntry::Directory(path.into())
}

fn copied(destination: &str, entries: &[CopiedEntry]) -> Copied {
    Copied { destination: destination.into(), entries: entries.into() }
}

/// A ConfigMap as kubelet writes it.
fn config_map(keys: &[(&str, char)]) -> Vec<CopiedEntry> {
    let mut entries = vec![directory(""), directory("..1"), link("..data", "..1")];
    for (key, letter) in keys {
        entries.extend([file(&format!("..1/{key}"), *letter), link(key, &format!("..data/{key}"))]);
    }
    entries
}

fn policy(more: &str) -> Policy {
    Policy::parse(&format!("[[container]]\nname = \"c\"\nimage.digest = {:?}\n{more}\n", digest('a'))).unwrap()
}

fn bound() -> Policy {
    let key = |name: &str, letter| format!("/conf/{name}={}", digest(letter));
    policy(&format!("mounts = [\"/conf\"]\nfiles = [{:?}, {:?}, \"/tls\"]", key("x", '1'), key("y", '2')))
}

/// A container that wants these copies and other mounts.
fn admit(policy: &Policy, copies: &[Copied], mounts: &[&str]) -> Result<(), String> {
    let mounts = mounts.iter().map(|mount| (*mount).to_owned()).collect();
    let image = Image { reference: "r/x".into(), digests: vec![digest('a')] };
    let overrides = Overrides { mounts, ..Overrides::default() };
    let wanted = Wanted { image, overrides, copied: copies.into(), ..Wanted::default() };
    Ledger::new(policy.clone()).admit(&wanted).map(drop).map_err(|denial| denial.to_string())
}

#[test]
fn what_is_bound_is_there_with_its_content_and_nothing_beside_it() {
    let policy = bound();
    let good = config_map(&[("x", '1'), ("y", '2')]);
    assert_eq!(admit(&policy, &[copied("/conf", &good)], &[]), Ok(()));
    let plain = [directory(""), file("x", '1'), file("y", '2')];
    assert_eq!(admit(&policy, &[copied("/conf", &plain)], &[]), Ok(()), "not only as kubelet writes it");
    let with = |more: &[CopiedEntry]| [&good, more].concat();
    for (what, entries, word) in [
        ("another content", config_map(&[("x", '2'), ("y", '2')]), "/conf/x"),
        ("the files exchanged", config_map(&[("x", '2'), ("y", '1')]), "/conf/x"),
        ("one is missing", config_map(&[("x", '1')]), "without file /conf/y"),
        ("none", vec![directory("")], "without file /conf/x"),
        ("one more", with(&[file("..1/z", '1')]), "/conf/z"),
        ("one more in another directory", with(&[directory("..2"), file("..2/z", '1')]), "/conf/z"),
        ("an old content in another directory", with(&[directory("..2"), file("..2/x", '3')]), "/conf/x"),
        ("a hidden name", with(&[file("..x", '1')]), "/conf/..x"),
        ("a directory", with(&[directory("d")]), "directory /conf/d"),
        ("a directory in the directory", with(&[directory("..1/d")]), "directory /conf/d"),
        ("a link to another key", with(&[link("z", "..data/x")]), "link /conf/z"),
        ("a link out", with(&[link("z", "/etc/shadow")]), "link /conf/z"),
        ("a link up", with(&[link("..z", "../tls")]), "link /conf/..z"),
        ("a link to above", with(&[link("..z", "..")]), "link /conf/..z"),
        ("a link deeper", with(&[link("..1/z", "..data/z")]), "link /conf/..1/z"),
    ] {
        let denial = admit(&policy, &[copied("/conf", &entries)], &[]).unwrap_err();
        assert!(denial.contains(word) && !denial.contains('\n'), "{what}: {denial}");
    }
}

#[test]
fn two_right_files_do_not_change_places_by_their_links() {
    let mut entries = config_map(&[("x", '1'), ("y", '2')]);
    for entry in &mut entries {
        match entry {
            CopiedEntry::Link { path, target } if path == "x" => *target = "..data/y".into(),
            CopiedEntry::Link { path, target } if path == "y" => *target = "..data/x".into(),
            _ => {}
        }
    }
    assert!(admit(&bound(), &[copied("/conf", &entries)], &[]).unwrap_err().contains("link /conf/x to ..data/y"));
    // One that nobody sees is not there.
    let unseen = [directory(""), directory("..1"), file("..1/x", '1'), file("..1/y", '2')];
    assert!(admit(&bound(), &[copied("/conf", &unseen)], &[]).unwrap_err().contains("without file /conf/x"));
    let elsewhere = [&unseen[..], &[link("..data", "..2"), link("x", "..data/x"), link("y", "..data/y")]].concat();
    assert!(admit(&bound(), &[copied("/conf", &elsewhere)], &[]).unwrap_err().contains("without file /conf/x"));
}

#[test]
fn anything_is_taken_at_and_below_a_path_and_nowhere_else() {
    let policy = policy("files = [\"/etc/tls/\"]");
    for (destination, entries) in [
        ("/etc/tls", vec![directory(""), file("key", '7'), directory("d"), link("l", "/anywhere")]),
        ("/etc/tls/one", vec![file("", '7')]),
        ("/etc/tls", config_map(&[("key", '7')])),
    ] {
        assert_eq!(admit(&policy, &[copied(destination, &entries)], &[]), Ok(()), "{destination}");
    }
    assert_eq!(admit(&policy, &[], &[]), Ok(()), "it may be there");
    for destination in ["/etc", "/etc/tlsx", "/", "/bin", "/etc/tls2/x"] {
        let denial = admit(&policy, &[copied(destination, &[directory("")])], &[]).unwrap_err();
        assert!(denial.contains("files at"), "{destination}: {denial}");
    }
}

#[test]
fn the_place_of_a_mount_is_the_owners_choice_too() {
    // A file of its own hides nothing else; its directory would.
    let one = policy(&format!("files = [\"/etc/app.toml={}\"]", digest('1')));
    assert_eq!(admit(&one, &[copied("/etc/app.toml", &[file("", '1')])], &[]), Ok(()));
    let hiding = copied("/etc", &[directory(""), file("app.toml", '1')]);
    assert!(admit(&one, &[hiding], &[]).unwrap_err().contains("files at /etc"));
    // Something empty in its place, or over it.
    let good = copied("/conf", &config_map(&[("x", '1'), ("y", '2')]));
    assert!(admit(&bound(), &[], &["/conf"]).unwrap_err().contains("without file"));
    assert!(admit(&bound(), slice::from_ref(&good), &["/conf"]).unwrap_err().contains("twice"));
    let over = policy(&format!("mounts = [\"/conf\", \"/conf/d\"]\nfiles = [\"/conf/d/x={}\"]", digest('1')));
    let below = copied("/conf", &[directory(""), directory("d"), file("d/x", '1')]);
    assert_eq!(admit(&over, &[below.clone(), copied("/conf/d", &[file("x", '1')])], &[]), Ok(()));
    assert!(admit(&over, &[below], &["/conf/d"]).unwrap_err().contains("without file /conf/d/x"));
    assert_eq!(admit(&bound(), &[good], &[]), Ok(()), "and mounts are met by it");
    assert!(admit(&policy("mounts = [\"/cache\"]"), &[], &[]).unwrap_err().contains("without mount at /cache"));
    let unwritable = copied("/cache", &[directory("")]);
    assert!(admit(&policy("mounts = [\"/cache\"]"), &[unwritable], &[]).unwrap_err().contains("files at /cache"));
}

#[test]
fn without_a_list_of_containers_allow_decides() {
    let allow = Policy::parse(&format!("[allow]\ncopy_in = [\"/tls\", \"/app.toml={}\"]\nmounts = [\"/cache\"]\n", digest('1'))).unwrap();
    let ask = |destination: &str, entry: CopiedEntry| admit(&allow, &[copied(destination, &[entry])], &[]);
    assert_eq!(ask("/app.toml", file("", '1')), Ok(()));
    assert_eq!(ask("/tls", file("", '9')), Ok(()));
    assert!(ask("/app.toml", file("", '2')).unwrap_err().contains("add \"/app.toml=sha256:2222"));
    assert!(ask("/cache", file("", '1')).unwrap_err().contains("allow.copy_in"), "an empty directory is not a full one");
    assert!(ask("/bin", directory("")).unwrap_err().contains("allow.copy_in"));
    assert!(allow.copies_to("/tls/x") && !allow.copies_to("/bin"));
    let open = Policy::from_initdata(None).unwrap();
    assert!(open.copies_to("/bin") && open.copied(&copied("/bin", &[file("sh", '9')]), None).is_ok());
}

#[test]
fn a_refresh_keeps_what_must_be_there() {
    let policy = bound();
    let version = |keys: &[(&str, char)]| copied("/conf", &config_map(keys));
    let (good, short, other) = (version(&[("x", '1'), ("y", '2')]), version(&[("x", '1')]), version(&[("x", '1'), ("y", '3')]));
    assert_eq!(policy.refreshed(&good, &good, None), Ok(()));
    assert!(policy.refreshed(&good, &short, None).unwrap_err().to_string().contains("without /conf/y"));
    assert!(policy.refreshed(&good, &other, None).unwrap_err().to_string().contains("/conf/y with content"));
    let tls = |letter| copied("/tls", &config_map(&[("key", letter)]));
    assert_eq!(policy.refreshed(&tls('1'), &copied("/tls", &[directory("")]), None), Ok(()), "anything, and nothing");
}

#[test]
fn what_is_one_containers_is_not_anothers() {
    let entry = |name: &str, letter| {
        format!("[[container]]\nname = {name:?}\nimage.digest = {:?}\nfiles = [\"/f={}\"]\n", digest(letter), digest(letter))
    };
    let policy = Policy::parse(&(entry("one", 'a') + &entry("two", 'b'))).unwrap();
    let f = copied("/f", &[file("", 'b')]);
    assert_eq!(policy.copied(&f, None), Ok(()), "for one of them");
    assert!(admit(&policy, slice::from_ref(&f), &[]).unwrap_err().contains("container \"one\""));
    let mut ledger = Ledger::new(policy.clone());
    let image = Image { reference: "r/x".into(), digests: vec![digest('a')] };
    let wanted = Wanted { image, copied: vec![copied("/f", &[file("", 'a')])], ..Wanted::default() };
    let place = ledger.admit(&wanted).unwrap();
    assert!(policy.copied(&f, place).unwrap_err().to_string().contains("container \"one\""));
}

#[test]
fn entries_that_nothing_could_meet_are_refused() {
    for entry in ["etc/x", "/etc/../x", "/", "", "/x=sha256:12", "/x=sha256:", "/a//b", "/a/./b", &format!("/x={}", digest('A'))] {
        assert!(check_entry("files", entry).is_err(), "{entry}");
        let text = format!("[[container]]\nname = \"c\"\nimage.digest = {:?}\nfiles = [{entry:?}]\n", digest('a'));
        assert!(Policy::parse(&text).unwrap_err().to_string().contains("files"), "{entry}");
        assert!(Policy::parse(&format!("[allow]\ncopy_in = [{entry:?}]\n")).unwrap_err().to_string().contains("copy_in"), "{entry}");
    }
    for entry in ["/etc/tls/", "/x", "/a=b"] {
        assert!(check_entry("files", entry).is_ok(), "{entry}");
    }
}

/// Every change of one part of a right copy: another path, content, target or kind, one part less, one more, another place.
#[test]
fn every_change_of_a_copy_is_refused_or_without_effect() {
    let policy = bound();
    let good = config_map(&[("x", '1'), ("y", '2')]);
    let paths = ["", "x", "y", "z", "..1", "..1/x", "..1/y", "..1/z", "..2", "..2/x", "..data", "..data/x", "d/x", "..x"];
    let targets = ["..1", "..2", "..data", "..data/x", "..data/y", "..data/z", "x", "/etc/shadow", "..", "../tls", ""];
    let mut others: Vec<CopiedEntry> = paths.iter().map(|path| directory(path)).collect();
    others.extend(paths.iter().flat_map(|path| ['1', '2', '3'].map(|letter| file(path, letter))));
    others.extend(paths.iter().flat_map(|path| targets.map(|target| link(path, target))));
    let mut changed = Vec::new();
    for at in 0..=good.len() {
        let (before, after) = good.split_at(at);
        changed.push([before, &after[after.len().min(1)..]].concat());
        for other in &others {
            changed.push([before, slice::from_ref(other), after].concat());
            changed.push([before, slice::from_ref(other), &after[after.len().min(1)..]].concat());
        }
    }
    let valid = copied("/conf", &good);
    let (mut refused, mut same) = (0, 0);
    for entries in changed {
        // What the agent makes has each name once.
        let name = |entry: &CopiedEntry| match entry {
            CopiedEntry::Directory(path) | CopiedEntry::File { path, .. } | CopiedEntry::Link { path, .. } => path.clone(),
        };
        let names: BTreeSet<String> = entries.iter().map(name).collect();
        if names.len() < entries.len() {
            continue;
        }
        let other = copied("/conf", &entries);
        match admit(&policy, slice::from_ref(&other), &[]) {
            Err(_) => refused += 1,
            Ok(()) if other.visible() == valid.visible() => same += 1,
            Ok(()) => panic!("a reader sees something else: {other:?}"),
        }
    }
    assert!(refused > 1000 && same > 10, "{refused} refused, {same} without effect");
    for destination in ["/", "/con", "/conf/x", "/confx", "/etc", "/bin/sh"] {
        assert!(admit(&policy, &[copied(destination, &good)], &[]).is_err(), "{destination}");
    }
}
