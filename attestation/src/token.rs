//! The attestation result: an EAR (draft-ietf-rats-ear) in a JWT signed with ES256, in the form that Trustee writes and reads. The
//! header carries the verifier's public key as `jwk` and its `kid`; who relies on a token compares it with the key that it knows, or takes
//! that from the broker's JWK set ([`crate::jwks`]).
//!
//! `affirming` is for a processor whose maker's signature was verified. Evidence of type `sample`, and of a TPM, gets `contraindicated`: not
//! "nothing is known", which a careless reader might take for no objection, but a reason to refuse, with the hardware claim 97 (AR4SI:
//! hardware that is not recognised). A host can emulate a TPM, nobody vouches for its key, and the rule that names it stays at the broker;
//! who knows whose key that is finds it in the claims (`tpm.ak`). A broker in development marks every token, whatever the TEE, with
//! `cloister.development: true`.

use crate::{
    encoding::{from_url, url},
    evidence::Claims,
    jwe,
    kbs::{Tee, TeePublicKey},
};
use p256::{
    SecretKey,
    ecdsa::{
        Signature, SigningKey, VerifyingKey,
        signature::{Signer, Verifier},
    },
    elliptic_curve::Generate,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// Longest token that is read, in bytes.
const MAX_TOKEN: usize = 64 * 1024;

/// The profile of the claims.
const PROFILE: &str = "tag:github.com,2024:confidential-containers/Trustee";

/// The only signature algorithm.
const ALGORITHM: &str = "ES256";

/// Why a token does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// It is not such a token.
    #[error("token: {0}")]
    Malformed(String),
    /// Not signed by the key that is relied on.
    #[error("token: not signed by this broker")]
    Signature,
    /// Too old.
    #[error("token: expired at {0} (seconds since 1970)")]
    Expired(u64),
    /// The kernel gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ear {
    /// Seconds since 1970.
    pub issued: u64,
    /// Seconds since 1970.
    pub expires: u64,
    /// The mark of a broker in development.
    pub development: bool,
    /// What the evidence proved.
    pub claims: Claims,
    /// The guest's key, to which secrets are encrypted.
    pub key: TeePublicKey,
}

/// Signs tokens.
pub struct TokenSigner(SigningKey);

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner").finish_non_exhaustive()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: String,
}

/// The parts of the claims that are read back.
#[derive(Debug, Deserialize)]
struct Body {
    iat: u64,
    exp: u64,
    #[serde(rename = "cloister.development", default)]
    development: bool,
    submods: Submods,
}

#[derive(Debug, Deserialize)]
struct Submods {
    cpu0: Submod,
}

#[derive(Debug, Deserialize)]
struct Submod {
    #[serde(rename = "ear.veraison.annotated-evidence")]
    evidence: Annotated,
}

#[derive(Debug, Deserialize)]
struct Annotated {
    runtime_data_claims: RuntimeClaims,
    #[serde(rename = "cloister.claims")]
    claims: Claims,
}

#[derive(Debug, Deserialize)]
struct RuntimeClaims {
    #[serde(rename = "tee-pubkey")]
    tee_pubkey: TeePublicKey,
}

impl TokenSigner {
    /// A new key.
    pub fn generate() -> Result<Self, TokenError> {
        SigningKey::try_generate().map(Self).map_err(|e| TokenError::Random(e.to_string()))
    }

