//! AMD SEV-SNP: the attestation report, how a guest gets one, and what a verifier makes of it.
//!
//! The format is that of AMD's "SEV Secure Nested Paging Firmware ABI Specification" (publication 56860), section 7.3; the certificates
//! are those of "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (publication 57230).
//!
//! - [`report`]: the report, from bytes and to bytes, and in the JSON form that Trustee reads.
//! - [`cert_table`]: the certificates that a host hands to its guest beside a report.
//! - [`evidence`]: report and certificates as the guest sends them.
//! - [`attester`] and [`device`]: how a guest collects it.
//! - [`claims`]: what a genuine report says, and [`requirements`]: what an owner may demand of it.
//! - `roots`, `vek`, `store`, `verify` (feature `verify`): AMD's certificates, a chip's key, where to find it, and the verification.

pub mod attester;
pub mod cert_table;
pub mod claims;
pub mod device;
pub mod evidence;
pub mod report;
pub mod requirements;

#[cfg(feature = "verify")]
pub mod roots;
#[cfg(feature = "verify")]
pub mod store;
#[cfg(all(feature = "verify", any(test, feature = "testing")))]
pub mod testing;
#[cfg(feature = "verify")]
pub mod vek;
#[cfg(feature = "verify")]
mod verify;

pub use attester::SnpAttester;
pub use claims::{Generation, SigningKey, SnpClaims};
pub use report::{Report, ReportError, Tcb};
pub use requirements::Requirements;
#[cfg(feature = "verify")]
pub use verify::SnpVerifier;
