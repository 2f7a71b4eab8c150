//! Every recorded file about attestation is named by a test, or stands here with the reason why none can use it.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The folders about attestation; the others are the image's.
const FOLDERS: [&str; 6] = ["eventlog", "kbs", "measure", "snp", "tdx", "tpm"];

/// Files that no test uses.
const UNUSED: [(&str, &str); 6] = [
    ("eventlog/gotdx_nonce.dat", "zeros that a quote was bound to which is not among the files"),
    (
        "kbs/selfmade_kbs_binding_and_jwe.json",
        "the same bytes as attestation/testdata/kbs_binding_and_jwe.json, which tests use; compared below",
    ),
    ("kbs/trustee_jwk_scenario01-trust.pem", "certifies a key for RS256, and tokens are ES256 alone; the key itself is refused in a test"),
    ("kbs/trustee_jwk_scenario03-trust.pem", "likewise"),
    ("kbs/trustee_jwk_scenario05-trust.pem", "likewise"),
    ("kbs/trustee_jwk_scenario06-trust.pem", "likewise"),
];

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !["target", "build", ".git"].contains(&name) {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with(Path::new(file!()).file_name().unwrap()) {
            found.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_recorded_file_has_its_test_or_its_reason() {
    let Some(folder) = vectors::folder() else { return };
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut text = String::new();
    sources(&top, &mut text);
    let files: BTreeSet<(String, PathBuf)> = FOLDERS
        .iter()
        .flat_map(|name| fs::read_dir(folder.join(name)).unwrap().map(move |entry| (name, entry.unwrap().file_name())))
        .map(|(name, file)| (format!("{name}/{}", file.to_str().unwrap()), file.into()))
        .collect();
    for (path, file) in &files {
        let used = text.contains(&format!("{}\"", file.display()));
        let reason = UNUSED.iter().find(|(unused, _)| unused == path);
        assert!(used || reason.is_some(), "{path}: no test uses it; use it, or say in {} why not", file!());
        assert!(!used || reason.is_none(), "{path}: a test uses it, take it out of the list in {}", file!());
    }
    for (path, reason) in UNUSED {
        assert!(!reason.is_empty() && files.iter().any(|(file, _)| file == path), "{path} is not there any more");
    }
    let ours = fs::read(top.join("attestation/testdata/kbs_binding_and_jwe.json")).unwrap();
    assert!(ours == vectors::read(&folder, "kbs/selfmade_kbs_binding_and_jwe.json"));
}
