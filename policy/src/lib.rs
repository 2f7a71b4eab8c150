//! What the owner of a workload decides beforehand: the initdata whose digest is measured with the VM, and the policy in it that
//! says what the host may ask of the agent.
//!
//! - [`initdata`]: parse, digest and pack initdata 0.1.0.
//! - [`image_settings`]: how images are got and judged: signatures, credentials, mirrors, proxies, keys.
//! - [`workload`]: the typed policy and its decisions, each refusal one line; [`container`]: what each container of a pod is, exactly;
//!   [`ledger`]: which of them are there; [`explain`]: the policy in sentences.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod container;
pub mod explain;
pub mod image_settings;
pub mod initdata;
pub mod ledger;
pub mod workload;

mod allow;
mod copied;
mod digest;
mod disks;
mod rules;
mod secrets;

pub use allow::Allow;
pub use container::{ContainerRule, DEFAULT_CAPABILITIES, Image, Wanted};
pub use copied::{Copied, CopiedEntry};
pub use digest::{Algorithm, DigestError, InitdataDigest};
pub use disks::DiskRule;
pub use image_settings::{ImageSettings, ProxySettings, Text};
pub use initdata::{BrokerAddress, Initdata, InitdataError};
pub use ledger::{Ledger, PlaceId};
pub use rules::ImageRule;
pub use workload::{Denial, Overrides, Policy, PolicyError, Stdio};
