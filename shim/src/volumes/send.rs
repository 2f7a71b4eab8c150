//! One copy into the guest: a file, or a directory with all below it.

use protocol::volume::{Attributes, Entry, VolumeError};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Bytes of a file that are in our hands at a time.
const CHUNK: usize = 64 << 10;

/// Writes all of `source`; the guest holds the bounds. Kubelet may swap what is in a directory meanwhile: then something is missing, and the
/// caller begins again.
pub async fn send(source: &Path, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), VolumeError> {
    // A mount follows the links of its source.
    let root = fs::canonicalize(source)?;
    let mut pending = vec![String::new()];
    while let Some(path) = pending.pop() {
        let place = if path.is_empty() { root.clone() } else { root.join(&path) };
        let found = fs::symlink_metadata(&place)?;
        let attributes = Attributes {
            path: path.clone(),
            // The lower sixteen bits are type and permissions.
            mode: u16::try_from(found.mode() & 0o7777).unwrap_or(0),
            uid: found.uid(),
            gid: found.gid(),
        };
        if found.is_dir() {
            Entry::Directory(attributes).write(stream).await?;
            for entry in fs::read_dir(&place)? {
                let name = entry?.file_name().into_string().map_err(|name| not_text(Path::new(&name)))?;
                pending.push(if path.is_empty() { name } else { format!("{path}/{name}") });
            }
        } else if found.is_symlink() {
            let target = fs::read_link(&place)?.into_os_string().into_string().map_err(|target| not_text(Path::new(&target)))?;
            Entry::Link(path, target).write(stream).await?;
        } else if found.is_file() {
            send_file(&place, attributes, stream).await?;
        } else {
            log::debug!("{}: neither file, directory nor link: left out", place.display());
        }
    }
    Entry::End.write(stream).await?;
    Ok(stream.flush().await?)
}

async fn send_file(place: &Path, attributes: Attributes, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), VolumeError> {
    let mut file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(place)?;
    let size = file.metadata()?.len();
    Entry::File(attributes, size).write(stream).await?;
    let mut left = size;
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        match file.read(&mut chunk[..most])? {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} became shorter", place.display())).into()),
            count => {
                stream.write_all(&chunk[..count]).await?;
                left -= count as u64;
            }
        }
    }
    Ok(())
}

fn not_text(name: &Path) -> VolumeError {
    VolumeError::Entry(format!("the name {} is not UTF-8", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn directories_come_before_what_is_in_them_and_links_as_links() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("..1")).unwrap();
        fs::write(volume.join("..1/key"), "value").unwrap();
        symlink("..1", volume.join("..data")).unwrap();
        symlink(&volume, dir.path().join("link")).unwrap();
        let mut wire = Vec::new();
        send(&dir.path().join("link"), &mut wire).await.unwrap();
        let mut wire = &wire[..];
        let mut seen = Vec::new();
        loop {
            match Entry::read(&mut wire).await.unwrap() {
                Entry::End => break,
                Entry::Directory(at) => seen.push(format!("{}/", at.path)),
                Entry::Link(path, target) => seen.push(format!("{path} -> {target}")),
                Entry::File(at, size) => {
                    let (content, rest) = wire.split_at(usize::try_from(size).unwrap());
                    seen.push(format!("{} = {}", at.path, String::from_utf8_lossy(content)));
                    wire = rest;
                }
            }
        }
        let place = |entry: &str| seen.iter().position(|seen| seen == entry).unwrap_or_else(|| panic!("{entry} in {seen:?}"));
        assert_eq!((place("/"), seen.len()), (0, 4));
        assert!(place("..1/") < place("..1/key = value") && place("..data -> ..1") > 0);
    }
}
