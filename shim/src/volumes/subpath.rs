//! Parts of a volume (`subPath`). Kubelet binds one to a place of its own, `…/pods/UID/volume-subpaths/VOLUME/CONTAINER/N` (kubernetes
//! pkg/volume/util/subpath), and gives the runtime that place: which part of which volume it is, the kernel's table of mounts says.

use super::plan::EMPTY_DIR;
use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

const SUBPATHS: &str = "volume-subpaths";
/// The mounts of this process (proc(5)).
const MOUNTS: &str = "/proc/self/mountinfo";

/// Whether kubelet has bound a part of a volume here.
pub fn is_part(source: &Path) -> bool {
    source.components().any(|part| part.as_os_str() == SUBPATHS)
}

/// The emptyDir that a part belongs to, on the host, and where in it the part is.
pub fn of_empty_dir(source: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut pod = PathBuf::new();
    let mut components = source.components();
    for component in components.by_ref().take_while(|component| component.as_os_str() != SUBPATHS) {
        pod.push(component);
    }
    let Component::Normal(name) = components.next()? else { return None };
    let whole = pod.join("volumes").join(EMPTY_DIR).join(name);
    if !whole.is_dir() {
        return None;
    }
    let part = part_in(&fs::read_to_string(MOUNTS).ok()?, &whole, source)?;
    Some((whole, part))
}

struct Mount {
    device: String,
    /// Which directory of its file system it shows.
    root: PathBuf,
    place: PathBuf,
}

/// Where in `whole` the mount at `part` begins.
fn part_in(table: &str, whole: &Path, part: &Path) -> Option<PathBuf> {
    let mounts: Vec<Mount> = table.lines().filter_map(parse).collect();
    // Of several at one place, the last one is seen.
    let over = |path: &Path| mounts.iter().filter(|m| path.starts_with(&m.place)).max_by_key(|m| m.place.components().count());
    let (of_part, of_whole) = (over(part)?, over(whole)?);
    if of_part.place != part || of_part.device != of_whole.device {
        return None;
    }
    let root = of_whole.root.join(whole.strip_prefix(&of_whole.place).ok()?);
    Some(of_part.root.strip_prefix(root).ok()?.to_owned())
}

/// `36 35 98:0 /root /place options …`
fn parse(line: &str) -> Option<Mount> {
    let mut words = line.split(' ').skip(2);
    Some(Mount { device: words.next()?.to_owned(), root: unescaped(words.next()?), place: unescaped(words.next()?) })
}

/// Blanks, newlines and backslashes of a path are three octal digits in the table.
fn unescaped(word: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = word.as_bytes();
    while let [first, more @ ..] = rest {
        let digits = if *first == b'\\' { more.get(..3).and_then(|d| std::str::from_utf8(d).ok()) } else { None };
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (bytes.push(byte), rest = &more[3..]).1,
            None => (bytes.push(*first), rest = more).1,
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "/var/lib/kubelet/pods/0a";

    fn part(table: &str, name: &str) -> Option<PathBuf> {
        let whole = Path::new(POD).join("volumes").join(EMPTY_DIR).join(name);
        part_in(table, &whole, &Path::new(POD).join("volume-subpaths").join(name).join("app/0"))
    }

    #[test]
    fn the_table_of_mounts_says_which_part_it_is() {
        let table = format!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             30 22 8:2 / /var/lib/kubelet rw - ext4 /dev/sda2 rw\n\
             31 30 0:50 / {POD}/volumes/{EMPTY_DIR}/memory rw - tmpfs tmpfs rw\n\
             32 30 8:2 /pods/0a/volumes/{EMPTY_DIR}/cache/a\\040b/c {POD}/volume-subpaths/cache/app/0 rw - ext4 /dev/sda2 rw\n\
             33 30 0:50 /x {POD}/volume-subpaths/memory/app/0 rw - tmpfs tmpfs rw\n\
             34 30 8:2 /elsewhere {POD}/volume-subpaths/other/app/0 rw - ext4 /dev/sda2 rw\n\
             35 30 8:1 /pods/0a/volumes/{EMPTY_DIR}/disk/x {POD}/volume-subpaths/disk/app/0 rw - ext4 /dev/sda1 rw\n"
        );
        assert_eq!(part(&table, "cache"), Some("a b/c".into()));
        assert_eq!(part(&table, "memory"), Some("x".into()));
        // Another directory, another file system, and none at all.
        for name in ["other", "disk", "missing"] {
            assert_eq!(part(&table, name), None, "{name}");
        }
        assert_eq!(part("22 1 8:1\n\n/ / /", "cache"), None);
        assert_eq!(unescaped("a\\134\\011\\9\\"), Path::new("a\\\t\\9\\"));
    }

    #[test]
    fn only_what_kubelet_bound_is_a_part() {
        assert!(is_part(&Path::new(POD).join("volume-subpaths/cache/app/0")));
        assert!(!is_part(&Path::new(POD).join("volumes").join(EMPTY_DIR).join("cache")));
        assert_eq!(of_empty_dir(Path::new("/nowhere/volume-subpaths/cache/app/0")), None);
        assert_eq!(of_empty_dir(Path::new("/nowhere/volume-subpaths")), None);
    }
}
