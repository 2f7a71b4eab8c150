//! Archives of images: a tar of an OCI layout, and what `docker save` writes.

use anyhow::{Context, Result, bail, ensure};
use image::{
    digest::Digest,
    layout::Layout,
    manifest::{Descriptor, Manifest},
    media_type::{Compression, DOCKER_CONFIG, OCI_CONFIG, OCI_MANIFEST},
    plan::{Mixed, plan_layers},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Component, Path, PathBuf},
};
use tar::{Archive, Builder, EntryType, Header};

const OCI_FILES: [&str; 2] = ["oci-layout", "index.json"];
const BLOBS: &str = "blobs/sha256";
const DOCKER_MANIFEST: &str = "manifest.json";
/// Longest `manifest.json`, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

/// Unpacks the archive of a layout into a directory. Only what a layout consists of is taken, and nothing leaves the directory.
pub(super) fn unpack(path: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory.join(BLOBS))?;
    each_file(path, |name, entry| {
        let text = name.to_str().unwrap_or_default();
        let is_blob = name.parent() == Some(Path::new(BLOBS))
            && format!("sha256:{}", name.file_name().and_then(|n| n.to_str()).unwrap_or_default()).parse::<Digest>().is_ok();
        if OCI_FILES.contains(&text) || is_blob {
            io::copy(entry, &mut File::create(directory.join(name))?)?;
        }
        Ok(())
    })
    .with_context(|| path.display().to_string())?;
    ensure!(directory.join(OCI_FILES[0]).exists(), "{}: not the archive of an OCI layout", path.display());
    Ok(())
}

/// Writes a layout as an archive.
pub(super) fn pack(layout: &Layout, path: &Path) -> Result<()> {
    written(path, |tar| {
        for name in OCI_FILES {
            add_file(tar, name, &layout.path().join(name))?;
        }
        let mut blobs: Vec<_> = fs::read_dir(layout.path().join(BLOBS))?.collect::<Result<_, _>>()?;
        blobs.sort_by_key(fs::DirEntry::file_name);
        for blob in blobs {
            add_file(tar, &format!("{BLOBS}/{}", blob.file_name().to_string_lossy()), &blob.path())?;
        }
        Ok(())
    })
}

/// One image of `manifest.json` (moby, `image/spec/v1.2.md`, "Combined Image JSON + Filesystem Changeset Format").
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Turns what `docker save` wrote into a layout with one image: `name`, or the only one.
pub(super) fn unpack_docker(path: &Path, name: Option<&str>, directory: &Path) -> Result<()> {
    let context = || path.display().to_string();
    let raw = tempfile::tempdir_in(directory)?;
    let mut linked = false;
    each_file_or_link(path, |name, kind, entry| {
        linked |= kind != EntryType::Regular;
        if kind == EntryType::Regular {
            let target = raw.path().join(name);
            fs::create_dir_all(target.parent().unwrap_or(raw.path()))?;
            io::copy(entry, &mut File::create(target)?)?;
        }
        Ok(())
    })
    .with_context(context)?;
    let mut json = Vec::new();
    let file = File::open(raw.path().join(DOCKER_MANIFEST))
        .with_context(|| format!("{}: no {DOCKER_MANIFEST}: not an archive of `docker save`", path.display()))?;
    file.take(MAX_MANIFEST).read_to_end(&mut json)?;
    let images: Vec<DockerImage> = image::strict_json::parse(&json).with_context(context)?;
    let wanted = |image: &&DockerImage| name.is_none_or(|name| image.repo_tags.iter().flatten().any(|tag| tag == name));
    let found: Vec<&DockerImage> = images.iter().filter(wanted).collect();
    let [docker] = found.as_slice() else {
        let names: Vec<&String> = images.iter().flat_map(|image| image.repo_tags.iter().flatten()).take(20).collect();
        bail!("{}: {} images fit; name one: it has {names:?}", path.display(), found.len());
    };
    let layout = Layout::create(directory)?;
    let source = |name: &str| -> Result<PathBuf> {
        ensure!(is_inside(Path::new(name)), "{}: {name:?} leads out of the archive", path.display());
        let file = raw.path().join(name);
        ensure!(
            file.is_file(),
            "{}: {name:?} is missing{}",
            path.display(),
            if linked { " or a link: save the image anew, or copy it with skopeo" } else { "" }
        );
        Ok(file)
    };
    let mut config = Vec::new();
    File::open(source(&docker.config)?)?.take(MAX_MANIFEST).read_to_end(&mut config)?;
    let layers = docker.layers.iter().map(|name| store_layer(&layout, &source(name)?)).collect::<Result<Vec<_>>>()?;
    let config = layout.put_document(OCI_CONFIG, &config)?;
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers, annotations: Default::default() };
    let descriptor = layout.put_document(OCI_MANIFEST, serde_json::to_string(&manifest)?.as_bytes())?;
    layout.tag("image", &descriptor)?;
    layout.image(None).with_context(context)?;
    Ok(())
}

fn store_layer(layout: &Layout, path: &Path) -> Result<Descriptor> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut writer, mut hash, mut size, mut head) = (layout.writer()?, Sha256::new(), 0, Vec::new());
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        if head.len() < 4 {
            head.extend_from_slice(&buffer[..n.min(4)]);
        }
        hash.update(&buffer[..n]);
        writer.write_all(&buffer[..n])?;
        size += n as u64;
    }
    let compression = match head.as_slice() {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    };
    let digest = Digest::from_bytes(hash.finalize().into());
    writer.commit(&digest)?;
    Ok(Descriptor { digest, size, ..Descriptor::of(&compression.plain_layer(), b"") })
}

