//! Recorded annotations and manifests of other implementations.
#![allow(clippy::unwrap_used)]

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{
    digest::Digest,
    manifest::parse_manifest,
    media_type::{Compression, MediaType},
    ocicrypt::{Envelope, KEYS_ANNOTATION, Kek, OcicryptError, PUBOPTS_ANNOTATION, Packet},
};
use serde_json::Value;
use std::collections::BTreeMap;

/// The key of Confidential Containers' sample key provider, public in its source (`HARDCODED_KEY`).
const SAMPLE_KEK: &str = "d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea";

fn vector(name: &str) -> Option<Vec<u8>> {
    vectors::folder().map(|folder| vectors::read(&folder.join("ocicrypt"), name))
}

#[test]
fn the_readmes_annotations_are_read() {
    let Some(bytes) = vector("coco_readme_busybox_annotations.json") else { return };
    let json: Value = serde_json::from_slice(&bytes).unwrap();
    let annotations: BTreeMap<String, String> = serde_json::from_value(json["annotations"].clone()).unwrap();
    assert!(annotations.contains_key(KEYS_ANNOTATION) && annotations.contains_key(PUBOPTS_ANNOTATION));
    let envelope = Envelope::parse(&annotations).unwrap();
    assert_eq!(envelope.packets().len(), 1);
    assert_eq!(envelope.packets()[0].key_id(), "kbs:///default/key/key_id1");
    let wrong = Kek::from_bytes(&[0; 32]).unwrap();
    assert!(matches!(envelope.open(&envelope.packets()[0], &wrong), Err(OcicryptError::WrongKey { .. })));
}

#[test]
fn the_sample_providers_packet_opens_with_its_key() {
    let Some(packet) = vector("ocicrypt-rs_sample_kbc_annotation.json") else { return };
    let public = format!(r#"{{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"{}","cipheroptions":{{}}}}"#, STANDARD.encode([0; 32]));
    let annotations =
        BTreeMap::from([(KEYS_ANNOTATION.to_owned(), STANDARD.encode(&packet)), (PUBOPTS_ANNOTATION.to_owned(), STANDARD.encode(public))]);
    let envelope = Envelope::parse(&annotations).unwrap();
    assert_eq!(envelope.packets(), [Packet::from_json(&packet).unwrap()]);
    let key = envelope.open(&envelope.packets()[0], &Kek::from_bytes(&hex::decode(SAMPLE_KEK).unwrap()).unwrap()).unwrap();
    let expected: Digest = "sha256:18be1897f9402f27c8c0eba7c86e0c00f5656db62961b5949d55f9565c42c6e7".parse().unwrap();
    assert_eq!(key.plain_digest(), expected);
}

#[test]
fn manifests_of_encrypted_images_are_read() {
    for (name, layers) in [("cimage_oci1.encrypted.json", 5), ("cimage_ociv1.encrypted.manifest.json", 3)] {
        let Some(bytes) = vector(name) else { return };
        let manifest = parse_manifest(&bytes, None).unwrap();
        assert_eq!(manifest.layers.len(), layers);
        for layer in &manifest.layers {
            let expected = MediaType::Layer { compression: Compression::Gzip, encrypted: true };
            assert_eq!(MediaType::parse(&layer.media_type), Some(expected));
        }
    }
}
