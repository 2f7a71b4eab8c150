//! A key broker that speaks KBS 0.4.0: it keeps secrets and gives each to those guests only that its release rule describes.
//!
//! It denies by default. A secret without a rule is released to nobody; a rule says the TEE, the launch measurement and the digest of
//! the initdata, all three. Evidence of type `sample`, which proves nothing, counts only at a broker that was started with
//! [`BrokerConfig::development`], and such a broker says so in its log at each start and in each of its tokens.
//!
//! - [`rule`]: the release rules, a few lines of TOML; [`target`]: what they are about.
//! - [`store`]: secrets and rules on disk.
//! - [`admin`]: the key of the administrator, and a client.
//! - [`audit`]: what was released, refused and changed, as a chain of hashes.
//! - [`tls`], `session`, `api`, `release`, `listener`, `rate`, `refusals`, `signers`, `metrics`: the service.
//!
//! That a resource exists, and its rule, are not secrets here: a refusal names the condition that failed, what the evidence said and
//! what the rule wants. Names of keys stand in the manifests of encrypted images for all to read, and measurements are published.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod audit;
pub mod rate;
pub mod refusals;
pub mod rule;
pub mod store;
pub mod target;
pub mod tls;

mod api;
mod broker;
mod error;
mod listener;
mod metrics;
mod release;
mod session;
mod signers;
mod validity;

#[cfg(test)]
mod tests;

pub use admin::{AdminClient, AdminError, AdminToken};
pub use broker::{Broker, BrokerConfig, BrokerError};
pub use rate::Rate;
pub use refusals::Refusal;
pub use rule::{Rule, RuleError};
pub use target::Target;
