//! Where a chip's certificate comes from when the host gave none, or an old one: memory, a directory, AMD's service.
//!
//! The directory is both an offline store that an administrator may fill and the cache of what was fetched:
//! `<generation>/<chip id>-<versions>.der` is written, and Trustee's `vcek/<chip id>/vcek.der` is read too; a provider's key is
//! `<generation>/vlek.der`, and what AMD's root has revoked is `<generation>/crl.der`. Nothing that is found is trusted before it is verified, and nothing is stored before either.
//!
//! AMD's service answers 429 when it is asked too often. Then nobody asks it until the time that it names is over; who is in a hurry
//! fails with a text that says so.

use crate::snp::{Generation, Report, SigningKey, Tcb, evidence::MAX_CERTIFICATE};
use bytes::Bytes;
use http::{StatusCode, header};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};
use transport::{HttpClient, read_body};

/// AMD's key distribution service.
pub const AMD_SERVICE: &str = "https://kdsintf.amd.com";

/// Certificates kept in memory; chips of a large fleet.
const MAX_REMEMBERED: usize = 4096;

/// Longest list of revoked certificates, in bytes.
const MAX_CRL: u64 = 1 << 20;

/// How long one guest's handshake may wait for AMD's service, over all attempts.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause where a 429 names none, and the longest that is believed.
const PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory.
    #[error("certificate store {path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nobody to ask.
    #[error("no certificate of chip {chip} for {tcb}, and no service to ask; put it at {path}")]
    Offline {
        /// Which, in hexadecimal.
        chip: String,
        /// Its versions.
        tcb: Tcb,
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
    /// It has been asked too often.
    #[error("{url}: asked too often; it wants to be left alone for {seconds} s")]
    Busy {
        /// What was to be asked.
        url: String,
        /// From now.
        seconds: u64,
    },
}

/// Which certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyName {
    generation: Generation,
    /// Hexadecimal; empty for a provider's key.
    chip: String,
    tcb: Tcb,
}

impl KeyName {
    /// The key that this report says it was signed with, if it was made by a processor of `generation`.
    pub fn of(report: &Report, generation: Generation, kind: SigningKey) -> Self {
        let chip = match (kind, generation) {
            (SigningKey::Vlek, _) => String::new(),
            (SigningKey::Vcek, Generation::Turin) => hex::encode(&report.chip_id[..8]),
            (SigningKey::Vcek, _) => hex::encode(report.chip_id),
        };
        Self { generation, chip, tcb: report.reported_tcb }
    }

    /// Below the directory.
    fn file(&self) -> PathBuf {
        let Tcb { fmc, bootloader, tee, snp, microcode } = self.tcb;
        let fmc = fmc.map_or_else(String::new, |fmc| format!("{fmc}-"));
        let name = match self.chip.as_str() {
            "" => "vlek.der".to_owned(),
            chip => format!("{chip}-{fmc}{bootloader}-{tee}-{snp}-{microcode}.der"),
        };
        Path::new(&self.generation.to_string()).join(name)
    }

    /// Below the service's address.
    fn url(&self) -> String {
        let Tcb { fmc, bootloader, tee, snp, microcode } = self.tcb;
        let fmc = fmc.map_or_else(String::new, |fmc| format!("fmcSPL={fmc:02}&"));
        let versions = format!("{fmc}blSPL={bootloader:02}&teeSPL={tee:02}&snpSPL={snp:02}&ucodeSPL={microcode:02}");
        format!("vcek/v1/{}/{}?{versions}", self.generation.product(), self.chip)
    }
}

/// The store.
#[derive(Debug, Default)]
pub struct CertificateStore {
    directory: Option<PathBuf>,
    service: Option<Service>,
    remembered: Mutex<HashMap<KeyName, Vec<u8>>>,
}

#[derive(Debug)]
struct Service {
    url: String,
    http: HttpClient,
    /// One question at a time: a fleet that restarts asks for a few certificates many times over. Holds the end of the pause.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

impl CertificateStore {
    /// A store of what evidence brings, and nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks here too, and keeps here what is fetched.
    #[must_use]
    pub fn with_directory(self, directory: PathBuf) -> Self {
        Self { directory: Some(directory), ..self }
    }

    /// Asks this service, [`AMD_SERVICE`] or a mirror of it.
    #[must_use]
    pub fn with_service(self, url: &str, http: HttpClient) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        Self { service: Some(Service { url, http, turn: tokio::sync::Mutex::default() }), ..self }
    }

