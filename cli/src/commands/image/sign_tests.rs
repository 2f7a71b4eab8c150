//! Signing into a layout, and what `verify` says of it.

use super::*;
use crate::commands::image::{keygen, verify};
use clap::Parser;

#[derive(Parser)]
struct Sign {
    #[command(flatten)]
    args: Args,
}

#[derive(Parser)]
struct Verify {
    #[command(flatten)]
    args: verify::Args,
}

fn layout(directory: &std::path::Path) -> Layout {
    let layout = Layout::create(directory).unwrap();
    let layer = layout.put_document("application/vnd.oci.image.layer.v1.tar", &[0; 1024]).unwrap();
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [layer.digest]}});
    let config = layout.put_document(OCI_CONFIG, config.to_string().as_bytes()).unwrap();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]});
    let descriptor = layout.put_document(OCI_MANIFEST, manifest.to_string().as_bytes()).unwrap();
    layout.tag("1", &descriptor).unwrap();
    layout
}

#[test]
fn what_is_signed_verifies_for_its_name_and_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for prefix in ["a", "b"] {
        #[derive(Parser)]
        struct Keygen {
            #[command(flatten)]
            args: keygen::Args,
        }
        keygen::run(&Keygen::parse_from(["keygen", &path(prefix)]).args).unwrap();
    }
    for (number, format) in ["simple", "bundle", "both"].into_iter().enumerate() {
        let place = format!("oci:{}:1", path(&format!("layout-{number}")));
        layout(&dir.path().join(format!("layout-{number}")));
        let sign = |key: &str| {
            let arguments = ["sign", &place, "--key", &path(key), "--identity", "x.io/app:1", "--format", format];
            run(&Sign::parse_from(arguments).args)
        };
        let verify =
            |key: &str, name: &str| verify::run(&Verify::parse_from(["verify", &place, "--key", &path(key), "--identity", name]).args);
        assert!(verify("a.pub", "x.io/app:1").unwrap_err().to_string().contains("no signature"));
        sign("a.key").unwrap();
        verify("a.pub", "x.io/app:1").unwrap();
        verify("a.pub", "x.io/app:2").unwrap();
        assert!(verify("b.pub", "x.io/app:1").unwrap_err().to_string().contains("not made with a key"), "{format}");
        assert!(verify("a.pub", "x.io/other:1").unwrap_err().to_string().contains("another name"), "{format}");
        // A second signer takes nothing from the first.
        sign("b.key").unwrap();
        verify("a.pub", "x.io/app:1").unwrap();
        verify("b.pub", "x.io/app:1").unwrap();
    }
}

#[test]
fn a_layout_needs_a_name_and_cosigns_key_its_cosign() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path());
    let (place, key) = (format!("oci:{}:1", dir.path().display()), dir.path().join("k.key"));
    std::fs::write(&key, "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n").unwrap();
    let sign = |more: &[&str]| run(&Sign::parse_from([&["sign", place.as_str(), "--key", key.to_str().unwrap()], more].concat()).args);
    assert!(format!("{:#}", sign(&["--identity", "x.io/a:1"]).unwrap_err()).contains("cosign sign --key"));
    std::fs::write(&key, SigningKey::generate().unwrap().to_pem().unwrap().as_bytes()).unwrap();
    assert!(format!("{:#}", sign(&[]).unwrap_err()).contains("--identity"));
}
