//! What evidence is bound to: SHA-384 over the canonical JSON of challenge and key. Whoever holds the evidence but not the private
//! key gains nothing, and neither does who replays it: the broker compares the nonce with the one it has just made.

use crate::{jcs, kbs::TeePublicKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

/// Length of the digest in bytes.
pub const DIGEST_LEN: usize = 48;

/// The digest itself.
pub type ReportData = [u8; DIGEST_LEN];

/// The digest that primary evidence is bound to. `additional` is in it even when it is empty; leaving it out is the commonest
/// mistake between implementations.
pub fn primary(nonce: &str, key: &TeePublicKey, additional: &str) -> ReportData {
    digest(&json!({"additional-evidence": additional, "nonce": nonce, "tee-pubkey": key}))
}

/// The digest that a device's entry of the additional evidence is bound to.
pub fn device(nonce: &str, key: &TeePublicKey) -> ReportData {
    digest(&json!({"nonce": nonce, "tee-pubkey": key}))
}

/// The digest in the 64 bytes of SNP's REPORT_DATA and TDX's REPORTDATA: padded with zeros.
pub fn padded(digest: &ReportData) -> [u8; 64] {
    let mut out = [0; 64];
    out[..DIGEST_LEN].copy_from_slice(digest);
    out
}

fn digest(runtime_data: &Value) -> ReportData {
    // The value holds strings only, which always have a canonical form.
    let text = jcs::canonical(runtime_data).unwrap_or_default();
    Sha384::digest(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwe::vector;

    #[test]
    fn the_vectors_digests_come_out() {
        let vector = vector();
        let key: TeePublicKey = serde_json::from_value(vector["tee_pubkey_jwk"].clone()).unwrap();
        let nonce = vector["nonce"].as_str().unwrap();
        let canonical = jcs::canonical(&json!({"additional-evidence": "", "tee-pubkey": key, "nonce": nonce})).unwrap();
        assert_eq!(canonical, vector["primary_runtime_data_jcs"]);
        assert_eq!(hex::encode(primary(nonce, &key, "")), vector["primary_runtime_sha384"]);
        assert_eq!(hex::encode(device(nonce, &key)), vector["device_runtime_sha384"]);
        assert_eq!(hex::encode(padded(&primary(nonce, &key, ""))), vector["expected_report_data_64"]);
    }

    #[test]
    fn trustees_own_unit_test_comes_out() {
        let test = &vector()["trustee_unit_test"];
        assert_eq!(hex::encode(digest(&test["input"])), test["sha384"]);
    }

    #[test]
    fn every_part_is_bound() {
        let key: TeePublicKey = serde_json::from_value(vector()["tee_pubkey_jwk"].clone()).unwrap();
        let other = TeePublicKey { y: key.x.clone(), ..key.clone() };
        let one = primary("n", &key, "");
        assert_ne!(one, primary("m", &key, ""));
        assert_ne!(one, primary("n", &other, ""));
        assert_ne!(one, primary("n", &key, "{}"));
        assert_ne!(one, device("n", &key));
    }
}
