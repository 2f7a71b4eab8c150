//! How fast a layer becomes files, against what a host without Cloister does with the same image: `skopeo copy` with decryption, then
//! `umoci unpack`. Both start from a layout on disk, so that no network is measured; rounds are interleaved, since the machine is never quiet.
//!
//! `cargo bench -p image` as root; skopeo, umoci, openssl and GNU tar are called. The image is made of this machine's `/usr`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use image::{
    digest::Digest,
    encrypt::encrypt_image,
    layout::Layout,
    local::unpack_image,
    manifest::Descriptor,
    ocicrypt::{Kek, Recipient},
    unpack::Limits,
};
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Bytes of the tars together.
const IMAGE: u64 = 300 << 20;
const LAYERS: u64 = 5;
const ROUNDS: usize = 3;
const KEK: [u8; 32] = [7; 32];
/// The environment variable by which the benchmark knows itself as the process that is measured.
const CHILD: &str = "CLOISTER_BENCH_UNPACK";

fn main() {
    if let Some(root) = std::env::var_os(CHILD) {
        return unpack(Path::new(&root));
    }
    // Not below /tmp, which may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = dir.path();
    println!("making an image of {} MiB in {LAYERS} layers", IMAGE >> 20);
    let plain = Layout::create(&root.join("plain")).unwrap();
    make_image(&plain, root);
    let sealed = Layout::create(&root.join("sealed")).unwrap();
    encrypt_image(&plain, Some("1"), &sealed, "1", &[Recipient::Broker("kbs:///bench/key/1", &Kek::from_bytes(&KEK).unwrap())], |_| ())
        .unwrap();
    run(Command::new("openssl").args(["genrsa", "-out", "key.pem", "2048"]).current_dir(root));
    run(Command::new("openssl").args(["rsa", "-in", "key.pem", "-pubout", "-out", "pub.pem"]).current_dir(root));
    let skopeo = ["--insecure-policy", "copy", "--quiet"];
    run(Command::new("skopeo").args(skopeo).args(["--encryption-key", "jwe:pub.pem", "oci:plain:1", "oci:jwe:1"]).current_dir(root));

    let (mut ours, mut theirs, mut floors, mut memory) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 1..=ROUNDS {
        let (took, kib) = measured(Command::new(std::env::current_exe().unwrap()).env(CHILD, root));
        fs::remove_dir_all(root.join("out")).unwrap();
        memory = memory.max(kib);
        let started = Instant::now();
        run(Command::new("skopeo").args(skopeo).args(["--decryption-key", "key.pem", "oci:jwe:1", "oci:open:1"]).current_dir(root));
        let decrypted = started.elapsed();
        run(Command::new("umoci").args(["unpack", "--image", "open:1", "bundle"]).current_dir(root));
        let other = started.elapsed();
        fs::remove_dir_all(root.join("open")).unwrap();
        fs::remove_dir_all(root.join("bundle")).unwrap();
        let floor = floor(&sealed, &plain);
        println!(
            "round {round}: cloister {took:.2?} ({kib} KiB), skopeo {decrypted:.2?} + umoci {:.2?}, floor in one thread {floor:.2?}",
            other - decrypted
        );
        ours.push(took);
        theirs.push(other);
        floors.push(floor);
    }
    let best = |times: &[Duration]| times.iter().min().unwrap().as_secs_f64();
    println!("\nbest of {ROUNDS}: {:.1} times as fast as skopeo and umoci (reach for 3)", best(&theirs) / best(&ours));
    println!(
        "             {:.2} of the floor: hashing, decrypting and decompressing the same bytes in one thread",
        best(&ours) / best(&floors)
    );
    println!("             {:.0} MiB of the tars in a second", (IMAGE >> 20) as f64 / best(&ours));
    println!("memory, most resident: {:.1} MiB (reach for 64)", memory as f64 / 1024.0);
    assert!(best(&theirs) / best(&ours) >= 3.0 && memory <= 64 << 10, "slower or larger than is promised");
}

