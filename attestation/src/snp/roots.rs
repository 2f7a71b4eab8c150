//! AMD's own certificates: for each generation a root, and what it signed: the issuers of chip keys and of providers' keys. They are
//! part of this program, and none that comes from elsewhere takes their place.

use crate::{
    snp::{Generation, SigningKey},
    x509::{Crl, X509, X509Error},
};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The files, each with root, issuer of VCEKs, issuer of VLEKs, and the SHA-256 of the root as AMD publishes it.
const FILES: [(Generation, &str, &str); 3] = [
    (Generation::Milan, include_str!("roots/milan.pem"), "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"),
    (Generation::Genoa, include_str!("roots/genoa.pem"), "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"),
    (Generation::Turin, include_str!("roots/turin.pem"), "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"),
];

/// The certificates in this program are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RootsError {
    /// One of them.
    #[error("root of {generation}: {source}")]
    Certificate {
        /// Which root.
        generation: Generation,
        /// The cause.
        source: X509Error,
    },
    /// The file.
    #[error("root of {generation}: its file does not hold root, VCEK issuer and VLEK issuer, or the root is not AMD's")]
    File {
        /// Which root.
        generation: Generation,
    },
}

/// Who signs the keys that sign reports.
#[derive(Debug)]
pub struct Issuer {
    /// Of which processors.
    pub generation: Generation,
    /// Which keys.
    pub signs: SigningKey,
    /// Its certificate.
    pub certificate: X509,
    root: X509,
}

impl Issuer {
    /// Whether issuer and root are valid at `now`.
    pub fn verify_time(&self, now: u64) -> Result<(), X509Error> {
        self.certificate.verify_time(now)?;
        self.root.verify_time(now)
    }

    /// Whether the root has not revoked it, by a list of the root's.
    pub fn verify_stands(&self, revocations: &Crl, now: u64) -> Result<(), X509Error> {
        revocations.verify_stands(&self.certificate, &self.root, now)
    }
}

/// All of them.
#[derive(Debug)]
pub struct Roots(Vec<Issuer>);

impl Roots {
    /// AMD's, each chain verified up to its root, and the root against the digest that AMD publishes.
    pub fn amd() -> Result<Self, RootsError> {
        let mut issuers = Vec::new();
        for (generation, file, digest) in FILES {
            issuers.extend(read(generation, file, Some(digest))?);
        }
        Ok(Self(issuers))
    }

    /// Roots of somebody else, each with its issuers of VCEKs and VLEKs in PEM: for tests. Evidence below them says nothing about hardware.
    #[cfg(any(test, feature = "testing"))]
    pub fn from_pem(files: &[(Generation, &str)]) -> Result<Self, RootsError> {
        let mut issuers = Vec::new();
        for (generation, file) in files {
            issuers.extend(read(*generation, file, None)?);
        }
        Ok(Self(issuers))
    }

    /// Who issued this certificate, by the name that it states.
    pub fn issuer(&self, certificate: &X509) -> Option<&Issuer> {
        let name = certificate.issuer();
        self.0.iter().find(|issuer| issuer.certificate.subject() == name)
    }
}

fn read(generation: Generation, file: &str, digest: Option<&str>) -> Result<[Issuer; 2], RootsError> {
    let certificate = |source| RootsError::Certificate { generation, source };
    let wrong = || RootsError::File { generation };
    let list = X509::parse_pem(file.as_bytes()).map_err(certificate)?;
    let [root, vcek, vlek] = <[X509; 3]>::try_from(list).map_err(|_| wrong())?;
    let found = hex::encode(Sha256::digest(root.der().map_err(certificate)?));
    if digest.is_some_and(|digest| digest != found) {
        return Err(wrong());
    }
    root.verify_issued_by(&root).map_err(certificate)?;
    for issuer in [&vcek, &vlek] {
        issuer.verify_issued_by(&root).map_err(certificate)?;
    }
    Ok([
        Issuer { generation, signs: SigningKey::Vcek, certificate: vcek, root: root.clone() },
        Issuer { generation, signs: SigningKey::Vlek, certificate: vlek, root },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What others have from AMD: the same certificates, each of ours in at least one file.
    #[test]
    fn others_have_the_same_certificates() {
        let Some(folder) = vectors::folder() else { return };
        let digest = |certificate: &X509| Sha256::digest(certificate.der().unwrap());
        let certificates = |text: &[u8]| X509::parse_pem(text).unwrap().iter().map(digest).collect::<Vec<_>>();
        let ours: Vec<_> = FILES.iter().flat_map(|(_, file, _)| certificates(file.as_bytes())).collect();
        let mut missing = ours.clone();
        for name in [
            "dstack_milan_ask.pem",
            "genoa_ask_ark_asvk.pem",
            "gosev_ask_ark_genoa.pem",
            "gosev_ask_ark_genoa_vlek.pem",
            "gosev_ask_ark_milan.pem",
            "gosev_ask_ark_milan_vlek.pem",
            "gosev_ask_ark_turin_vcek.pem",
            "gosev_ask_ark_turin_vlek.pem",
            "milan_ask_ark_asvk.pem",
            "turin_ask_ark_asvk.pem",
            "virtee_milan_ask_ark.pem",
            "virtee_turin_ask_ark.pem",
        ] {
            let theirs = certificates(&vectors::read(&folder.join("snp"), name));
            assert!(!theirs.is_empty() && theirs.iter().all(|one| ours.contains(one)), "{name}");
            missing.retain(|one| !theirs.contains(one));
        }
        assert!(missing.is_empty());
    }

    #[test]
    fn amds_certificates_hold_and_no_others() {
        assert_eq!(Roots::amd().unwrap().0.len(), 6);
        let [(_, milan, milan_digest), (_, genoa, genoa_digest), _] = FILES;
        assert!(
            matches!(read(Generation::Milan, milan, Some(genoa_digest)), Err(RootsError::File { .. })),
            "another root than AMD publishes"
        );
        // The issuers of one generation under the root of another.
        let root = |file: &str| file.split_inclusive("-----END CERTIFICATE-----").next().unwrap().to_owned();
        let mixed = milan.replace(&root(milan), &root(genoa));
        let error = read(Generation::Milan, &mixed, Some(genoa_digest)).unwrap_err().to_string();
        assert!(error.contains("SEV-Milan: not signed by ARK-Genoa"), "{error}");
        assert!(read(Generation::Milan, &root(milan), Some(milan_digest)).is_err());
    }
}