    /// What is at hand, without asking anybody.
    pub fn find(&self, name: &KeyName) -> Result<Option<Vec<u8>>, StoreError> {
        if let Some(found) = self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(Some(found.clone()));
        }
        let Some(directory) = &self.directory else { return Ok(None) };
        let trustees = Path::new("vcek").join(&name.chip).join("vcek.der");
        let mut paths = vec![name.file()];
        paths.extend((!name.chip.is_empty()).then_some(trustees));
        for path in paths.iter().map(|path| directory.join(path)) {
            if let Some(found) = read(path, MAX_CERTIFICATE as u64)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What AMD's root of this generation has revoked, where the directory says so. Read each time: a new one counts from when it is there.
    pub fn revocations(&self, generation: Generation) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(directory) = &self.directory else { return Ok(None) };
        read(directory.join(generation.to_string()).join("crl.der"), MAX_CRL)
    }

    /// Asks the service. Verify what it gives, then [`CertificateStore::keep`] it.
    pub async fn fetch(&self, name: &KeyName) -> Result<Vec<u8>, StoreError> {
        let (Some(service), false) = (&self.service, name.chip.is_empty()) else {
            let directory = self.directory.as_deref().unwrap_or(Path::new("<certificate store>"));
            let chip = if name.chip.is_empty() { "(the provider's key)".to_owned() } else { name.chip.clone() };
            return Err(StoreError::Offline { chip, tcb: name.tcb, path: directory.join(name.file()).display().to_string() });
        };
        let url = format!("{}/{}", service.url, name.url());
        let deadline = Instant::now() + PATIENCE;
        let busy = |until: Instant| StoreError::Busy { url: url.clone(), seconds: until.duration_since(Instant::now()).as_secs().max(1) };
        // Who has waited for his turn may find what he wants.
        let Ok(mut pause) = timeout(PATIENCE, service.turn.lock()).await else { return Err(busy(deadline)) };
        if let Some(found) = self.find(name)? {
            return Ok(found);
        }
        loop {
            if let Some(until) = *pause {
                if until > deadline {
                    return Err(busy(until));
                }
                sleep_until(until).await;
            }
            *pause = match service.ask(&url).await? {
                Answer::Certificate(bytes) => return Ok(bytes),
                Answer::Wait(duration) => {
                    log::warn!(url = url, seconds = duration.as_secs(); "AMD's key service asks for a pause");
                    Some(Instant::now() + duration)
                }
            };
        }
    }

    /// Keeps a verified certificate.
    pub fn keep(&self, name: &KeyName, certificate: &[u8]) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        // Forgetting everything once in a while costs a few reads; an order of use would cost a lock on each.
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(name.clone(), certificate.to_vec());
        drop(remembered);
        if let Some(directory) = &self.directory
            && let Err(error) = write(&directory.join(name.file()), certificate)
        {
            // The verification at hand does not need the file; the next start will fetch once more.
            log::warn!("certificate store: {error}");
        }
    }
}

enum Answer {
    Certificate(Vec<u8>),
    Wait(Duration),
}

impl Service {
    async fn ask(&self, url: &str) -> Result<Answer, StoreError> {
        let failed = |reason: String| StoreError::Service { url: url.to_owned(), reason };
        let request = http::Request::get(url).body(Bytes::new()).map_err(|e| failed(e.to_string()))?;
        let exchange = async {
            let answer = self.http.send(request).await.map_err(|e| failed(e.to_string()))?;
            let (parts, body) = answer.into_parts();
            match parts.status {
                StatusCode::OK => {
                    let body = read_body(body, MAX_CERTIFICATE).await.map_err(|e| failed(e.to_string()))?;
                    Ok(Answer::Certificate(body.to_vec()))
                }
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    let named = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
                    Ok(Answer::Wait(named.map_or(PAUSE, Duration::from_secs).clamp(Duration::from_secs(1), MAX_PAUSE)))
                }
                status => Err(failed(format!("answers {status}; does this chip exist with these versions?"))),
            }
        };
        let answer = timeout(ANSWER_TIMEOUT, exchange).await;
        answer.map_err(|_| failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))?
    }
}

/// A file, if it is there.
fn read(path: PathBuf, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::metadata(&path) {
        Ok(metadata) if metadata.len() <= max => fs::read(&path).map(Some).map_err(|source| StoreError::File { path, source }),
        Ok(_) => Err(StoreError::File { path, source: io::Error::other(format!("longer than {max} bytes")) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::File { path, source }),
    }
}

/// Under another name first: a reader finds the whole file or none.
fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |source| StoreError::File { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).map_err(failed)
}

#[cfg(test)]
mod tests;