    /// A key that was stored by [`TokenSigner::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenError> {
        let bad = |_| TokenError::Malformed("stored signing key".into());
        Ok(Self(SigningKey::from(SecretKey::from_slice(bytes).map_err(bad)?)))
    }

    /// The private key, for storing.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.to_bytes().to_vec())
    }

    /// The public key as JWK.
    pub fn jwk(&self) -> Value {
        let point = self.0.verifying_key().to_sec1_point(false);
        let bytes = point.as_bytes();
        let (x, y) = (url(&bytes[1..33]), url(&bytes[33..65]));
        let kid = thumbprint(&x, &y);
        json!({"kty": "EC", "crv": "P-256", "alg": ALGORITHM, "use": "sig", "kid": kid, "x": x, "y": y})
    }

    /// The public key.
    pub fn verifying_key(&self) -> &VerifyingKey {
        self.0.verifying_key()
    }

    /// The token of one handshake.
    pub fn sign(&self, ear: &Ear, nonce: &str) -> String {
        let vouched_for = matches!(ear.claims.tee, Tee::Snp | Tee::Tdx);
        let hardware = if vouched_for { 2 } else { 97 };
        // A guest in debugging is genuine, and whoever relies on its token has nothing of that.
        let debug = ear.claims.is_debug();
        let status = if vouched_for && !debug { "affirming" } else { "contraindicated" };
        let configuration = if debug { 96 } else { 0 };
        let body = json!({
            "eat_profile": PROFILE,
            "iat": ear.issued,
            "exp": ear.expires,
            "iss": "cloister",
            "ear.verifier-id": {"build": concat!("cloister ", env!("CARGO_PKG_VERSION")), "developer": "cloister"},
            "cloister.development": ear.development,
            "submods": {"cpu0": {
                "ear.status": status,
                "ear.trustworthiness-vector": {
                    "instance-identity": 0, "configuration": configuration, "executables": 0, "file-system": 0,
                    "hardware": hardware, "runtime-opaque": 0, "storage-opaque": 0, "sourced-data": 0,
                },
                "ear.appraisal-policy-id": "cloister-release-rules",
                "ear.veraison.annotated-evidence": {
                    "init_data": hex::encode(&ear.claims.init_data),
                    "report_data": hex::encode(&ear.claims.report_data),
                    "runtime_data_claims": {"nonce": nonce, "tee-pubkey": ear.key},
                    ear.claims.tee.to_string(): {"launch_measurement": hex::encode(&ear.claims.launch_measurement)},
                    "cloister.claims": ear.claims,
                },
            }},
        });
        let jwk = self.jwk();
        let header = json!({"alg": ALGORITHM, "typ": "JWT", "kid": jwk["kid"], "jwk": jwk});
        let signed = format!("{}.{}", url(header.to_string().as_bytes()), url(body.to_string().as_bytes()));
        let signature: Signature = self.0.sign(signed.as_bytes());
        format!("{signed}.{}", url(&signature.to_bytes()))
    }
}

