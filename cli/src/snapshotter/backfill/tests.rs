use super::*;
use crate::snapshotter::{
    mounts::Mounts,
    store::{LABEL_TARGET, Labels, Layer, Prepared},
};
use async_trait::async_trait;
use image::{digest::Digest, manifest::Descriptor, media_type::Compression};
use runtime::courier::Blob;
use std::{fs, io, os::unix::fs::PermissionsExt, sync::atomic::AtomicUsize, sync::atomic::Ordering};

/// Blobs by digest, and how many were asked for.
#[derive(Default)]
struct Blobs(HashMap<String, Vec<u8>>, AtomicUsize);

#[async_trait]
impl BlobSource for Blobs {
    async fn open(&self, digest: &str) -> io::Result<Option<Blob>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(self.0.get(digest).map(|bytes| (bytes.len() as u64, Box::new(io::Cursor::new(bytes.clone())) as Box<_>)))
    }
}

fn tar(entries: &[(&str, u32, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(content.len() as u64);
        let kind = if path.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular };
        header.set_entry_type(kind);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn plan(blob: &[u8]) -> LayerPlan {
    let descriptor = Descriptor::of("application/vnd.oci.image.layer.v1.tar", blob);
    LayerPlan { descriptor, compression: Compression::None, envelope: None, diff_id: Digest::of(blob) }
}

struct Bed {
    _dir: tempfile::TempDir,
    root: PathBuf,
    store: Arc<Store>,
    backfill: Arc<Backfill>,
    image: Plain,
    blobs: Blobs,
}

/// Two layers that were promised; the upper describes nothing of the directory that the lower has.
fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    let store = Arc::new(Store::open(&root).unwrap());
    let layers = [tar(&[("etc/", 0o710, ""), ("etc/below", 0o644, "1")]), tar(&[("etc/above", 0o600, "2"), ("etc/.wh.below", 0o644, "")])];
    promise(&store);
    let image = Plain { name: "x.io/plain@sha256:00".into(), layers: layers.iter().map(|blob| plan(blob)).collect(), sources: Vec::new() };
    let blobs = Blobs(layers.into_iter().map(|blob| (Digest::of(&blob).to_string(), blob)).collect(), AtomicUsize::new(0));
    let images = Arc::new(Images::new(&dir.path().join("nobody.sock")));
    let backfill = Backfill::new(store.clone(), images, RegistryArgs::default());
    Bed { _dir: dir, root, store, backfill, image, blobs }
}

fn chain_id(number: u8) -> String {
    format!("sha256:{}", hex::encode([number; 32]))
}

fn promise(store: &Store) {
    for (number, parent) in [(1, String::new()), (2, chain_id(1))] {
        let labels = Labels::from([(LABEL_TARGET.to_owned(), chain_id(number))]);
        store.prepare(&format!("ns/{number}/extract-1 x"), &parent, labels, Layer::Promised).unwrap();
    }
}

impl Bed {
    async fn fill(&self) -> Result<()> {
        let images = [self.image.clone()];
        self.backfill.fill(&chain_id(2), &images, &self.blobs, &RegistryArgs::default().client().unwrap()).await
    }

    fn container(&self) -> Mounts {
        let Prepared::Mountable(mounts) = self.store.prepare("ns/9/c", &chain_id(2), Labels::new(), Layer::Promised).unwrap() else {
            panic!("not mountable")
        };
        mounts
    }

    fn directories(&self) -> usize {
        fs::read_dir(self.root.join("snapshots")).unwrap().count()
    }
}

#[tokio::test]
async fn what_was_promised_is_unpacked_once() {
    let bed = bed();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT RUN: takes root");
        return;
    }
    assert!(!bed.store.is_whole(&chain_id(2)));
    let (first, second) = tokio::join!(bed.fill(), bed.fill());
    first.and(second).unwrap();
    assert_eq!(bed.blobs.1.load(Ordering::Relaxed), 2, "each layer once");
    let Mounts::Overlay { lower, upper: Some(_) } = bed.container() else { panic!("no overlay") };
    assert_eq!(lower.len(), 2);
    assert_eq!(
        (fs::read_to_string(lower[0].join("etc/above")).unwrap(), fs::read_to_string(lower[1].join("etc/below")).unwrap()),
        ("2".into(), "1".into())
    );
    assert!(!lower[0].join("etc/below").is_file(), "a whiteout");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&lower[0].join("etc")), 0o710, "as the layer below has it");
    // It is a layer like any other: after a restart, and when it goes.
    bed.store.remove("ns/9/c").unwrap();
    bed.store.remove(&chain_id(2)).unwrap();
    assert!(bed.store.is_whole(&chain_id(1)));
    bed.store.remove(&chain_id(1)).unwrap();
    assert_eq!(bed.directories(), 0);
}