/// Writes the image of a layout as `docker load` takes it. Docker cannot read encrypted layers.
pub(super) fn pack_docker(layout: &Layout, tag: Option<&str>, name: Option<&str>, path: &Path) -> Result<()> {
    let image = layout.image(tag)?;
    let plans = plan_layers(&image.manifest, &image.config, Mixed::Allowed)?;
    ensure!(plans.iter().all(|plan| plan.envelope.is_none()), "an encrypted image does not go into a docker-archive: use oci-archive");
    ensure!([OCI_CONFIG, DOCKER_CONFIG].contains(&image.manifest.config.media_type.as_str()), "not a container image");
    let config = format!("{}.json", image.manifest.config.digest.hex());
    let layers: Vec<String> = image.manifest.layers.iter().map(|layer| format!("{}.tar", layer.digest.hex())).collect();
    let repo_tags = name.map(|name| vec![name.to_owned()]);
    written(path, |tar| {
        let mut done = std::collections::BTreeSet::new();
        for (layer, file) in image.manifest.layers.iter().zip(&layers) {
            if done.insert(file) {
                add_file(tar, file, &layout.blob_path(&layer.digest))?;
            }
        }
        add_file(tar, &config, &layout.blob_path(&image.manifest.config.digest))?;
        let manifest = serde_json::to_vec(&[DockerImage { config: config.clone(), repo_tags: repo_tags.clone(), layers: layers.clone() }])?;
        add(tar, DOCKER_MANIFEST, manifest.len() as u64, manifest.as_slice())
    })
}

fn each_file(path: &Path, mut take: impl FnMut(&Path, &mut dyn Read) -> Result<()>) -> Result<()> {
    each_file_or_link(path, |name, kind, entry| if kind == EntryType::Regular { take(name, entry) } else { Ok(()) })
}

fn each_file_or_link(path: &Path, mut take: impl FnMut(&Path, EntryType, &mut dyn Read) -> Result<()>) -> Result<()> {
    let mut archive = Archive::new(BufReader::new(File::open(path)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_symlink() || kind.is_hard_link()) {
            continue;
        }
        let name: PathBuf = entry.path()?.components().filter(|part| *part != Component::CurDir).collect();
        ensure!(is_inside(&name), "{:?} leads out of the archive", name.display());
        let kind = if kind.is_file() { EntryType::Regular } else { kind };
        take(&name, kind, &mut entry)?;
    }
    Ok(())
}

fn is_inside(name: &Path) -> bool {
    !name.as_os_str().is_empty() && name.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whoever reads the file sees the old one or the whole new one.
fn written(path: &Path, fill: impl FnOnce(&mut Builder<BufWriter<&File>>) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".incoming-").tempfile_in(parent).with_context(|| path.display().to_string())?;
    let mut tar = Builder::new(BufWriter::new(file.as_file()));
    fill(&mut tar)?;
    tar.into_inner()?.flush()?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}

fn add_file(tar: &mut Builder<impl Write>, name: &str, path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    add(tar, name, size, file)
}

/// With no time and no owner of this machine in it.
fn add(tar: &mut Builder<impl Write>, name: &str, size: u64, content: impl Read) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    Ok(tar.append_data(&mut header, name, content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layout with an image of one small layer.
    fn layout(directory: &Path) -> Layout {
        let layout = Layout::create(directory).unwrap();
        let mut tar = Builder::new(Vec::new());
        add(&mut tar, "etc/motd", 5, b"hello".as_slice()).unwrap();
        let tar = tar.into_inner().unwrap();
        let layer = layout.put_document("application/vnd.oci.image.layer.v1.tar", &tar).unwrap();
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [layer.digest]}});
        let config = layout.put_document(OCI_CONFIG, config.to_string().as_bytes()).unwrap();
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.into()),
            config,
            layers: vec![layer],
            annotations: Default::default(),
        };
        let descriptor = layout.put_document(OCI_MANIFEST, serde_json::to_string(&manifest).unwrap().as_bytes()).unwrap();
        layout.tag("1", &descriptor).unwrap();
        layout
    }

    #[test]
    fn archives_hold_the_same_image() {
        let dirs: [_; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let source = layout(dirs[0].path());
        let image = source.image(None).unwrap();
        let (oci, docker) = (dirs[0].path().join("oci.tar"), dirs[0].path().join("docker.tar"));
        pack(&source, &oci).unwrap();
        unpack(&oci, dirs[1].path()).unwrap();
        assert_eq!(Layout::open(dirs[1].path()).unwrap().image(Some("1")).unwrap().descriptor.digest, image.descriptor.digest);
        pack_docker(&source, Some("1"), Some("x.io/a:1"), &docker).unwrap();
        unpack_docker(&docker, Some("x.io/a:1"), dirs[2].path()).unwrap();
        let again = Layout::open(dirs[2].path()).unwrap().image(None).unwrap();
        assert_eq!((again.manifest.layers, again.config), (image.manifest.layers, image.config));
        let error = unpack_docker(&docker, Some("y:1"), tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
        assert!(error.contains("x.io/a:1"), "{error}");
    }

    #[test]
    fn nothing_leaves_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["../evil", "/evil", "blobs/../../evil"] {
            let path = dir.path().join("bad.tar");
            let mut header = Header::new_ustar();
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(EntryType::Regular);
            header.set_size(4);
            header.set_mode(0o644);
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend_from_slice(b"evil");
            bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
            fs::write(&path, bytes).unwrap();
            for unpacked in [unpack(&path, &dir.path().join("in")), unpack_docker(&path, None, &dir.path().join("in"))] {
                let error = format!("{:#}", unpacked.unwrap_err());
                assert!(error.contains("leads out"), "{name}: {error}");
            }
        }
        assert!(!dir.path().join("evil").exists());
    }
}
