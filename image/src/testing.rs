//! What several modules' tests need.

use crate::{
    digest::Digest,
    layout::Layout,
    manifest::Descriptor,
    media_type::{Compression, OCI_CONFIG, OCI_MANIFEST},
    ocicrypt::{Envelope, Kek, LayerKey, Recipient, seal},
    plan::LayerPlan,
};
use flate2::{Compression as Level, write::GzEncoder};
use std::{collections::BTreeMap, io::Write, path::Path};
use tar::{EntryType, Header};

/// Whether this test may make device nodes, give files away and set trusted attributes; says so where it may not.
pub(crate) fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("NOT RUN: takes root");
    }
    root
}

/// The key's name in [`sealed_annotations`].
pub(crate) const KID: &str = "kbs:///default/key/1";

/// The key that opens [`sealed_annotations`].
pub(crate) fn kek() -> Kek {
    Kek::from_bytes(&[7; 32]).unwrap()
}

/// A recipient's keys: `openssl genrsa -traditional 2048`, `openssl ecparam -name prime256v1 -genkey -noout`.
pub(crate) const RSA_PRIVATE: &[u8] = include_bytes!("../tests/fixtures/jwe/rsa.pem");
pub(crate) const EC_PRIVATE: &[u8] = include_bytes!("../tests/fixtures/jwe/ec.pem");

/// Annotations of some encrypted layer.
pub(crate) fn sealed_annotations() -> BTreeMap<String, String> {
    let layer = seal(b"layer".as_slice(), &mut Vec::new(), |_| ()).unwrap();
    Envelope::annotations(&layer, &[Recipient::Broker(KID, &kek())]).unwrap()
}

/// A plan for `blob` as it is.
pub(crate) fn plain_plan(blob: &[u8]) -> LayerPlan {
    let descriptor = Descriptor::of(&Compression::None.plain_layer(), blob);
    LayerPlan { descriptor, compression: Compression::None, envelope: None, diff_id: Digest::of(blob) }
}

/// `blob` encrypted, and what opens it.
pub(crate) fn sealed_plan(blob: &[u8]) -> (Vec<u8>, LayerPlan, LayerKey) {
    let mut cipher = Vec::new();
    let layer = seal(blob, &mut cipher, |_| ()).unwrap();
    let envelope = Envelope::parse(&Envelope::annotations(&layer, &[Recipient::Broker(KID, &kek())]).unwrap()).unwrap();
    let key = envelope.open(&envelope.packets()[0], &kek()).unwrap();
    let plan = LayerPlan { envelope: Some(envelope), ..plain_plan(&cipher) };
    (cipher, LayerPlan { diff_id: Digest::of(blob), ..plan }, key)
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd_bytes(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// Writes archives, well-formed and not.
pub(crate) struct TarBuilder(Vec<u8>);

impl TarBuilder {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// One header and its data, as they are: nothing is derived but the checksum.
    pub(crate) fn raw(mut self, kind: EntryType, name: &str, link: &str, size: u64, data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        let raw = header.as_ustar_mut().unwrap();
        raw.name[..name.len()].copy_from_slice(name.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        self.push(&header, data);
        self
    }

    /// Any header.
    pub(crate) fn header(mut self, change: impl FnOnce(&mut Header), data: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(nix::unistd::geteuid().as_raw().into());
        header.set_gid(nix::unistd::getegid().as_raw().into());
        header.set_mtime(1_700_000_000);
        change(&mut header);
        header.set_cksum();
        self.push(&header, data);
        self
    }

    fn push(&mut self, header: &Header, data: &[u8]) {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(EntryType::Regular, name, "", data.len() as u64, data)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.header(
            |header| {
                header.set_path(name).unwrap();
                header.set_entry_type(EntryType::Directory);
                header.set_mode(mode);
            },
            b"",
        )
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, name, target, 0, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Link, name, target, 0, b"")
    }

    /// A PAX header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.raw(EntryType::XHeader, "PaxHeaders/x", "", data.len() as u64, &data)
    }

    /// The archive without its end.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// `<length> <key>=<value>\n`, the length counting itself.
pub(crate) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A layout with one image of the given tars, packed by gzip.
pub(crate) fn layout(path: &Path, tag: &str, tars: &[&[u8]]) -> Layout {
    layout_as(path, tag, tars, &Compression::Gzip.plain_layer(), gzip)
}

/// As [`layout`], packed by `pack`.
pub(crate) fn layout_as(path: &Path, tag: &str, tars: &[&[u8]], media_type: &str, pack: fn(&[u8]) -> Vec<u8>) -> Layout {
    let layout = Layout::create(path).unwrap();
    let layers: Vec<Descriptor> = tars.iter().map(|tar| layout.put_document(media_type, &pack(tar)).unwrap()).collect();
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let config = serde_json::json!({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/app"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = layout.put_document(OCI_CONFIG, config.to_string().as_bytes()).unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    let descriptor = layout.put_document(OCI_MANIFEST, manifest.to_string().as_bytes()).unwrap();
    layout.tag(tag, &descriptor).unwrap();
    layout
}
