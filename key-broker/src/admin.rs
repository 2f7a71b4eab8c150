//! The administrator: one key of 32 random bytes in a file, sent as a bearer token; the routes it opens; and a client for them.
//!
//! ```text
//! POST|PUT /kbs/v0/resource/<r>/<t>/<t>   the secret, raw; its rule, base64, in the header cloister-release-rule
//! DELETE   /kbs/v0/resource/<r>/<t>/<t>   secret and rule
//! PUT      /cloister/v0/rule/<r>/<t>/<t>  a rule alone
//! GET      /cloister/v0/resources         names, lengths and rules, never a secret
//! GET      /cloister/v0/refusals/<r>/<t>/<t>  why guests did not get it
//! POST     /cloister/v0/token-key         a new key for tokens
//! GET      /cloister/v0/audit             number and hash of the last line of the audit log
//! ```

mod client;
mod key;
mod routes;

pub use client::{AdminClient, AdminError};
pub use key::{AdminKeyError, AdminToken};
pub(crate) use routes::{audit_head, delete, list, put, put_rule, refusals, rotate_token_key};

/// Carries the rule of a resource in base64, beside the secret in the body: both are stored at once.
pub const RULE_HEADER: &str = "cloister-release-rule";
