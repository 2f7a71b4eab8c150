//! Images that skopeo encrypted open here, and what we encrypt skopeo opens: with the real program (Debian's; `scripts/setup` installs it).
#![allow(clippy::unwrap_used)]

use image::{
    decrypt::decrypt_image,
    encrypt::encrypt_image,
    layout::Layout,
    media_type::OCI_CONFIG,
    ocicrypt::{
        KeyRing, Recipient,
        jwe::{PrivateKey, PublicKey},
    },
};
use serde_json::json;
use std::{fs, path::Path, process::Command};

struct Keys {
    private: String,
    public: String,
}

/// One key pair of each kind, made by OpenSSL.
fn keys(dir: &Path) -> [Keys; 2] {
    let path = |name: &str| dir.join(name).display().to_string();
    let [rsa, ec] = ["rsa", "ec"].map(|kind| Keys { private: path(&format!("{kind}.pem")), public: path(&format!("{kind}.pub")) });
    run("openssl", &["genrsa", "-out", &rsa.private, "2048"]);
    run("openssl", &["rsa", "-in", &rsa.private, "-pubout", "-out", &rsa.public]);
    run("openssl", &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &ec.private]);
    run("openssl", &["pkey", "-in", &ec.private, "-pubout", "-out", &ec.public]);
    [rsa, ec]
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}: run scripts/setup"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `skopeo copy` from one layout to another.
fn skopeo(options: &[&str], from: &Path, to: &Path) {
    let (from, to) = (format!("oci:{}:1", from.display()), format!("oci:{}:1", to.display()));
    run("skopeo", &[&["--insecure-policy", "copy", "--quiet"], options, &[&from, &to]].concat());
}

/// Two layers, packed differently.
fn plain(dir: &Path) -> Layout {
    let layout = Layout::create(dir).unwrap();
    let tars = ["one", "two"].map(|name| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(6);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, b"secret".as_slice()).unwrap();
        tar.into_inner().unwrap()
    });
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, &tars[1]).unwrap();
    let layers = [
        layout.put_document("application/vnd.oci.image.layer.v1.tar", &tars[0]).unwrap(),
        layout.put_document("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish().unwrap()).unwrap(),
    ];
    let diff_ids: Vec<String> = tars.iter().map(|tar| image::digest::Digest::of(tar).to_string()).collect();
    let config = json!({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = layout.put_document(OCI_CONFIG, config.to_string().as_bytes()).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    layout.tag("1", &layout.put_document(media_type, manifest.to_string().as_bytes()).unwrap()).unwrap();
    layout
}

fn ring(keys: &Keys) -> KeyRing {
    let mut ring = KeyRing::default();
    ring.add_private(PrivateKey::from_pem(&fs::read(&keys.private).unwrap()).unwrap());
    ring
}

/// The tar of every layer, however it is packed: skopeo compresses what is not.
fn contents(layout: &Layout) -> Vec<Vec<u8>> {
    let tar = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let mut tar = Vec::new();
        match bytes.starts_with(&[0x1f, 0x8b]) {
            true => std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut tar).map(drop).unwrap(),
            false => tar = bytes,
        }
        tar
    };
    layout.image(None).unwrap().manifest.layers.iter().map(|layer| tar(&layout.blob_path(&layer.digest))).collect()
}

#[test]
fn what_skopeo_encrypts_opens_here() {
    let dir = tempfile::tempdir().unwrap();
    let [rsa, ec] = keys(dir.path());
    let plain = plain(&dir.path().join("plain"));
    let jwe = |keys: &Keys| format!("jwe:{}", keys.public);
    let cases: [(&str, Vec<String>, Vec<&Keys>); 3] =
        [("rsa", vec![jwe(&rsa)], vec![&rsa]), ("ec", vec![jwe(&ec)], vec![&ec]), ("both", vec![jwe(&rsa), jwe(&ec)], vec![&rsa, &ec])];
    for (name, recipients, holders) in cases {
        let sealed = dir.path().join(format!("{name}-sealed"));
        let options: Vec<&str> = recipients.iter().flat_map(|recipient| ["--encryption-key", recipient.as_str()]).collect();
        skopeo(&options, plain.path(), &sealed);
        let sealed = Layout::open(&sealed).unwrap();
        assert_ne!(contents(&sealed), contents(&plain));
        for (at, holder) in holders.into_iter().enumerate() {
            let target = Layout::create(&dir.path().join(format!("{name}-{at}"))).unwrap();
            decrypt_image(&sealed, None, &target, "1", &ring(holder), |_| ()).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(contents(&target), contents(&plain), "{name}");
        }
    }
}

#[test]
fn what_we_encrypt_skopeo_opens() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = keys(dir.path());
    let plain = plain(&dir.path().join("plain"));
    let publics: Vec<PublicKey> = pairs.iter().map(|keys| PublicKey::from_pem(&fs::read(&keys.public).unwrap()).unwrap()).collect();
    let recipients: Vec<Recipient<'_>> = publics.iter().map(Recipient::Jwe).collect();
    for (name, recipients, holders) in
        [("rsa", &recipients[..1], &pairs[..1]), ("ec", &recipients[1..], &pairs[1..]), ("both", &recipients[..], &pairs[..])]
    {
        let sealed = Layout::create(&dir.path().join(format!("{name}-sealed"))).unwrap();
        encrypt_image(&plain, None, &sealed, "1", recipients, |_| ()).unwrap();
        for (at, holder) in holders.iter().enumerate() {
            let target = dir.path().join(format!("{name}-{at}"));
            skopeo(&["--decryption-key", &holder.private], sealed.path(), &target);
            assert_eq!(contents(&Layout::open(&target).unwrap()), contents(&plain), "{name}");
        }
    }
}
