#![allow(clippy::unwrap_used)]

use super::*;
use async_trait::async_trait;
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// A registry whose every answer is given by the test, and counted.
#[derive(Default)]
struct Fake {
    opened: AtomicUsize,
    answers: Mutex<Vec<Blob>>,
}

impl Fake {
    fn with(answers: Vec<Blob>) -> Self {
        Self { opened: AtomicUsize::new(0), answers: Mutex::new(answers) }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl BlobSource for Fake {
    async fn open(&self, _: &str) -> io::Result<Option<Blob>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        Ok(if answers.is_empty() { None } else { Some(answers.remove(0)) })
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn blob(bytes: &'static [u8]) -> Blob {
    (bytes.len() as u64, Box::new(bytes))
}

async fn all(blob: io::Result<Option<Blob>>) -> Vec<u8> {
    let (_, mut reader) = blob.unwrap().unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// Names in the cache's directory. A download ends after its last reader: waits for the files of downloads to go.
async fn settled(dir: &Path) -> Vec<String> {
    loop {
        let names: Vec<String> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        if names.iter().all(|name| is_hex(name)) {
            return names;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[tokio::test]
async fn many_readers_are_one_download() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..300_000u32).map(|at| (at * 7 % 251) as u8).collect();
    let (mut registry, body): (DuplexStream, DuplexStream) = tokio::io::duplex(1000);
    let upstream = Arc::new(Fake::with(vec![(content.len() as u64, Box::new(body))]));
    let digest = digest(&content);
    // Two objects, as in two processes: what they share is the directory.
    let caches = [BlobCache::open(dir.path(), 1 << 20).unwrap(), BlobCache::open(dir.path(), 1 << 20).unwrap()];
    let readers: Vec<_> = (0..50)
        .map(|n: usize| {
            let (cache, upstream, digest) = (caches[n % 2].clone(), upstream.clone(), digest.clone());
            tokio::spawn(async move { all(cache.get(&digest, &*upstream).await).await })
        })
        .collect();
    registry.write_all(&content).await.unwrap();
    drop(registry);
    for reader in readers {
        assert!(reader.await.unwrap() == content);
    }
    assert_eq!(upstream.opened(), 1);
    assert_eq!(settled(dir.path()).await, [digest.strip_prefix("sha256:").unwrap()]);
    assert!(all(caches[0].get(&digest, &Fake::default()).await).await == content, "and it stays");
}

#[tokio::test]
async fn the_first_bytes_do_not_wait_for_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, body) = tokio::io::duplex(1000);
    let cache = BlobCache::open(dir.path(), 1 << 20).unwrap();
    let upstream = Fake::with(vec![(10, Box::new(body))]);
    let (_, mut first) = cache.get(&digest(b"0123456789"), &upstream).await.unwrap().unwrap();
    registry.write_all(b"01234").await.unwrap();
    let (_, mut second) = cache.get(&digest(b"0123456789"), &upstream).await.unwrap().unwrap();
    for reader in [&mut first, &mut second] {
        let mut half = [0; 5];
        reader.read_exact(&mut half).await.unwrap();
        assert_eq!(&half, b"01234");
    }
    // The guest that asked first goes away; the other has it all the same.
    drop(first);
    registry.write_all(b"56789").await.unwrap();
    drop(registry);
    let mut rest = Vec::new();
    second.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"56789");
}

#[tokio::test]
async fn what_is_wrong_short_or_long_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(dir.path(), 1 << 20).unwrap();
    let wanted = digest(b"right");
    let answers = vec![blob(b"wrong"), (5, Box::new(&b"rig"[..]) as Box<_>), (4, Box::new(&b"right"[..]) as Box<_>), blob(b"right")];
    let upstream = Fake::with(answers);
    assert_eq!(all(cache.get(&wanted, &upstream).await).await, b"wrong", "the guest judges by itself");
    assert!(settled(dir.path()).await.is_empty());
    assert_eq!(all(cache.get(&wanted, &upstream).await).await, b"rig");
    assert!(settled(dir.path()).await.is_empty());
    assert_eq!(all(cache.get(&wanted, &upstream).await).await, b"righ");
    assert!(settled(dir.path()).await.is_empty());
    assert_eq!(all(cache.get(&wanted, &upstream).await).await, b"right");
    assert_eq!((settled(dir.path()).await.len(), upstream.opened()), (1, 4));
    assert!(cache.get(&digest(b"unknown"), &upstream).await.unwrap().is_none());
    assert!(settled(dir.path()).await.len() == 1);
    assert!(cache.get("sha256:../../x", &upstream).await.is_err());
}

#[tokio::test]
async fn what_a_killed_process_left_is_removed_and_what_a_live_one_does_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let name = |bytes: &[u8]| digest(bytes).strip_prefix("sha256:").unwrap().to_owned();
    let file = |bytes: &[u8], suffix: &str| dir.path().join(format!("{}{suffix}", name(bytes)));
    for bytes in [b"dead", b"live"] {
        fs::write(file(bytes, ".part"), b"half").unwrap();
        fs::write(file(bytes, ".lock"), b"4\n").unwrap();
    }
    fs::write(file(b"lone", ".part"), b"half").unwrap();
    fs::write(dir.path().join("notes.txt"), b"").unwrap();
    let live = File::open(file(b"live", ".lock")).unwrap();
    live.lock().unwrap();
    let cache = BlobCache::open(dir.path(), 1 << 20).unwrap();
    assert!(!file(b"dead", ".part").exists() && !file(b"dead", ".lock").exists() && !file(b"lone", ".part").exists());
    assert!(file(b"live", ".part").exists() && file(b"live", ".lock").exists() && dir.path().join("notes.txt").exists());

