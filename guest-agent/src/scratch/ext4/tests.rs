//! Against e2fsck, which knows the format better than we do.

use super::*;
use crate::test_support::children;
use std::process::Command;

/// Formats a sparse file and has it checked; gives e2fsck's complaint, if it has one.
fn check(bytes: u64, kind: Kind) -> Option<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    format(file.as_file(), bytes, kind).unwrap();
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(file.path()).env("LC_ALL", "C").output().unwrap();
    (!checked.status.success()).then(|| {
        format!("{kind:?}, {bytes} bytes: {}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr))
    })
}

#[tokio::test]
async fn every_size_is_a_clean_file_system() {
    let _guard = children().await;
    let group = GROUP_BLOCKS * BLOCK;
    let mut sizes = vec![MIN_BYTES, MIN_BYTES + 1, 10 << 30, 100 << 30, MAX_BYTES, MAX_BYTES + (5 << 30)];
    // Around a group's border, where the last group is whole, too small to keep, just large enough, or one block short.
    for groups in [1, 2, 3, 8] {
        for extra in [0, 1, MIN_LAST_GROUP - 1, MIN_LAST_GROUP, MIN_LAST_GROUP + 1, GROUP_BLOCKS - 1] {
            sizes.push(groups * group + extra * BLOCK);
        }
    }
    let complaints: Vec<String> =
        sizes.iter().flat_map(|bytes| [check(*bytes, Kind::Scratch), check(*bytes, Kind::Lasting)]).flatten().collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[tokio::test]
async fn a_damaged_descriptor_is_noticed() {
    // The check above would be worth nothing if e2fsck did not look.
    let _guard = children().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 30).unwrap();
    format(file.as_file(), 1 << 30, Kind::Lasting).unwrap();
    file.as_file().write_all_at(&[0x55; 4], BLOCK + 0x20 + 0x0c).unwrap();
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(file.path()).output().unwrap();
    assert!(!checked.status.success());
}

#[test]
fn few_blocks_are_written_whatever_the_size() {
    use std::os::unix::fs::MetadataExt;
    for (bytes, most) in [(10u64 << 30, 16), (MAX_BYTES, 80)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        format(file.as_file(), bytes, Kind::Scratch).unwrap();
        let written = file.as_file().metadata().unwrap().blocks() * 512 / BLOCK;
        assert!(written <= most, "{bytes} bytes: {written} blocks");
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused() {
    assert!(matches!(Layout::new(MIN_BYTES - 1, Kind::Scratch, [0; 16], [0; 16]), Err(FormatError::TooSmall(_))));
}

#[test]
fn nothing_lies_outside_its_group() {
    for bytes in [MIN_BYTES, 200 << 20, 1 << 30, MAX_BYTES] {
        let layout = Layout::new(bytes, Kind::Lasting, [1; 16], [2; 16]).unwrap();
        assert!(layout.journal_block() + layout.journal_blocks < layout.group_blocks(0), "{bytes} bytes");
        for group in 0..layout.groups {
            let end = layout.start(group) + layout.group_blocks(group);
            assert!(layout.inode_table(group) + TABLE_BLOCKS <= end, "{bytes} bytes, group {group}");
        }
        assert!(layout.blocks * BLOCK <= bytes);
    }
}
