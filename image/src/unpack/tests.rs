//! Hostile and ordinary archives, unpacked for real. Owners, trusted attributes and device nodes take root.

use super::*;
use crate::testing::{self, TarBuilder};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    process::Command,
};
use tar::EntryType;
use tempfile::TempDir;

/// A layer's root within a directory of ours, so that an escape would be seen beside it.
struct Bed {
    outer: TempDir,
}

impl Bed {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("root")).unwrap();
        fs::write(outer.path().join("victim"), b"untouched").unwrap();
        Self { outer }
    }

    fn root(&self) -> PathBuf {
        self.outer.path().join("root")
    }

    fn unpack_with(&self, archive: &[u8], limits: &Limits) -> Result<Stats, UnpackError> {
        let result = Unpacker::new(&self.root(), limits).unwrap().unpack(archive);
        assert_eq!(fs::read(self.outer.path().join("victim")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(self.outer.path()).unwrap().count(), 2, "nothing beside the root");
        result
    }

    fn unpack(&self, builder: TarBuilder) -> Result<Stats, UnpackError> {
        self.unpack_with(&builder.finish(), &Limits::default())
    }

    fn refusal(builder: TarBuilder) -> String {
        Self::new().unpack(builder).unwrap_err().to_string()
    }

    fn meta(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(path)).unwrap()
    }

    fn is_whiteout(&self, path: &str) -> bool {
        self.meta(path).file_type().is_char_device() && self.meta(path).rdev() == 0
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let path = std::ffi::CString::new(self.root().join(path).to_str().unwrap()).unwrap();
        let name = std::ffi::CString::new(name).unwrap();
        let mut value = vec![0u8; 256];
        // SAFETY: both strings end with a NUL byte, and the kernel writes at most the buffer's length.
        let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        usize::try_from(length).ok().map(|n| value[..n].to_vec())
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

fn owned(builder: TarBuilder, kind: EntryType, name: &str, mode: u32, (uid, gid): (u64, u64), data: &[u8]) -> TarBuilder {
    builder.header(
        |header| {
            header.set_path(name).unwrap();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_gid(gid);
        },
        data,
    )
}

#[test]
fn everything_a_layer_has_is_restored() {
    if !testing::is_root() {
        return;
    }
    let bed = Bed::new();
    let mut tar = TarBuilder::new().dir("./", 0o700);
    tar = owned(tar, EntryType::Directory, "home/", 0o2750, (1000, 2000), b"");
    tar = owned(tar, EntryType::Regular, "home/run", 0o4755, (1000, 2000), &[9; 300_000]);
    tar = owned(tar.symlink("home/link", "/etc/passwd"), EntryType::Fifo, "home/fifo", 0o640, (5, 6), b"");
    tar = tar.hard_link("home/again", "home/run").pax(&[("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.note", b"hi")]);
    let stats = bed.unpack(tar.file("home/timed", b"x")).unwrap();
    assert_eq!((stats.entries, stats.implied.len(), stats.opaque_root), (7, 0, false));

    let (home, run) = (bed.meta("home"), bed.meta("home/run"));
    assert_eq!((home.mode() & 0o7777, home.uid(), home.gid(), home.mtime()), (0o2750, 1000, 2000, 1_700_000_000));
    assert_eq!((run.mode() & 0o7777, run.uid(), run.gid(), run.nlink(), run.len()), (0o4755, 1000, 2000, 2, 300_000));
    assert_eq!(bed.meta("home/again").ino(), run.ino());
    assert_eq!(fs::read_link(bed.root().join("home/link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(bed.meta("home/link").mtime(), 1_700_000_000);
    let fifo = bed.meta("home/fifo");
    assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o7777 == 0o640 && fifo.gid() == 6);
    let timed = bed.meta("home/timed");
    assert_eq!((timed.mtime(), timed.mtime_nsec(), timed.gid()), (1_234_567_890, 123_456_789, 0));
    assert_eq!(bed.xattr("home/timed", "user.note").as_deref(), Some(&b"hi"[..]));
}

#[test]
fn paths_never_leave_the_root() {
    for path in ["../victim", "a/../../victim", "/../victim", ".."] {
        assert!(Bed::refusal(TarBuilder::new().file(path, b"evil")).contains("'..'"), "{path}");
    }
    let bed = Bed::new();
    bed.unpack(TarBuilder::new().file("/victim", b"inside").file("//a///b/./c", b"")).unwrap();
    assert_eq!(fs::read(bed.root().join("victim")).unwrap(), b"inside");
    assert!(bed.root().join("a/b/c").exists());
}

#[test]
fn planted_links_lead_nowhere_outside() {
    // Absolute, relative, and through another link: each is resolved inside the root, where there is no such directory.
    for target in ["/", "..", "../..", "/../.."] {
        let bed = Bed::new();
        bed.unpack(TarBuilder::new().symlink("out", target).file("out/victim", b"evil")).unwrap();
        assert_eq!(fs::read(bed.root().join("victim")).unwrap(), b"evil", "{target} is the root itself");
    }
    let outer = Bed::new();
    let absolute = outer.outer.path().to_str().unwrap().to_owned();
    let chain = TarBuilder::new().symlink("a", "b").symlink("b", &absolute).file("a/victim", b"evil");
    assert!(outer.unpack(chain).is_err());
    let proc = TarBuilder::new().symlink("p", "/proc/self/root").file("p/victim", b"evil");
    assert!(Bed::refusal(proc).contains("leads nowhere"));
    // A file in the place of a link replaces the link and does not write through it.
    let bed = Bed::new();
    bed.unpack(TarBuilder::new().symlink("f", "../victim").file("f", b"mine")).unwrap();
    assert!(bed.meta("f").is_file());
}

#[test]
fn links_that_lower_layers_left_are_not_followed_out() {
    let bed = Bed::new();
    symlink(bed.outer.path(), bed.root().join("out")).unwrap();
    assert!(bed.unpack(TarBuilder::new().file("out/victim", b"evil")).is_err());
    assert!(bed.unpack(TarBuilder::new().file("out/.wh.victim", b"")).is_err());
    assert!(bed.unpack(TarBuilder::new().hard_link("v", "out/victim")).is_err());
    symlink("../victim", bed.root().join("link")).unwrap();
    bed.unpack(TarBuilder::new().hard_link("copy", "link").file("copy", b"evil")).unwrap();
    assert_eq!(fs::read_link(bed.root().join("link")).unwrap(), Path::new("../victim"), "the link was linked, not its target");
}

#[test]
fn hard_links_stay_inside() {
    for target in ["../victim", "nothing", "/etc/hostname", "/"] {
        assert!(Bed::new().unpack(TarBuilder::new().hard_link("h", target)).is_err(), "{target}");
    }
    let bed = Bed::new();
    bed.unpack(TarBuilder::new().file("a", b"1").hard_link("b", "/a").hard_link("b", "b").file("a", b"2")).unwrap();
    assert_eq!(fs::read(bed.root().join("b")).unwrap(), b"1", "a new file does not write into an old one's other name");
    assert!(Bed::refusal(TarBuilder::new().dir("d/", 0o755).hard_link("h", "d")).contains("hard link"));
}

#[test]
fn an_archive_cannot_contradict_itself() {
    assert!(Bed::refusal(TarBuilder::new().dir("d/", 0o755).file("d", b"")).contains("replaces a directory"));
    assert!(Bed::refusal(TarBuilder::new().dir("d/", 0o755).symlink("d", "x")).contains("replaces a directory"));
    assert!(Bed::refusal(TarBuilder::new().symlink("d", "gone").file("d/x", b"")).contains("leads nowhere"));
    assert!(Bed::new().unpack(TarBuilder::new().file("f", b"").file("f/x", b"")).is_err());
    // A directory may take a link's place; what comes later goes into it, not to where the link led.
    let bed = Bed::new();
    let tar = TarBuilder::new().dir("t/", 0o755).symlink("l", "t").file("l/1", b"").dir("l", 0o755).file("l/2", b"");
    bed.unpack(tar).unwrap();
    assert!(bed.root().join("t/1").exists() && bed.root().join("l/2").exists() && !bed.root().join("t/2").exists());
}

#[test]
fn whiteouts_become_overlayfs_own() {
    if !testing::is_root() {
        return;
    }
    let bed = Bed::new();
    let tar = TarBuilder::new().file("etc/.wh.passwd", b"").file("var/.wh..wh..opq", b"").file("var/kept", b"");
    let stats = bed.unpack(tar.file(".wh..wh.plnk/123", b"").file(".wh..wh.aufs", b"")).unwrap();
    assert!(bed.is_whiteout("etc/passwd") && bed.is_opaque("var") && !bed.is_opaque("etc"));
    assert_eq!(fs::read_dir(bed.root()).unwrap().count(), 2, "no file of AUFS's");
    assert_eq!(stats.implied, [Path::new("etc"), Path::new("var")]);
    let device = |header: &mut tar::Header| {
        header.set_path("gone").unwrap();
        header.set_entry_type(EntryType::Char);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
    };
    bed.unpack(TarBuilder::new().header(device, b"")).unwrap();
    assert!(bed.is_whiteout("gone"), "overlayfs's own form is a whiteout without being a device");
    assert!(bed.unpack(TarBuilder::new().file(".wh..wh..opq", b"")).unwrap().opaque_root);
}

#[test]
fn in_the_lowest_layer_whiteouts_hide_nothing() {
    let tar = TarBuilder::new().file("etc/.wh.passwd", b"").file("etc/.wh..wh..opq", b"").file("etc/group", b"").file("etc/.wh.group", b"");
    let lowest = Limits { whiteouts: Whiteouts::of_layer(0), ..Limits::default() };
    let bed = Bed::new();
    let stats = bed.unpack_with(&tar.file(".wh..wh..opq", b"").finish(), &lowest).unwrap();
    let names: Vec<_> = fs::read_dir(bed.root().join("etc")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["group"], "what this layer has stays, and nothing else is listed");
    assert!(!stats.opaque_root && !bed.is_opaque("etc"));
    assert_eq!(Whiteouts::of_layer(1), Whiteouts::Make);
}

#[test]
fn a_whiteout_hides_lower_layers_only() {
    if !testing::is_root() {
        return;
    }
    // Deleted and made anew in one layer: the new directory must not show the old one's content.
    for tar in [
        TarBuilder::new().file(".wh.d", b"").dir("d/", 0o755).file("d/new", b""),
        TarBuilder::new().dir("d/", 0o755).file("d/new", b"").file(".wh.d", b""),
        TarBuilder::new().file(".wh.d", b"").file("d/new", b""),
    ] {
        let bed = Bed::new();
        bed.unpack(tar).unwrap();
        assert!(bed.is_opaque("d") && bed.root().join("d/new").exists());
    }
    let bed = Bed::new();
    bed.unpack(TarBuilder::new().file("f", b"new").file(".wh.f", b"").file(".wh.g", b"").file("g", b"new")).unwrap();
    assert!(bed.meta("f").is_file() && bed.meta("g").is_file());
    for bad in [".wh.", ".wh..", ".wh...", "a/.wh.."] {
        assert!(Bed::refusal(TarBuilder::new().file(bad, b"")).contains("whiteout of nothing"), "{bad}");
    }
}

#[test]
fn overlayfs_attributes_of_strangers_are_left_out() {
    if !testing::is_root() {
        return;
    }
    let bed = Bed::new();
    let records: [(&str, &[u8]); 4] = [
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.mine", b"1"),
    ];
    bed.unpack(TarBuilder::new().pax(&records).dir("d/", 0o755)).unwrap();
    assert_eq!(bed.xattr("d", "trusted.overlay.redirect"), None);
    assert!(!bed.is_opaque("d") && bed.xattr("d", "user.overlay.opaque").is_none());
    assert_eq!(bed.xattr("d", "trusted.mine").as_deref(), Some(&b"1"[..]));
    let huge = [("SCHILY.xattr.user.big", &[b'x'; 70_000][..])];
    assert!(Bed::refusal(TarBuilder::new().pax(&huge).file("f", b"")).contains("extended attribute"));
}

#[test]
fn device_nodes_follow_the_policy() {
    if !testing::is_root() {
        return;
    }
    let tar = || {
        let device = |header: &mut tar::Header| {
            header.set_path("dev/null").unwrap();
            header.set_entry_type(EntryType::Char);
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        };
        TarBuilder::new().header(device, b"").file("f", b"")
    };
    assert!(Bed::refusal(tar()).contains("device node"));
    let with = |devices| {
        let bed = Bed::new();
        bed.unpack_with(&tar().finish(), &Limits { devices, ..Limits::default() }).unwrap();
        bed
    };
    assert!(!with(Devices::Skip).root().join("dev").exists());
    let bed = with(Devices::Create);
    assert_eq!(bed.meta("dev/null").rdev(), nix::sys::stat::makedev(1, 3));
}

#[test]
fn bounds_hold() {
    let many = (0..20).fold(TarBuilder::new(), |tar, n| tar.file(&format!("f{n}"), b"")).finish();
    let error = Bed::new().unpack_with(&many, &Limits { max_entries: 19, ..Limits::default() }).unwrap_err().to_string();
    assert!(error.contains("more than 19 entries"), "{error}");
    let deep = TarBuilder::new().file("a/b/c/d", b"").finish();
    assert!(Bed::new().unpack_with(&deep, &Limits { max_depth: 3, ..Limits::default() }).is_err());
    let long = [("path", &b"x".repeat(5000)[..])];
    assert!(Bed::refusal(TarBuilder::new().pax(&long).file("f", b"")).contains("5000 bytes"));
    assert!(Bed::refusal(TarBuilder::new().pax(&[("linkpath", &b"x".repeat(5000))]).symlink("l", "")).contains("link target"));
    assert!(Bed::refusal(TarBuilder::new().symlink("l", "")).contains("link target"));
    assert!(Bed::refusal(TarBuilder::new().raw(EntryType::Regular, "f", "", 1 << 35, b"")).contains("middle of an entry"));
}

#[test]
fn an_implied_directory_looks_like_the_one_below() {
    if !testing::is_root() {
        return;
    }
    let bed = Bed::new();
    let lower = owned(TarBuilder::new().dir("usr/", 0o711), EntryType::Directory, "usr/bin/", 0o1770, (7, 8), b"").finish();
    let replaced = TarBuilder::new().file("opt", b"a file").finish();
    let upper = TarBuilder::new().file("usr/bin/app", b"").file("opt/x", b"").file("new/y", b"").finish();
    let roots: Vec<PathBuf> = (0..3).map(|n| bed.root().join(n.to_string())).collect();
    let mut implied = Vec::new();
    for (root, tar) in roots.iter().zip([lower, replaced, upper]) {
        fs::create_dir(root).unwrap();
        implied.push(Unpacker::new(root, &Limits::default()).unwrap().unpack(tar.as_slice()).unwrap().implied);
    }
    let layers: Vec<(&Path, &[PathBuf])> = roots.iter().map(PathBuf::as_path).zip(implied.iter().map(Vec::as_slice)).collect();
    adopt_parents(&layers).unwrap();
    let look = |path: &str| (bed.meta(path).mode() & 0o7777, bed.meta(path).uid(), bed.meta(path).gid());
    assert_eq!(look("2/usr/bin"), (0o1770, 7, 8));
    assert_eq!(bed.meta("2/usr/bin").mtime(), 1_700_000_000);
    assert_eq!((look("2/usr"), look("2/opt"), look("2/new")), ((0o711, 0, 0), (0o755, 0, 0), (0o755, 0, 0)));
}

/// What GNU tar packs, in each of its formats, is unpacked as GNU tar itself would.
#[test]
fn archives_of_gnu_tar_are_read() {
    let source = tempfile::tempdir().unwrap();
    let long = "n".repeat(150);
    let deep = source.path().join("d".repeat(120)).join(&long);
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), vec![1; 70_000]).unwrap();
    symlink("x".repeat(200), source.path().join("link")).unwrap();
    fs::hard_link(deep.join("file"), source.path().join("hard")).unwrap();
    for format in ["gnu", "pax", "posix", "oldgnu"] {
        let out =
            Command::new("tar").args(["--sort=name", "--format", format, "-cf", "-", "."]).current_dir(source.path()).output().unwrap();
        assert!(out.status.success());
        let bed = Bed::new();
        bed.unpack_with(&out.stdout, &Limits::default()).unwrap();
        let diff = Command::new("diff").arg("-r").arg("--no-dereference").args([source.path(), &bed.root()]).output().unwrap();
        assert!(diff.status.success(), "{format}: {}", String::from_utf8_lossy(&diff.stdout));
        assert_eq!(bed.meta("hard").nlink(), 2);
    }
}

/// Each form of sparse files that GNU tar writes: the same content, the holes still holes.
#[test]
fn sparse_files_of_gnu_tar_keep_their_holes() {
    use std::os::unix::fs::FileExt;
    let source = tempfile::tempdir().unwrap();
    let make = |name: &str, size: u64, pieces: u64| {
        let file = fs::File::create(source.path().join(name)).unwrap();
        (0..pieces).for_each(|at| file.write_all_at(&[1 + (at % 250) as u8; 4096], at * 64 * 1024).unwrap());
        file.set_len(size).unwrap();
    };
    // In the header alone; in blocks behind it; a hole at the end; nothing but a hole.
    for (name, size, pieces) in [("few", 130 << 10, 3), ("many", 20 << 20, 200), ("end", 1 << 30, 1), ("hole", 1 << 30, 0)] {
        make(name, size, pieces);
    }
    fs::write(source.path().join("zz-after"), "what follows is found").unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let out = Command::new("tar")
            .args(["--sort=name", "--sparse", "-cf", "-", "."])
            .args(format)
            .current_dir(source.path())
            .output()
            .unwrap();
        assert!(out.status.success() && out.stdout.len() < 3 << 20, "{format:?}: {} bytes", out.stdout.len());
        let bed = Bed::new();
        bed.unpack_with(&out.stdout, &Limits::default()).unwrap();
        for name in ["few", "many", "end", "hole"] {
            let (ours, theirs) = (bed.meta(name), fs::metadata(source.path().join(name)).unwrap());
            assert_eq!((ours.len(), ours.blocks()), (theirs.len(), theirs.blocks()), "{format:?}: {name}");
        }
        for name in ["few", "many", "zz-after"] {
            assert!(fs::read(bed.root().join(name)).unwrap() == fs::read(source.path().join(name)).unwrap(), "{format:?}: {name}");
        }
        let small = Limits { max_sparse: (1 << 30) - 1, ..Limits::default() };
        let error = Bed::new().unpack_with(&out.stdout, &small).unwrap_err().to_string();
        assert!(error.contains("a sparse file of 1073741824 bytes; at most 1073741823"), "{error}");
    }
}

