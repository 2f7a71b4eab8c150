//! Attestation: how a guest proves what it is, and how it then receives secrets.
//!
//! - [`kbs`]: the messages of the KBS protocol 0.4.0.
//! - [`report_data`]: what the evidence signs over, so that it belongs to this key and this challenge.
//! - [`jwe`]: secrets on their way from the broker to the guest's key.
//! - [`resource`]: names of secrets, `kbs:///repository/type/tag`.
//! - [`evidence`]: what a TEE must be able to do (collect) and what a broker must know (verify); [`snp`] is AMD SEV-SNP, [`tdx`]
//!   Intel TDX, [`sample`] the development stand-in that proves nothing. Who verifies turns the feature `verify` on; the guest does without.
//! - [`images`]: which images a machine has run, in a register of its TEE where there is one.
//! - [`token`]: the attestation result as EAR; [`jwks`]: its verification by whoever relies on it.
//! - [`sealed`]: secrets that a host may carry and only an attested guest can open.
//! - [`client`]: the guest's side of the protocol, one handshake for all that a VM needs.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
pub mod efi_kernel;
pub mod event_log;
pub mod evidence;
pub mod images;
pub mod jcs;
pub mod jwe;
pub mod jwks;
pub mod kbs;
#[cfg(feature = "verify")]
pub mod measure;
pub mod mismatch;
pub mod report_data;
pub mod resource;
pub mod sample;
pub mod sealed;
pub mod snp;
pub mod tdx;
pub mod token;
pub mod tpm;
pub mod tsm;
#[cfg(feature = "verify")]
pub mod x509;

#[cfg(test)]
mod cost;
mod encoding;
mod rule_table;

pub use client::{BrokerClient, ClientError};
pub use evidence::{Attester, Claims, Details, EvidenceError, Verifier};
pub use jwe::{Jwe, JweError, TeeKey};
pub use kbs::Tee;
pub use resource::ResourceUri;
