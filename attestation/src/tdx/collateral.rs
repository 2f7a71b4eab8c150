//! What Intel says about its platforms: the versions that it thinks well of, its quoting enclave, and what it has revoked. All of it
//! is signed, none of it travels with a quote, and each part is valid for about a month.
//!
//! It comes from memory, from a directory (`<fmspc>-<ca>.json`, an administrator's or what was fetched), or from Intel's service or a
//! cache of it in the same form (PCCS). What is found is verified with the quote; what has run out is fetched anew.

use bytes::Bytes;
use dcap_qvl::QuoteCollateralV3;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::time::timeout;
use transport::{HttpClient, read_body};

/// Intel's provisioning certification service.
pub const INTEL_SERVICE: &str = "https://api.trustedservices.intel.com";

/// Where Intel publishes what its root has revoked.
const ROOT_CRL: &str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der";

/// Longest file or answer, in bytes.
const MAX_DOCUMENT: usize = 1 << 20;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Platforms kept in memory.
const MAX_REMEMBERED: usize = 256;

/// Why there is no collateral.
#[derive(Debug, Error)]
pub enum CollateralError {
    /// The directory.
    #[error("collateral {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nobody to ask.
    #[error("no collateral for platform {fmspc}, and no service to ask; put it at {path}")]
    Offline {
        /// Hexadecimal.
        fmspc: String,
        /// Where it would be found.
        path: String,
    },
    /// The service.
    #[error("{url}: {reason}")]
    Service {
        /// What was asked.
        url: String,
        /// How it failed.
        reason: String,
    },
}

/// Which platform.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// 6 bytes in hexadecimal.
    pub fmspc: String,
    /// `platform` or `processor`: who signed the platform's key.
    pub ca: &'static str,
}

impl Platform {
    fn file(&self) -> String {
        format!("{}-{}.json", self.fmspc, self.ca)
    }
}

/// The store.
#[derive(Debug, Default)]
pub struct CollateralStore {
    directory: Option<PathBuf>,
    service: Option<(String, HttpClient)>,
    remembered: Mutex<HashMap<Platform, Arc<QuoteCollateralV3>>>,
    /// One question at a time.
    turn: tokio::sync::Mutex<()>,
}

/// The part of an answer that is signed, byte for byte, and its signature.
#[derive(Deserialize)]
struct Signed<'a> {
    #[serde(borrow, alias = "tcbInfo", alias = "enclaveIdentity")]
    body: &'a RawValue,
    signature: String,
}

impl CollateralStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks here too, and keeps here what is fetched.
    #[must_use]
    pub fn with_directory(self, directory: PathBuf) -> Self {
        Self { directory: Some(directory), ..self }
    }

    /// Asks this service: [`INTEL_SERVICE`], or a cache of it.
    #[must_use]
    pub fn with_service(self, url: &str, http: HttpClient) -> Self {
        Self { service: Some((url.trim_end_matches('/').to_owned(), http)), ..self }
    }

    /// What is at hand, without asking anybody.
    pub fn find(&self, platform: &Platform) -> Result<Option<Arc<QuoteCollateralV3>>, CollateralError> {
        if let Some(found) = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(platform) {
            return Ok(Some(found.clone()));
        }
        let Some(path) = self.directory.as_ref().map(|directory| directory.join(platform.file())) else { return Ok(None) };
        let failed = |source| CollateralError::File { path: path.clone(), source };
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(metadata) if metadata.len() > MAX_DOCUMENT as u64 => return Err(failed(io::Error::other("longer than 1 MiB"))),
            Ok(_) => {}
        }
        let text = fs::read(&path).map_err(failed)?;
        let collateral = parse(&text).map_err(|e| failed(io::Error::other(e.to_string())))?;
        Ok(Some(self.remember(platform, collateral)))
    }

    /// Puts collateral in, for whoever has it from elsewhere.
    pub fn remember(&self, platform: &Platform, collateral: QuoteCollateralV3) -> Arc<QuoteCollateralV3> {
        let collateral = Arc::new(collateral);
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(platform.clone(), collateral.clone());
        collateral
    }

    /// Asks the service, unless `is_good` already takes what somebody else has fetched meanwhile.
    pub async fn fetch(&self, platform: &Platform, is_good: impl Fn(&QuoteCollateralV3) -> bool) -> Result<(), CollateralError> {
        let Some((url, http)) = &self.service else {
            let directory = self.directory.as_deref().unwrap_or(Path::new("<collateral directory>"));
            let path = directory.join(platform.file()).display().to_string();
            return Err(CollateralError::Offline { fmspc: platform.fmspc.clone(), path });
        };
        let _turn = self.turn.lock().await;
        if self.find(platform)?.is_some_and(|found| is_good(&found)) {
            return Ok(());
        }
        let collateral = download(url, http, platform).await?;
        if let Some(directory) = &self.directory
            && let Err(error) = write(&directory.join(platform.file()), &collateral)
        {
            log::warn!("{error}");
        }
        self.remember(platform, collateral);
        Ok(())
    }
}

