//! An image that another implementation encrypted, pulled as the guest pulls; see `fixtures/README.md`.
#![allow(clippy::unwrap_used)]

use image::{
    encrypt::key_ids,
    layer::unpack_layer,
    layout::Layout,
    ocicrypt::{Kek, LayerKey},
    plan::{LayerPlan, Mixed, plan_layers},
    spool::{SpoolError, spool},
    unpack::Limits,
};
use std::{fs, path::Path};

fn layout() -> Layout {
    Layout::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/skopeo")).unwrap()
}

fn kek() -> Kek {
    let bytes: Vec<u8> = (0..32).collect();
    Kek::from_bytes(&bytes).unwrap()
}

fn plans(layout: &Layout) -> Vec<(LayerPlan, LayerKey)> {
    let image = layout.image(Some("1")).unwrap();
    assert_eq!(key_ids(&image.manifest, &image.config).unwrap(), ["kbs:///fixture/key/1"]);
    let open = |plan: LayerPlan| {
        let envelope = plan.envelope.as_ref().unwrap();
        let key = envelope.open(&envelope.packets()[0], &kek()).unwrap();
        (plan, key)
    };
    plan_layers(&image.manifest, &image.config, Mixed::Refused).unwrap().into_iter().map(open).collect()
}

/// Not as root, the archives' owner cannot be set.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("NOT RUN: takes root");
    }
    root
}

#[tokio::test]
async fn skopeos_image_opens() {
    if !is_root() {
        return;
    }
    let layout = layout();
    let mut contents = Vec::new();
    for ((plan, key), file) in plans(&layout).iter().zip(["etc/secret", "etc/two"]) {
        let blob = tokio::fs::File::open(layout.blob_path(&plan.descriptor.digest)).await.unwrap();
        let spooled = spool(blob, plan, Some(key), tempfile::tempfile().unwrap()).await.unwrap();
        let root = tempfile::tempdir().unwrap();
        unpack_layer(spooled, plan, Some(key), root.path(), &Limits::default()).unwrap();
        contents.push(fs::read_to_string(root.path().join(file)).unwrap());
    }
    assert_eq!(contents, ["golden secret\n", "two\n"]);
}

/// Each layer has its own key, and none opens the other: the registry cannot exchange them.
#[tokio::test]
async fn skopeos_layers_cannot_be_exchanged() {
    let layout = layout();
    let plans = plans(&layout);
    let blob = fs::read(layout.blob_path(&plans[0].0.descriptor.digest)).unwrap();
    let error = spool(blob.as_slice(), &plans[0].0, Some(&plans[1].1), tempfile::tempfile().unwrap()).await.unwrap_err();
    assert!(matches!(error, SpoolError::Hmac(_)), "{error}");
}