/// The name of a P-256 key: its JWK thumbprint (RFC 7638) with SHA-256.
pub(crate) fn thumbprint(x: &str, y: &str) -> String {
    // Base64url needs no escapes.
    url(&Sha256::digest(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#)))
}

/// The claims of a token that `key` signed, whoever wrote it, and its header.
pub(crate) fn signed(token: &str, key: &VerifyingKey) -> Result<Value, TokenError> {
    let malformed = |what: &str| TokenError::Malformed(what.to_owned());
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed("not a JWT"))?;
    let (_, body) = signed.split_once('.').ok_or_else(|| malformed("not a JWT"))?;
    let signature = from_url(signature).and_then(|bytes| Signature::from_slice(&bytes).ok()).ok_or(TokenError::Signature)?;
    key.verify(signed.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;
    let body = from_url(body).ok_or_else(|| malformed("claims are not base64url"))?;
    serde_json::from_slice(&body).map_err(|e| malformed(&format!("claims: {e}")))
}

/// The header of a token, before anything of it is believed.
pub(crate) fn header(token: &str) -> Result<Value, TokenError> {
    let malformed = |what: &str| TokenError::Malformed(what.to_owned());
    if token.len() > MAX_TOKEN {
        return Err(malformed("too long"));
    }
    let header = token.split('.').next().and_then(from_url).ok_or_else(|| malformed("header is not base64url"))?;
    let header: Value = serde_json::from_slice(&header).map_err(|e| malformed(&format!("header: {e}")))?;
    if header["alg"] != ALGORITHM {
        return Err(malformed("signed by something else than ES256"));
    }
    Ok(header)
}

/// Reads a token of ours that `key` signed and that has not expired `now` (seconds since 1970). The `jwk` in its header decides
/// nothing: a forger would put his own there.
pub fn verify(token: &str, key: &VerifyingKey, now: u64) -> Result<Ear, TokenError> {
    let malformed = |what: &str| TokenError::Malformed(what.to_owned());
    if token.len() > MAX_TOKEN {
        return Err(malformed("too long"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed("not a JWT"))?;
    let (header, body) = signed.split_once('.').ok_or_else(|| malformed("not a JWT"))?;
    let header = from_url(header).ok_or_else(|| malformed("header is not base64url"))?;
    let header: Header = serde_json::from_slice(&header).map_err(|e| malformed(&format!("header: {e}")))?;
    if header.alg != ALGORITHM {
        return Err(malformed("signed by something else than ES256"));
    }
    let signature = from_url(signature).and_then(|bytes| Signature::from_slice(&bytes).ok()).ok_or(TokenError::Signature)?;
    key.verify(signed.as_bytes(), &signature).map_err(|_| TokenError::Signature)?;

    let body = from_url(body).ok_or_else(|| malformed("claims are not base64url"))?;
    let body: Body = serde_json::from_slice(&body).map_err(|e| malformed(&format!("claims: {e}")))?;
    if body.exp <= now {
        return Err(TokenError::Expired(body.exp));
    }
    let Annotated { runtime_data_claims: RuntimeClaims { tee_pubkey }, claims } = body.submods.cpu0.evidence;
    jwe::check_key(&tee_pubkey).map_err(|e| malformed(&e.to_string()))?;
    Ok(Ear { issued: body.iat, expires: body.exp, development: body.development, claims, key: tee_pubkey })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{evidence::Details, jwe::TeeKey};

    fn ear(tee: Tee) -> Ear {
        let claims =
            Claims { tee, launch_measurement: vec![1; 48], init_data: vec![2; 32], report_data: vec![3; 48], details: Details::None };
        Ear { issued: 1000, expires: 1300, development: true, claims, key: TeeKey::generate().unwrap().public() }
    }

    fn body(token: &str) -> Value {
        serde_json::from_slice(&from_url(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_token_is_read_back_until_it_expires() {
        let signer = TokenSigner::generate().unwrap();
        let ear = ear(Tee::Sample);
        let token = signer.sign(&ear, "nonce");
        assert_eq!(verify(&token, signer.verifying_key(), 1299).unwrap(), ear);
        assert_eq!(verify(&token, signer.verifying_key(), 1300), Err(TokenError::Expired(1300)));
        let same = TokenSigner::from_bytes(&signer.to_bytes()).unwrap();
        assert!(verify(&token, same.verifying_key(), 1299).is_ok());
    }

    #[test]
    fn sample_evidence_is_never_affirming_and_development_is_visible() {
        let signer = TokenSigner::generate().unwrap();
        let sample = body(&signer.sign(&ear(Tee::Sample), "n"));
        assert_eq!(sample["submods"]["cpu0"]["ear.status"], "contraindicated");
        assert_eq!(sample["submods"]["cpu0"]["ear.trustworthiness-vector"]["hardware"], 97);
        assert_eq!(sample["cloister.development"], true);
        assert!(sample["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["sample"].is_object());
        let real = body(&signer.sign(&ear(Tee::Snp), "n"));
        assert_eq!(real["submods"]["cpu0"]["ear.status"], "affirming");
        assert_eq!(real["cloister.development"], true, "a broker in development marks every token");
    }

    #[test]
    fn only_hardware_that_its_maker_vouches_for_is_affirming() {
        let signer = TokenSigner::generate().unwrap();
        let all = [
            (Tee::Snp, "affirming", 2),
            (Tee::Tdx, "affirming", 2),
            (Tee::Tpm, "contraindicated", 97),
            (Tee::Sample, "contraindicated", 97),
            (Tee::SampleDevice, "contraindicated", 97),
            (Tee::AzSnpVtpm, "contraindicated", 97),
            (Tee::Cca, "contraindicated", 97),
        ];
        for (tee, status, hardware) in all {
            let production = Ear { development: false, ..ear(tee) };
            let token = body(&signer.sign(&production, "n"));
            let cpu = &token["submods"]["cpu0"];
            assert_eq!((&cpu["ear.status"], &cpu["ear.trustworthiness-vector"]["hardware"]), (&json!(status), &json!(hardware)), "{tee}");
        }
    }

    #[test]
    fn a_key_of_ones_own_in_the_header_does_not_help() {
        let (ours, forger) = (TokenSigner::generate().unwrap(), TokenSigner::generate().unwrap());
        let forged = forger.sign(&ear(Tee::Snp), "n");
        assert_eq!(verify(&forged, ours.verifying_key(), 1000), Err(TokenError::Signature));
    }

    #[test]
    fn a_changed_token_is_refused() {
        let signer = TokenSigner::generate().unwrap();
        let token = signer.sign(&ear(Tee::Sample), "n");
        let parts: Vec<&str> = token.split('.').collect();
        let changed = String::from_utf8(from_url(parts[1]).unwrap()).unwrap().replace("\"exp\":1300", "\"exp\":9999");
        let changed = format!("{}.{}.{}", parts[0], url(changed.as_bytes()), parts[2]);
        assert_eq!(verify(&changed, signer.verifying_key(), 1000), Err(TokenError::Signature));
        let none = format!("{}.{}.", url(br#"{"alg":"none"}"#), parts[1]);
        for bad in ["", "a", "a.b", "a.b.c", "..", &none, &"A".repeat(MAX_TOKEN + 1)] {
            assert!(verify(bad, signer.verifying_key(), 1000).is_err(), "{bad:.40}");
        }
    }
}
