//! Signed images: `policy.json` of containers, and signatures of cosign with a key in both of its formats.
//!
//! - [`policy`] and [`identity`]: what is wanted.
//! - [`attached`]: what there is, beside the image in its repository.
//! - [`verify`]: whether the one meets the other.
//! - [`sign`]: the owner's side.
//!
//! Certificates (Fulcio's and others) are refused where a policy wants them: they need a clock, and the guest's is the host's.

pub mod attached;
mod bundle;
pub mod identity;
mod in_layout;
pub mod key;
mod payload;
pub mod policy;
mod rekor;
pub mod sign;
pub mod verify;

pub use policy::SignaturePolicy;
pub use verify::{Document, KeyStore, SignatureError, Subject, check};
