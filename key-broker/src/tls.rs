//! TLS of the broker: rustls on ring, 1.2 and 1.3, no client certificates: guests show evidence, and the administrator a key.

use std::{fs, io, path::Path, path::PathBuf, sync::Arc};
use thiserror::Error;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What is in it.
    #[error("{path}: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// From PEM files: the certificate with its chain, and its key.
pub fn server(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let read = |path: &Path| fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source });
    let content = |path: &Path, reason: String| TlsError::Content { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|e| content(certificate, e.to_string()))?;
    if chain.is_empty() {
        return Err(content(certificate, "no certificate in it".into()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| content(key, format!("no private key: {e}")))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
    let config = config.map_err(|e| content(certificate, e.to_string()))?.with_no_client_auth().with_single_cert(chain, secret);
    Ok(TlsAcceptor::from(Arc::new(config.map_err(|e| content(key, format!("does not fit the certificate: {e}")))?)))
}
