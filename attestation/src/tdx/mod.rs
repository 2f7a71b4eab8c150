//! Intel TDX: the quote, how a guest gets one, and what a verifier makes of it.
//!
//! - [`evidence`]: quote and event log as the guest sends them.
//! - [`attester`], [`device`] and [`rtmr`]: how a guest collects it, and what it measures meanwhile.
//! - [`claims`]: what a genuine quote says, and [`requirements`]: what an owner may demand of it.
//! - `collateral`, `verify` (feature `verify`): what Intel says about its platforms, and the verification, by the library `dcap-qvl`.

pub mod attester;
pub mod claims;
pub mod device;
pub mod evidence;
pub mod requirements;
pub mod rtmr;

#[cfg(feature = "verify")]
pub mod collateral;
#[cfg(feature = "verify")]
mod verify;

pub use attester::TdxAttester;
pub use claims::{TcbStatus, TdxClaims};
pub use evidence::TdxEvidence;
pub use requirements::Requirements;
#[cfg(feature = "verify")]
pub use verify::TdxVerifier;
