//! Functions of arbitrary bytes that must neither panic nor hang, and what must be true of each whatever the bytes are.

use image::{
    config::ImageConfig,
    manifest::{self, Document},
    ocicrypt::{Envelope, KEYS_ANNOTATION, Kek, PUBOPTS_ANNOTATION},
    plan,
    unpack::{Devices, Limits, UnpackError, Unpacker},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Small, so that an input that fills a disk is a fault and not a full disk.
fn limits() -> Limits {
    Limits { max_bytes: 8 << 20, max_entries: 2000, devices: Devices::Skip, ..Limits::default() }
}

/// A layer's tar. Whatever it says, nothing outside its directory changes, and unpacking it again gives the same.
pub fn tar(data: &[u8]) {
    let (first, second) = (unpack(data), unpack(data));
    assert_eq!(first, second, "two unpackings of one archive differ");
}

/// An archive of empty files with the names in `data`, one in a line. In what becomes of it no whiteout is a file.
pub fn whiteouts(data: &[u8]) {
    let mut archive = Vec::new();
    for name in data.split(|byte| *byte == b'\n').take(100) {
        archive.extend(header(name));
    }
    archive.extend([0; 1024]);
    if let Ok(tree) = unpack(&archive) {
        let file = tree.iter().find(|(path, _)| path.components().any(|part| part.as_os_str().as_encoded_bytes().starts_with(b".wh.")));
        assert_eq!(file, None, "a whiteout was unpacked as a file");
    }
}

/// Path to kind, mode and size.
type Listing = BTreeMap<PathBuf, (u32, u64)>;

fn unpack(data: &[u8]) -> Result<Listing, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    fs::create_dir(&root).expect("a directory");
    fs::write(&outside, "as it was").expect("a file");
    let result = Unpacker::new(&root, &limits()).and_then(|unpacker| unpacker.unpack(data));
    assert_eq!(fs::read(&outside).ok().as_deref(), Some(&b"as it was"[..]), "a file outside the root has changed");
    let mut beside: Vec<_> = fs::read_dir(dir.path()).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["outside", "root"], "something was made outside the root");
    let mut tree = Listing::new();
    list(&root, Path::new(""), &mut tree);
    match result {
        Ok(_) => Ok(tree),
        // The directory's name is in no error of an archive.
        Err(error @ (UnpackError::Archive(_) | UnpackError::Header { .. } | UnpackError::Entry { .. })) => Err(error.to_string()),
        Err(UnpackError::System { source, .. }) => Err(source.to_string()),
    }
}

fn list(directory: &Path, prefix: &Path, tree: &mut Listing) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), prefix.join(entry.file_name()));
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            list(&path, &name, tree);
        }
        tree.insert(name, (metadata.mode(), if metadata.is_file() { metadata.len() } else { 0 }));
    }
}

/// A ustar header of an empty file.
fn header(name: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    let length = name.len().min(100);
    block[..length].copy_from_slice(&name[..length]);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(b"00000000000");
    block[136..147].copy_from_slice(b"00000000000");
    block[148..156].copy_from_slice(b"        ");
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A manifest or index. What is taken has the digests that stand in it, and gives a plan or a reason.
pub fn manifest(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match manifest::parse_document(data, None) {
        Ok(Document::Manifest(manifest)) => {
            for descriptor in manifest.layers.iter().chain([&manifest.config]) {
                assert!(text.contains(&descriptor.digest.hex()), "a digest that nobody wrote");
            }
            let config = ImageConfig::parse(br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#);
            if let Ok(config) = config {
                assert!(plan::plan_layers(&manifest, &config, plan::Mixed::Allowed).is_err(), "layers without diff ids were planned");
            }
        }
        Ok(Document::Index(index)) => {
            if let Ok(chosen) = index.select() {
                assert!(text.contains(&chosen.digest.hex()), "a digest that nobody wrote");
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of more than a line"),
    }
}

/// An image config.
pub fn config(data: &[u8]) {
    match ImageConfig::parse(data) {
        Ok(config) => {
            let arguments = config.arguments();
            assert!(arguments.iter().map(String::len).sum::<usize>() <= data.len() * 4, "arguments larger than the config");
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of more than a line"),
    }
}

/// The two annotations of an encrypted layer, apart by a line's end. No packet opens with a key that it was not made for.
pub fn ocicrypt(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (keys, public) = text.split_once('\n').unwrap_or((&text, ""));
    let annotations = BTreeMap::from([(KEYS_ANNOTATION.to_owned(), keys.to_owned()), (PUBOPTS_ANNOTATION.to_owned(), public.to_owned())]);
    match Envelope::parse(&annotations) {
        Ok(envelope) => {
            assert!((1..=16).contains(&envelope.packets().len()), "{} packets", envelope.packets().len());
            let stranger = Kek::from_bytes(&[0x5a; 32]).expect("32 bytes");
            for packet in envelope.packets() {
                assert!(envelope.open(packet, &stranger).is_err(), "a stranger's key opens a layer");
            }
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of more than a line"),
    }
}