#[test]
fn a_sparse_file_is_one_thing_to_every_reader() {
    let old = |size: u64, stored: &[u8], pieces: &[(u64, u64)]| {
        let pieces = pieces.to_vec();
        TarBuilder::new().header(
            move |header| {
                header.as_mut_bytes()[257..265].copy_from_slice(b"ustar  \0");
                header.set_path("f").unwrap();
                header.set_entry_type(EntryType::GNUSparse);
                let gnu = header.as_gnu_mut().unwrap();
                for (place, (offset, length)) in gnu.sparse.iter_mut().zip(&pieces) {
                    place.set_offset(*offset);
                    place.set_length(*length);
                }
                gnu.set_real_size(size);
            },
            stored,
        )
    };
    let bed = Bed::new();
    bed.unpack(old(10, b"abcd", &[(1, 2), (6, 2)])).unwrap();
    assert_eq!(fs::read(bed.root().join("f")).unwrap(), b"\0ab\0\0\0cd\0\0");
    assert!(Bed::refusal(old(10, b"abcde", &[(1, 2), (6, 2)])).contains("5 bytes of data and a map of 4"));
    assert!(Bed::refusal(old(10, b"abcd", &[(6, 2), (1, 2)])).contains("out of order"));
    assert!(Bed::refusal(old(7, b"abcd", &[(1, 2), (6, 2)])).contains("beyond its end"));

    let pax = |records: &[(&str, &[u8])], data: &[u8]| TarBuilder::new().pax(records).file("GNUSparseFile.1/f", data);
    let bed = Bed::new();
    let first = [("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"f"), ("GNU.sparse.realsize", b"5")];
    let mut data = b"1\n1\n3\n".to_vec();
    data.resize(512, 0);
    bed.unpack(pax(&first, &[&data[..], b"abc"].concat())).unwrap();
    assert_eq!(fs::read(bed.root().join("f")).unwrap(), b"\0abc\0");
    assert!(Bed::refusal(pax(&first, b"1\n1\n3\nabc")).contains("cut off"));
    assert!(Bed::refusal(pax(&first, &[&data[..], b"abcd"].concat())).contains("4 bytes of data and a map of 3"));
    let records = [("GNU.sparse.map", &b"0,1"[..]), ("GNU.sparse.size", b"5")];
    let link = TarBuilder::new().pax(&records).symlink("l", "t");
    assert!(Bed::refusal(link).contains("readers disagree"));
    assert!(Bed::refusal(TarBuilder::new().pax(&records).raw(EntryType::GNUSparse, "f", "", 1, b"x")).contains("both its header and PAX"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    /// Whatever bytes are changed: an error or an archive, never a panic and nothing outside.
    #[test]
    fn damaged_archives_are_survived(changes in proptest::collection::vec((0usize..4096, proptest::num::u8::ANY), 1..8)) {
        let tar = TarBuilder::new().pax(&[("path", b"a/b"), ("mtime", b"1.5")]).file("f", &[3; 600]).symlink("l", "..").file("l/x", b"");
        let mut bytes = tar.finish();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        // With the checksums made right again, the change reaches the parser behind them.
        for block in bytes.chunks_mut(512).filter(|block| block.len() == 512 && &block[257..262] == b"ustar") {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let bed = Bed::new();
        let _: Result<Stats, UnpackError> = bed.unpack_with(&bytes, &Limits { max_bytes: 1 << 20, ..Limits::default() });
    }
}