/// What the measured process does.
fn unpack(root: &Path) {
    let out = root.join("out");
    fs::create_dir(&out).unwrap();
    let kek = Kek::from_bytes(&KEK).unwrap();
    let layout = Layout::open(&root.join("sealed")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(8).build().unwrap();
    runtime.block_on(unpack_image(&layout, Some("1"), Some(&kek), &out, &Limits::default())).unwrap();
    println!("{}", most_resident());
}

/// The arithmetic alone: digest and HMAC of the ciphertext, decryption, digest of the plain blob, decompression, digest of the tar.
/// HMAC is a digest and two blocks; AES-CTR is timed by the encrypted layers' own decryption.
fn floor(sealed: &Layout, plain: &Layout) -> Duration {
    let (cipher, packed) = (layers(sealed), layers(plain));
    let started = Instant::now();
    for (cipher, packed) in cipher.iter().zip(&packed) {
        let mut bytes = Vec::new();
        File::open(cipher).unwrap().read_to_end(&mut bytes).unwrap();
        // Digest and HMAC.
        let (first, second) = (Digest::of(&bytes), Digest::of(&bytes));
        assert_eq!(first, second);
        keystream(&mut bytes);
        bytes.clear();
        File::open(packed).unwrap().read_to_end(&mut bytes).unwrap();
        Digest::of(&bytes);
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).unwrap();
        Digest::of(&tar);
    }
    started.elapsed()
}

fn keystream(bytes: &mut [u8]) {
    use ctr::cipher::{KeyIvInit, StreamCipher};
    ctr::Ctr128BE::<aes::Aes256>::new((&KEK).into(), (&[0; 16]).into()).apply_keystream(bytes);
}

fn layers(layout: &Layout) -> Vec<PathBuf> {
    layout.image(Some("1")).unwrap().manifest.layers.iter().map(|layer| layout.blob_path(&layer.digest)).collect()
}

/// Files of `/usr`, in the order of their names, until there are enough: programs, libraries, texts, as in any image.
fn make_image(layout: &Layout, root: &Path) {
    let mut files = Vec::new();
    collect(Path::new("/usr"), &mut files);
    files.sort();
    let (mut layers, mut diff_ids, mut files) = (Vec::new(), Vec::new(), files.into_iter());
    for layer in 0..LAYERS {
        let list = root.join("list");
        let (mut names, mut size) = (File::create(&list).unwrap(), 0);
        for (path, length) in files.by_ref() {
            writeln!(names, "{}", path.display()).unwrap();
            size += length.next_multiple_of(512) + 512;
            if size >= IMAGE / LAYERS {
                break;
            }
        }
        assert!(size >= IMAGE / LAYERS, "/usr of this machine is smaller than the image");
        let tar = root.join("layer.tar");
        run(Command::new("tar")
            .args(["--create", "--no-recursion", "--absolute-names", "--transform=s,^/,,", "--files-from"])
            .arg(&list)
            .arg("--file")
            .arg(&tar));
        let bytes = fs::read(&tar).unwrap();
        diff_ids.push(Digest::of(&bytes).to_string());
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(&bytes).unwrap();
        layers.push(layout.put_document("application/vnd.oci.image.layer.v1.tar+gzip", &packed.finish().unwrap()).unwrap());
        println!("  layer {layer}: {} MiB, packed {} MiB", bytes.len() >> 20, layers.last().map_or(0, |l: &Descriptor| l.size >> 20));
        fs::remove_file(&tar).unwrap();
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = layout.put_document("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()).unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let manifest = layout.put_document(media_type, manifest.to_string().as_bytes()).unwrap();
    layout.tag("1", &manifest).unwrap();
}

fn collect(directory: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files.push((path.clone(), 0));
            collect(&path, files);
        } else if (kind.is_file() || kind.is_symlink()) && !path.to_string_lossy().contains('\n') {
            files.push((path, entry.metadata().map_or(0, |m| m.len())));
        }
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a command; gives its wall time and the most memory that it had resident, in KiB, which it says itself: what the kernel tells the
/// parent includes what the parent had when it made the child.
fn measured(command: &mut Command) -> (Duration, u64) {
    let started = Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    (started.elapsed(), String::from_utf8(output.stdout).unwrap().trim().parse().unwrap())
}

/// `VmHWM:   12345 kB` of proc(5).
fn most_resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
