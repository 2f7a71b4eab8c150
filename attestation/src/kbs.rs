//! The messages of the KBS protocol 0.4.0, as Trustee's code has them (its prose is behind; the published crate `kbs-types` is the
//! reference). Member names mix hyphens and underscores; both are as they must be.
//!
//! ```text
//! POST /kbs/v0/auth                     Request     → Challenge, cookie
//! POST /kbs/v0/attest                   Attestation → TokenReply
//! GET  /kbs/v0/resource/<r>/<type>/<t>              → Jwe
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{fmt, str::FromStr};

/// Version of the protocol; a server compares it for equality.
pub const VERSION: &str = "0.4.0";

/// Prefix of every path of the protocol.
pub const PREFIX: &str = "/kbs/v0";

/// The cookie that carries the session.
pub const SESSION_COOKIE: &str = "kbs-session-id";

/// The hash over the runtime data where a challenge does not choose one.
pub const DEFAULT_HASH: &str = "sha384";

/// Prefix of the `type` of an error.
pub const ERROR_TYPE: &str = "https://github.com/confidential-containers/kbs/errors/";

/// The error name of a resource that is not released to this guest: a new handshake would not change it.
pub const POLICY_DENY: &str = "PolicyDeny";

/// TEEs by their names on the wire. Older types wrote the vTPM ones without hyphens; both are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// AMD SEV-SNP on Azure, behind a vTPM.
    #[serde(alias = "azsnpvtpm")]
    AzSnpVtpm,
    /// Intel TDX on Azure, behind a vTPM.
    #[serde(alias = "aztdxvtpm")]
    AzTdxVtpm,
    /// Arm CCA.
    Cca,
    /// Hygon CSV.
    Csv,
    /// Hygon DCU.
    #[serde(rename = "hygondcu", alias = "hygon-dcu")]
    HygonDcu,
    /// NVIDIA GPU.
    Nvidia,
    /// NVIDIA DPU.
    NvidiaDpu,
    /// Development only: proves nothing.
    Sample,
    /// The same for devices.
    #[serde(rename = "sampledevice", alias = "sample-device")]
    SampleDevice,
    /// IBM Secure Execution.
    Se,
    /// Intel SGX.
    Sgx,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// A TPM 2.0, virtual or not.
    Tpm,
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl FromStr for Tee {
    type Err = serde::de::value::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        use serde::de::IntoDeserializer;
        Self::deserialize(name.into_deserializer())
    }
}

/// Body of `auth`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: String,
    /// Of what kind the evidence will be.
    pub tee: Tee,
    /// `{"supported-hash-algorithms": […]}`, or nothing in particular.
    #[serde(rename = "extra-params", default)]
    pub extra_params: Value,
}

/// Answer to `auth`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Challenge {
    /// 32 random bytes in standard base64; sent back as it came.
    pub nonce: String,
    /// `""`, or `{"selected-hash-algorithm": …}`.
    #[serde(rename = "extra-params", default)]
    pub extra_params: Value,
}

/// Body of `attest`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attestation {
    /// The owner's initdata, in the clear.
    #[serde(rename = "init-data", default)]
    pub init_data: Option<InitData>,
    /// What the evidence is bound to.
    #[serde(rename = "runtime-data")]
    pub runtime_data: RuntimeData,
    /// The evidence.
    #[serde(rename = "tee-evidence")]
    pub tee_evidence: TeeEvidence,
}

/// Initdata as it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InitData {
    /// `toml`.
    pub format: String,
    /// The document, byte for byte: its digest is in the evidence.
    pub body: String,
}

/// What the evidence is bound to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuntimeData {
    /// The challenge's.
    pub nonce: String,
    /// The key that secrets are to be encrypted to.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: TeePublicKey,
}

/// An elliptic-curve JWK with exactly these members: a server hashes what it has parsed, so that any other would be lost and the
/// hash be another. This implementation reads P-256 only, the client's default everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeePublicKey {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// `ECDH-ES+A256KW`.
    pub alg: String,
    /// 32 bytes, base64url.
    pub x: String,
    /// 32 bytes, base64url.
    pub y: String,
}

/// Evidence of the CPU and, as a string of JSON, of devices.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TeeEvidence {
    /// What the TEE of `auth` reports.
    pub primary_evidence: Value,
    /// `""` without devices.
    #[serde(default)]
    pub additional_evidence: String,
}

/// Answer to `attest`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenReply {
    /// An EAR in a JWT.
    pub token: String,
}

/// Body of every answer that is not 200.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// [`ERROR_TYPE`] and a name.
    #[serde(rename = "type")]
    pub kind: String,
    /// One line for a human.
    pub detail: String,
}

impl ErrorBody {
    /// An error with this name.
    pub fn new(name: &str, detail: impl Into<String>) -> Self {
        Self { kind: format!("{ERROR_TYPE}{name}"), detail: detail.into() }
    }

    /// The name at the end of `type`.
    pub fn name(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tees_have_both_spellings() {
        let names = [
            ("az-snp-vtpm", Tee::AzSnpVtpm, "az-snp-vtpm"),
            ("azsnpvtpm", Tee::AzSnpVtpm, "az-snp-vtpm"),
            ("aztdxvtpm", Tee::AzTdxVtpm, "az-tdx-vtpm"),
            ("hygondcu", Tee::HygonDcu, "hygondcu"),
            ("nvidia-dpu", Tee::NvidiaDpu, "nvidia-dpu"),
            ("sampledevice", Tee::SampleDevice, "sampledevice"),
            ("snp", Tee::Snp, "snp"),
            ("se", Tee::Se, "se"),
            ("sample", Tee::Sample, "sample"),
        ];
        for (read, tee, written) in names {
            assert_eq!(read.parse::<Tee>().unwrap(), tee);
            assert_eq!((tee.to_string().as_str(), json!(tee)), (written, json!(written)));
        }
        assert!("SNP".parse::<Tee>().is_err());
        assert!("".parse::<Tee>().is_err());
    }

    #[test]
    fn member_names_are_those_of_the_wire() {
        let key = TeePublicKey { kty: "EC".into(), crv: "P-256".into(), alg: "a".into(), x: "x".into(), y: "y".into() };
        let attestation = Attestation {
            init_data: None,
            runtime_data: RuntimeData { nonce: "n".into(), tee_pubkey: key },
            tee_evidence: TeeEvidence { primary_evidence: json!({}), additional_evidence: String::new() },
        };
        let wanted = json!({
            "init-data": null,
            "runtime-data": {"nonce": "n", "tee-pubkey": {"kty": "EC", "crv": "P-256", "alg": "a", "x": "x", "y": "y"}},
            "tee-evidence": {"primary_evidence": {}, "additional_evidence": ""},
        });
        assert_eq!(json!(attestation), wanted);
        let request = Request { version: VERSION.into(), tee: Tee::Snp, extra_params: json!("") };
        assert_eq!(json!(request), json!({"version": "0.4.0", "tee": "snp", "extra-params": ""}));
    }

    #[test]
    fn what_a_peer_leaves_out_is_tolerated_where_the_protocol_does() {
        let challenge: Challenge = serde_json::from_value(json!({"nonce": "n", "new": 1})).unwrap();
        assert_eq!(challenge.nonce, "n");
        assert!(serde_json::from_value::<Challenge>(json!({"extra-params": ""})).is_err());
        let error: ErrorBody = serde_json::from_value(json!(ErrorBody::new(POLICY_DENY, "no"))).unwrap();
        assert_eq!((error.name(), error.detail.as_str()), ("PolicyDeny", "no"));
    }
}