/// Collateral in the JSON form that `dcap-qvl` and its cache use: bytes in hexadecimal.
pub fn parse(text: &[u8]) -> Result<QuoteCollateralV3, serde_json::Error> {
    #[derive(Deserialize)]
    struct Document {
        pck_crl_issuer_chain: String,
        #[serde(with = "hex::serde")]
        root_ca_crl: Vec<u8>,
        #[serde(with = "hex::serde")]
        pck_crl: Vec<u8>,
        tcb_info_issuer_chain: String,
        tcb_info: String,
        #[serde(with = "hex::serde")]
        tcb_info_signature: Vec<u8>,
        qe_identity_issuer_chain: String,
        qe_identity: String,
        #[serde(with = "hex::serde")]
        qe_identity_signature: Vec<u8>,
    }
    let d: Document = serde_json::from_slice(text)?;
    Ok(QuoteCollateralV3 {
        pck_crl_issuer_chain: d.pck_crl_issuer_chain,
        root_ca_crl: d.root_ca_crl,
        pck_crl: d.pck_crl,
        tcb_info_issuer_chain: d.tcb_info_issuer_chain,
        tcb_info: d.tcb_info,
        tcb_info_signature: d.tcb_info_signature,
        qe_identity_issuer_chain: d.qe_identity_issuer_chain,
        qe_identity: d.qe_identity,
        qe_identity_signature: d.qe_identity_signature,
        // The chain of the platform's key is the quote's own.
        pck_certificate_chain: None,
    })
}

async fn download(url: &str, http: &HttpClient, platform: &Platform) -> Result<QuoteCollateralV3, CollateralError> {
    let Platform { fmspc, ca } = platform;
    let (tcb, tcb_headers) = get(http, &format!("{url}/tdx/certification/v4/tcb?fmspc={fmspc}")).await?;
    let (qe, qe_headers) = get(http, &format!("{url}/tdx/certification/v4/qe/identity")).await?;
    let crl_url = format!("{url}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der");
    let (pck_crl, crl_headers) = get(http, &crl_url).await?;
    // A cache has the root's too, in hexadecimal; Intel's service has it elsewhere.
    let root_ca_crl = if url == INTEL_SERVICE {
        get(http, ROOT_CRL).await?.0
    } else {
        let url = format!("{url}/sgx/certification/v4/rootcacrl");
        let (text, _) = get(http, &url).await?;
        hex::decode(text.trim_ascii()).map_err(|_| CollateralError::Service { url, reason: "the CRL is not hexadecimal".into() })?
    };
    let signed = |what: &str, bytes: &[u8]| {
        let failed = |reason: String| CollateralError::Service { url: format!("{url} ({what})"), reason };
        let Signed { body, signature } = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
        let signature = hex::decode(signature).map_err(|_| failed("the signature is not hexadecimal".into()))?;
        Ok::<_, CollateralError>((body.get().to_owned(), signature))
    };
    let chain = |headers: &HeaderMap, names: &[&str]| {
        let value = names.iter().find_map(|name| headers.get(*name)?.to_str().ok());
        let missing = || CollateralError::Service { url: url.to_owned(), reason: format!("no header {}", names[0]) };
        value.map(percent_decoded).ok_or_else(missing)
    };
    let (tcb_info, tcb_info_signature) = signed("tcb", &tcb)?;
    let (qe_identity, qe_identity_signature) = signed("qe/identity", &qe)?;
    Ok(QuoteCollateralV3 {
        pck_crl_issuer_chain: chain(&crl_headers, &["SGX-PCK-CRL-Issuer-Chain"])?,
        root_ca_crl,
        pck_crl,
        tcb_info_issuer_chain: chain(&tcb_headers, &["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"])?,
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: chain(&qe_headers, &["SGX-Enclave-Identity-Issuer-Chain"])?,
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: None,
    })
}

async fn get(http: &HttpClient, url: &str) -> Result<(Vec<u8>, HeaderMap), CollateralError> {
    let failed = |reason: String| CollateralError::Service { url: url.to_owned(), reason };
    let request = http::Request::get(url).body(Bytes::new()).map_err(|e| failed(e.to_string()))?;
    let exchange = async {
        let (parts, body) = http.send(request).await.map_err(|e| failed(e.to_string()))?.into_parts();
        if parts.status != StatusCode::OK {
            return Err(failed(format!("answers {}", parts.status)));
        }
        let body = read_body(body, MAX_DOCUMENT).await.map_err(|e| failed(e.to_string()))?;
        Ok((body.to_vec(), parts.headers))
    };
    let answer = timeout(ANSWER_TIMEOUT, exchange).await;
    answer.map_err(|_| failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?
}

/// A header's PEM, in which line ends and more are written as `%0A`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| others.get(..2)).flatten().and_then(|digits| hex::decode(digits).ok());
        rest = match escaped {
            Some(byte) => {
                bytes.extend(byte);
                &others[2..]
            }
            None => {
                bytes.push(*first);
                others
            }
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Under another name first: a reader finds the whole file or none.
fn write(path: &Path, collateral: &QuoteCollateralV3) -> Result<(), CollateralError> {
    let failed = |source| CollateralError::File { path: path.to_owned(), source };
    let text = serde_json::json!({
        "pck_crl_issuer_chain": collateral.pck_crl_issuer_chain,
        "root_ca_crl": hex::encode(&collateral.root_ca_crl),
        "pck_crl": hex::encode(&collateral.pck_crl),
        "tcb_info_issuer_chain": collateral.tcb_info_issuer_chain,
        "tcb_info": collateral.tcb_info,
        "tcb_info_signature": hex::encode(&collateral.tcb_info_signature),
        "qe_identity_issuer_chain": collateral.qe_identity_issuer_chain,
        "qe_identity": collateral.qe_identity,
        "qe_identity_signature": hex::encode(&collateral.qe_identity_signature),
    });
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, text.to_string()).and_then(|()| fs::rename(&partial, path)).map_err(failed)
}

#[cfg(test)]
mod tests;
