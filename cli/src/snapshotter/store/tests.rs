use super::*;

const CHAIN: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn labelled(target: &str) -> Labels {
    Labels::from([(LABEL_TARGET.to_owned(), target.to_owned())])
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

#[test]
fn a_labelled_prepare_is_a_promise_that_is_kept() {
    let (_dir, store) = store();
    for key in ["ns/1/extract-1 x", "other/2/extract-2 x"] {
        assert_eq!(store.prepare(key, "", labelled(CHAIN), Layer::Promised).unwrap(), Prepared::Present(CHAIN.into()));
    }
    let all = store.list();
    assert_eq!(all.len(), 1, "namespaces share it");
    assert_eq!((all[0].kind, all[0].labels[LABEL_TARGET].as_str()), (Kind::Committed, CHAIN));
    // containerd asks for target and parent: on another parent it is another snapshot.
    store.prepare("ns/3/extract-3 x", "ns/9/base", labelled(CHAIN), Layer::Promised).unwrap();
    assert!(store.list().iter().any(|s| s.name == "ns/3/extract-3 x" && s.parent == "ns/9/base" && s.kind == Kind::Committed));
}

#[test]
fn an_unpacking_client_is_told_what_to_do() {
    let (_dir, store) = store();
    let key = format!("default/7/extract-123456-aBc= {CHAIN}");
    let error = store.prepare(&key, "", Labels::new(), Layer::Promised).unwrap_err();
    assert!(error.to_string().contains("cloister image prepare"), "{error}");
    assert!(store.list().is_empty());
    // A container that is merely called so is none.
    assert!(matches!(store.prepare("default/8/extract-1", "", Labels::new(), Layer::Promised), Ok(Prepared::Mountable(_))));
}

#[test]
fn a_container_gets_an_empty_directory_and_leaves_nothing() {
    let (dir, store) = store();
    let Prepared::Mountable(Mounts::Own(path, true)) = store.prepare("ns/1/c", CHAIN, Labels::new(), Layer::Promised).unwrap() else {
        panic!("not mountable")
    };
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    assert_eq!(store.mounts("ns/1/c").unwrap(), Mounts::Own(path.clone(), true));
    assert!(matches!(store.prepare("ns/1/c", "", Labels::new(), Layer::Promised), Err(StoreError::AlreadyExists(_))));
    fs::write(path.join("file"), b"x").unwrap();
    store.remove("ns/1/c").unwrap();
    assert!(matches!(store.remove("ns/1/c"), Err(StoreError::NotFound(_))));
    for directory in ["records", "snapshots"] {
        assert_eq!(fs::read_dir(dir.path().join(directory)).unwrap().count(), 0, "{directory}");
    }
}

#[test]
fn views_are_read_only_and_committed_ones_are_not_mounted() {
    let (_dir, store) = store();
    store.view("ns/1/v", "", Labels::new()).unwrap();
    assert!(matches!(store.mounts("ns/1/v").unwrap(), Mounts::Own(_, false)));
    store.prepare("ns/2/extract-1 x", "", labelled(CHAIN), Layer::Promised).unwrap();
    assert!(matches!(store.mounts(CHAIN), Err(StoreError::Kind { .. })));
    assert!(matches!(store.commit("x", "ns/1/v", "", Labels::new()), Err(StoreError::Kind { .. })));
    assert!(matches!(store.mounts("nobody"), Err(StoreError::NotFound(_))));
}

#[test]
fn commit_moves_and_drops_what_was_written() {
    let (_dir, store) = store();
    let Prepared::Mountable(Mounts::Own(path, true)) = store.prepare("ns/1/a", "base", Labels::new(), Layer::Promised).unwrap() else {
        panic!("not mountable")
    };
    fs::write(path.join("file"), b"x").unwrap();
    store.commit("ns/2/b", "ns/1/a", "", Labels::new()).unwrap();
    let all = store.list();
    assert_eq!((all.len(), all[0].name.as_str(), all[0].parent.as_str()), (1, "ns/2/b", "base"));
    assert!(!path.exists());
}

#[test]
fn a_client_that_knows_no_promises_may_unpack_what_is_then_dropped() {
    let (dir, store) = store();
    let key = format!("default/7/extract-123456-aBc= {CHAIN}");
    let Prepared::Mountable(Mounts::Own(path, true)) = store.prepare(&key, "", Labels::new(), Layer::Dropped).unwrap() else {
        panic!("not mountable")
    };
    fs::write(path.join("file"), b"of a layer").unwrap();
    store.commit(&format!("default/8/{CHAIN}"), &key, "", Labels::new()).unwrap();
    assert!(!path.exists() && fs::read_dir(dir.path().join("snapshots")).unwrap().count() == 0);
    let container = store.prepare("default/9/c", &format!("default/8/{CHAIN}"), Labels::new(), Layer::Promised).unwrap();
    assert!(matches!(container, Prepared::Mountable(Mounts::Own(path, true)) if fs::read_dir(&path).unwrap().count() == 0));
    let promised = store.prepare("other/2/extract-2 x", "", labelled(CHAIN), Layer::Dropped).unwrap();
    assert_eq!(promised, Prepared::Present(CHAIN.into()));
}

#[test]
fn layers_that_are_unpacked_are_stacked() {
    let (dir, store) = store();
    let other = CHAIN.replace('a', "b");
    let mut parent = String::new();
    for (number, chain) in [CHAIN, &other].into_iter().enumerate() {
        let key = format!("ns/{number}/extract-1 {chain}");
        let Prepared::Mountable(mounts) = store.prepare(&key, &parent, labelled(chain), Layer::Kept).unwrap() else { panic!("present") };
        match mounts {
            Mounts::Own(path, true) if number == 0 => fs::write(path.join("below"), b"1").unwrap(),
            Mounts::Overlay { upper: Some((upper, _)), lower } if number == 1 => {
                assert_eq!(fs::read(lower[0].join("below")).unwrap(), b"1");
                fs::write(upper.join("above"), b"2").unwrap();
            }
            other => panic!("{other:?}"),
        }
        let name = format!("ns/{}/{chain}", number + 10);
        store.commit(&name, &key, "", Labels::new()).unwrap();
        parent = name;
    }
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    let Prepared::Mountable(Mounts::Overlay { lower, upper }) = store.prepare("ns/3/c", &parent, Labels::new(), Layer::Promised).unwrap()
    else {
        panic!("no overlay")
    };
    assert!(upper.is_some() && lower.len() == 2 && lower[0].join("above").is_file() && lower[1].join("below").is_file());
    assert!(matches!(store.view("ns/4/v", &parent, Labels::new()).unwrap(), Mounts::Overlay { upper: None, .. }));
    // What is promised beside it has nothing to show.
    store.prepare("ns/5/extract-1 x", "", labelled(&CHAIN.replace('a', "c")), Layer::Promised).unwrap();
    let promised = store.prepare("ns/6/d", &CHAIN.replace('a', "c"), Labels::new(), Layer::Promised).unwrap();
    assert!(matches!(promised, Prepared::Mountable(Mounts::Own(_, true))));
}

#[test]
fn half_a_root_file_system_is_not_unpacked() {
    let (_dir, store) = store();
    let (other, third) = (CHAIN.replace('a', "b"), CHAIN.replace('a', "c"));
    store.prepare("ns/1/extract-1 x", "", labelled(CHAIN), Layer::Promised).unwrap();
    let on_promised = store.prepare("ns/2/extract-2 x", CHAIN, labelled(&other), Layer::Kept).unwrap();
    assert_eq!(on_promised, Prepared::Present(other), "another runtime would see the upper layer without the lower");
    // Who knows no promises may unpack it, and nothing stays.
    let key = format!("ns/3/extract-3 {third}");
    let Prepared::Mountable(Mounts::Own(path, true)) = store.prepare(&key, CHAIN, Labels::new(), Layer::Kept).unwrap() else {
        panic!("not mountable")
    };
    store.commit(&format!("ns/4/{third}"), &key, "", Labels::new()).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_parent_outlives_its_children() {
    let (_dir, store) = store();
    store.stat(CHAIN).unwrap();
    store.prepare("ns/1/c", CHAIN, Labels::new(), Layer::Promised).unwrap();
    assert!(matches!(store.remove(CHAIN), Err(StoreError::Children(_))));
    store.remove("ns/1/c").unwrap();
    store.remove(CHAIN).unwrap();
}

#[test]
fn a_chain_id_is_always_there_and_nothing_else_is() {
    let (_dir, store) = store();
    for name in [CHAIN.to_owned(), format!("default/12/{CHAIN}")] {
        assert_eq!(store.stat(&name).unwrap().kind, Kind::Committed);
    }
    for name in ["", "x", "default/1/x", "sha256:short", &CHAIN.to_uppercase()] {
        assert!(matches!(store.stat(name), Err(StoreError::NotFound(_))), "{name}");
    }
}

#[test]
fn a_restart_finds_everything_and_clears_the_rest() {
    let (dir, store) = store();
    store.prepare("ns/1/c", CHAIN, Labels::new(), Layer::Promised).unwrap();
    store.stat(CHAIN).unwrap();
    store.update(CHAIN, Labels::from([("a".into(), "b".into())]), &["labels.a".into()]).unwrap();
    let before = store.list();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Locked { .. })));
    drop(store);
    fs::create_dir_all(dir.path().join("snapshots/99/fs")).unwrap();
    fs::write(dir.path().join("records/98.json"), b"{torn").unwrap();
    fs::write(dir.path().join("records/97.partial"), b"").unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.list(), before);
    assert!(matches!(store.mounts("ns/1/c").unwrap(), Mounts::Own(path, true) if path.is_dir()));
    assert_eq!(fs::read_dir(dir.path().join("records")).unwrap().count(), 2);
    assert!(!dir.path().join("snapshots/99").exists());
    // A new id never meets an old directory.
    assert!(matches!(store.prepare("ns/2/d", "", Labels::new(), Layer::Promised), Ok(Prepared::Mountable(_))));
}

#[test]
fn only_labels_change() {
    let (_dir, store) = store();
    store.stat(CHAIN).unwrap();
    let labels = Labels::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    assert_eq!(store.update(CHAIN, labels.clone(), &[]).unwrap().labels, labels);
    let gone = store.update(CHAIN, Labels::new(), &["labels.a".into()]).unwrap();
    assert_eq!(gone.labels, Labels::from([("b".to_owned(), "2".to_owned())]));
    assert!(matches!(store.update(CHAIN, Labels::new(), &["parent".into()]), Err(StoreError::Field(_))));
    assert!(matches!(store.update("x", Labels::new(), &[]), Err(StoreError::NotFound(_))));
}

#[test]
fn names_and_labels_have_an_end() {
    let (_dir, store) = store();
    let long = "n".repeat(MAX_NAME + 1);
    let heavy = Labels::from([("k".to_owned(), "v".repeat(MAX_LABELS))]);
    for (name, parent, labels) in [("", "", Labels::new()), (&long, "", Labels::new()), ("n", &long, Labels::new()), ("n", "", heavy)] {
        assert!(matches!(store.prepare(name, parent, labels, Layer::Promised), Err(StoreError::Bound)));
    }
}