#[tokio::test]
async fn what_cannot_be_had_is_said_and_leaves_nothing() {
    let mut bed = bed();
    let upper = bed.image.layers[1].descriptor.digest;
    // Damaged: of the right length, but not what was asked for.
    let damaged = vec![0; bed.blobs.0[&upper.to_string()].len()];
    let honest = bed.blobs.0.insert(upper.to_string(), damaged).unwrap();
    let error = format!("{:#}", bed.fill().await.unwrap_err());
    for word in [
        "x.io/plain@sha256:00",
        &format!("layer {upper}"),
        "digest mismatch",
        "not pulled from a registry",
        "--authfile",
        "remove the encrypted image",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(!error.contains('\n'), "{error}");
    assert!(bed.store.is_whole(&chain_id(1)) && !bed.store.is_whole(&chain_id(2)));
    assert_eq!(bed.directories(), 1, "of the lower layer");

    // An archive that is none.
    let junk = vec![7; 1024];
    bed.image.layers[1] = plan(&junk);
    bed.blobs.0.insert(Digest::of(&junk).to_string(), junk);
    bed.fill().await.unwrap_err();
    assert_eq!(bed.directories(), 1, "of the lower layer");
    bed.image.layers[1] = plan(&honest);
    bed.blobs.0.insert(Digest::of(&honest).to_string(), honest);
    if nix::unistd::geteuid().is_root() {
        bed.fill().await.unwrap();
    }
}

#[tokio::test]
async fn a_crash_between_leaves_a_promise() {
    let Bed { _dir, root, store, backfill, image, blobs } = bed();
    let link = store.chain(&chain_id(2)).unwrap().remove(0);
    store.begin(&link).unwrap();
    fs::write(link.directory.join("half"), "of a layer").unwrap();
    let container = store.prepare("ns/9/c", &chain_id(2), Labels::new(), Layer::Promised).unwrap();
    assert!(matches!(container, Prepared::Mountable(Mounts::Own(_, true))), "half a layer is mounted");
    store.remove("ns/9/c").unwrap();
    drop((store, backfill));
    // Killed, and back.
    let store = Arc::new(Store::open(&root).unwrap());
    assert_eq!(fs::read_dir(root.join("snapshots")).unwrap().count(), 0, "half a layer is left");
    let backfill = Backfill::new(store.clone(), Arc::new(Images::new(&root.join("nobody.sock"))), RegistryArgs::default());
    let image = Plain { layers: image.layers[..1].to_vec(), ..image };
    backfill.fill(&chain_id(1), &[image], &blobs, &RegistryArgs::default().client().unwrap()).await.unwrap();
    let link = store.chain(&chain_id(1)).unwrap().remove(0);
    assert!(link.unpacked && !link.directory.join("half").exists() && link.directory.join("etc/below").is_file());
}

#[tokio::test]
async fn records_that_are_lost_are_not_guessed() {
    let bed = bed();
    for name in [chain_id(2), chain_id(1)] {
        bed.store.remove(&name).unwrap();
    }
    // Made good by what containerd asks, but on no parent.
    bed.store.stat(&chain_id(2)).unwrap();
    let error = bed.fill().await.unwrap_err().to_string();
    assert!(error.contains("x.io/plain@sha256:00") && error.contains("pull it again"), "{error}");
}

#[tokio::test]
async fn an_image_that_nobody_can_tell_of_waits() {
    let bed = bed();
    let error = bed.backfill.complete("ns/9/c", &chain_id(2)).await.unwrap_err();
    assert!(error.contains("try again") && !error.contains('\n'), "{error}");
    bed.backfill.complete("ns/9/c", "").await.unwrap();
}
