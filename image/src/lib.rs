//! The image path of Cloister: references, registries, manifests, encrypted layers, and the unpacker. The guest pulls with it; the
//! owner's tools encrypt with it. It has no policy of its own about what may run, and dials only through the
//! [`transport::Dialer`] that it was given.
//!
//! **No byte of a layer is parsed before its digest, and for an encrypted layer its HMAC, has been verified.** So a layer passes
//! twice: [`spool::spool`] writes the blob to a file while it hashes, and [`layer::unpack_layer`] reads that file again, decrypts,
//! decompresses and unpacks it, and compares the diff_id.
//!
//! Between the passes the blob lies in the caller's file, which nobody else may change: in the guest it is on scratch, whose every block
//! is authenticated. Where it is changed all the same, the diff_id fails, and the caller removes the layer.
//!
//! # How a caller pulls
//!
//! ```ignore
//! let reference: Reference = "127.0.0.1:5000/demo:1".parse()?;
//! let registry = Registry::new(http_client, plain_http /* Vec<String> of host[:port] */, None /* Option<Credentials> */);
//!
//! // By tag or digest; the answer's bytes already match the digest where the reference has one.
//! let fetched = registry.manifest(&reference).await?;              // Fetched { bytes, media_type: Option<String>, digest }
//! let manifest = match manifest::parse_document(&fetched.bytes, fetched.media_type.as_deref())? {
//!     Document::Manifest(manifest) => manifest,
//!     Document::Index(index) => {
//!         let descriptor = index.select()?;                        // linux/amd64
//!         let bytes = registry.document(&reference, descriptor).await?; // or from the courier, then descriptor.verify(&bytes)?
//!         manifest::parse_manifest(&bytes, Some(&descriptor.media_type))?
//!     }
//! };
//! let config = ImageConfig::parse(&registry.blob_bytes(&reference, &manifest.config).await?)?;
//! let plans = plan::plan_layers(&manifest, &config)?;              // Vec<LayerPlan>, lowest first
//!
//! for plan in &plans {
//!     let key: Option<LayerKey> = match &plan.envelope {
//!         None => None,
//!         Some(envelope) => {
//!             let packet = envelope.packets().first()              // never empty
//!             let kek = Kek::from_bytes(&broker.resource(&packet.key_id().parse()?).await?)?;
//!             Some(envelope.open(packet, &kek)?)
//!         }
//!     };
//!     let reader = registry.blob(&reference, &plan.descriptor).await?; // any AsyncRead: the courier's stream will do
//!     let file: std::fs::File = spool::spool(reader, plan, key.as_ref(), scratch_file).await?; // rewound
//!     // On a blocking thread. `root` is an empty directory; on an error the caller removes it.
//!     let stats = layer::unpack_layer(file, plan, key.as_ref(), root, &Limits::default())?;
//! }
//! // When all are unpacked: give directories that a layer implied but did not describe the look they have below.
//! unpack::adopt_parents(&[(layer0_root, &stats0.implied), (layer1_root, &stats1.implied)])?; // lowest first
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod ahead;
pub mod config;
pub mod decrypt;
pub mod digest;
pub mod encrypt;
pub mod layer;
pub mod layout;
pub mod local;
pub mod manifest;
pub mod media_type;
pub mod ocicrypt;
pub mod plan;
pub mod reference;
pub mod registry;
pub mod signature;
pub mod spool;
pub mod strict_json;
pub mod unpack;

#[cfg(test)]
mod testing;

pub use plan::LayerPlan;
pub use reference::Reference;