    // It dies before it is done: who reads along sees the end, and the next one begins anew.
    let (size, mut reading) = cache.get(&digest(b"live"), &Fake::default()).await.unwrap().unwrap();
    assert_eq!(size, 4);
    drop(live);
    let mut bytes = Vec::new();
    reading.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"half", "four bytes, which are not those of the digest");
    let upstream = Fake::with(vec![blob(b"live")]);
    assert_eq!(all(cache.get(&digest(b"live"), &upstream).await).await, b"live");
    assert_eq!(upstream.opened(), 1);
}

#[tokio::test]
async fn who_waits_for_one_that_gives_up_tries_by_himself() {
    let dir = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(dir.path(), 1 << 20).unwrap();
    let wanted = digest(b"blob");
    let path = cache.path(wanted.strip_prefix("sha256:").unwrap(), ".lock");
    // Locked and silent: its registry has not answered yet.
    fs::write(&path, b"").unwrap();
    let other = File::open(&path).unwrap();
    other.lock().unwrap();
    let waiting = {
        let (cache, wanted) = (cache.clone(), wanted.clone());
        tokio::spawn(async move { all(cache.get(&wanted, &Fake::with(vec![blob(b"blob")])).await).await })
    };
    tokio::time::sleep(LOOK_AGAIN * 3).await;
    assert!(!waiting.is_finished());
    drop(other);
    assert_eq!(waiting.await.unwrap(), b"blob");
}

#[tokio::test]
async fn the_blob_that_was_wanted_longest_ago_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(dir.path(), 100).unwrap();
    let blobs: [&'static [u8]; 3] = [&[1; 40], &[2; 40], &[3; 40]];
    let age = |bytes: &[u8], seconds| {
        let file = File::open(cache.path(digest(bytes).strip_prefix("sha256:").unwrap(), "")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    for (bytes, seconds) in [(blobs[0], 100), (blobs[1], 200)] {
        all(cache.get(&digest(bytes), &Fake::with(vec![blob(bytes)])).await).await;
        settled(dir.path()).await;
        age(bytes, seconds);
    }
    // Wanted again, so it is the other one's turn.
    all(cache.get(&digest(blobs[1]), &Fake::default()).await).await;
    all(cache.get(&digest(blobs[2]), &Fake::with(vec![blob(blobs[2])])).await).await;
    settled(dir.path()).await;
    assert!(cache.get(&digest(blobs[0]), &Fake::default()).await.unwrap().is_none());
    for kept in &blobs[1..] {
        assert_eq!(all(cache.get(&digest(kept), &Fake::default()).await).await, *kept);
    }
    let large: &'static [u8] = &[4; 101];
    assert!(cache.get(&digest(large), &Fake::with(vec![blob(large)])).await.unwrap().is_none(), "larger than the cache");
    assert_eq!(settled(dir.path()).await.len(), 2);
}
